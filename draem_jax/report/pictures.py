"""Pictures of test images as text: WebP in base64, outlines as SVG paths."""

import base64
import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from skimage import measure

from draem_jax import figures

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
  picture: UInt8[np.ndarray, 'h w c'] | Float[np.ndarray, 'h w 3'], side: int
) -> str:
  """A picture with its longer side at `side`, as base64 of a WebP file.

  Args:
    picture: RGB or RGBA, uint8 or float, which is clipped to [0, 1].
    side: pixels.
  """
  if picture.dtype != np.uint8:
    picture = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
  image = Image.fromarray(picture)
  image.thumbnail((side, side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  image.save(file, **_WEBP)
  return base64.b64encode(file.getvalue()).decode()


def heat_layer(
  anomaly_map: Float[np.ndarray, 'h w'],
) -> UInt8[np.ndarray, 'h w 4']:
  """RGBA that makes an image, laid over it, its heat map overlay.

  A layer takes less room than a second picture of everything beneath it.
  """
  shape = (*anomaly_map.shape, 3)
  # Over black there is only what the overlay adds; over white, that and what it
  # lets through.
  added, white = (
    figures.heat_map_overlay(
      np.full(shape, level, np.uint8), anomaly_map
    ).astype(float)
    for level in (0, 255)
  )
  opacity = 255 - (white - added).mean(axis=-1, keepdims=True)
  color = np.minimum(255 * added / np.maximum(opacity, 1), 255)
  return np.round(np.concatenate([color, opacity], axis=-1)).astype(np.uint8)


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
