import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.networks import layers


def plainly_normalize(x, scale, bias):
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  return nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)


@pytest.mark.parametrize('guess', [0.0, 3.0, -20.0])
def test_batch_norm_and_its_gradient_follow_the_definition(guess):
  keys = jax.random.split(jax.random.key(0), 4)
  x = 3 + 2 * jax.random.normal(keys[0], (2, 6, 4, 5))
  scale, bias = 1 + jax.random.normal(keys[1], (2, 5))
  weight = jax.random.normal(keys[2], x.shape)
  y, mean, var = layers.batch_normalize(x, scale, bias, jnp.full(5, guess))
  np.testing.assert_allclose(y, plainly_normalize(x, scale, bias), 1e-4, 1e-4)
  np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-4)

  found = jax.grad(
    lambda *a: (layers.batch_normalize(*a, mean)[0] * weight).sum(), (0, 1, 2)
  )(x, scale, bias)
  expected = jax.grad(
    lambda *a: (plainly_normalize(*a) * weight).sum(), (0, 1, 2)
  )(x, scale, bias)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, 1e-4, 1e-4)


@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_gradient_of_batch_norm_is_exact(offset):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x = offset + jnp.asarray(rng.standard_normal((2, 6, 4, 5)))
    scale, bias = jnp.asarray(rng.standard_normal((2, 5)))
    weight = rng.standard_normal(x.shape)
    guess = jnp.zeros(5)
    found, expected = (
      jax.jit(jax.grad(lambda *a, f=f: (f(*a) * weight).sum(), (0, 1, 2)))(
        x, scale, bias
      )
      for f in (
        lambda *a: layers.batch_normalize(*a, guess)[0],
        plainly_normalize,
      )
    )
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, 1e-7, 1e-9)


def test_a_constant_channel_is_normalized_to_its_bias():
  x = jnp.full((2, 4, 4, 1), 0.7)
  y, _, var = layers.batch_normalize(
    x, jnp.ones(1), jnp.full(1, 0.25), jnp.zeros(1)
  )
  np.testing.assert_allclose(y, 0.25, atol=1e-3)
  assert 0 <= var[0] < 1e-6


def test_bfloat16_is_normalized_in_float32():
  x = 300 + jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  x = x.astype(jnp.bfloat16)
  arguments = jnp.ones(3), jnp.zeros(3), jnp.full(3, 299.0)
  y, mean, _ = layers.batch_normalize(x, *arguments)
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == jnp.float32
  expected = plainly_normalize(x.astype(jnp.float32), *arguments[:2])
  np.testing.assert_allclose(y.astype(jnp.float32), expected, 1e-2, 1e-2)
