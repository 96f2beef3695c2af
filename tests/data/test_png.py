"""PNG files as other programs read them."""

import io

import numpy as np
import pytest
from PIL import Image

from draem_jax.data import png


@pytest.mark.parametrize('shape', [(1, 1), (37, 53), (300, 400), (300, 400, 3)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_it_is_read_as_it_was_written_however_it_is_cut(shape, dtype):
  if len(shape) == 3 and dtype == np.uint16:
    pytest.skip('is not written')
  rng = np.random.default_rng(0)
  image = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
  image[: shape[0] // 2] = 7  # There is something to save.
  data = png.encode(image)
  with Image.open(io.BytesIO(data)) as opened:
    opened.verify()
  decoded = np.asarray(Image.open(io.BytesIO(data)))
  assert decoded.dtype == dtype
  np.testing.assert_array_equal(decoded, image)
  for step in (1, 7, 100):
    buffer = io.BytesIO()
    png.write(
      buffer, (image[top : top + step] for top in range(0, len(image), step))
    )
    assert buffer.getvalue() == data
  assert len(data) < image.nbytes * 0.6 + 200
