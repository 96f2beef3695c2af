"""Image files to arrays: decoding, masks, resizing as OpenCV does it."""

import io
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Float, UInt8, UInt16
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from draem_jax.errors import UserError

SUFFIXES = frozenset(
  ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
)
# Formats that smear a mask's edges: only one side or the other is meant.
_LOSSY_FORMATS = ('JPEG', 'MPO', 'WEBP')
_SUBMITTED = 10_000  # Calls that wait for a thread.


def is_image(path: str | os.PathLike[str]) -> bool:
  """Whether the name is that of an image file: by suffix, hidden ones not."""
  # Not by pathlib: of a million names this is most of the time.
  name = os.path.basename(path)
  return os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != '.'


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, 'h w 3']:
  """Reads an image file as RGB; see `decode_image`."""
  return decode_image(read_bytes(path), str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Content of a file.

  Raises:
    UserError: if it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}): allow reading it, or remove'
      ' it'
    ) from error


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
  return _to_rgb(_open(data, name)[0], name)


def decode_mask(data: bytes, name: str) -> UInt8[np.ndarray, 'h w']:
  """Decodes a ground truth mask: 0 is normal, 255 anomalous.

  Lossy files are cut at half. Otherwise, where all is below half (class
  numbers) or only one value beside 0 occurs, whatever is not 0 is anomalous;
  any other mask keeps its grays as coverage. Of colors the largest channel
  counts.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  image, _ = _open(data, name)
  if image.mode.startswith('I'):
    levels = _sixteen_bits(image, name)
  else:
    levels = np.asarray(image.convert('RGB')).max(axis=2)
  half = np.iinfo(levels.dtype).max // 2
  if image.format in _LOSSY_FORMATS:
    return np.where(levels > half, np.uint8(255), np.uint8(0))
  positive = levels[levels > 0]
  if positive.size and (
    positive.max() <= half or positive.min() == positive.max()
  ):
    return np.where(levels > 0, np.uint8(255), np.uint8(0))
  return (levels >> 8).astype(np.uint8) if levels.itemsize == 2 else levels


def to_stored(data: bytes, name: str) -> tuple[bytes, tuple[int, int]]:
  """Bytes of a PNG or JPEG file that hold the same pixels as 8-bit RGB.

  A file that is one already keeps its bytes.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Returns:
    The bytes, and (height, width) as `decode_image` gives it.
  """
  image, was_turned = _open(data, name)
  plain = image.format in ('PNG', 'JPEG') and image.mode == 'RGB'
  if was_turned or not plain:
    data = encode_png(_to_rgb(image, name))
  return data, (image.height, image.width)


def encode_png(
  image: UInt8[np.ndarray, 'h w *c'] | UInt16[np.ndarray, 'h w'],
) -> bytes:
  """PNG bytes of a gray or an RGB image, written fast rather than small."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG', compress_level=1)
  return buffer.getvalue()


def resize_bilinear(
  image: UInt8[np.ndarray, 'h w c'] | Float[np.ndarray, 'h w c'],
  size: tuple[int, int],
) -> UInt8[np.ndarray, 'h2 w2 c'] | Float[np.ndarray, 'h2 w2 c']:
  """Resizes without antialiasing, as OpenCV's `INTER_LINEAR`.

  Pixel centers lie at half-integers and the border repeats. Float images agree
  with OpenCV to rounding, uint8 ones to one level.

  Args:
    image: uint8, or float of any range.
    size: height and width of the result.

  Returns:
    The resized image: uint8 for uint8, otherwise float32.
  """
  if image.shape[:2] == tuple(size):
    return image if image.dtype == np.uint8 else image.astype(np.float32)
  (y0, y1, wy), (x0, x1, wx) = (
    _neighbors(old, new) for old, new in zip(image.shape[:2], size, strict=True)
  )

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


def _open(data: bytes, name: str) -> tuple[Image.Image, bool]:
  """Decodes a file fully; turns it upright, and says whether it had to."""
  if not data:
    raise UserError(f'{name} is empty (0 bytes): replace or remove it')
  try:
    image = Image.open(io.BytesIO(data))
    image.load()
    was_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    # In place, because a copy would forget its format.
    ImageOps.exif_transpose(image, in_place=True)
  except MemoryError:
    raise
  # Broken files make Pillow raise nearly anything.
  except Exception as error:
    reason = ' '.join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
      reason = 'unknown format'
    raise UserError(
      f'{name} cannot be read as an image ({reason}): replace or remove it'
    ) from error
  if image.mode == 'F':
    raise UserError(
      f'{name} holds floating-point pixels: save it with 8 or 16 bits'
    )
  return image, was_turned


def _to_rgb(image: Image.Image, name: str) -> UInt8[np.ndarray, 'h w 3']:
  if image.mode.startswith('I'):
    gray = (_sixteen_bits(image, name) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
  return np.array(image.convert('RGB'))


def _sixteen_bits(image: Image.Image, name: str) -> UInt16[np.ndarray, 'h w']:
  levels = np.asarray(image)
  if levels.min() < 0 or levels.max() > 65535:
    raise UserError(f'{name} holds 32-bit pixels: save it with 8 or 16 bits')
  return levels.astype(np.uint16)


def _neighbors(
  old: int, new: int
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, 'new']]:
  """Indices of the two pixels between which each new pixel lies; its weight."""
  position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
  lower = np.floor(position).astype(np.intp)
  upper = np.minimum(lower + 1, old - 1)
  return lower, upper, (position - lower).astype(np.float32)
