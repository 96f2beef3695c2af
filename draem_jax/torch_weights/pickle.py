"""The pickles inside PyTorch's files, read without executing anything.

A pickle is a program. The standard library runs it here, without the
instructions that no state dict consists of, and names stand for what this
module says, not for what Python would import.
"""

import dataclasses
import io
import math
import mmap
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

DTYPES = {
  'FloatStorage': np.dtype(np.float32),
  'DoubleStorage': np.dtype(np.float64),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
}
# Both read what is left where more is asked for, and allocate no more.
Stream = io.BytesIO | mmap.mmap

_STORAGE_CLASSES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_AXES = 32


class BadFile(Exception):
  """What is wrong with a file, as the end of a sentence about it."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """A block of numbers, to be found under `key` in the file around."""

  key: str
  dtype: np.dtype
  size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset and strides count numbers, not bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def load(stream: Stream, storages: dict[str, Storage]) -> Any:
  """Runs one pickle.

  Args:
    stream: file that is read up to the end of the pickle.
    storages: place where the blocks of numbers that the pickle refers to are
      added.

  Returns:
    What the pickle builds: dicts, lists, tuples, `Tensor`s and plain values.

  Raises:
    BadFile: The pickle is damaged or asks for something else.
  """
  try:
    return _Unpickler(stream, storages).load()
  except (
    # What instructions raise that a damaged file applies to the wrong things.
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
  ) as error:
    raise BadFile(f'is damaged or truncated: {short(str(error))}') from error


def short(value: Any) -> str:
  """Returns a value out of a file as a piece of a one-line message."""
  # A dict or list may contain itself, or unfold to more than memory holds.
  if not isinstance(value, str | float | bool | None):
    return f'{type(value).__name__}'
  text = ascii(value[:80] if isinstance(value, str) else value)
  return text if len(text) <= 80 else f'{text[:77]}...'


def _ordered_dict() -> dict:
  return {}


def _tensor(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  _requires_grad: Any = None,
  _backward_hooks: Any = None,
  _metadata: Any = None,
) -> Tensor:
  if not isinstance(storage, Storage):
    raise BadFile(f'makes an array of {short(storage)}; expected a storage')
  if not all(map(_are_sizes, ((offset,), shape, strides))) or (
    len(shape) != len(strides)
  ):
    raise BadFile('is damaged: an array has a bad shape or stride')
  steps = zip(shape, strides, strict=True)
  last = offset + sum((n - 1) * stride for n, stride in steps)
  # An array that repeats its numbers could outgrow any memory.
  if math.prod(shape) and (
    last >= storage.size or math.prod(shape) > storage.size
  ):
    raise BadFile(
      f'is damaged: an array of shape {list(shape)} exceeds its storage of '
      f'{storage.size} numbers'
    )
  return Tensor(storage, offset, shape, strides)


def _parameter(
  data: Any, _requires_grad: Any = None, _backward_hooks: Any = None
) -> Tensor:
  if not isinstance(data, Tensor):
    raise BadFile(f'makes a parameter of {short(data)}; expected an array')
  return data


def _are_sizes(values: Any) -> bool:
  return (
    isinstance(values, tuple)
    and len(values) <= _MAX_AXES
    and all(type(value) is int and 0 <= value < 2**62 for value in values)
  )


# All that a file can name. What it can call are functions of this module that
# trust no argument.
_NAMES = {
  'collections.OrderedDict': _ordered_dict,
  'torch._utils._rebuild_parameter': _parameter,
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  **{f'torch.{name}': dtype for name, dtype in DTYPES.items()},
}

# The instructions that are run as the standard library has them. Others would
# make objects of classes or of bytes, hash what may be nested without end, or
# take what an earlier pickle left behind.
_INSTRUCTIONS = """
  PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG
  LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE
  EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT
  BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
  BINPERSID
