"""A white page that tiles are pasted and lines of text are written on."""

import functools
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from draem_jax import names

INK = '#1F2328'
GRAY = '#6A737D'
LIGHT = '#D0D7DE'


class Page:
  """A picture under construction."""

  def __init__(self, width: int, height: int):
    """Starts a white page of this size in pixels."""
    self._image = Image.new('RGB', (width, height), 'white')
    self._draw = ImageDraw.Draw(self._image)
    self.width = width

  @property
  def array(self) -> UInt8[np.ndarray, 'h w 3']:
    """The picture so far."""
    return np.asarray(self._image)

  def paste(
    self, tile: UInt8[np.ndarray, 'h w 3'], corner: tuple[int, int]
  ) -> None:
    """Pastes a tile with a hairline around it."""
    (left, top), (height, width) = corner, tile.shape[:2]
    self._draw.rectangle(
      (left - 1, top - 1, left + width, top + height), outline=LIGHT
    )
    self._image.paste(Image.fromarray(tile), corner)

  def write(
    self,
    position: tuple[float, float],
    text: str,
    *,
    size: int = 13,
    bold: bool = False,
    color: str = INK,
    anchor: str = 'lm',
    width: float | None = None,
  ) -> float:
    """Writes a line, shortened to `width`; returns the width it took."""
    font, text = _font(size, bold), names.shown(text)
    if width is not None:
      text = _shorten(text, font, width)
    self._draw.text(position, text, font=font, fill=color, anchor=anchor)
    return font.getlength(text)

  def write_badge(
    self,
    position: tuple[float, float],
    text: str,
    color: str,
    *,
    size: int = 12,
  ) -> float:
    """Writes white on a colored badge; returns its width.

    `position` is the middle of its right edge.
    """
    font = _font(size, True)
    width, height = round(font.getlength(text) + 1.4 * size), 2 * size - 2
    left, top = round(position[0]) - width, round(position[1]) - height // 2
    # Drawn larger and scaled down, since PIL does not smooth its shapes.
    shape = Image.new('L', (4 * width, 4 * height))
    ImageDraw.Draw(shape).rounded_rectangle(
      (0, 0, 4 * width - 1, 4 * height - 1), radius=2 * size, fill=255
    )
    self._image.paste(color, (left, top), shape.reduce(4))
    center = (left + width / 2, top + height / 2)
    self._draw.text(center, text, font=font, fill='white', anchor='mm')
    return width


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
  """The font that ships with matplotlib, so that it is there everywhere."""
  # Here, as matplotlib takes a while to import, and few commands draw.
  import matplotlib

  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  folder = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
  return ImageFont.truetype(str(folder / name), size)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
  """The text with its beginning cut off until it fits: the end names it."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength('…' + text) > width:
    text = text[1:]
  return '…' + text
