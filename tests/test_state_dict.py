import os
import pathlib
import random
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest

from draem_jax.errors import UserError
from draem_jax.torch_weights import state_dict

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# Written by PyTorch 2.13: a state dict of odd arrays, with the prefix of
# DataParallel, beside the state of an optimizer.
VARIANTS = ('zip.pt', 'zip_protocol4.pt', 'stream.pt')


def variant_path(name):
  return GOLDEN / 'torch' / name


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_kind_of_array_is_read(variant):
  found = state_dict.read_state_dict(variant_path(variant))
  plain = np.arange(6, dtype=np.float32).reshape(2, 3)
  expected = {
    'plain': plain,
    'transposed': plain.T,
    'part': plain[1, 1:],
    'channels_last': np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    'half': np.array([1.5, -2.25], np.float16),
    'bfloat16': np.array([1.5, -3], ml_dtypes.bfloat16),
    'double': np.array([0.1]),
    'parameter': np.array([7, 8], np.float32),
    'counter': np.array(12),
    'bool': np.array([True, False]),
    'empty': np.zeros((0, 3), np.float32),
    'expanded': np.array([[3], [4]], np.float32),
  }
  assert list(found) == list(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_both_formats_give_the_same_network():
  zipped = state_dict.read_state_dict(GOLDEN / 'DRAEM_golden_part__seg.pckl')
  streamed = state_dict.read_state_dict(
    variant_path('DRAEM_golden_part__seg_stream.pckl')
  )
  assert list(zipped) == list(streamed)
  for name, array in zipped.items():
    np.testing.assert_array_equal(array, streamed[name])


@pytest.mark.parametrize('variant', ['zip.pt', 'stream.pt'])
def test_truncated_files_are_refused(variant, tmp_path):
  data = variant_path(variant).read_bytes()
  path = tmp_path / 'short.pt'
  for length in range(0, len(data), 61):
    path.write_bytes(data[:length])
    with pytest.raises(UserError) as error:
      state_dict.read_state_dict(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('variant', VARIANTS)
def test_damaged_files_are_refused_or_read(variant, tmp_path):
  data = variant_path(variant).read_bytes()
  path = tmp_path / 'damaged.pt'
  chance = random.Random(0)
  refused = 0
  for _ in range(500):
    damaged = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
      damaged[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(damaged)
    try:
      state_dict.read_state_dict(path)
    except UserError as error:
      assert len(str(error).splitlines()) == 1
      refused += 1
  assert refused > 100


def test_other_files_are_named(tmp_path):
  text, archive = tmp_path / 'text.pckl', tmp_path / 'arrays.npz'
  text.write_text('not a network\n')
  np.savez(archive, a=np.zeros(3))
  empty, folder = tmp_path / 'empty.pckl', tmp_path / 'folder'
  empty.touch()
  folder.mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for path, message in (
    (tmp_path / 'pipe', 'is no file'),
    ('/dev/zero', 'is no file'),
    (text, 'is not a PyTorch file'),
    (empty, 'is empty'),
    (archive, 'is a zip archive, but not of a PyTorch state dict'),
    (folder, 'cannot be read: Is a directory'),
    (tmp_path / 'none.pckl', 'cannot be read: No such file'),
    (variant_path('module.pt'), r'Sequential.*expected a state dict'),
    (variant_path('torchscript.pt'), 'is a TorchScript archive'),
  ):
    with pytest.raises(UserError, match=f'{path}: .*{message}'):
      state_dict.read_state_dict(path)


def rewrite_zip(source, target, *, replace=(), leave_out=(), compression=0):
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
    for member in old.namelist():
      if member not in leave_out:
        data = dict(replace).get(member, old.read(member))
        new.writestr(member, data, compression)


def test_archives_must_be_whole_and_stored(tmp_path):
  path = tmp_path / 'x.pt'
  for options, message in (
    ({'leave_out': ['zip/data/0']}, "lacks its member 'data/0'"),
    ({'replace': {'zip/data/0': b'1234'}}, 'has 4 bytes; expected 6 numbers'),
    ({'compression': zipfile.ZIP_DEFLATED}, 'compressed member'),
  ):
    rewrite_zip(variant_path('zip.pt'), path, **options)
    with pytest.raises(UserError, match=message):
      state_dict.read_state_dict(path)


def test_big_endian_numbers_are_swapped(tmp_path):
  path = tmp_path / 'big.pt'
  numbers = np.arange(6, dtype='>f4').tobytes()
  replace = {'zip/byteorder': b'big', 'zip/data/0': numbers}
  rewrite_zip(variant_path('zip.pt'), path, replace=replace)
  found = state_dict.read_state_dict(path)['plain']
  np.testing.assert_array_equal(found.ravel(), np.arange(6))


ARRAYS = {
  'first.weight': np.arange(24, dtype=np.float32).reshape(4, 3, 2).T,
  'bias': np.array([np.nan, -0.0, 1e-45], np.float32),
  'half': np.array([1, 2], np.float16),
  'bfloat16': np.array([1, 2], ml_dtypes.bfloat16),
  'count': np.array(7),
  'empty': np.zeros((0, 2)),
}


def test_what_is_written_is_read_bit_by_bit(tmp_path):
  path = tmp_path / 'out.pckl'
  path.write_text('an older file')
  state_dict.write_state_dict(path, ARRAYS)
  found = state_dict.read_state_dict(path)
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    assert found[name].shape == array.shape
    assert found[name].tobytes() == array.tobytes()
  assert os.listdir(tmp_path) == ['out.pckl']


def test_numbers_are_aligned_in_the_archive(tmp_path):
  path = tmp_path / 'out.pckl'
  state_dict.write_state_dict(path, ARRAYS)
  data = path.read_bytes()
  bias = ARRAYS['bias'].tobytes()
  assert data.count(bias) == 1
  assert data.index(bias) % 64 == 0


def test_failure_leaves_no_file(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot be written: '):
    state_dict.write_state_dict(tmp_path / 'file' / 'x.pckl', ARRAYS)
  with pytest.raises(ValueError, match='complex64'):
    state_dict.write_state_dict(
      tmp_path / 'x.pckl', {'a': np.zeros(2, np.complex64)}
    )
  assert os.listdir(tmp_path) == ['file']


def test_pytorch_reads_what_is_written(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  path = tmp_path / 'out.pckl'
  state_dict.write_state_dict(path, ARRAYS)
  for mmap in (False, True):
    found = torch.load(path, weights_only=True, mmap=mmap)
    for name, array in ARRAYS.items():
      assert found[name].float().numpy().tobytes() == (
        array.astype(np.float32).tobytes()
      )


def test_a_copy_reads_the_same(tmp_path):
  path = tmp_path / 'renamed.bin'
  shutil.copy(variant_path('stream.pt'), path)
  assert len(state_dict.read_state_dict(path)) == 12
