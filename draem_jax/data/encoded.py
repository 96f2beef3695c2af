"""Encoded image files: opened with care, decoded within bounds.

Whatever may be called an image is opened: only regular files of a bounded size
are, only of the formats below, and only so many of their pixels at a time are
decoded. What a picture says beside its pixels (EXIF, color profile, text) may
be broken; then the pixels count.
"""

import contextlib
import ctypes
import io
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from draem_jax.data import side_chunks
from draem_jax.errors import UserError

# By content, whatever the file is called.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'DIB', 'TIFF', 'PPM', 'WEBP')
# Formats that smear edges.
_LOSSY_FORMATS = ('JPEG', 'MPO', 'WEBP')
MAX_PIXELS = 2**28
_MAX_BYTES = 2**31
# What pictures that are being decoded may take together: one that takes more is
# decoded alone.
_ROOM = 2**29
_LARGE = 2**28  # Before more is asked for, what others have freed goes back.
# Pixels converted at a time: in between, each takes several times what it is.
_STRIP = 2**20
_BYTES_PER_PIXEL = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16B': 2}
# From raw to upright, as `ImageOps.exif_transpose` does it.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_KINDS = (
  (stat.S_ISDIR, 'a folder'),
  (stat.S_ISFIFO, 'a pipe'),
  (stat.S_ISSOCK, 'a socket'),
)


class Picture:
  """A decoded image, of which rows become RGB when they are asked for.

  EXIF orientation is applied, alpha is dropped, and of 16 bits the high byte
  stays, as OpenCV's `IMREAD_COLOR` does it.

  Attributes:
    shape: its height and width, upright.
    mode: what its pixels are as they were stored, as Pillow calls it.
    is_lossy: whether its format smears edges.
    is_plain: whether its file is a PNG or JPEG of just these pixels.
    bits_in_use: of the 16 of each value; None where there are no 16.
  """

  def __init__(
    self, image: Image.Image, orientation: int, *, is_lossy: bool, is_deep: bool
  ):
    self._image, self._orientation = image, orientation
    width, height = image.size
    if orientation >= 5:
      width, height = height, width
    self.shape, self.mode = (height, width), image.mode
    self.is_lossy = is_lossy
    self.is_plain = (
      image.format in ('PNG', 'JPEG')
      and image.mode == 'RGB'
      and orientation == 1
    )
    self.bits_in_use = None
    if is_deep or image.mode.startswith('I'):
      self.bits_in_use = _bits_in_use(image)

  def rows(self, top: int, bottom: int) -> UInt8[np.ndarray, 'h w 3']:
    """Some rows of it as RGB."""
    strip = self._cut(top, bottom)
    if strip.mode.startswith('I'):
      gray = (np.asarray(strip).astype(np.uint16) >> 8).astype(np.uint8)
      return np.repeat(gray[..., None], 3, axis=2)
    # Of no use here, and not every kind of it can be converted.
    strip.info.pop('transparency', None)
    return np.array(strip if strip.mode == 'RGB' else strip.convert('RGB'))

  def strips(self) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
    """All of it as RGB, from top to bottom, about a million pixels a time."""
    height, width = self.shape
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
      yield self.rows(top, min(top + step, height))

  def rgb(self) -> UInt8[np.ndarray, 'h w 3']:
    """All of it as RGB."""
    whole, top = np.empty((*self.shape, 3), np.uint8), 0
    for strip in self.strips():
      whole[top : top + len(strip)] = strip
      top += len(strip)
    return whole

  def upright(self) -> Image.Image:
    """All of it as it was stored: palette, alpha, 16 bits."""
    return self._cut(0, self.shape[0])

  def release(self) -> None:
    """Lets go of the pixels."""
    self._image = None

  def _cut(self, top: int, bottom: int) -> Image.Image:
    """Some rows of the upright image, turned after they are cut out."""
    width, height = self._image.size
    box = {
      1: (0, top, width, bottom),
      2: (0, top, width, bottom),
      3: (0, height - bottom, width, height - top),
      4: (0, height - bottom, width, height - top),
      5: (top, 0, bottom, height),
      6: (top, 0, bottom, height),
      7: (width - bottom, 0, width - top, height),
      8: (width - bottom, 0, width - top, height),
    }[self._orientation]
    strip = self._image
    if box != (0, 0, width, height):
      strip = strip.crop(box)
    turn = _TURNS.get(self._orientation)
    return strip if turn is None else strip.transpose(turn)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Content of a file.

  Raises:
    UserError: if it cannot be read, or is no file that ends.
  """
  with _open_regular(path) as file:
    try:
      return file.read(_MAX_BYTES)
    except OSError as error:
      raise unreadable(path, error) from error


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Picture]:
  """The picture in a file, decoded while the block lasts."""
  with _open_regular(path) as file, decode(file, os.fspath(path)) as picture:
    yield picture


@contextlib.contextmanager
def decode(
  source: bytes | io.BufferedIOBase, name: str, *, max_pixels: int = MAX_PIXELS
) -> Iterator[Picture]:
  """The picture in a file or its content, decoded while the block lasts.

  Args:
    source: content of the file, or the file at its begin.
    name: of the file, for the error.
    max_pixels: above which it is too large.

  Raises:
    UserError: if this is no image, a broken or too large one.
  """
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  with contextlib.ExitStack() as held:
    picture = _decode(file, name, held, max_pixels)
    # Before its room is given back.
    held.callback(picture.release)
    yield picture


def read_size(data: bytes, name: str) -> tuple[int, int]:
  """Height and width of the upright picture in a file, of its content.

  Where the head of the file tells, no pixel is decoded.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  try:
    with _quiet, Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      width, height = image.size
      turned = _orientation(image, None) >= 5
  except Exception:  # Pillow raises nearly anything.
    with decode(data, name) as picture:
      return picture.shape
  return (width, height) if turned else (height, width)


