import copyreg
import io
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from draem_jax.errors import UserError
from draem_jax.torch_weights import pickle as torch_pickle
from draem_jax.torch_weights.state_dict import read_state_dict


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
  'attributes of a storage': storage()
  + pickle.EMPTY_DICT
  + text('size')
  + pickle.BININT1
  + b'\xff'
  + pickle.SETITEM
  + pickle.BUILD,
  'attributes of an array': tensor() + pickle.EMPTY_DICT + pickle.BUILD,
  'attributes of a dtype': name('torch', 'FloatStorage')
  + pickle.EMPTY_TUPLE
  + pickle.BUILD,
  'slots of a function': name('torch._utils', '_rebuild_tensor_v2')
  + pickle.NONE
  + pickle.EMPTY_DICT
  + text('__code__')
  + pickle.NONE
  + pickle.SETITEM
  + pickle.TUPLE2
  + pickle.BUILD,
  'newobj of a known name': name('collections', 'OrderedDict')
  + pickle.EMPTY_TUPLE
  + pickle.NEWOBJ,
  'newobj_ex': name('subprocess', 'Popen')
  + COMMAND
  + pickle.TUPLE1
  + pickle.EMPTY_DICT
  + pickle.NEWOBJ_EX,
  'inst of a known name': pickle.MARK
  + pickle.INST
  + b'collections\nOrderedDict\n',
  'obj of a known name': pickle.MARK
  + name('collections', 'OrderedDict')
  + pickle.OBJ,
  'extension 2': pickle.EXT2 + b'\x01\x00' + CALL,
  'extension 4': pickle.EXT4 + b'\x01\x00\x00\x00' + CALL,
  'persistent text': pickle.PERSID + b'os.system\n',
  'out of band': pickle.NEXT_BUFFER,
  'bytearray': pickle.BYTEARRAY8 + struct.pack('<Q', 2**40),
  'set': pickle.EMPTY_SET,
  'no instruction': b'\xff',
  'module of no name': pickle.NONE + text('system') + pickle.STACK_GLOBAL,
  'nothing to call': CALL,
  'nothing at all': b'',
  'mark never set': pickle.TUPLE,
  'call of a call': name('collections', 'OrderedDict')
  + pickle.EMPTY_TUPLE
  + pickle.REDUCE
  + CALL,
  'arguments from a text': name('torch._utils', '_rebuild_tensor_v2')
  + text('abcd')
  + pickle.REDUCE,
  'parameter of a name': name('torch._utils', '_rebuild_parameter')
  + name('torch', 'FloatStorage')
  + pickle.TUPLE1
  + pickle.REDUCE,
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


def test_extensions_that_the_process_has_met_are_refused(monkeypatch):
  # The standard library takes them from a cache, past `find_class`.
  monkeypatch.setitem(copyreg._extension_cache, 1, os.system)
  with pytest.raises(torch_pickle.BadFile, match='instruction EXT1'):
    load(ATTACKS['extension'] + pickle.STOP)


