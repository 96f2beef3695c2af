import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.networks import folding, models
from fidelity import networks as fidelity_networks


def randomized(variables, dtype=np.float32):
  """Variables with statistics far from those that folding could ignore."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      value = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
    elif name in ('var', 'norm_scale'):
      value = rng.uniform(0.5, 2, shape)
    else:
      value = rng.normal(0, 0.3, shape)
    return value.astype(dtype)

  return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.fixture(scope='module')
def variables():
  return randomized(fidelity_networks.load_variables())


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).random((2, 32, 64, 3), np.float32)


def largest_differences(found, expected):
  return {
    name: np.abs(getattr(found, name) - getattr(expected, name)).max()
    / np.abs(getattr(expected, name)).max()
    for name in ('reconstruction', 'logits')
  }


def test_folded_networks_say_the_same(variables, images):
  found = fidelity_networks.evaluate(folding.fold(variables), images)
  expected = fidelity_networks.evaluate(variables, images)
  # What rounding in float32 adds up to over 51 convolutions.
  assert max(largest_differences(found, expected).values()) < 3e-5


def test_folding_is_exact_in_float64(variables, images):
  with jax.enable_x64(True):
    exact = randomized(variables, np.float64)
    folded = folding.fold(exact)
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(folded))
    found = fidelity_networks.evaluate(folded, images.astype(np.float64))
    expected = fidelity_networks.evaluate(exact, images.astype(np.float64))
    assert found.logits.dtype == np.float64
    assert max(largest_differences(found, expected).values()) < 1e-10


def test_in_bfloat16_folding_loses_nothing(variables, images):
  exact = fidelity_networks.evaluate(variables, images)
  evaluate = functools.partial(fidelity_networks.evaluate, dtype=jnp.bfloat16)
  plain = evaluate(variables, images)
  found = evaluate(folding.fold(variables), images)
  assert found.logits.dtype == np.float32
  error, plain_error = (
    jnp.abs(output.logits - exact.logits).mean() for output in (found, plain)
  )
  assert 0 < error < 1.5 * plain_error


def test_nothing_of_the_norms_is_left(variables):
  folded = folding.fold(variables)
  assert set(folded) == {'params'}
  flat = flax.traverse_util.flatten_dict(folded['params'])
  assert {path[-1] for path in flat} == {'kernel', 'bias'}
  last = variables['params']['discriminative']['last_conv']
  found = folded['params']['discriminative']['last_conv']
  jax.tree.map(np.testing.assert_array_equal, found, last)
  assert folding.fold({}) == {'params': {}}


@pytest.mark.parametrize('channel', ['var is zero', 'var is NaN'])
def test_odd_channels_stay_as_they_are(channel):
  layer = models.ConvNormRelu(3)
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
  variables = randomized(layer.init(jax.random.key(1), x, train=False))
  variables['batch_stats']['var'][1] = 0 if channel == 'var is zero' else np.nan
  expected = layer.apply(jax.device_put(variables), x, train=False)
  folded = jax.device_put(folding.fold(variables))
  found = layer.apply(folded, x, train=False)
  np.testing.assert_allclose(found, expected, 1e-5, 1e-3)
  assert np.isnan(found[..., 1]).all() == (channel == 'var is NaN')
  assert np.isfinite(found[..., ::2]).all()


def test_folded_networks_refuse_to_train():
  layer = models.ConvNormRelu(3)
  x = jnp.zeros((1, 4, 4, 2))
  variables = layer.init(jax.random.key(1), x, train=False)
  folded = jax.device_put(folding.fold(jax.device_get(variables)))
  with pytest.raises(flax.errors.FlaxError, match='norm_scale'):
    layer.apply(folded, x, train=True, mutable=['batch_stats'])