def _decode(
  file: io.BufferedIOBase,
  name: str,
  held: contextlib.ExitStack,
  max_pixels: int,
) -> Picture:
  try:
    if file.seek(0, os.SEEK_END) == 0:
      raise UserError(f'{name} is empty (0 bytes): replace or remove it')
    file.seek(0)
    side_chunks.check(file, name)
    return _load(file, name, held, max_pixels)
  except (MemoryError, UserError):
    raise
  # Broken files make Pillow raise nearly anything.
  except Exception as error:
    try:
      file.seek(0)
      found = side_chunks.without(file.read(_MAX_BYTES))
      if found is not None:
        rest, exif = found
        return _load(io.BytesIO(rest), name, held, max_pixels, exif)
    except (MemoryError, UserError):
      raise
    except Exception:
      pass  # So the pixels are broken, too: the first error says how.
    reason = ' '.join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
      reason = 'unknown format'
    raise UserError(
      f'{name} cannot be read as an image ({reason}): replace or remove it'
    ) from error


def _load(
  file: io.BufferedIOBase,
  name: str,
  held: contextlib.ExitStack,
  max_pixels: int,
  exif: bytes | None = None,
) -> Picture:
  """Decodes a file whose side chunks are sound, or gone but for `exif`."""
  with contextlib.ExitStack() as taken, _quiet:
    file.seek(0)
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > max_pixels:
      raise UserError(
        f'{name} has {image.width}x{image.height} pixels, more than'
        f' {max_pixels // 10**6} million: scale it down or cut it into pieces'
      )
    is_deep = _is_deep(image, file)
    cost = _cost(image)
    taken.enter_context(_room.take(cost))
    if cost > _LARGE:
      _trim()
    image.load()
    if image.mode == 'F':
      raise UserError(
        f'{name} holds floating-point pixels: save it with 8 or 16 bits'
      )
    if image.mode == 'LAB':
      raise UserError(f'{name} holds Lab pixels: save it as RGB')
    if image.mode.startswith('I'):
      least, most = image.getextrema()
      if least < 0 or most > 65535:
        raise UserError(
          f'{name} holds 32-bit pixels: save it with 8 or 16 bits'
        )
    picture = Picture(
      image,
      _orientation(image, exif),
      is_lossy=image.format in _LOSSY_FORMATS and not _is_lossless_webp(file),
      is_deep=is_deep,
    )
    held.push(taken.pop_all())
    return picture


def _orientation(image: Image.Image, exif: bytes | None) -> int:
  """How the image lies, 1 where that cannot be read."""
  try:
    tags = image.getexif()
    if exif is not None:
      tags = Image.Exif()
      tags.load(exif)
    value = tags.get(ExifTags.Base.Orientation, 1)
  except Exception:  # Pillow raises nearly anything.
    return 1
  return value if isinstance(value, int) and value in _TURNS else 1


