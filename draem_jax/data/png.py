"""PNG files written strip by strip, fast rather than small."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8, UInt16

_PART = 2**16  # Bytes of a chunk.
_UP = 2  # The filter that subtracts the line above.

Strip = UInt8[np.ndarray, '_ w 3'] | UInt8[np.ndarray, '_ w']
DeepStrip = UInt16[np.ndarray, '_ w']


def encode(image: Strip | DeepStrip) -> bytes:
  """A gray or an RGB image as a PNG file."""
  buffer = io.BytesIO()
  write(buffer, [image])
  return buffer.getvalue()


def write(file: io.BufferedIOBase, strips: Iterable[Strip | DeepStrip]) -> None:
  """Writes a gray or an RGB image of which no more than a strip is at hand.

  The same bytes are written however the image is cut.

  Args:
    file: to write to; can be sought in.
    strips: of the image, from top to bottom.
  """
  begin = file.tell()
  _write_head(file, 0, 0, 0, 0)
  # Runs of equal bytes are all that is looked for, which is fast and, after
  # the filter, finds as much.
  compressor = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
  height, above, waiting = 0, 0, bytearray()
  for strip in strips:
    deep = strip.dtype == np.uint16
    lines = strip.astype('>u2').view(np.uint8) if deep else strip
    lines = lines.reshape(len(strip), -1)
    filtered = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0] - above
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    height, above = height + len(lines), lines[-1].copy()
    waiting += compressor.compress(filtered)
    while len(waiting) >= _PART:
      _write_chunk(file, b'IDAT', bytes(waiting[:_PART]))
      del waiting[:_PART]
  waiting += compressor.flush()
  _write_chunk(file, b'IDAT', bytes(waiting))
  _write_chunk(file, b'IEND', b'')
  # Only now the height is known.
  end = file.seek(0, io.SEEK_CUR)
  file.seek(begin)
  color = 2 if strip.ndim == 3 else 0
  _write_head(file, strip.shape[1], height, 16 if deep else 8, color)
  file.seek(end)


def _write_head(
  file: io.BufferedIOBase, width: int, height: int, depth: int, color: int
) -> None:
  file.write(b'\x89PNG\r\n\x1a\n')
  content = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  _write_chunk(file, b'IHDR', content)


def _write_chunk(file: io.BufferedIOBase, kind: bytes, content: bytes) -> None:
  checksum = zlib.crc32(content, zlib.crc32(kind))
  file.write(struct.pack('>I', len(content)) + kind + content)
  file.write(struct.pack('>I', checksum))
