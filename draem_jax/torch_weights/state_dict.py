"""PyTorch's files of named arrays, read and written without PyTorch.

`torch.save` puts a pickle, which describes the arrays, and their numbers into
one of two containers: a zip archive, or before PyTorch 1.6 a plain stream.
"""

import errno
import io
import mmap
import os
import stat
import struct
import sys
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from draem_jax.errors import UserError
from draem_jax.torch_weights import pickle as torch_pickle
from draem_jax.torch_weights.pickle import BadFile, Storage, Tensor, short
from draem_jax.workdir import storage

Arrays = dict[str, Shaped[np.ndarray, '...']]

_ZIP_SIGNATURE = b'PK\x03\x04'
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
_DATA_PARALLEL = 'module.'
_ALIGNMENT = 64  # Of the numbers in an archive, for those who map it.


def read_state_dict(path: str | os.PathLike) -> Arrays:
  """Reads the named arrays of a file that `torch.save` wrote.

  Nothing in the file is executed. A state dict that stands in a dict under
  'state_dict', 'model_state_dict' or 'model' is found; the prefix 'module.' of
  DataParallel is removed.

  Args:
    path: Of a file in either format.

  Returns:
    Arrays by name, in the file's order and dtypes, read-only; arrays that share
    a storage in the file share memory.

  Raises:
    UserError: The file cannot be read, is damaged or is something else.
  """
  try:
    with _open(path) as file:
      start = file.read(len(_ZIP_SIGNATURE))
      if start == _ZIP_SIGNATURE:
        return _read_zip(file)
      if not start:
        raise BadFile('is empty')
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _read_stream(mapped)
  except OSError as error:
    raise UserError(
      f'{path}: cannot be read: {error.strerror or error}'
    ) from error
  except BadFile as error:
    raise UserError(f'{path}: {error}') from error
  except (
    # What zipfile and numpy raise at damaged headers and wild shapes.
    zipfile.BadZipFile,
    ArithmeticError,
    EOFError,
    RuntimeError,
    ValueError,
    struct.error,
  ) as error:
    raise UserError(
      f'{path}: is damaged or truncated: {short(str(error))}'
    ) from error


def _open(path: str | os.PathLike) -> BinaryIO:
  """Opens a file that has an end, and waits for nobody."""
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(descriptor).st_mode
  if stat.S_ISREG(mode):
    return os.fdopen(descriptor, 'rb')
  os.close(descriptor)
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
  raise BadFile('is no file')


def write_state_dict(
  path: str | os.PathLike, arrays: Mapping[str, Shaped[np.ndarray, '...']]
) -> None:
  """Writes named arrays as `torch.save` writes a state dict, as a zip archive.

  The file gets its name when it is complete.

  Args:
    path: Of the file; an existing one is replaced.
    arrays: By name, of dtypes that PyTorch has.

  Raises:
    UserError: The file cannot be written.
    ValueError: PyTorch lacks a dtype.
  """
  arrays = {k: np.asarray(a, order='C') for k, a in arrays.items()}
  root = os.path.splitext(os.path.basename(path))[0]
  try:
    with (
      storage.atomic_file(path) as file,
      zipfile.ZipFile(file, 'w') as archive,
    ):
      _add_member(archive, f'{root}/data.pkl', torch_pickle.dump(arrays))
      _add_member(archive, f'{root}/byteorder', b'little')
      for i, array in enumerate(arrays.values()):
        little = array.astype(array.dtype.newbyteorder('<'), copy=False)
        _add_member(archive, f'{root}/data/{i}', little.tobytes())
      _add_member(archive, f'{root}/version', b'3\n')
  except OSError as error:
    raise UserError(f'{path}: cannot be written: {error.strerror}') from error


def _add_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
  """Adds a member, its data aligned by padding the header's extra field."""
  info = zipfile.ZipInfo(name)
  header = 30 + len(name.encode()) + 4  # 4: the extra field's own header.
  padding = -(archive.fp.tell() + header) % _ALIGNMENT
  info.extra = b'FB' + padding.to_bytes(2, 'little') + bytes(padding)
  archive.writestr(info, data)