def _is_deep(image: Image.Image, file: io.BufferedIOBase) -> bool:
  """Whether 16 bits were stored, of which Pillow may keep eight."""
  if image.format == 'PNG':
    file.seek(24)
    depth = file.read(1)
    return depth == b'\x10'
  if image.format == 'TIFF':
    bits = image.tag_v2.get(258, 1)
    return max(bits if isinstance(bits, tuple) else (bits,)) in range(9, 17)
  return False


def _is_lossless_webp(file: io.BufferedIOBase) -> bool:
  file.seek(0)
  head = file.read(64)
  return head[:4] == b'RIFF' and b'VP8L' in head


def _bits_in_use(image: Image.Image) -> int:
  if image.mode.startswith('I'):
    return int(image.getextrema()[1]).bit_length()
  # Of alpha every bit is used.
  bands = image.getbands()
  extrema = image.getextrema()
  extrema = extrema if len(bands) > 1 else (extrema,)
  most = max(
    high for band, (_, high) in zip(bands, extrema, strict=True) if band != 'A'
  )
  return 8 + int(most).bit_length() if most else 8


def _cost(image: Image.Image) -> int:
  """Bytes that an image takes while it is decoded."""
  each = _BYTES_PER_PIXEL.get(image.mode, 4)
  # Of these the decoders keep a copy of their own.
  if image.format == 'WEBP':
    each += 8
  elif image.info.get('progressive'):
    each += 6
  return each * image.width * image.height


@contextlib.contextmanager
def _open_regular(path: str | os.PathLike[str]) -> Iterator[io.BufferedIOBase]:
  """Opens a file that has an end, and waits for nobody."""
  flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
  try:
    # Looked at first, as some devices answer to being opened; and again, as
    # another may have taken its place.
    _check_regular(path, os.stat(path))
    descriptor = os.open(path, flags)
  except OSError as error:
    raise unreadable(path, error) from error
  except ValueError as error:  # A name that no file can have.
    raise UserError(f'{path!r} cannot be read ({error}): rename it') from error
  with os.fdopen(descriptor, 'rb') as file:
    _check_regular(path, os.fstat(descriptor))
    yield file


def _check_regular(
  path: str | os.PathLike[str], status: os.stat_result
) -> None:
  name = os.fspath(path)
  if not stat.S_ISREG(status.st_mode):
    kinds = (kind for holds, kind in _KINDS if holds(status.st_mode))
    raise UserError(
      f'{name} cannot be read (it is {next(kinds, "a device")}, no file):'
      ' remove it, or put a file there'
    )
  if status.st_size > _MAX_BYTES:
    raise UserError(
      f'{name} cannot be read (it has {status.st_size / 2**30:.1f} GiB, more'
      f' than the {_MAX_BYTES // 2**30} GiB that are read): replace or remove'
      ' it'
    )


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
  """What to raise where a file cannot be read."""
  return UserError(
    f'{os.fspath(path)} cannot be read ({error.strerror}): allow reading it, or'
    ' remove it'
  )


def _trim() -> None:
  """Has the allocator give back what was freed, where it can."""
  with contextlib.suppress(OSError, AttributeError):  # Not glibc.
    ctypes.CDLL(None).malloc_trim(0)


class _Room:
  """Bytes that threads take and give back; who wants more than all waits."""

  def __init__(self, size: int):
    self._size, self._taken = size, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def take(self, size: int) -> Iterator[None]:
    with self._changed:
      self._changed.wait_for(
        lambda: not self._taken or self._taken + size <= self._size
      )
      self._taken += size
    try:
      yield
    finally:
      with self._changed:
        self._taken -= size
        self._changed.notify_all()


class _Quiet:
  """While any thread is inside, Pillow neither warns, logs nor bounds pixels.

  Its settings and the filters of warnings are one for all threads, so that the
  first one sets them aside and the last one brings them back.
  """

  def __init__(self):
    self._lock, self._inside = threading.Lock(), 0
    self._log = logging.getLogger('PIL')

  def __enter__(self) -> None:
    with self._lock:
      self._inside += 1
      if self._inside == 1:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.filterwarnings('ignore', module=r'PIL(\.|$)')
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)
        self._max_pixels = Image.MAX_IMAGE_PIXELS
        # Not None: another thread may be between two looks at it.
        Image.MAX_IMAGE_PIXELS = sys.maxsize

  def __exit__(self, *error: object) -> None:
    with self._lock:
      self._inside -= 1
      if not self._inside:
        Image.MAX_IMAGE_PIXELS = self._max_pixels
        self._log.setLevel(self._level)
        self._filters.__exit__(None, None, None)


_room, _quiet = _Room(_ROOM), _Quiet()
