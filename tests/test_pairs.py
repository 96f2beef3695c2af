"""Layers that take pixels by twos agree with those that take them singly."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.networks import layers, pairs
from draem_jax.networks.convolution import conv3x3
from draem_jax.networks.models import DiscriminativeSubNetwork


def random_arrays(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def test_split_undoes_join():
  (x,) = random_arrays((2, 3, 8, 5))
  np.testing.assert_array_equal(pairs.split(pairs.join(x)), x)
  np.testing.assert_array_equal(pairs.join(x)[0, 1, 2, 5:], x[0, 1, 5])


@pytest.mark.parametrize('channels', [(3,), (2, 5)])
def test_a_layer_and_its_gradient_in_float64(channels):
  features, size = 4, (2, 5, 6)
  with jax.enable_x64(True):
    *parts, kernel, vectors, guess = random_arrays(
      *((*size, c) for c in channels),
      (3, 3, sum(channels), features),
      (2, features),
      (features,),
    )

    def by_pixels(parts, kernel, scale, bias, guess):
      x = conv3x3(jnp.concatenate(parts, axis=-1), kernel)
      return layers.batch_normalize(x, scale, bias, guess)

    def with_gradients(layer):
      y, transpose = jax.vjp(layer, parts, kernel, *vectors, guess)
      return y, transpose((weights, jnp.zeros(features), jnp.zeros(features)))

    (weights,) = random_arrays((*size, features), seed=1)
    layers_ = by_pixels, pairs.convolve_and_normalize
    expected, found = (
      jax.tree.leaves(jax.jit(with_gradients, static_argnums=0)(layer))
      for layer in layers_
    )
  assert found[0].dtype == jnp.float64
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, 1e-9, 1e-9)


def test_a_convolution_is_that_of_pixels_in_float64():
  with jax.enable_x64(True):
    x, kernel = random_arrays((2, 5, 6, 3), (3, 3, 3, 2))
    found, expected = pairs.convolve([x], kernel), conv3x3(x, kernel)
  np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


@pytest.mark.parametrize(
  ('channels', 'width', 'worth'),
  [
    ((64, 64), 256, True),
    ((6, 64), 64, True),
    ((65,), 64, False),
    ((64,), 33, False),
  ],
)
def test_where_pairs_are_worth_it(channels, width, worth):
  assert pairs.are_worth(channels, width) == worth


@pytest.fixture
def taken(monkeypatch):
  """Takes a TPU's ways where there are such, and tells which."""
  ways = []

  def as_a_tpu(*arguments, default, cpu=None, tpu=None):
    if tpu is None:
      return default(*arguments)
    ways.append(tpu.__qualname__.partition('.')[0])
    return tpu(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', as_a_tpu)
  return ways


@pytest.mark.parametrize(
  ('train', 'expected'),
  [
    (True, {'convolve_and_normalize': 5, 'max_pool_in_pairs': 1, 'Conv': 1}),
    (False, {}),
  ],
)
def test_the_outermost_layers_of_training_are_in_pairs(taken, train, expected):
  network = DiscriminativeSubNetwork(width=2)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

  def run(images):
    return network.init_with_output(jax.random.key(0), images, train=train)

  jax.eval_shape(run, images)
  for_all = {'max_pool_by_windows', 'upsample_by_products'}
  counts = collections.Counter(way for way in taken if way not in for_all)
  assert counts == expected


@pytest.mark.slow
def test_a_network_as_a_tpu_computes_it(request):
  network = DiscriminativeSubNetwork(width=2, param_dtype=jnp.float64)
  with jax.enable_x64(True):
    images, weights = random_arrays((2, 32, 32, 3), (2, 32, 32, 2))
    variables = network.init(jax.random.key(0), images, train=False)

    def look(params):
      logits, updates = network.apply(
        {**variables, 'params': params},
        images,
        train=True,
        mutable=['batch_stats'],
      )
      return (logits * weights).sum(), updates

    def compute():
      gradients = jax.jit(jax.grad(look, has_aux=True))
      return gradients(variables['params'])

    expected = compute()
    assert request.getfixturevalue('taken') == []
    found = compute()
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-7, 1e-9 * scale),
    found,
    expected,
  )
