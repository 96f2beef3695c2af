"""The pickles inside PyTorch's files, read without executing anything.

A pickle is a program. Here a small interpreter runs the few instructions that a
state dict consists of, and resolves no name: what else a file may ask for is
refused. The way back writes the program of a state dict.
"""

import dataclasses
import io
import math
import pickle
import pickletools
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class _Global:
  """A name that a pickle refers to; it stays a name."""

  module: str
  name: str

  def __str__(self):
    return f'{self.module}.{self.name}'


_FUNCTIONS = frozenset(
  {
    'collections.OrderedDict',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
  }
)
_STORAGE_CLASSES = frozenset(f'torch.{name}' for name in DTYPES)
_LITERALS = frozenset(
  {
    'INT',
    'BININT',
    'BININT1',
    'BININT2',
    'LONG',
    'LONG1',
    'LONG4',
    'FLOAT',
    'BINFLOAT',
    'STRING',
    'BINSTRING',
    'SHORT_BINSTRING',
    'UNICODE',
    'SHORT_BINUNICODE',
    'BINUNICODE',
    'BINUNICODE8',
  }
)
_CONSTANTS = {
  'NONE': None,
  'NEWTRUE': True,
  'NEWFALSE': False,
  'EMPTY_TUPLE': (),
}


def load(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
  """Interprets one pickle.

  Args:
    stream: Read up to the end of the pickle.
    storages: The blocks of numbers that the pickle refers to are added here.

  Returns:
    What the pickle builds: dicts, lists, tuples, `Tensor`s and plain values.

  Raises:
    BadFile: The pickle is damaged or asks for something else.
  """
  try:
    return _interpret(stream, storages)
  except (
    # What instructions raise that a damaged file applies to the wrong things.
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
  ) as error:
    raise BadFile(f'is damaged or truncated: {short(str(error))}') from error


def short(value: Any) -> str:
  """Returns a value out of a file as a piece of a one-line message."""
  # A dict or list may contain itself, or unfold to more than memory holds.
  if not isinstance(value, str | float | bool | None):
    return f'{type(value).__name__}'
  text = ascii(value)
  return text if len(text) <= 80 else f'{text[:77]}...'


def _interpret(stream: BinaryIO, storages: dict[str, Storage]) -> Any:
  stack, marks, memo = [], [], {}

  def pop_to_mark() -> list:
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  for opcode, arg, _ in pickletools.genops(stream):
    match opcode.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        return stack.pop()
      case 'MARK':
        marks.append(len(stack))
      case 'POP':
        stack.pop()
      case name if name in _LITERALS:
        stack.append(arg)
      case name if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
      case 'EMPTY_DICT':
        stack.append({})
      case 'EMPTY_LIST':
        stack.append([])
      case 'DICT':
        stack.append(_set_items({}, pop_to_mark()))
      case 'LIST':
        stack.append(pop_to_mark())
      case 'TUPLE':
        stack.append(tuple(pop_to_mark()))
      case 'TUPLE1':
        stack.append((stack.pop(),))
      case 'TUPLE2' | 'TUPLE3':
        count = int(opcode.name[-1])
        stack[-count:] = [tuple(stack[-count:])]
      case 'SETITEM':
        value, key = stack.pop(), stack.pop()
        _set_items(stack[-1], [key, value])
      case 'SETITEMS':
        items = pop_to_mark()
        _set_items(stack[-1], items)
      case 'APPEND':
        item = stack.pop()
        _extend(stack[-1], [item])
      case 'APPENDS':
        items = pop_to_mark()
        _extend(stack[-1], items)
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        memo[arg] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(memo[arg])
      case 'GLOBAL':
        stack.append(_reference(*arg.split(' ')))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(_reference(module, name))
      case 'BINPERSID':
        storage = _storage(stack.pop())
        if storages.setdefault(storage.key, storage) != storage:
          raise BadFile(
            f'is damaged: storage {short(storage.key)} is ambiguous'
          )
        stack.append(storage)
      case 'REDUCE':
        args, function = stack.pop(), stack.pop()
        stack.append(_call(function, args))
      case 'BUILD':
        stack.pop()  # PyTorch notes versions of modules as a dict's attribute.
        if not isinstance(stack[-1], dict):
          raise BadFile(f'sets attributes of {short(stack[-1])}')
      case name:
        raise BadFile(f'uses the pickle instruction {name}; no state dict does')
  raise EOFError('the pickle has no end')


def _reference(module: Any, name: Any) -> _Global:
  if not isinstance(module, str) or not isinstance(name, str):
    raise BadFile('is damaged: it refers to what is no name')
  reference = _Global(module, name)
  if str(reference) not in _FUNCTIONS | _STORAGE_CLASSES:
    raise BadFile(
      f'refers to {short(str(reference))}; expected a state dict, which holds '
      'arrays only: `torch.save(model.state_dict(), ...)`'
    )
  return reference


def _call(function: Any, args: Any) -> Any:
  """Does what a call of one of the functions of a state dict would do."""
  if not isinstance(function, _Global):
    raise BadFile(f'calls {short(function)}')
  match str(function):
    case 'collections.OrderedDict':
      if args != ():
        raise BadFile('fills an OrderedDict in an unexpected way')
      return {}
    case 'torch._utils._rebuild_tensor' | 'torch._utils._rebuild_tensor_v2':
      return _tensor(*args[:4])
    case 'torch._utils._rebuild_parameter':
      if not isinstance(args[0], Tensor):
        raise BadFile(f'makes a parameter of {short(args[0])}')
      return args[0]
  raise BadFile(f'calls {function}, which is no function')


def _set_items(target: Any, items: list) -> dict:
  if not isinstance(target, dict) or len(items) % 2:
    raise BadFile('is damaged: it sets items of what is no dict')
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Other keys would run their own comparison, deeply nested ones for long.
    if not isinstance(key, str | int):
      raise BadFile(f'has the key {short(key)}; expected a name')
    target[key] = value
  return target


def _extend(target: Any, items: list) -> None:
  if not isinstance(target, list):
    raise BadFile('is damaged: it appends to what is no list')
  target.extend(items)


def _storage(identity: Any) -> Storage:
  """Reads ('storage', class, key, device, size[, part of another storage])."""
  kind, storage_class, key, _, size, *view = identity
  if kind != 'storage' or not isinstance(storage_class, _Global):
    raise BadFile(f'refers to {short(kind)}; expected a storage')
  if view not in ([], [None]):
    raise BadFile('has storages that overlap; save it anew with PyTorch >= 1.6')
  if str(storage_class) not in _STORAGE_CLASSES:
    raise BadFile(f'has numbers of the unknown type {storage_class}')
  if not isinstance(key, str) or not _are_sizes((size,)):
    raise BadFile(f'is damaged: storage {short(key)} has a bad size')
  return Storage(key, DTYPES[storage_class.name], size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
  if not isinstance(storage, Storage):
    raise BadFile(f'makes an array of {short(storage)}')
  sizes_valid = (
    _are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(strides)
  )
  if not sizes_valid or len(shape) != len(strides) or len(shape) > 32:
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


def _are_sizes(values: Any) -> bool:
  return isinstance(values, tuple) and all(
    type(value) is int and 0 <= value < 2**62 for value in values
  )


def dump(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the pickle of a state dict, in the way `torch.save` writes it.

  Args:
    arrays: By name, each contiguous. The numbers of the i-th belong into the
      storage with the key `str(i)`.

  Raises:
    ValueError: PyTorch has no such dtype.
  """
  classes = {dtype: name for name, dtype in DTYPES.items()}
  out = io.BytesIO()
  out.write(pickle.PROTO + b'\x02' + _ORDERED_DICT + pickle.MARK)
  for i, (name, array) in enumerate(arrays.items()):
    if array.dtype not in classes:
      raise ValueError(f'{name}: PyTorch has no {array.dtype}')
    strides = tuple(stride // array.itemsize for stride in array.strides)
    out.write(_unicode(name))
    out.write(_global('torch._utils', '_rebuild_tensor_v2') + pickle.MARK)
    out.write(pickle.MARK + _unicode('storage'))
    out.write(_global('torch', classes[array.dtype]) + _unicode(str(i)))
    out.write(_unicode('cpu') + _integer(array.size))
    out.write(pickle.TUPLE + pickle.BINPERSID + _integer(0))
    out.write(_integers(array.shape) + _integers(strides))
    out.write(pickle.NEWFALSE + _ORDERED_DICT + pickle.TUPLE + pickle.REDUCE)
  out.write(pickle.SETITEMS + pickle.STOP)
  return out.getvalue()


def _global(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _unicode(text: str) -> bytes:
  data = text.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _integer(value: int) -> bytes:
  if value < 2**31:
    return pickle.BININT + struct.pack('<i', value)
  return pickle.LONG1 + b'\x08' + struct.pack('<q', value)


def _integers(values: tuple[int, ...]) -> bytes:
  return pickle.MARK + b''.join(map(_integer, values)) + pickle.TUPLE


_ORDERED_DICT = (
  _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
)