def _read_zip(file: BinaryIO) -> Arrays:
  archive = zipfile.ZipFile(file)
  members = {info.filename: info for info in archive.infolist()}
  programs = [n for n in members if n.split('/')[1:] == ['data.pkl']]
  if len(programs) != 1:
    raise BadFile('is a zip archive, but not of a PyTorch state dict')
  root = programs[0].removesuffix('data.pkl')
  if f'{root}constants.pkl' in members:
    raise BadFile('is a TorchScript archive; expected a state dict')
  for name, info in members.items():
    # Stored and side by side, members cannot unfold to more than the file.
    if info.compress_type != zipfile.ZIP_STORED:
      raise BadFile(f'has a compressed member {short(name)}; PyTorch has none')
  size = os.fstat(file.fileno()).st_size
  if sum(info.file_size for info in members.values()) > size:
    raise BadFile('is damaged: its members overlap')

  def read(name: str) -> bytes:
    if root + name not in members:
      raise BadFile(f'is damaged: it lacks its member {short(name)}')
    return archive.read(root + name)

  big = f'{root}byteorder' in members and read('byteorder') == b'big'
  order = 'big' if big else 'little'
  tensors = _tensors(torch_pickle.load(io.BytesIO(read('data.pkl')), {}))
  storages = {tensor.storage for tensor in tensors.values()}
  numbers = {s: _numbers(s, read(f'data/{s.key}'), order) for s in storages}
  return _views(tensors, numbers)


def _read_stream(file: mmap.mmap) -> Arrays:
  """Reads five pickles, then of each storage its size and its numbers."""
  foreign = 'is not a PyTorch file, neither a zip archive nor the older stream'
  try:
    magic = torch_pickle.load(file, {})
  except BadFile as error:
    raise BadFile(foreign) from error
  if magic != _STREAM_MAGIC:
    raise BadFile(foreign)
  storages = {}
  version, system, contents, keys = (
    torch_pickle.load(file, storages) for _ in range(4)
  )
  if version != _STREAM_VERSION or not isinstance(system, dict):
    raise BadFile(f'has another version than {_STREAM_VERSION}')
  if not isinstance(keys, list):
    raise BadFile(f'is damaged: {short(keys)} is no list of storages')
  order = 'big' if system.get('little_endian') is False else 'little'
  tensors = _tensors(contents)

  numbers = {}
  for key in keys:
    # A key that is no string could be nested too deep to be looked up.
    storage = storages.get(key) if isinstance(key, str) else None
    size = int.from_bytes(file.read(8), order)
    if storage is None or storage.size != size:
      raise BadFile(f'is damaged or truncated at storage {short(key)}')
    data = file.read(size * storage.dtype.itemsize)
    numbers[storage] = _numbers(storage, data, order)
  return _views(tensors, numbers)


def _numbers(
  storage: Storage, data: bytes, order: str
) -> Shaped[np.ndarray, '{storage.size}']:
  """Returns the numbers of a storage from their bytes."""
  if len(data) != storage.size * storage.dtype.itemsize:
    raise BadFile(
      f'is damaged: storage {short(storage.key)} has {len(data)} bytes; '
      f'expected {storage.size} numbers of {storage.dtype}'
    )
  words = np.frombuffer(data, f'u{storage.dtype.itemsize}')
  words = words if order == sys.byteorder else words.byteswap()
  return words.view(storage.dtype)


def _tensors(contents: Any) -> dict[str, Tensor]:
  """Returns the state dict that a file consists of or has among others."""
  for wrapper in _WRAPPERS:
    if isinstance(contents, dict) and isinstance(contents.get(wrapper), dict):
      contents = contents[wrapper]
  if not isinstance(contents, dict) or not contents:
    raise BadFile(f'holds {short(contents)}; expected a state dict')
  for name, value in contents.items():
    if not isinstance(name, str) or not isinstance(value, Tensor):
      raise BadFile(
        f'is no state dict: {short(name)} is {short(value)}, not an array'
      )
  if not all(name.startswith(_DATA_PARALLEL) for name in contents):
    return contents
  return {
    name.removeprefix(_DATA_PARALLEL): tensor
    for name, tensor in contents.items()
  }


def _views(
  tensors: dict[str, Tensor], numbers: dict[Storage, Shaped[np.ndarray, 'n']]
) -> Arrays:
  """Returns the arrays that tensors are of their storages' numbers."""
  arrays = {}
  for name, tensor in tensors.items():
    if tensor.storage not in numbers:
      raise BadFile(f'is damaged: it lacks storage {short(tensor.storage.key)}')
    base = numbers[tensor.storage]
    # Within bounds: `torch_pickle` has compared shape and storage.
    arrays[name] = np.lib.stride_tricks.as_strided(
      base[tensor.offset :],
      tensor.shape,
      [stride * base.itemsize for stride in tensor.strides],
      writeable=False,
    )
  return arrays
