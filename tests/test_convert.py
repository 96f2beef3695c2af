import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.torch_weights import convert, state_dict

GOLDEN = pathlib.Path(__file__).parent / 'golden'
RECONSTRUCTIVE = GOLDEN / 'DRAEM_golden_part_.pckl'
DISCRIMINATIVE = GOLDEN / 'DRAEM_golden_part__seg.pckl'
STREAM = GOLDEN / 'torch' / 'DRAEM_golden_part__seg_stream.pckl'


def load(
  reconstructive=RECONSTRUCTIVE, discriminative=DISCRIMINATIVE, **kwargs
):
  return convert.load_torch_checkpoint(reconstructive, discriminative, **kwargs)


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_variables_are_those_of_the_model():
  variables = load()
  assert convert.widths(variables) == (4, 2)
  model = models.Draem(*convert.widths(variables))
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False),
    jax.random.key(0),
  )
  found = jax.eval_shape(lambda: variables)
  assert jax.tree.structure(found) == jax.tree.structure(shapes)
  assert jax.tree.leaves(found) == jax.tree.leaves(shapes)


def test_bgr_networks_become_rgb_networks():
  with np.load(GOLDEN / 'network.npz') as arrays:
    image = arrays['image'][:1]
  apply = jax.jit(
    lambda variables, x: models.Draem(4, 2).apply(variables, x, train=False)
  )
  as_is = apply(load(channel_order='rgb'), image[..., ::-1])
  swapped = apply(load(), image)
  np.testing.assert_allclose(
    swapped.reconstruction[..., ::-1], as_is.reconstruction, 0, 2e-5
  )
  np.testing.assert_allclose(swapped.logits, as_is.logits, 0, 5e-5)
  assert (
    np.abs(apply(load(), image[..., ::-1]).logits - as_is.logits).max() > 0.01
  )


def test_both_formats_load_alike():
  assert_equal(load(discriminative=STREAM), load())


@pytest.mark.parametrize('channel_order', convert.CHANNEL_ORDERS)
def test_the_way_back_is_bit_exact(tmp_path, channel_order):
  paths = tmp_path / 'a.pckl', tmp_path / 'b_seg.pckl'
  variables = load(channel_order=channel_order)
  before = jax.tree.map(np.copy, variables)
  convert.save_torch_checkpoint(
    jax.tree.map(jnp.asarray, variables), *paths, channel_order=channel_order
  )
  assert_equal(variables, before)
  assert_equal(load(*paths, channel_order=channel_order), variables)
  for written, original in zip(
    paths, (RECONSTRUCTIVE, DISCRIMINATIVE), strict=True
  ):
    found = state_dict.read_state_dict(written)
    expected = state_dict.read_state_dict(original)
    assert list(found) == list(expected)
    for name, array in expected.items():
      assert found[name].dtype == array.dtype
      if not name.endswith('num_batches_tracked'):
        assert found[name].tobytes() == array.tobytes(), name


def test_pytorch_reads_what_is_saved(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  paths = tmp_path / 'a.pckl', tmp_path / 'b_seg.pckl'
  convert.save_torch_checkpoint(load(), *paths)
  for written, original in zip(
    paths, (RECONSTRUCTIVE, DISCRIMINATIVE), strict=True
  ):
    found = torch.load(written, weights_only=True)
    for name, tensor in torch.load(original, weights_only=True).items():
      if not name.endswith('num_batches_tracked'):
        assert torch.equal(found[name], tensor)


def test_swapped_files_are_noticed():
  with pytest.raises(
    UserError, match=r'_seg\.pckl: expected the reconstructive'
  ):
    load(DISCRIMINATIVE, RECONSTRUCTIVE)
  with pytest.raises(UserError, match='found the reconstructive one; swap'):
    load(RECONSTRUCTIVE, RECONSTRUCTIVE)


def edited(tmp_path, edit):
  arrays = state_dict.read_state_dict(DISCRIMINATIVE)
  edit(arrays)
  path = tmp_path / 'edited_seg.pckl'
  state_dict.write_state_dict(path, arrays)
  return path


def set_item(name, change):
  def edit(arrays):
    arrays[name] = change(np.array(arrays[name]))

  return edit


def with_nan(array):
  array.flat[0] = np.nan
  return array


FIRST = 'encoder_segment.block1.0.weight'


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda a: a.pop(FIRST), f"found 163: it lacks '{FIRST}'"),
    (lambda a: a.update({'new\nline': a[FIRST]}), r"unknown 'new\\nline'"),
    (
      set_item(FIRST, lambda a: a[:, :3]),
      r'has shape \[2, 3, 3, 3\]; expected \[2, 6, 3, 3\]',
    ),
    (set_item(FIRST, lambda a: a[0]), r'expected \[width, channels, 3, 3\]'),
    (set_item(FIRST, lambda a: a[:0]), r'has shape \[0, 6, 3, 3\]'),
    (
      set_item('decoder_segment.up2.1.bias', lambda a: a[:1]),
      r'up2\.1\.bias has shape \[1\]; expected \[4\]',
    ),
    (set_item('decoder_segment.up2.1.bias', with_nan), 'NaN'),
    (
      set_item('decoder_segment.up2.2.running_var', lambda a: -a),
      r'running_var has values .*negative variance',
    ),
  ],
)
def test_foreign_networks_are_refused(tmp_path, edit, message):
  path = edited(tmp_path, edit)
  with pytest.raises(UserError, match=message) as error:
    load(discriminative=path)
  assert str(error.value).startswith(f'{path}: ')
  assert len(str(error.value).splitlines()) == 1


def test_counters_may_be_missing(tmp_path):
  def drop(arrays):
    for name in [n for n in arrays if n.endswith('num_batches_tracked')]:
      del arrays[name]

  assert_equal(load(discriminative=edited(tmp_path, drop)), load())


def test_double_precision_is_rounded(tmp_path):
  def widen(arrays):
    for name, array in arrays.items():
      arrays[name] = array.astype(np.float64)

  assert_equal(load(discriminative=edited(tmp_path, widen)), load())


@pytest.mark.usefixtures('unchecked')
def test_unknown_channel_order_is_refused():
  with pytest.raises(ValueError, match="'gbr'; it must be one of"):
    load(channel_order='gbr')
