"""Pictures of any sizes, whole and in part."""

import io

import numpy as np
import pytest
from encode import make_pictures
from PIL import Image

from draem_jax.data import encoded, pictures, png, resizing
from draem_jax.errors import UserError

SIZES = [(12, 20), (30, 7), (16, 16), (9, 40)]


def noise(size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*size, 3), np.uint8)


IMAGES = [noise(size, seed) for seed, size in enumerate(SIZES)]


def test_it_is_a_list_of_arrays():
  found = make_pictures(IMAGES)
  assert len(found) == 4 and found.common_size is None
  assert found.nbytes == sum(image.nbytes for image in IMAGES)
  for one, image in zip(found, IMAGES, strict=True):
    np.testing.assert_array_equal(one, image)
  np.testing.assert_array_equal(found[-1], IMAGES[-1])
  np.testing.assert_array_equal(found[np.int64(1)], IMAGES[1])
  with pytest.raises(IndexError):
    found[4]


@pytest.mark.parametrize(
  'index', [slice(1, 3), np.array([3, 0]), [2, 2, 1], slice(0, 0)]
)
def test_a_part_is_a_list_of_its_own(index):
  expected = np.arange(4)[index]
  part = make_pictures(IMAGES)[index]
  assert part.names == [f'{place}.png' for place in expected]
  assert part.sizes.tolist() == [list(SIZES[place]) for place in expected]
  for one, place in zip(part, expected, strict=True):
    np.testing.assert_array_equal(one, IMAGES[place])
  # And a part of that.
  for one, place in zip(part[::-1], expected[::-1], strict=True):
    np.testing.assert_array_equal(one, IMAGES[place])


def padded(image, by=50):
  return np.pad(image, [(by, by), (by, by), (0, 0)])


@pytest.mark.parametrize('room', [0, 2000, None])
def test_a_part_of_a_picture_is_black_beyond_its_edges(room):
  found = make_pictures(IMAGES)
  found.keep(room)
  rng = np.random.default_rng(0)
  for _ in range(60):
    index = int(rng.integers(4))
    size = tuple(rng.integers(1, 25, 2).tolist())
    # From wholly before the picture to wholly behind it.
    corner = [
      int(rng.integers(-side - 2, length + 3))
      for side, length in zip(size, SIZES[index], strict=True)
    ]
    top, left = (start + 50 for start in corner)
    expected = padded(IMAGES[index])[top : top + size[0], left : left + size[1]]
    np.testing.assert_array_equal(found.cut(index, corner, size), expected)


def test_what_is_kept_has_room_and_is_decoded_once():
  reads = []
  found = make_pictures(IMAGES, reads=reads)
  room = IMAGES[0].nbytes + IMAGES[2].nbytes
  found.keep(room)
  for _ in range(3):
    for index in (0, 3, 2, 1):
      # One that is shared cannot be changed.
      found[index].flags.writeable and found[index].fill(0)
      np.testing.assert_array_equal(found[index], IMAGES[index])
  assert (reads.count(0), reads.count(2)) == (1, 1)
  assert reads.count(1) > 2 and reads.count(3) > 2
  kept = sum(image.nbytes for image in found._kept.values())
  assert kept == room and found._room == 0
  # A part keeps what is its own.
  assert not found[:2]._kept
  del reads[:]
  make_pictures(IMAGES, reads=reads)
  assert not reads


@pytest.mark.parametrize('way', resizing.WAYS)
def test_pictures_are_resized_as_others_are(way):
  sizes = [(8, 24)] * 4
  found = make_pictures(IMAGES, sizes, resize=way)
  assert found.common_size == (8, 24) and found.nbytes == 4 * 8 * 24 * 3
  for index, image in enumerate(IMAGES):
    expected = resizing.resize(image, (8, 24), way)
    np.testing.assert_array_equal(found[index], expected)
    part = found.cut(index, (2, 20), (4, 8))
    np.testing.assert_array_equal(
      part, padded(expected)[52:56, 70:78], strict=True
    )


def test_small_ones_go_on_mirrored():
  found = make_pictures(IMAGES).at_least((14, 16))
  assert found.sizes.tolist() == [[14, 20], [30, 16], [16, 16], [14, 40]]
  np.testing.assert_array_equal(
    found[0], np.concatenate([IMAGES[0], IMAGES[0][:-3:-1]])
  )
  wide = found[1]
  np.testing.assert_array_equal(wide[:, 7:14], IMAGES[1][:, ::-1])
  np.testing.assert_array_equal(wide[:, 14:], IMAGES[1][:, :2])
  np.testing.assert_array_equal(found[2], IMAGES[2])
  np.testing.assert_array_equal(found.cut(1, (3, 5), (8, 9)), wide[3:11, 5:14])
  assert found[np.array([3])].sizes.tolist() == [[14, 40]]


def test_the_checksum_is_of_the_files_in_their_order():
  found = make_pictures(IMAGES)
  assert found.checksum() == make_pictures(IMAGES)[:].checksum()
  changed = [IMAGES[0].copy(), *IMAGES[1:]]
  changed[0][3, 3, 1] ^= 1
  others = [found[::-1], found[:3], make_pictures(changed)]
  assert len({found.checksum(), *(one.checksum() for one in others)}) == 4


def test_masks_are_shares_and_those_of_good_images_are_empty():
  reads = []
  levels = make_pictures(IMAGES, reads=reads)
  found = pictures.Masks(levels, np.array([True, False, True, False]))
  assert len(found) == 4 and found[1].dtype == found[2].dtype == np.float32
  for index, one in enumerate(found):
    expected = np.float32(IMAGES[index][..., 0] / 255) * (index % 2 == 0)
    np.testing.assert_array_equal(one, expected)
  assert set(reads) == {0, 2}


@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_the_size_is_read_without_the_pixels(monkeypatch, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  buffer = io.BytesIO()
  Image.fromarray(IMAGES[0]).save(buffer, 'JPEG', exif=exif)
  monkeypatch.setattr(encoded, 'decode', None)
  expected = (20, 12) if orientation == 6 else (12, 20)
  assert encoded.read_size(buffer.getvalue(), 'a.jpg') == expected


def test_the_size_of_what_is_broken():
  data = png.encode(IMAGES[0])
  with pytest.raises(UserError, match=r'^a\.png cannot be read as an image'):
    encoded.read_size(data[:20], 'a.png')
  # Behind a broken side chunk the pixels count.
  broken = data[:33] + b'\0\0\0\1tEXt\xff\0\0\0\0' + data[33:]
  assert encoded.read_size(broken, 'a.png') == (12, 20)
