"""What masks of every kind mean."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from draem_jax.data import masks


def encode(image, fmt='PNG', **options):
  buffer = io.BytesIO()
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  image.save(buffer, fmt, **options)
  return buffer.getvalue()


SHAPE = np.zeros((24, 32), np.uint8)
SHAPE[5:15, 8:20] = 1


def test_lossy_color_mask_is_cut_at_half():
  mask = np.stack([SHAPE * 255] * 3, axis=2)
  data = encode(mask, 'JPEG', quality=60)
  smeared = np.asarray(Image.open(io.BytesIO(data)))
  assert len(np.unique(smeared)) > 2
  np.testing.assert_array_equal(masks.decode(data, 'x').coverage, SHAPE * 255)


@pytest.mark.parametrize('value', [1, 38, 200, 255])
def test_two_valued_mask_is_scaled(value):
  for mask in (SHAPE * np.uint8(value), SHAPE.astype(np.uint16) * value):
    decoded = masks.decode(encode(mask), 'x').coverage
    np.testing.assert_array_equal(decoded, SHAPE * 255)


def test_masks_of_other_kinds():
  # Class numbers.
  classes = SHAPE.copy()
  classes[6:8, 9:12] = 3
  decoded = masks.decode(encode(classes), 'x').coverage
  np.testing.assert_array_equal(decoded, SHAPE * 255)
  # A class color, as labelling tools save it.
  paletted = Image.fromarray(SHAPE, 'P')
  paletted.putpalette([0, 0, 0, 128, 0, 0])
  decoded = masks.decode(encode(paletted), 'x').coverage
  np.testing.assert_array_equal(decoded, SHAPE * 255)
  # One bit.
  decoded = masks.decode(encode(Image.fromarray(SHAPE > 0)), 'x').coverage
  np.testing.assert_array_equal(decoded, SHAPE * 255)
  # Grays are coverage, and all zero is no defect.
  soft = SHAPE * 255
  soft[5, 8:20] = 128
  np.testing.assert_array_equal(masks.decode(encode(soft), 'x').coverage, soft)
  assert not masks.decode(encode(SHAPE * 0), 'x').coverage.any()


def check(image, expected, kind, fmt='PNG', **options):
  found = masks.decode(encode(image, fmt, **options), 'x')
  np.testing.assert_array_equal(found.coverage, expected)
  assert found.meaning == kind


def picture(*levels, size=(60, 80)):
  """Rectangles of these levels, apart from each other."""
  mask = np.zeros(size, np.uint8)
  for index, level in enumerate(levels):
    mask[8 : 8 + 20, 5 + 25 * index : 20 + 25 * index] = level
  return mask


@pytest.mark.parametrize(
  'levels', [(255, 240, 236), (240, 236), (1, 2, 3), (85, 170, 255), (15, 255)]
)
def test_no_class_is_lost_however_it_is_numbered(levels):
  mask = picture(*levels)
  expected = np.uint8(255 * (mask > 0))
  check(mask, expected, masks.CLASS_NUMBERS)
  check(mask.astype(np.uint16), expected, masks.CLASS_NUMBERS)
  check(np.stack([mask] * 3, axis=2), expected, masks.CLASS_NUMBERS)
  # A scratch and a class inside of another.
  mask[40, 5:60] = levels[0]
  mask[15:20, 10:15] = levels[-1]
  expected = np.uint8(255 * (mask > 0))
  check(mask, expected, masks.CLASS_NUMBERS)


def test_shaded_edges_stay_what_they_are():
  rng = np.random.default_rng(0)
  for size in (200, 150, 95, 700):
    for resample in (Image.BILINEAR, Image.BICUBIC, Image.BOX):
      image = Image.new('L', (400, 400))
      draw = ImageDraw.Draw(image)
      for left, top in rng.integers(20, 250, (3, 2)).tolist():
        box = (left, top, left + 90, top + 70)
        draw.rectangle(box, fill=255)
        draw.ellipse([place + 55 for place in box], fill=255)
      draw.line((3, 5, 390, rng.integers(400)), fill=255, width=3)
      image = image.resize((size, size), resample)
      found = masks.decode(encode(image), 'x')
      np.testing.assert_array_equal(found.coverage, image)
      assert found.meaning in (masks.COVERAGE, masks.TWO_VALUES)


def test_shaded_classes_are_whole_inside():
  mask = Image.fromarray(picture(255, 240, 236, size=(120, 160)))
  mask = mask.resize((70, 50), Image.BILINEAR)
  found = masks.decode(encode(mask), 'x')
  assert found.meaning == masks.CLASS_NUMBERS
  inside = np.asarray(mask) >= 236
  assert (found.coverage[inside] == 255).all() and inside.any()
  outside = np.asarray(mask) < 118
  assert (found.coverage[outside] < 128).all()
  # All of one class, and no white.
  single = Image.fromarray(picture(200, size=(120, 160)))
  single = np.asarray(single.resize((70, 50), Image.BILINEAR))
  found = masks.decode(encode(single), 'x').coverage
  np.testing.assert_array_equal(found == 255, single == 200)
  np.testing.assert_array_equal(found >= 128, single >= 101)


@pytest.mark.parametrize('quality', [50, 75, 95])
@pytest.mark.parametrize(
  'levels', [(255,), (255, 240, 236), (170, 255), (128,)]
)
def test_lossy_masks_are_cut_at_half_of_each_defect(levels, quality):
  mask = picture(*levels)
  for image, fmt in (
    (mask, 'JPEG'),
    (np.stack([mask] * 3, axis=2), 'JPEG'),
    (mask, 'WEBP'),
  ):
    found = masks.decode(encode(image, fmt, quality=quality), 'x')
    is_wrong = (found.coverage > 0) != (mask > 0)
    assert is_wrong.sum() <= 0.01 * (mask > 0).sum()
    lowest = masks.LOSSY if min(levels) > 200 else masks.CLASS_NUMBERS
    assert found.meaning == lowest
    assert set(np.unique(found.coverage)) == {0, 255}


def test_class_numbers_in_a_jpeg_and_its_noise():
  for levels in ((1,), (2, 1)):
    mask = picture(*levels)
    found = masks.decode(encode(mask, 'JPEG', quality=95), 'x')
    assert found.meaning == masks.CLASS_NUMBERS
    # What is left of steps that are as large as those of the format.
    is_wrong = (found.coverage > 0) != (mask > 0)
    assert is_wrong.sum() <= 0.2 * (mask > 0).sum()
  # Along the format's blocks nothing is lost at all.
  mask = np.zeros((48, 64), np.uint8)
  mask[8:24, 16:40] = 1
  check(mask, mask * 255, masks.CLASS_NUMBERS, 'JPEG', quality=95)
  rng = np.random.default_rng(0)
  for level in (1, 2, 5):
    noise = rng.integers(0, level + 1, (60, 80)) * rng.integers(0, 2, (60, 80))
    data = encode(noise.astype(np.uint8), 'JPEG', quality=100)
    assert not masks.decode(data, 'x').coverage.any()
  check(picture(), picture(), masks.LOSSY, 'JPEG')


def test_a_lossy_mask_that_was_saved_anew():
  mask = picture(255, 255, size=(80, 120))
  rng = np.random.default_rng(0)
  mask[40:75, 60:115] = 255 * (rng.random((35, 55)) < 0.03)
  data = encode(mask, 'JPEG', quality=75)
  smeared = np.asarray(Image.open(io.BytesIO(data)))
  found = masks.decode(encode(smeared), 'x')
  assert found.meaning == masks.LOSSY
  assert set(np.unique(found.coverage)) == {0, 255}
  solid = picture(255, 255, size=(80, 120))[:35] > 0
  np.testing.assert_array_equal(found.coverage[:35] > 0, solid)


def test_label_colors():
  colors = ((128, 0, 0), (0, 128, 0), (224, 224, 192))
  mask = np.zeros((60, 80, 3), np.uint8)
  for index, color in enumerate(colors):
    mask[8:28, 5 + 25 * index : 20 + 25 * index] = color
  expected = np.uint8(255 * (mask.max(axis=2) > 0))
  check(mask, expected, masks.LABEL_COLORS)
  paletted = Image.fromarray(mask).convert('P', palette=Image.Palette.ADAPTIVE)
  check(paletted, expected, masks.LABEL_COLORS)
  # A palette that is white at 0, as some programs sort it.
  swapped = Image.fromarray(1 - picture(1), 'P')
  swapped.putpalette([255, 255, 255, 0, 0, 0])
  check(swapped, picture(255), masks.TWO_VALUES)
  # And one that shows nothing.
  dark = Image.fromarray(picture(1, 2), 'P')
  dark.putpalette([0, 0, 0] * 3)
  check(dark, np.uint8(255 * (picture(1, 2) > 0)), masks.CLASS_NUMBERS)


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
@pytest.mark.parametrize('level', [0, 90, 255])
def test_alpha_holds_the_mask_where_nothing_else_does(mode, level):
  mask = picture(255, 255)
  bands = [np.full_like(mask, level)] * (len(mode) - 1)
  image = Image.merge(mode, [Image.fromarray(band) for band in (*bands, mask)])
  check(image, mask, masks.ALPHA)
  # Painted on nothing, and half of it transparent.
  bands = [np.where(mask, np.uint8(level), np.uint8(0))] * (len(mode) - 1)
  image = Image.merge(
    mode, [Image.fromarray(band) for band in (*bands, mask // 2)]
  )
  check(image, mask, masks.ALPHA)
  # Opaque, or transparent only where it is black anyway.
  for alpha in (np.full_like(mask, 255), np.uint8(255 * (np.arange(80) < 70))):
    alpha = np.broadcast_to(alpha, mask.shape)
    cut = mask * (alpha > 0)
    image = Image.merge(
      mode,
      [Image.fromarray(band) for band in (*[mask] * (len(mode) - 1), alpha)],
    )
    check(image, cut, masks.TWO_VALUES)


def test_a_mask_without_a_normal_pixel_is_taken_as_it_is():
  mask = np.where(picture(1), np.uint8(235), np.uint8(16))
  check(mask, mask, masks.NO_NORMAL)


def test_what_is_said_of_them():
  assert masks.describe([masks.COVERAGE, masks.TWO_VALUES]) is None
  assert masks.describe([]) is None
  line = masks.describe([masks.ALPHA, masks.LOSSY, masks.LOSSY])
  assert line == 'lossy edges in 2, an alpha channel in 1'


def test_real_masks_mean_what_they_did(example_data):
  for path in sorted(example_data.glob('bottle/ground_truth/*/*.png'))[::4]:
    found = masks.decode(path.read_bytes(), 'x')
    np.testing.assert_array_equal(found.coverage, Image.open(path))
    assert found.meaning == masks.COVERAGE
  for path in sorted(example_data.glob('sawn_timber/ground_truth/*/*'))[::4]:
    found = masks.decode(path.read_bytes(), 'x')
    levels = np.asarray(Image.open(path)).max(axis=2)
    np.testing.assert_array_equal(found.coverage > 0, levels > 127)
    assert found.meaning == masks.LOSSY


def test_levels_are_the_values_themselves():
  for kind in (np.uint8, np.uint16):
    image = SHAPE.astype(kind) * 239 + (SHAPE == 0)
    np.testing.assert_array_equal(masks.levels(encode(image), 'x'), image)


def test_masks_of_one_image_are_united():
  one = masks.Mask(SHAPE * np.uint8(100), masks.COVERAGE)
  two = masks.Mask(SHAPE[::-1] * np.uint8(255), masks.ALPHA)
  coverage, meaning = masks.unite([one, two], SHAPE.shape)
  np.testing.assert_array_equal(
    coverage, np.maximum(one.coverage, two.coverage)
  )
  assert meaning == masks.ALPHA
  empty = masks.unite([], SHAPE.shape)
  assert not empty.coverage.any() and empty.meaning == ''
