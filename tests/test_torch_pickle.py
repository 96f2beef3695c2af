import io
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest

from draem_jax import torch_pickle
from draem_jax.errors import UserError
from draem_jax.state_dict import read_state_dict


def text(value):
  return pickle.BINUNICODE + struct.pack('<I', len(value)) + value.encode()


def name(module, attribute):
  return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()


def load(program):
  return torch_pickle.load(io.BytesIO(program), {})


def storage(kind='FloatStorage', key='0', size=4):
  return (
    pickle.MARK
    + text('storage')
    + name('torch', kind)
    + text(key)
    + text('cpu')
    + pickle.dumps(size, 2)[2:-1]
    + pickle.TUPLE
    + pickle.BINPERSID
  )


def tensor(offset=0, shape=(2, 2), strides=(2, 1), size=4):
  return (
    name('torch._utils', '_rebuild_tensor_v2')
    + pickle.MARK
    + storage(size=size)
    + b''.join(pickle.dumps(x, 2)[2:-1] for x in (offset, shape, strides))
    + pickle.NEWFALSE
    + pickle.NONE
    + pickle.TUPLE
    + pickle.REDUCE
  )


COMMAND = text('touch pwned')
CALL = COMMAND + pickle.TUPLE1 + pickle.REDUCE

ATTACKS = {
  'reduce': name('os', 'system') + CALL,
  'posix': name('posix', 'system') + CALL,
  'eval': name('builtins', 'eval')
  + text("open('pwned', 'w')")
  + pickle.TUPLE1
  + pickle.REDUCE,
  'python 2 eval': name('__builtin__', 'eval') + CALL,
  'dotted name': name('torch._utils', '_rebuild_tensor_v2.__globals__') + CALL,
  'name split elsewhere': name('torch', '_utils.os.system') + CALL,
  'stack global': text('os') + text('system') + pickle.STACK_GLOBAL + CALL,
  'newobj': name('subprocess', 'Popen')
  + COMMAND
  + pickle.TUPLE1
  + pickle.NEWOBJ,
  'inst': pickle.MARK + COMMAND + pickle.INST + b'os\nsystem\n',
  'obj': pickle.MARK + name('os', 'system') + COMMAND + pickle.OBJ,
  'extension': pickle.EXT1 + b'\x01' + CALL,
  'persistent id': name('os', 'system') + CALL + pickle.BINPERSID,
  'storage class': pickle.MARK
  + text('storage')
  + name('os', 'system')
  + text('0')
  + text('cpu')
  + pickle.BININT1
  + b'\x01'
  + pickle.TUPLE
  + pickle.BINPERSID,
  'inside a state dict': name('collections', 'OrderedDict')
  + pickle.EMPTY_TUPLE
  + pickle.REDUCE
  + text('encoder.block1.0.weight')
  + name('os', 'system')
  + CALL
  + pickle.SETITEM,
  'as an argument': name('torch._utils', '_rebuild_tensor_v2')
  + pickle.MARK
  + name('os', 'system')
  + CALL
  + pickle.TUPLE
  + pickle.REDUCE,
  'after a pop': name('os', 'system') + CALL + pickle.POP + pickle.EMPTY_DICT,
  'call of a storage': storage() + CALL,
  'call of a storage class': name('torch', 'FloatStorage') + CALL,
  'dict filled by call': name('collections', 'OrderedDict') + CALL,
  'attributes of a list': pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.BUILD,
  'attributes of a name': name('collections', 'OrderedDict')
  + pickle.EMPTY_DICT
  + pickle.BUILD,
}
CONTAINERS = ('zip', 'stream', 'magic')


