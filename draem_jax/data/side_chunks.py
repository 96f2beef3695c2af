"""What an image file holds beside its pixels: checked, or left out.

PNG and JPEG carry texts, color profiles and EXIF in chunks of their own, TIFF
in tags. None of it changes a pixel, so that a file in which one of these is
broken can be read without them.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator

from draem_jax.errors import UserError

_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_PIXELS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')
_STEP = 2**20
_JPEG_COLOR_BYTES = 16  # Of a marker, with its length.
# Of a TIFF file: what its pixels are, where they lie, and which side is up.
_TIFF_PIXELS = frozenset(
  (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317)
  + (320, 322, 323, 324, 325, 338, 339, 347, 529, 530, 532)
)
_TIFF_ORIENTATION = 274


def check(file: io.BufferedIOBase, name: str) -> None:
  """Checks the sums that PNG has of its pixels, which Pillow leaves aside.

  Args:
    file: at its begin, where it is left.
    name: of the file, for the error.

  Raises:
    UserError: if one of them is wrong.
  """
  head = file.read(26)
  if head.startswith(_PNG):
    kinds = {b'IHDR', b'IDAT'}
    if head[25:] == b'\3':  # The pixels are numbers of colors.
      kinds.add(b'PLTE')
    for kind, start, size in _png_chunks(file):
      if kind in kinds and not _is_sound(file, kind, start, size):
        raise UserError(
          f'{name} cannot be read as an image (its {kind.decode()} chunk is'
          ' damaged): replace or remove it'
        )
  file.seek(0)


def without(data: bytes) -> tuple[bytes, bytes | None] | None:
  """The file without what it holds beside its pixels.

  Args:
    data: its content.

  Returns:
    The rest, and what it had of EXIF, if anything; None if the format has
    nothing of the kind.
  """
  if data.startswith(_PNG):
    return _strip_png(data)
  if data.startswith(b'\xff\xd8'):
    return _strip_jpeg(data)
  if data[:4] in (b'II*\0', b'MM\0*'):
    return _strip_tiff(data), None
  return None


def _png_chunks(file: io.BufferedIOBase) -> Iterator[tuple[bytes, int, int]]:
  """Kind, begin of the content and size of each chunk that is whole."""
  end = file.seek(0, os.SEEK_END)
  place = len(_PNG)
  while place + 12 <= end:
    file.seek(place)
    size, kind = struct.unpack('>I4s', file.read(8))
    if place + 12 + size > end:
      return
    yield kind, place + 8, size
    if kind == b'IEND':
      return
    place += 12 + size


def _is_sound(
  file: io.BufferedIOBase, kind: bytes, start: int, size: int
) -> bool:
  file.seek(start)
  checksum = zlib.crc32(kind)
  while size:
    part = file.read(min(size, _STEP))
    if not part:
      return False
    checksum = zlib.crc32(part, checksum)
    size -= len(part)
  return file.read(4) == struct.pack('>I', checksum)


def _strip_png(data: bytes) -> tuple[bytes, bytes | None]:
  file = io.BytesIO(data)
  kept, exif, end = [_PNG], None, len(_PNG)
  for kind, start, size in _png_chunks(file):
    end = start + size + 4
    if kind in _PNG_PIXELS and _is_sound(file, kind, start, size):
      kept.append(data[start - 8 : end])
    elif kind == b'eXIf' and _is_sound(file, kind, start, size):
      exif = data[start : start + size]
  if data[end + 4 : end + 8] == b'IDAT':
    kept.append(data[end:])  # Cut short: whether it is enough, pixels tell.
  return b''.join(kept), exif


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes | None]:
  kept, exif, place = [data[:2]], None, 2
  while data[place : place + 1] == b'\xff' and place + 4 <= len(data):
    marker = data[place + 1]
    if marker == 0xFF:  # One may precede a marker.
      place += 1
      continue
    if marker == 0xDA:  # From here on there are pixels.
      break
    size = 2 + struct.unpack('>H', data[place + 2 : place + 4])[0]
    segment = data[place : place + size]
    # JFIF and Adobe say how colors are stored, if they are long enough.
    is_color = marker in (0xE0, 0xEE) and size >= _JPEG_COLOR_BYTES
    is_pixels = is_color or not (0xE0 <= marker <= 0xEF or marker == 0xFE)
    if is_pixels:
      kept.append(segment)
    elif marker == 0xE1 and segment[4:10] == b'Exif\0\0':
      exif = segment[4:]
    place += size
  return b''.join(kept) + data[place:], exif


def _strip_tiff(data: bytes) -> bytes:
  order = '<' if data[:2] == b'II' else '>'
  (first,) = struct.unpack(f'{order}I', data[4:8])
  (count,) = struct.unpack(f'{order}H', data[first : first + 2])
  start = first + 2
  entries = []
  for place in range(start, start + 12 * count, 12):
    entry = data[place : place + 12]
    tag, kind, number = struct.unpack(f'{order}HHI', entry[:8])
    is_short = (kind, number) == (3, 1)
    if tag in _TIFF_PIXELS and (tag != _TIFF_ORIENTATION or is_short):
      entries.append(entry)
  head = struct.pack(f'{order}H', len(entries))
  # No other folder of tags follows.
  folder = head + b''.join(entries) + bytes(4)
  return data[:first] + folder + data[first + len(folder) :]
