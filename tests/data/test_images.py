"""Decoding of every format, masks, and resizing beside OpenCV's."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from draem_jax.data import images, masks
from draem_jax.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def encode(image, fmt='PNG', **options):
  buffer = io.BytesIO()
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  image.save(buffer, fmt, **options)
  return buffer.getvalue()


@pytest.mark.parametrize('fmt', ['PNG', 'BMP', 'TIFF', 'PPM'])
def test_lossless_rgb_is_kept(fmt):
  decoded = images.decode_image(encode(RGB, fmt), 'x')
  np.testing.assert_array_equal(decoded, RGB)


@pytest.mark.parametrize('fmt', ['PNG', 'BMP', 'TIFF', 'PPM'])
def test_gray_is_repeated(fmt):
  decoded = images.decode_image(encode(GRAY, fmt), 'x')
  np.testing.assert_array_equal(decoded, np.stack([GRAY] * 3, axis=2))


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_keep_their_high_byte(fmt):
  deep = GRAY.astype(np.uint16) * 256 + 200
  decoded = images.decode_image(encode(deep, fmt), 'x')
  np.testing.assert_array_equal(decoded, np.stack([GRAY] * 3, axis=2))


def test_alpha_is_dropped():
  rgba = np.concatenate([RGB, GRAY[..., None]], axis=2)
  np.testing.assert_array_equal(images.decode_image(encode(rgba), 'x'), RGB)
  gray_alpha = Image.merge('LA', [Image.fromarray(GRAY)] * 2)
  decoded = images.decode_image(encode(gray_alpha), 'x')
  np.testing.assert_array_equal(decoded[..., 0], GRAY)


def test_palette_and_one_bit():
  colors = Image.fromarray(RGB // 128 * 255)
  paletted = colors.convert('P', palette=Image.Palette.ADAPTIVE)
  decoded = images.decode_image(encode(paletted), 'x')
  np.testing.assert_array_equal(decoded, np.asarray(colors))
  bits = Image.fromarray(GRAY > 127)
  decoded = images.decode_image(encode(bits), 'x')
  np.testing.assert_array_equal(decoded[..., 2], (GRAY > 127) * 255)


def test_cmyk_jpeg_becomes_rgb():
  smooth = Image.fromarray(np.full((16, 16, 3), (200, 60, 20), np.uint8))
  data = encode(smooth.convert('CMYK'), 'JPEG', quality=95)
  decoded = images.decode_image(data, 'x')
  assert decoded.shape == (16, 16, 3)
  np.testing.assert_allclose(decoded[8, 8], (200, 60, 20), atol=4)


@pytest.mark.parametrize('fmt', ['PNG', 'JPEG', 'TIFF'])
def test_exif_orientation_is_honoured(fmt):
  exif = Image.Exif()
  exif[0x0112] = 6  # Lies on its left side: to be turned clockwise.
  smooth = np.zeros((8, 16, 3), np.uint8)
  smooth[:, 8:] = 250
  data = encode(smooth, fmt, exif=exif)
  decoded = images.decode_image(data, 'x')
  assert decoded.shape == (16, 8, 3)
  assert decoded[:7].max() < 20 and decoded[9:].min() > 230
  stored, size, _ = images.to_stored(data, 'x')
  assert size == (16, 8)
  plain = np.asarray(Image.open(io.BytesIO(stored)))
  np.testing.assert_array_equal(plain, decoded)


def test_stored_bytes_of_plain_files_are_their_own():
  for data in (encode(RGB), encode(RGB, 'JPEG')):
    assert images.to_stored(data, 'x') == (data, (6, 9), None)
  for image, fmt in ((GRAY, 'PNG'), (RGB, 'BMP')):
    stored, _, _ = images.to_stored(encode(image, fmt), 'x')
    expected = images.decode_image(encode(image, fmt), 'x')
    with Image.open(io.BytesIO(stored)) as opened:
      assert (opened.format, opened.mode) == ('PNG', 'RGB')
      np.testing.assert_array_equal(np.asarray(opened), expected)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'no image at all',
    encode(np.tile(RGB, (20, 20, 1)))[:-2000],
    encode(np.tile(RGB, (20, 20, 1)), 'JPEG')[:-800],
    encode(np.tile(RGB, (20, 20, 1)), 'BMP')[:-800],
    encode(GRAY.astype(np.float32), 'TIFF'),
    encode(GRAY.astype(np.int32) * 1000, 'TIFF'),
  ],
  ids=['empty', 'text', 'png', 'jpeg', 'bmp', 'float', '32-bit'],
)
def test_broken_files_are_named_in_one_line(data):
  for decode in (images.decode_image, masks.decode, images.to_stored):
    with pytest.raises(UserError) as error:
      decode(data, 'some/file.png')
    assert str(error.value).startswith('some/file.png ')
    assert '\n' not in str(error.value)


def test_unreadable_path_is_named(tmp_path):
  with pytest.raises(UserError, match='gone.png cannot be read'):
    images.read_image(tmp_path / 'gone.png')


def test_resize_agrees_with_opencv():
  # cv2.resize(image, ..., interpolation=cv2.INTER_LINEAR), OpenCV 5.0.
  golden = np.load(pathlib.Path(__file__).parent / 'opencv_resize.npz')
  names = [name.removesuffix('_image') for name in golden if 'image' in name]
  assert len(names) == 10
  for name in names:
    expected = golden[f'{name}_resized']
    resized = images.resize_bilinear(
      golden[f'{name}_image'], expected.shape[:2]
    )
    assert resized.dtype == expected.dtype
    difference = np.abs(resized.astype(np.float64) - expected)
    assert difference.max() <= (1 if 'uint8' in name else 1e-6), name


def test_resize_keeps_the_extremes_exactly():
  mask = np.full((37, 53, 1), 255, np.uint8)
  assert (images.resize_bilinear(mask, (16, 24)) == 255).all()
  ones = np.full((37, 53, 1), 0.7, np.float32)
  assert (images.resize_bilinear(ones, (64, 96)) == np.float32(0.7)).all()


def test_map_parallel_keeps_order_and_raises_the_first_error():
  assert images.map_parallel(lambda i: i * i, range(50)) == [
    i * i for i in range(50)
  ]

  def fail(index):
    if index >= 7:
      raise UserError(f'file {index}')

  with pytest.raises(UserError, match='file 7'):
    images.map_parallel(fail, range(50), description='reading')