"""


class _Instructions(dict):
  """Functions by code."""

  def __missing__(self, code):
    known = pickletools.code2op.get(chr(code))
    name = known.name if known else f'{code:#04x}'
    raise BadFile(f'uses the pickle instruction {name}; no state dict does')


# The standard library's one in Python. That in C has no table of instructions
# to choose from: a key of deeply nested tuples overflows its stack, and a high
# place in its memo takes the memory of all places below.
class _Unpickler(pickle._Unpickler):
  """Makes what a state dict consists of, and nothing else."""

  def __init__(self, stream: Stream, storages: dict[str, Storage]):
    super().__init__(stream, encoding='latin-1')  # Python 2 wrote bytes.
    self._storages = storages

  def find_class(self, module: str, name: str) -> Any:
    full_name = f'{module}.{name}'
    if full_name not in _NAMES:
      raise BadFile(
        f'refers to {short(full_name)}; expected a state dict, which holds '
        'arrays only: `torch.save(model.state_dict(), ...)`'
      )
    return _NAMES[full_name]

  def persistent_load(self, pid: Any) -> Storage:
    """Reads ('storage', class, key, device, size[, part of another])."""
    kind, dtype, key, _, size, *view = pid
    if kind != 'storage':
      raise BadFile(f'refers to {short(kind)}; expected a storage')
    if view not in ([], [None]):
      raise BadFile(
        'has storages that overlap; save it anew with PyTorch >= 1.6'
      )
    if not isinstance(dtype, np.dtype):
      raise BadFile(f'has numbers of type {short(dtype)}; expected a class')
    if not isinstance(key, str) or not _are_sizes((size,)):
      raise BadFile(f'is damaged: storage {short(key)} has a bad size')
    storage = Storage(key, dtype, size)
    if self._storages.setdefault(key, storage) != storage:
      raise BadFile(f'is damaged: storage {short(key)} is ambiguous')
    return storage

  def load_setitem(self):
    value, key = self.stack.pop(), self.stack.pop()
    self._set_items([key, value])

  def load_setitems(self):
    self._set_items(self.pop_mark())

  def _set_items(self, items: list) -> None:
    target = self.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
      raise BadFile('is damaged: it sets items of what is no dict')
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Nested tuples would be hashed for long, and integers without bound can
      # all have the same hash.
      small = type(key) is int and 0 <= key < 2**31
      if not small and not isinstance(key, str):
        raise BadFile(f'has the key {short(key)}; expected a name')
      target[key] = value

  def load_build(self):
    self.stack.pop()  # PyTorch notes versions of modules as a dict's attribute.
    if not isinstance(self.stack[-1], dict):
      raise BadFile(f'sets attributes of {short(self.stack[-1])}')

  dispatch = _Instructions(
    (code, pickle._Unpickler.dispatch[code])
    for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
  )
  dispatch[pickle.SETITEM[0]] = load_setitem
  dispatch[pickle.SETITEMS[0]] = load_setitems
  dispatch[pickle.BUILD[0]] = load_build


def dump(arrays: Mapping[str, Shaped[np.ndarray, '...']]) -> bytes:
  """Returns the pickle of a state dict, in the way `torch.save` writes it.

  Args:
    arrays: contiguous arrays by name; the numbers of the i-th belong into the
      storage with the key `str(i)`.

  Raises:
    ValueError: PyTorch has no such dtype.
  """
  tensors = OrderedDict()
  for i, (name, array) in enumerate(arrays.items()):
    if array.dtype not in _STORAGE_CLASSES:
      raise ValueError(f'{name}: PyTorch has no {array.dtype}')
    storage = Storage(str(i), array.dtype, array.size)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    tensors[name] = Tensor(storage, 0, array.shape, strides)
  out = io.BytesIO()
  _Pickler(out, protocol=2).dump(tensors)
  return out.getvalue()


class _Pickler(pickle._Pickler):
  """Writes arrays, storages and dtypes by PyTorch's names for them."""

  def save(self, obj: Any, save_persistent_id: bool = True) -> None:
    match obj:
      case Tensor(storage, offset, shape, strides):
        self._save_name('torch._utils', '_rebuild_tensor_v2')
        # Without gradient and hooks.
        self.save((storage, offset, shape, strides, False, OrderedDict()))
        self.write(pickle.REDUCE)
      case Storage(key, dtype, size):
        self.save(('storage', dtype, key, 'cpu', size))
        self.write(pickle.BINPERSID)
      case np.dtype():
        self._save_name('torch', _STORAGE_CLASSES[obj])
      case _:
        super().save(obj, save_persistent_id)

  def _save_name(self, module: str, name: str) -> None:
    self.write(pickle.GLOBAL + f'{module}\n{name}\n'.encode())
