"""Pictures of test images as text: WebP in base64, outlines as SVG paths."""

import base64
import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from skimage import measure

# Pixels of the longer side: at most, and at least however many there are.
_MAX_SIDE, _MIN_SIDE = 256, 96
# Pixels of one kind of picture, over all images: keeps the file below 15 MB.
_MAX_PIXELS = 200 * _MAX_SIDE**2
# Method 2 of 6 takes half the time of the default for 3 % more bytes.
_WEBP = {'format': 'WEBP', 'quality': 85, 'method': 2}


def picture_side(height: int, width: int, count: int) -> int:
  """Longer side at which `count` pictures of this shape are kept, in pixels."""
  side = max(height, width)
  share = (_MAX_PIXELS / (count * height * width)) ** 0.5
  return min(side, max(round(side * min(share, 1)), _MIN_SIDE), _MAX_SIDE)


def encode(
  picture: UInt8[np.ndarray, 'h w 3'] | Float[np.ndarray, 'h w 3'], side: int
) -> str:
  """A picture with its longer side at `side`, as base64 of a WebP file.

  Args:
    picture: RGB, uint8 or float, which is clipped to [0, 1].
    side: pixels.
  """
  if picture.dtype != np.uint8:
    picture = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
  image = Image.fromarray(picture)
  image.thumbnail((side, side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  image.save(file, **_WEBP)
  return base64.b64encode(file.getvalue()).decode()


def outline(mask: Bool[np.ndarray, 'h w']) -> str:
  """The border of a mask as an SVG path; in pixels, (0, 0) the left top."""
  # A margin closes the outlines of defects that reach the image's border.
  contours = measure.find_contours(np.pad(mask, 1).astype(float), 0.5)
  return ''.join(
    'M' + 'L'.join(f'{x - 0.5:g} {y - 0.5:g}' for y, x in corners[:-1]) + 'Z'
    for corners in (
      measure.approximate_polygon(contour, 0.3) for contour in contours
    )
  )
