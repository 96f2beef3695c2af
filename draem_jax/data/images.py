"""Image files to arrays: decoding, and resizing as OpenCV does it."""

import io
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from draem_jax.data import encoded, png

SUFFIXES = frozenset(
  ('.bmp', '.dib')
  + ('.jpeg', '.jpg', '.jpe', '.jfif', '.jif', '.jfi', '.mpo')
  + ('.pbm', '.pgm', '.pnm', '.ppm')
  + ('.png', '.tif', '.tiff', '.webp')
)
_SUBMITTED = 10_000  # Calls that wait for a thread.
# Of 16 bits; with fewer, much of what is seen is lost.
_ENOUGH_BITS = 15

# Of each new place the two old ones beside it, and the weight of the second.
_Neighbors = tuple[np.ndarray, np.ndarray, np.ndarray]


def is_image(path: str | os.PathLike[str]) -> bool:
  """Whether the name is that of an image file: by suffix, hidden ones not."""
  # Not by pathlib: of a million names this is most of the time.
  name = os.path.basename(path)
  return os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != '.'


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, 'h w 3']:
  """Reads an image file as RGB; see `decode_image`."""
  with encoded.open_picture(path) as picture:
    return picture.rgb()


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, 'h w 3']:
  """Decodes gray, RGB, RGBA, palette or 16-bit images of any common format.

  EXIF orientation is applied, alpha is dropped, and of 16 bits the high byte
  stays, as OpenCV's `IMREAD_COLOR` does it.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Returns:
    RGB.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  with encoded.decode(data, name) as picture:
    return picture.rgb()


class Stored(NamedTuple):
  """An image as it is stored.

  Attributes:
    data: a PNG or JPEG file of its pixels as 8-bit RGB.
    size: height and width, as `decode_image` gives it.
    bits_in_use: of the 16 it came with; None if it had no 16.
  """

  data: bytes
  size: tuple[int, int]
  bits_in_use: int | None


def to_stored(data: bytes, name: str) -> Stored:
  """The same pixels as a PNG or JPEG file of 8-bit RGB.

  A file that is one already keeps its bytes.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  with encoded.decode(data, name) as picture:
    if not picture.is_plain:
      buffer = io.BytesIO()
      png.write(buffer, picture.strips())
      data = buffer.getvalue()
    return Stored(data, picture.shape, picture.bits_in_use)


def describe_depth(bits_in_use: Mapping[str, int | None]) -> str | None:
  """What there is to say of images of 16 bits that use few of them.

  Which of them are meant no single image tells, so that nothing is scaled.

  Args:
    bits_in_use: by the images' names; None for those that had no 16.

  Returns:
    A line, or None where the bits are used or there are no such images.
  """
  deep = {name: bits for name, bits in bits_in_use.items() if bits is not None}
  used = max(deep.values(), default=_ENOUGH_BITS)
  if used >= _ENOUGH_BITS:
    return None
  return (
    f'{len(deep)} images of 16 bits use at most {used} of them, such as'
    f' {next(iter(deep))}: {2 ** max(0, used - 8)} of 256 levels of brightness'
    f' are left of them; save them with 8 bits, or multiply them by'
    f' {2 ** (16 - used)}, here and wherever the same part is seen'
  )


def resize_bilinear(
  image: UInt8[np.ndarray, 'h w c'] | Float[np.ndarray, 'h w c'],
  size: tuple[int, int],
  *,
  rows: slice = slice(None),
) -> UInt8[np.ndarray, 'h2 w2 c'] | Float[np.ndarray, 'h2 w2 c']:
  """Resizes without antialiasing, as OpenCV's `INTER_LINEAR`.

  Pixel centers lie at half-integers and the border repeats. Float images agree
  with OpenCV to rounding, uint8 ones to one level.

  Args:
    image: uint8, or float of any range.
    size: height and width of the result.
    rows: those of the result that are wanted.

  Returns:
    The resized image: uint8 for uint8, otherwise float32.
  """
  if image.shape[:2] == tuple(size):
    image = image[rows]
    return image if image.dtype == np.uint8 else image.astype(np.float32)
  vertical, horizontal = (
    _neighbors(old, new) for old, new in zip(image.shape[:2], size, strict=True)
  )
  vertical = tuple(array[rows] for array in vertical)
  return _interpolate(image, vertical, horizontal)


def resize_picture(
  picture: encoded.Picture, size: tuple[int, int]
) -> UInt8[np.ndarray, 'h2 w2 3']:
  """As `resize_bilinear` of all of the picture, of which few rows matter.

  Args:
    picture: of any size.
    size: height and width of the result.
  """
  height, width = picture.shape
  if height <= 2 * size[0]:
    return resize_bilinear(picture.rgb(), size)
  y0, y1, wy = _neighbors(height, size[0])
  needed = np.union1d(y0, y1)
  image = np.concatenate([picture.rows(y, y + 1) for y in needed.tolist()])
  places = np.searchsorted(needed, (y0, y1))
  return _interpolate(image, (*places, wy), _neighbors(width, size[1]))


def map_parallel(
  function: Callable[[Any], Any],
  items: Sequence[Any],
  *,
  description: str = '',
) -> list[Any]:
  """`[function(item) for item in items]` on a thread per core.

  Decoding leaves Python's lock, so threads are enough. On a terminal a bar
  shows the progress of what takes more than two seconds.

  Args:
    function: called once for each item, in any order.
    items: its arguments.
    description: what the bar says; no bar if empty.

  Raises:
    Exception: the first one that `function` raises; the rest is not started.
  """
  with futures.ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
    try:
      # A million at once would take a gigabyte for what waits.
      results = itertools.chain.from_iterable(
        pool.map(function, items[start : start + _SUBMITTED])
        for start in range(0, len(items), _SUBMITTED)
      )
      bar = tqdm.tqdm(
        results,
        description,
        total=len(items),
        delay=2,
        leave=False,
        disable=not description or not sys.stderr.isatty(),
      )
      return list(bar)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _neighbors(old: int, new: int) -> _Neighbors:
  """Indices of the two pixels between which each new pixel lies; its weight."""
  position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
  lower = np.floor(position).astype(np.intp)
  upper = np.minimum(lower + 1, old - 1)
  return lower, upper, (position - lower).astype(np.float32)


def _interpolate(
  image: UInt8[np.ndarray, 'h w c'] | Float[np.ndarray, 'h w c'],
  vertical: _Neighbors,
  horizontal: _Neighbors,
) -> UInt8[np.ndarray, 'h2 w2 c'] | Float[np.ndarray, 'h2 w2 c']:
  (y0, y1, wy), (x0, x1, wx) = vertical, horizontal

  def across(rows: np.ndarray) -> Float[np.ndarray, 'h2 w2 c']:
    # Taken before it becomes float, which is the most work; and written as
    # a + (b - a) w, where a = b gives exactly a: what a mask covers fully
    # stays so.
    picked = image.take(rows, axis=0)
    left = picked.take(x0, axis=1).astype(np.float32)
    return left + (picked.take(x1, axis=1) - left) * wx[:, None]

  top = across(y0)
  resized = top + (across(y1) - top) * wy[:, None, None]
  if image.dtype == np.uint8:
    return (resized + 0.5).astype(np.uint8)
  return resized