@pytest.mark.parametrize('key', ['items', '__setstate__', '__class__'])
def test_attributes_of_a_dict_stay_out_of_it(key):
  program = (
    pickle.EMPTY_DICT
    + pickle.EMPTY_DICT
    + text(key)
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
    {'shape': (float('nan'), 2)},
    {'shape': (2**80, 2)},
    {'shape': ('2', 2)},
    {'shape': None},
    {'strides': None},
    {'strides': (2.0, 1)},
    {'offset': None},
    {'offset': float('nan')},
    {'offset': 2**80},
    {'size': float('nan')},
    {'size': True},
    {'size': '4'},
    {'size': 0},
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


@pytest.mark.parametrize('other', ['size', 'key', 'dtype', 'view', 'short'])
def test_storages_are_described_as_pytorch_does(other):
  entries = {
    'kind': text('storage'),
    'dtype': name('torch', 'FloatStorage'),
    'key': text('0'),
    'device': text('cpu'),
    'size': pickle.BININT1 + b'\x04',
    'view': pickle.NONE,
  }
  wrong = {
    'size': pickle.EMPTY_TUPLE,
    'key': pickle.EMPTY_LIST,
    'dtype': text('torch.FloatStorage'),
    'view': pickle.EMPTY_TUPLE,
  }

  def program(entries):
    items = b''.join(entries.values())
    return pickle.MARK + items + pickle.TUPLE + pickle.BINPERSID + pickle.STOP

  assert load(program(entries)).size == 4
  with pytest.raises(torch_pickle.BadFile):
    if other == 'short':
      load(program({'kind': entries['kind']}))
    else:
      load(program(entries | {other: wrong[other]}))


KEYS = {
  'int': pickle.BININT1 + b'\x07',
  'name': text('x'),
  'bool': pickle.NEWTRUE,
  'none': pickle.NONE,
  'float': pickle.BINFLOAT + struct.pack('>d', float('nan')),
  'tuple': pickle.EMPTY_TUPLE + pickle.TUPLE1,
  'list': pickle.EMPTY_LIST,
  'negative': pickle.BININT + struct.pack('<i', -1),
  # One of many integers that all have the hash 0.
  'collision': pickle.LONG1 + b'\x08' + struct.pack('<q', 2**61 - 1),
  'dtype': name('torch', 'FloatStorage'),
  'storage': storage(),
}


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize('instruction', ['SETITEM', 'SETITEMS'])
def test_only_names_and_small_integers_are_keys(key, instruction):
  program = pickle.EMPTY_DICT
  program += pickle.MARK if instruction == 'SETITEMS' else b''
  program += KEYS[key] + pickle.NONE + getattr(pickle, instruction)
  if key in ('int', 'name'):
    assert len(load(program + pickle.STOP)) == 1
  else:
    with pytest.raises(torch_pickle.BadFile, match='expected a name'):
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
    pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**5
    + pickle.NONE + pickle.SETITEM,
    pickle.EMPTY_DICT + text('x') + pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**5
    + pickle.SETITEM,
    pickle.MARK * 10**5,
    pickle.LONG4 + struct.pack('<i', -1),
    pickle.LONG + b'0x' + b'f' * 10**6 + b'L\n',
    pickle.INT + b'9' * 10**6 + b'\n',
    pickle.BINUNICODE + struct.pack('<I', 2**32 - 1) + b'x',
    pickle.BINSTRING + struct.pack('<i', 2**31 - 1) + b'x',
    pickle.BINSTRING + struct.pack('<i', -1) + b'x',
    pickle.BINBYTES8 + struct.pack('<Q', 2**62) + b'x',
    pickle.FRAME + struct.pack('<Q', 2**62) + pickle.NONE,
    pickle.FRAME + struct.pack('<Q', 2**64 - 1) + pickle.NONE,
    pickle.LONG_BINGET + struct.pack('<I', 2**32 - 1),
    pickle.PROTO + b'\xff' + pickle.NONE,
    pickle.EMPTY_DICT + text('\U0001f4a3' * 10**6) + pickle.NONE
    + pickle.SETITEM,
    name('x' * 10**6, 'y'),
  ],
)  # fmt: skip
@pytest.mark.parametrize('container', CONTAINERS)
def test_bombs_do_not_go_off(bomb, container, tmp_path):
  path = tmp_path / 'bomb.pckl'
  write_container(path, bomb + pickle.STOP, container)
  tracemalloc.start()
  with pytest.raises(UserError) as error:
    read_state_dict(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(str(error.value)) < 400 + len(str(path))
  # An instruction of one byte can make a list or a dict.
  assert peak < 2**20 + 256 * path.stat().st_size


def test_a_high_place_in_the_memo_takes_no_memory():
  program = (
    pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack('<I', 2**32 - 1)
  )
  tracemalloc.start()
  assert load(program + pickle.STOP) == {}
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2**20


@pytest.mark.parametrize(
  'key',
  [
    pickle.EMPTY_LIST,
    pickle.EMPTY_TUPLE + pickle.TUPLE1 * 10**5,
    pickle.EMPTY_TUPLE + (pickle.MEMOIZE + pickle.BINGET + b'\x00'
    + pickle.TUPLE2 + pickle.BINPUT + b'\x00') + (pickle.BINGET + b'\x00'
    + pickle.TUPLE2 + pickle.BINPUT + b'\x00') * 99,
    text('0'),
    pickle.NONE,
  ],
)  # fmt: skip
def test_storages_of_a_stream_are_looked_up_by_name(key, tmp_path):
  head = 0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}
  contents = pickle.EMPTY_DICT + text('x') + tensor() + pickle.SETITEM
  keys = pickle.EMPTY_LIST + key + pickle.APPEND + pickle.STOP
  path = tmp_path / 'stream.pckl'
  path.write_bytes(
    b''.join(pickle.dumps(x, 2) for x in head) + contents + pickle.STOP + keys
  )
  with pytest.raises(UserError, match='is damaged'):
    read_state_dict(path)


