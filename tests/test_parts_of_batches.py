"""A batch looked at in parts gives what the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax import platforms
from draem_jax.detection import parts


@pytest.mark.parametrize(
  ('batch', 'size', 'most'),
  [(1, 256, 1), (3, 256, 1), (6, 128, 2), (5, 128, 1), (8, 64, 8), (9, 64, 3)],
)
def test_parts_give_what_the_whole_gives(batch, size, most):
  seen = []

  def look(images):
    seen.append(len(images))
    means = images.astype(jnp.float32).mean((1, 2, 3))
    return images[..., :1], None, means

  images = np.random.default_rng(0).integers(
    0, 256, (batch, size, size, 3), np.uint8
  )
  with platforms.known(jax.local_devices()[0]):
    found = jax.jit(lambda x: parts.look_by_parts(look, x))(images)
  assert seen and set(seen) == {most}
  assert found[1] is None
  np.testing.assert_array_equal(found[0], images[..., :1])
  np.testing.assert_allclose(found[2], images.mean((1, 2, 3)), 1e-5)


def test_others_look_at_the_whole():
  seen = []
  look = lambda images: (seen.append(len(images)), images)[1]
  with jax.default_device('tpu'):
    shape = jax.ShapeDtypeStruct((4, 256, 256, 3), jnp.uint8)
    jax.eval_shape(lambda x: parts.look_by_parts(look, x), shape)
  assert seen == [4]
