import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_images
from untrained import random_variables

from draem_jax import folding, models
from draem_jax.data.images import resize_bilinear
from draem_jax.export import channels_first, program

SIZES = [(32, 32), (33, 31), (1, 1), (96, 20), (64, 64), (7, 200)]


@pytest.mark.parametrize('new', [(32, 32), (96, 96), (45, 13)])
@pytest.mark.parametrize('old', SIZES)
def test_images_are_prepared_to_the_same_level(old, new):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*old, 3)).astype(np.uint8)
  found = np.floor(program.resize(image[None], new)[0] + np.float32(0.5))
  np.testing.assert_array_equal(found, resize_bilinear(image, new))


def test_large_images_are_resized_without_overflow():
  line = np.arange(20_000, dtype=np.float32)[None, :, None] % 251
  found = program.resize(line[..., 0][None], (1, 256))
  expected = resize_bilinear(line, (1, 256))[..., 0]
  np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)


def test_channels_first_are_the_same_networks():
  widths = {'reconstructive_width': 4, 'discriminative_width': 2}
  folded = folding.fold(jax.device_get(random_variables(widths, seed=0)))
  rng = np.random.default_rng(0)
  for layers in folded['params'].values():
    for layer in layers.values():
      layer['bias'] = rng.normal(0, 0.3, layer['bias'].shape).astype('f4')
  images = jnp.asarray(random_images(2, 64)[:, :32] / 255, jnp.float32)
  model = models.Draem(**widths)
  expected = jax.jit(lambda x: model.apply(folded, x, train=False))(images)
  found = jax.jit(channels_first.make_networks(folded))(images)
  scale = jnp.abs(expected.logits).max()
  np.testing.assert_allclose(found / scale, expected.logits / scale, 0, 1e-5)
