import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.data.images import resize_bilinear
from draem_jax.export import program

SIZES = [(32, 32), (33, 31), (1, 1), (96, 20), (64, 64), (7, 200)]


@pytest.mark.parametrize('new', [(32, 32), (96, 96), (45, 13)])
@pytest.mark.parametrize('old', SIZES)
def test_images_are_prepared_to_the_same_level(old, new):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*old, 3)).astype(np.uint8)
  resized = program.resize(jnp.asarray(image[None]), new)
  found = np.floor(resized[0] + np.float32(0.5))
  np.testing.assert_array_equal(found, resize_bilinear(image, new))


def test_large_images_are_resized_without_overflow():
  line = np.arange(20_000, dtype=np.float32)[None, :, None] % 251
  found = program.resize(jnp.asarray(line[..., 0][None]), (1, 256))
  expected = resize_bilinear(line, (1, 256))[..., 0]
  np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)
