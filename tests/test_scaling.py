"""Each way of halving and doubling agrees with the plain one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.networks import scaling

OF_A_TPU = {
  'max_pool': (scaling.max_pool_by_windows, scaling.max_pool_in_pairs),
  'upsample': (scaling.upsample_by_products,),
}
PLAIN = {'max_pool': scaling.max_pool, 'upsample': scaling.upsample}


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(function, x):
  """What a function gives, and the gradient by its input of some sum."""
  y, transpose = jax.vjp(function, x)
  weight = np.random.default_rng(0).standard_normal(y.shape)
  return y, transpose(jnp.asarray(weight, y.dtype))[0]


@pytest.mark.parametrize('name', PLAIN)
@pytest.mark.parametrize('shape', [(2, 6, 4, 3), (1, 2, 10, 1), (1, 32, 16, 5)])
def test_the_ways_of_a_tpu_are_the_plain_one_in_float64(name, shape):
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape))
    assert x.dtype == jnp.float64
    expected = value_and_gradient(PLAIN[name], x)
    for way in OF_A_TPU[name]:
      for a, b in zip(value_and_gradient(way, x), expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-12, 1e-12)


@pytest.mark.parametrize(
  ('chosen', 'of_a_tpu', 'elsewhere'),
  [
    (scaling.max_pool, scaling.max_pool_by_windows, 'maximum'),
    (
      functools.partial(scaling.max_pool, in_pairs=True),
      scaling.max_pool_in_pairs,
      'maximum',
    ),
    (scaling.upsample, scaling.upsample_by_products, 'gather'),
  ],
)
def test_a_processor_takes_its_own_way(chosen, of_a_tpu, elsewhere):
  x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)

  def lowered(function, platform):
    traced = value_and_gradient.trace(function, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return {
      operation
      for operation in ('dot_general', 'reduce_window', 'gather', 'maximum')
      if f'stablehlo.{operation}' in text
    }

  assert lowered(chosen, 'tpu') == lowered(of_a_tpu, 'tpu')
  for platform in ('cpu', 'cuda'):
    assert lowered(chosen, platform) == {elsewhere}


def test_max_pool_and_its_gradient_agree_with_flax():
  x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))

  def flax_max_pool(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))

  expected = value_and_gradient(flax_max_pool, x)
  for way in PLAIN['max_pool'], *OF_A_TPU['max_pool']:
    for a, b in zip(value_and_gradient(way, x), expected, strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('way', OF_A_TPU['max_pool'])
def test_equal_pixels_share_the_gradient(way):
  x = jnp.array([[5.0, 5.0, 1.0, 2.0], [0.0, 5.0, 2.0, 0.0]])[None, :, :, None]
  _, transpose = jax.vjp(way, x)
  gradient = transpose(jnp.array([3.0, 8.0]).reshape(1, 1, 2, 1))[0]
  expected = [[1, 1, 0, 4], [0, 1, 4, 0]]
  np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_products_in_bfloat16_keep_an_even_picture():
  x = jnp.full((1, 96, 32, 2), 0.7109375, jnp.bfloat16)
  y = scaling.upsample_by_products(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, np.full((1, 192, 64, 2), x[0, 0, 0, 0]))


def test_products_in_bfloat16_are_as_near_as_it_allows():
  x = jax.random.normal(jax.random.key(0), (1, 16, 24, 3), jnp.bfloat16)
  exact = scaling.upsample(x.astype(jnp.float32))
  found = scaling.upsample_by_products(x)
  np.testing.assert_allclose(found.astype(jnp.float32), exact, 0, 0.03)