def write_stream_or_zip(path, program, container, numbers):
  if container == 'zip':
    write_container(path, program, 'zip')
    with zipfile.ZipFile(path, 'a') as archive:
      archive.writestr('x/data/0', numbers)
  else:
    head = 0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}
    size = struct.pack('<Q', len(numbers) // 4)
    path.write_bytes(
      b''.join(pickle.dumps(x, 2) for x in head)
      + program
      + pickle.dumps(['0'], 2)
      + size
      + numbers
    )


@pytest.mark.parametrize('container', ['zip', 'stream'])
@pytest.mark.parametrize(
  'arguments',
  [
    {'size': 2**61},
    {'size': 5},
    {'offset': 2**61, 'shape': (0, 2**61), 'strides': (2**61, 1)},
    {'shape': (1,), 'strides': (2**61,)},
    {'shape': (0, 2**61, 2**61), 'strides': (1, 1, 1)},
  ],
)
def test_wild_sizes_are_refused_or_read(arguments, container, tmp_path):
  program = pickle.EMPTY_DICT + text('x') + tensor(**arguments) + pickle.SETITEM
  path = tmp_path / 'wild.pckl'
  write_stream_or_zip(path, program + pickle.STOP, container, bytes(16))
  try:
    array = read_state_dict(path)['x']
  except UserError as error:
    assert len(str(error).splitlines()) == 1
  else:
    assert array.size <= 4
    assert np.all(array == 0)


@pytest.mark.parametrize('container', ['zip', 'stream'])
def test_views_share_the_memory_of_their_storage(container, tmp_path):
  count = 1000
  items = b''.join(text(f'x{i}') + tensor(size=2**16) for i in range(count))
  program = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
  path = tmp_path / 'views.pckl'
  write_stream_or_zip(path, program + pickle.STOP, container, bytes(2**18))
  tracemalloc.start()
  assert len(read_state_dict(path)) == count
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 32 * path.stat().st_size


def local_header(member, data):
  return (
    struct.pack(
      '<4s5H3L2H',
      b'PK\x03\x04',
      *(20, 0, 0, 0, 0),
      *(zlib.crc32(data), len(data), len(data)),
      *(len(member), 0),
    )
    + member.encode()
  )


def test_members_that_lie_in_one_another_are_refused(tmp_path):
  """Each member's data are the next one and all that it holds."""
  count = 50
  items = b''.join(
    text(f'x{i}') + storage(key=str(i)) for i in range(count)
  )  # Only to be found damaged, were the archive taken for whole.
  program = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + b'.'
  data, entries = bytes(2**16), []
  for i in range(count):
    member = f'x/data/{i}'
    entries.append((member, data))
    data = local_header(member, data) + data
  data += local_header('x/data.pkl', program)
  offset = len(data) - len(local_header('x/data.pkl', program))
  entries.append(('x/data.pkl', program))
  data += program
  directory = b''
  for member, content in entries:
    start = data.index(local_header(member, content))
    directory += struct.pack(
      '<4s6H3L5H2L',
      b'PK\x01\x02',
      *(20, 20, 0, 0, 0, 0),
      *(zlib.crc32(content), len(content), len(content)),
      *(len(member), 0, 0, 0, 0, 0),
      start,
    )
    directory += member.encode()
  assert offset > 2**16
  end = struct.pack(
    '<4s4H2LH',
    b'PK\x05\x06',
    *(0, 0, count + 1, count + 1),
    *(len(directory), len(data), 0),
  )
  path = tmp_path / 'overlap.pckl'
  path.write_bytes(data + directory + end)
  assert len(zipfile.ZipFile(path).namelist()) == count + 1
  with pytest.raises(UserError, match='its members overlap'):
    read_state_dict(path)


def test_programs_by_chance_are_refused_or_read(tmp_path):
  """Pieces that make sense, in orders that mostly make none."""
  chance = random.Random(0)
  pieces = [opcode.code.encode('latin-1') for opcode in pickletools.opcodes]
  pieces += [*ATTACKS.values(), *KEYS.values(), tensor(), b'\x00', b'\n']
  common = pickle.MARK, pickle.EMPTY_DICT, tensor(), text('x'), pickle.TUPLE1
  path = tmp_path / 'chance.pckl'
  for i in range(3000):
    program = b''.join(
      chance.choice(chance.choice((pieces, common))) for _ in range(12)
    )
    write_container(path, program + pickle.STOP, CONTAINERS[i % 3])
    try:
      read_state_dict(path)
    except UserError as error:
      assert len(str(error).splitlines()) == 1
  assert os.listdir(tmp_path) == ['chance.pckl']


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
