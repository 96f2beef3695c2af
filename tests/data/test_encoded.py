"""Files that are called images, and what they may do."""

import io
import os
import random
import socket
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from draem_jax.data import encoded, images
from draem_jax.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = RGB.repeat(8, axis=0).repeat(8, axis=1)


def encode(image, fmt, **options):
  buffer = io.BytesIO()
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  image.save(buffer, fmt, **options)
  return buffer.getvalue()


def test_only_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  (tmp_path / 'folder.png').mkdir()
  (tmp_path / 'zero.png').symlink_to('/dev/zero')
  (tmp_path / 'gone.png').symlink_to(tmp_path / 'nowhere')
  (tmp_path / 'loop.png').symlink_to(tmp_path / 'loop.png')
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(tmp_path / 'socket.png'))
  names = sorted(os.listdir(tmp_path))
  assert len(names) == 6
  begin = time.monotonic()
  for name in names:
    for read in (images.read_image, encoded.read_bytes):
      with pytest.raises(UserError, match=f'{name} cannot be read') as error:
        read(tmp_path / name)
      assert '\n' not in str(error.value)
  assert time.monotonic() < begin + 5
  with pytest.raises(UserError, match='cannot be read'):
    images.read_image(f'{tmp_path}/a\0.png')
  with pytest.raises(UserError, match='cannot be read'):
    images.read_image(tmp_path / ('x' * 300))


def test_bytes_and_pixels_are_bounded(tmp_path, monkeypatch):
  head = struct.pack('>IIBBBBB', 40_000, 30_000, 8, 2, 0, 0, 0)
  data = b'\x89PNG\r\n\x1a\n'
  for kind, content in (
    (b'IHDR', head),
    (b'IDAT', zlib.compress(bytes(1000))),
    (b'IEND', b''),
  ):
    data += struct.pack('>I', len(content)) + kind + content
    data += struct.pack('>I', zlib.crc32(kind + content))
  with pytest.raises(UserError, match='bomb.png has 40000x30000 pixels'):
    images.decode_image(data, 'bomb.png')
  (tmp_path / 'long.png').write_bytes(encode(RGB, 'PNG'))
  monkeypatch.setattr(encoded, '_MAX_BYTES', 100)
  with pytest.raises(UserError, match='long.png cannot be read'):
    images.read_image(tmp_path / 'long.png')


def test_formats_are_told_by_content_and_no_others_decoded(
  tmp_path, monkeypatch
):
  (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n')
  (tmp_path / 'gs').chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  image = Image.fromarray(RGB)
  for fmt in ('EPS', 'GIF', 'ICO', 'PCX', 'SGI', 'TGA'):
    path = tmp_path / f'{fmt}.png'
    path.write_bytes(encode(image, fmt))
    with pytest.raises(UserError, match=r'unknown format'):
      images.read_image(path)
  assert not (tmp_path / 'started').exists()
  (tmp_path / 'a.png').write_bytes(encode(image, 'BMP'))
  np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), RGB)
  for fmt in ('JPEG', 'MPO'):
    decoded = images.decode_image(encode(image, fmt, quality=95), 'a.png')
    assert np.abs(decoded.astype(int) - RGB).mean() < 10


def make_files():
  profile = ImageCms.createProfile('sRGB')
  profile = ImageCms.ImageCmsProfile(profile).tobytes()
  exif = Image.Exif()
  exif[0x112] = 6
  exif[0x10F] = 'a maker'
  exif.get_ifd(0x8769)[0x9003] = '2020:01:01 00:00:00'
  texts = PngImagePlugin.PngInfo()
  texts.add_text('a', 'b' * 50)
  texts.add_text('z', 'c' * 500, zip=True)
  texts.add_itxt('i', 'ü' * 40, zip=True)
  more = {'exif': exif, 'icc_profile': profile}
  return {
    'PNG': encode(RGB, 'PNG', pnginfo=texts, dpi=(72, 72), **more),
    'JPEG': encode(RGB, 'JPEG', comment=b'hello', **more),
    'TIFF': encode(RGB, 'TIFF', compression='tiff_lzw', **more),
    'WEBP': encode(RGB, 'WEBP', lossless=True, xmp=b'<x/>', **more),
  }


