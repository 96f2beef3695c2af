"""Parameters drawn together are those that Flax draws one by one."""

import functools

import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax import devices
from draem_jax.networks import draws, models
from draem_jax.networks.blocks import Conv, ConvNormRelu
from draem_jax.training import step
from draem_jax.training.optimizer import make_optimizer


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = ConvNormRelu(40, name='outer')(x, train=False)
    x = ConvNormRelu(33, name='inner')(x, train=False)  # 11 blocks of numbers.
    return Conv(2, name='last')(x)


def initialize(key):
  return Block().init(key, jnp.zeros((1, 4, 4, 3)))


def compiled(function):
  """As `init_state` compiles: optimized, products and sums would be fused."""
  return jax.jit(
    function, compiler_options={'xla_backend_optimization_level': 0}
  )


@pytest.mark.parametrize('seed', [0, 7])
def test_together_is_one_by_one_to_the_last_bit(seed):
  key = jax.random.key(seed, impl='unsafe_rbg')
  one_by_one = compiled(initialize)(key)
  together = compiled(functools.partial(draws.together, initialize))(key)
  jax.tree.map(np.testing.assert_array_equal, one_by_one, together)


def test_a_count_that_overflows_goes_on():
  data = jnp.array([3, 4, 2**32 - 300, 5], jnp.uint32)
  bits = lambda key, size: jax.random.bits(key, (size,), jnp.uint32)
  key = jax.random.wrap_key_data(data, impl='unsafe_rbg')
  rest = bits(draws._ahead(key, jnp.uint32(512)), 4096)
  np.testing.assert_array_equal(rest, bits(key, 4 * 512 + 4096)[4 * 512 :])


def test_a_state_begins_with_every_parameter_drawn():
  mesh = devices.make_mesh(1, jax.devices()[:1])
  optimizer = make_optimizer(lambda step: 0.0)
  state = step.init_state(models.Draem(8, 4), optimizer, seed=3, mesh=mesh)
  flat = flax.traverse_util.flatten_dict(state.params)
  assert len(flat) == 200
  for path, leaf in flat.items():
    if path[-1] == 'norm_bias':
      assert not leaf.any()
    else:
      assert leaf.std() > 0
    if path[-1] == 'kernel' and leaf.size > 1000:
      np.testing.assert_allclose(
        [leaf.mean(), leaf.std()], [0, 0.02], atol=2e-3
      )
  # None is another's.
  first = [float(leaf.ravel()[0]) for leaf in flat.values() if leaf.any()]
  assert len(set(first)) == len(first)


def test_parameters_of_another_shape_are_refused():
  shapes = jax.eval_shape(initialize, jax.random.key(0))
  variables = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  variables['params']['last']['kernel'] = jnp.zeros((3, 3, 32, 2))
  with pytest.raises(flax.errors.ScopeParamShapeError, match='kernel'):
    Block().apply(variables, jnp.zeros((1, 4, 4, 3)))