def write_container(path, program, container):
  if container == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('x/data.pkl', program)
      archive.writestr('x/version', '3\n')
  elif container == 'stream':
    head = 0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}
    path.write_bytes(
      b''.join(pickle.dumps(x, 2) for x in head) + program + pickle.dumps([], 2)
    )
  else:
    path.write_bytes(program)


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('attack', ATTACKS)
def test_nothing_in_a_file_executes(attack, container, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'evil.pckl'
  write_container(
    path, pickle.PROTO + b'\x02' + ATTACKS[attack] + b'.', container
  )
  with pytest.raises(UserError) as error:
    read_state_dict(path)
  assert len(str(error.value).splitlines()) == 1
  assert str(path) in str(error.value)
  assert os.listdir(tmp_path) == ['evil.pckl']


def test_the_attacks_would_work_on_a_common_unpickler(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for attack in ('reduce', 'inside a state dict', 'inst'):
    pickle.loads(ATTACKS[attack] + pickle.STOP)
    assert os.listdir(tmp_path) == ['pwned']
    os.unlink('pwned')


def test_refusal_names_what_was_asked_for():
  with pytest.raises(torch_pickle.BadFile, match=r"refers to 'os\.system'"):
    load(ATTACKS['reduce'] + pickle.STOP)


def test_attributes_of_a_dict_stay_out_of_it():
  program = (
    pickle.EMPTY_DICT
    + pickle.EMPTY_DICT
    + text('items')
    + name('collections', 'OrderedDict')
    + pickle.SETITEM
    + pickle.BUILD
  )
  assert load(program + pickle.STOP) == {}


@pytest.mark.parametrize(
  'arguments',
  [
    {'shape': (2, 3), 'strides': (3, 1)},
    {'offset': 1},
    {'offset': -1},
    {'shape': (-2, 2)},
    {'strides': (-2, 1)},
    {'shape': (10**6, 10**6), 'strides': (0, 0)},
    {'shape': (5,), 'strides': (0,)},
    {'shape': (2**40,), 'strides': (2**40,)},
    {'shape': (2,)},
    {'shape': [2, 2]},
    {'shape': (2.0, 2)},
    {'shape': (True, 2)},
    {'offset': None},
    {'size': -4},
    {'size': 2**70},
    {'shape': (1,) * 70, 'strides': (1,) * 70},
  ],
)
def test_arrays_stay_within_their_storage(arguments):
  with pytest.raises(torch_pickle.BadFile):
    load(tensor(**arguments) + pickle.STOP)


def test_array_is_described():
  found = load(tensor(offset=1, shape=(3,), strides=(1,)) + pickle.STOP)
  numbers = torch_pickle.Storage('0', np.dtype(np.float32), 4)
  assert found == torch_pickle.Tensor(numbers, 1, (3,), (1,))


def test_one_storage_has_one_type():
  program = pickle.MARK + storage() + storage('HalfStorage') + pickle.TUPLE
  with pytest.raises(torch_pickle.BadFile, match='ambiguous'):
    load(program + pickle.STOP)


def nested(levels, width):
  """A list of lists of lists ..., each level the same list many times."""
  program = pickle.EMPTY_LIST + pickle.BINPUT + b'\x00'
  for _ in range(levels):
    same = (pickle.BINGET + b'\x00') * width
    program += pickle.EMPTY_LIST + pickle.MARK + same + pickle.APPENDS
    program += pickle.BINPUT + b'\x00'
  return program


@pytest.mark.parametrize(
  'bomb',
  [
    nested(levels=60, width=9),
    nested(levels=60, width=9) + text('x') + pickle.STACK_GLOBAL,
    text('x') + nested(levels=60, width=9) + pickle.STACK_GLOBAL,
    nested(levels=60, width=9) + pickle.BINPERSID,
    nested(levels=60, width=9) + CALL,
    pickle.EMPTY_DICT + nested(levels=60, width=9) + text('x') + pickle.SETITEM,
    pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**5 + pickle.NONE + pickle.BUILD,
    pickle.EMPTY_DICT
    + pickle.EMPTY_TUPLE
    + pickle.TUPLE1 * 10**5
    + text('x')
    + pickle.SETITEM,
    pickle.LONG4 + struct.pack('<i', 2**31 - 1) + b'\xff' * 8,
    pickle.BINUNICODE8 + struct.pack('<Q', 2**60) + b'x',
    pickle.LONG + b'9' * 10**5 + b'L\n',
    pickle.EMPTY_LIST + pickle.BINPUT + b'\x00' + pickle.BINGET + b'\x00'
    + pickle.APPEND,
  ],
)  # fmt: skip
def test_bombs_do_not_go_off(bomb, tmp_path):
  path = tmp_path / 'bomb.pckl'
  write_container(path, bomb + pickle.STOP, 'zip')
  with pytest.raises(UserError) as error:
    read_state_dict(path)
  assert len(str(error.value)) < 400 + len(str(path))


def test_written_pickle_is_plain():
  arrays = {'a': np.zeros((2, 3), np.float32), 'b': np.zeros((), np.int64)}
  program = torch_pickle.dump(arrays)
  pickletools.dis(program, out=io.StringIO())  # Raises where malformed.
  found = load(program)
  assert found['a'].shape == (2, 3)
  assert found['a'].strides == (3, 1)
  assert found['b'].shape == ()
  assert found['b'].storage.dtype == np.int64
  with pytest.raises(ValueError, match='PyTorch has no complex64'):
    torch_pickle.dump({'a': np.zeros(2, np.complex64)})