def side_chunks(fmt, data):
  """Where what is no pixel begins and ends."""
  place = {'PNG': 8, 'JPEG': 2, 'WEBP': 12, 'TIFF': 0}[fmt]
  if fmt == 'TIFF':
    (place,) = struct.unpack('<I', data[4:8])
    for entry in range(place + 2, place + 2 + 12 * data[place], 12):
      (tag,) = struct.unpack('<H', data[entry : entry + 2])
      if tag in (271, 34665, 34675):
        yield entry + 2, entry + 12
  while fmt == 'PNG' and place < len(data):
    size, kind = struct.unpack('>I4s', data[place : place + 8])
    if kind not in (b'IHDR', b'IDAT', b'IEND'):
      yield place + 8, place + 12 + size
    place += 12 + size
  while fmt == 'JPEG' and data[place + 1] != 0xDA:
    (size,) = struct.unpack('>H', data[place + 2 : place + 4])
    if data[place + 1] in (0xE1, 0xE2, 0xFE):
      yield place + 4, place + 2 + size
    place += 2 + size
  while fmt == 'WEBP' and place < len(data):
    kind, size = struct.unpack('<4sI', data[place : place + 8])
    if kind in (b'EXIF', b'ICCP', b'XMP '):
      yield place + 8, place + 8 + size
    place += 8 + size + size % 2


@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_a_broken_side_chunk_breaks_no_picture(fmt):
  rng = random.Random(0)
  data = make_files()[fmt]
  right = images.decode_image(data, 'x')
  # Of what cannot be read nobody knows which side is up.
  turned = [np.rot90(right, k) for k in range(4)]
  turned += [one[:, ::-1] for one in turned]
  chunks = list(side_chunks(fmt, data))
  assert len(chunks) >= 2
  for begin, end in chunks:
    for _ in range(40):
      broken = bytearray(data)
      for _ in range(rng.choice((1, 3, 20))):
        broken[rng.randrange(begin, end)] = rng.randrange(256)
      decoded = images.decode_image(bytes(broken), 'x')
      assert any(np.array_equal(decoded, one) for one in turned)


@pytest.mark.parametrize('size', range(2, 16))
def test_a_jfif_segment_that_is_cut_short_breaks_no_picture(size):
  data = make_files()['JPEG']
  right = images.decode_image(data, 'x')
  short = b'JFIF\0\1\1\0\0\1\0\1\0\0'[: size - 2]
  segment = b'\xff\xe0' + struct.pack('>H', size) + short
  broken = data[:2] + segment + data[2:]
  np.testing.assert_array_equal(images.decode_image(broken, 'x'), right)


def test_a_text_that_unpacks_without_end_and_bytes_behind_the_image():
  texts = PngImagePlugin.PngInfo()
  texts.add_text('z', 'c' * 2**21, zip=True)
  for data in (encode(RGB, 'PNG', pnginfo=texts), encode(RGB, 'PNG') + b'x'):
    np.testing.assert_array_equal(images.decode_image(data, 'x'), RGB)


def test_no_flipped_bit_of_a_png_changes_a_pixel_unseen():
  data = encode(RGB[:16, :24], 'PNG')
  errors = 0
  for bit in range(8 * len(data)):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
      decoded = images.decode_image(bytes(flipped), 'x')
    except UserError:
      errors += 1
    else:
      np.testing.assert_array_equal(decoded, RGB[:16, :24])
  assert errors > 4 * len(data)


@pytest.mark.parametrize('turn', range(1, 9))
def test_rows_are_those_of_the_upright_picture(turn):
  exif = Image.Exif()
  exif[0x112] = turn
  for fmt, mode in (('PNG', 'RGB'), ('TIFF', 'RGB'), ('PNG', 'I;16')):
    image = Image.fromarray(RGB)
    if mode != 'RGB':
      image = Image.fromarray(RGB[..., 0].astype(np.uint16) * 256)
    data = encode(image, fmt, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(image := _open(data)))
    if mode != 'RGB':
      upright = np.stack([upright >> 8] * 3, axis=2)
    with encoded.decode(data, 'x') as picture:
      assert picture.shape == upright.shape[:2]
      height = picture.shape[0]
      strips = [
        picture.rows(top, min(top + 3, height)) for top in range(0, height, 3)
      ]
      np.testing.assert_array_equal(np.concatenate(strips), upright)
      for size in ((9, 11), (20, 56), (80, 56)):
        np.testing.assert_array_equal(
          images.resize_picture(picture, size),
          images.resize_bilinear(upright.astype(np.uint8), size),
        )


def _open(data):
  return Image.open(io.BytesIO(data))


def test_pillow_warns_nobody_and_its_neighbors_still_can():
  transparent = Image.fromarray(RGB).convert('P', palette=1)
  odd = encode(transparent, 'PNG', transparency=bytes(range(256)))
  tags = bytearray(encode(RGB, 'TIFF'))
  (place,) = struct.unpack('<I', tags[4:8])
  tags[place + 2 + 12 * (tags[place] - 1) + 4] = 99
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    filters, bound = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    images.map_parallel(
      lambda data: images.decode_image(data, 'x'), [odd, bytes(tags)] * 30
    )
    assert not told and warnings.filters == filters
    assert bound == Image.MAX_IMAGE_PIXELS is not None
    warnings.warn('of another', stacklevel=1)
    assert len(told) == 1


def test_pillow_compares_with_a_number_wherever_another_thread_is():
  bound = Image.MAX_IMAGE_PIXELS
  with encoded._quiet:
    assert Image.MAX_IMAGE_PIXELS > 1e15
  assert bound == Image.MAX_IMAGE_PIXELS


def test_what_is_decoded_at_a_time_is_bounded():
  room = encoded._Room(100)
  lock, taken, most = threading.Lock(), [], []

  def take(size):
    with room.take(size):
      with lock:
        taken.append(size)
        most.append(list(taken))
      time.sleep(0.001)
      with lock:
        taken.remove(size)

  images.map_parallel(take, [60, 30, 250, 60, 10, 90, 30, 250] * 5)
  assert all(sum(sizes) <= 100 or len(sizes) == 1 for sizes in most)
  assert any(250 in sizes for sizes in most)


def test_of_16_bits_those_in_use_are_known():
  levels = RGB[..., 0].astype(np.uint16)
  deep = np.stack([levels * 16] * 3, axis=2)
  rgb = b'\x89PNG\r\n\x1a\n'
  raw = b''.join(b'\0' + row.astype('>u2').tobytes() for row in deep)
  head = struct.pack('>IIBBBBB', 56, 40, 16, 2, 0, 0, 0)
  for kind, content in (
    (b'IHDR', head),
    (b'IDAT', zlib.compress(raw)),
    (b'IEND', b''),
  ):
    rgb += struct.pack('>I', len(content)) + kind + content
    rgb += struct.pack('>I', zlib.crc32(kind + content))
  for data, bits in (
    (encode(levels * 16, 'PNG'), 12),
    (encode(levels * 4, 'TIFF'), 10),
    (encode(levels * 257, 'PNG'), 16),
    (encode(levels.astype(np.int32) * 64, 'TIFF'), 14),
    (rgb, 12),
    (encode(RGB, 'PNG'), None),
    # Pillow scales these itself, as they say what white is.
    (b'P5 2 1 4095\n' + bytes((15, 255, 0, 0)), 16),
  ):
    with encoded.decode(data, 'x') as picture:
      assert picture.bits_in_use == bits
  shallow = {'a.png': None, 'b.png': 12, 'c.png': 11}
  line = images.describe_depth(shallow)
  assert '2 images of 16 bits use at most 12' in line and 'b.png' in line
  assert '16 of 256 levels' in line and 'by 16' in line
  assert images.describe_depth(shallow | {'d.png': 16}) is None
  assert images.describe_depth({'a.png': None}) is None
