import dataclasses
import json
import logging
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from redness import Redness
from small import random_images
from untrained import write_workdir

from draem_jax import score
from draem_jax.data.images import resize_bilinear
from draem_jax.detection import detector as detector_lib
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.workdir import thresholds as thresholds_lib
from draem_jax.workdir.thresholds import Thresholds


def redness(image=0.5, pixel=0.5, *, model=None, batch_size=4, window=5):
  return Detector(
    model or Redness(),
    {},
    image_size=32,
    score_window=window,
    thresholds=Thresholds(image, pixel, 'a test', 0.99, 0.9999),
    batch_size=batch_size,
  )


def with_red_square(height, width, top, left, side):
  image = np.zeros((height, width, 3), np.uint8)
  image[top : top + side, left : left + side, 0] = 255
  return image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp('run'))


def test_a_map_lies_over_its_image_whatever_the_size():
  image = with_red_square(48, 100, 4, 60, 30)
  found = redness()(image[None])
  assert found.anomaly_map.shape == found.mask.shape == (1, 48, 100)
  assert found.is_anomalous == [True]
  truth = image[..., 0] > 0
  assert (found.mask[0] & truth).sum() / (found.mask[0] | truth).sum() > 0.9
  np.testing.assert_allclose(
    found.anomaly_map[0][8:30, 64:86], 1, rtol=0, atol=1e-5
  )


class Broken(Redness):
  """Networks that give no number for an image with a red pixel."""

  def apply(self, variables, images, *, train):
    output = super().apply(variables, images, train=train)
    broken = jnp.where(images[..., :1] == 1, jnp.nan, output.logits)
    return output.replace(logits=broken)


def test_what_is_no_number_is_no_verdict():
  images = np.zeros((2, 32, 32, 3), np.uint8)
  broken = redness(model=Broken())
  assert not broken(images).is_anomalous.any()
  images[1, 3, 5, 0] = 255
  with pytest.raises(UserError, match='no numbers'):
    broken(images)


def test_colors_do_not_trade_places():
  image = with_red_square(32, 32, 8, 8, 16)
  assert redness()(image).score > 0.99
  assert redness()(image[..., ::-1]).score < 0.01


def test_the_networks_see_the_image_resized_and_rounded():
  image = random_images(1, 64)[0][:41, :57]
  found = redness(window=1)(image)
  prepared = resize_bilinear(image, (32, 32))
  assert prepared.dtype == np.uint8
  np.testing.assert_allclose(found.score[0], prepared[..., 0].max() / 255)


def test_gray_float_and_single_images_are_the_same_image():
  gray = random_images(1, 48)[0][..., 0]
  expected = redness()(np.stack([gray] * 3, axis=-1)[None])
  as_float = (gray / 255).astype(np.float32)
  for image in (
    gray,
    gray[..., None],
    gray[None, ..., None],
    as_float,
    jnp.asarray(as_float),
    as_float.astype(np.float64)[None, ..., None],
  ):
    found = redness()(image)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.score, expected.score)


@pytest.mark.parametrize(
  ('images', 'words'),
  [
    (np.zeros((8, 8, 4), np.uint8), r'\(8, 8, 4\)'),
    (np.zeros((2, 8, 8), np.uint8), r'\(2, 8, 8\)'),
    (np.zeros(3, np.uint8), r'\(3,\)'),
    (np.zeros((2, 0, 8, 3), np.uint8), r'\(2, 0, 8, 3\)'),
    (np.zeros((8, 8, 3), np.int32), 'int32'),
    (np.full((8, 8, 3), 255.0), r'\[0, 1\]'),
    (np.full((8, 8, 3), np.nan), r'\[0, 1\]'),
  ],
)
@pytest.mark.usefixtures('unchecked')
def test_what_is_no_image_is_refused(images, words):
  with pytest.raises(ValueError, match=words):
    redness()(images)


def test_no_images_have_no_verdicts():
  found = redness()(np.zeros((0, 20, 30, 3), np.uint8))
  assert found.anomaly_map.shape == found.mask.shape == (0, 20, 30)
  assert found.score.shape == found.is_anomalous.shape == (0,)


def test_compiled_once_for_a_batch_shape():
  traced = []

  class Counted(Redness):
    def run(self, image, *, train):
      traced.append(image.shape)
      return super().run(image, train=train)

  detector = redness(model=Counted(), batch_size=4)
  for height in (32, 40, 50):
    detector(np.zeros((4, height, 64, 3), np.uint8))
    detector(np.zeros((9, height, 64, 3), np.uint8))  # The last is padded.
  assert len(traced) == 1
  detector(np.zeros((1, 32, 32, 3), np.uint8))
  detector.with_thresholds(image=0.1)(np.zeros((1, 50, 50, 3), np.uint8))
  assert len(traced) == 2


def test_images_do_not_depend_on_their_batch():
  images = random_images(7, 32)
  detector = redness(batch_size=3)
  together = detector(images)
  for index, image in enumerate(images):
    alone = detector(image)
    np.testing.assert_array_equal(alone.score[0], together.score[index])
    np.testing.assert_array_equal(
      alone.anomaly_map[0], together.anomaly_map[index]
    )


def test_at_the_threshold_an_image_is_good():
  image = random_images(1, 32)[0]
  score = redness()(image).score
  threshold = float(score[0])
  below = float(np.nextafter(threshold, 0, dtype=np.float64))
  at = redness().with_thresholds(image=threshold, pixel=0)(image)
  assert at.is_anomalous == [False] and not at.mask.any()
  above = redness().with_thresholds(image=below, pixel=0)(image)
  assert above.is_anomalous == [True] and above.mask.any()


def test_masks_and_labels_never_disagree():
  rng = np.random.default_rng(0)
  labels = []
  for case in range(400):
    size = tuple(rng.integers(1, 70, 2).tolist())
    # From smooth to spiky, so that resizing flattens some peaks.
    small = rng.uniform(0, 1, (32, 32)) ** rng.choice([0.2, 1, 5, 40])
    small = small.astype(np.float32)
    found = score.image_score(small, window=int(rng.choice([1, 5, 21])))
    image, pixel = rng.uniform(0, 1, 2)
    if case % 4 == 0:
      image = float(found)  # Strictly greater: good.
    detector = redness(image, pixel)
    anomaly_map = detector_lib.resize_map(small, size)
    mask = detector.find_mask(anomaly_map, float(found))
    label = detector.is_anomalous(np.array([found]))[0]
    assert mask.shape == size and mask.any() == label
    if label:
      # What is in the mask is never less anomalous than what is not.
      outside = anomaly_map[~mask]
      assert not outside.size or anomaly_map[mask].min() > outside.max()
    labels.append(label)
  assert 100 < sum(labels) < 300


def test_the_mask_follows_the_pixel_threshold():
  anomaly_map = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
  found = redness(image=0.1, pixel=0.75).find_mask(anomaly_map, 0.9)
  np.testing.assert_array_equal(found, anomaly_map > 0.75)


def test_a_workdir_gives_its_networks(folder):
  detector = Detector.load(folder)
  images = random_images(3, 32)
  apply = jax.jit(
    lambda *arguments: detector.model.apply(*arguments, train=False)
  )
  output = apply(detector.variables, images.astype(np.float32) / 255)
  expected = score.anomaly_map(output.logits)
  found = detector(images)
  np.testing.assert_allclose(found.anomaly_map, expected, rtol=0, atol=1e-6)
  np.testing.assert_allclose(
    found.score, score.image_score(expected, window=5), rtol=0, atol=1e-6
  )
  assert len(set(found.score)) == 3
  assert detector.thresholds == thresholds_lib.read_thresholds(folder)
  assert detector.batch_size == 4
  assert Detector.load(folder, batch_size=2).batch_size == 2


def test_networks_have_fingerprints(folder, tmp_path):
  first = Detector.load(folder).fingerprint()
  assert first == Detector.load(folder).fingerprint()
  other = Detector.load(write_workdir(tmp_path, seed=1)).fingerprint()
  assert other != first
  assert redness(window=5).fingerprint() != redness(window=7).fingerprint()


def test_thresholds_may_be_changed(folder):
  detector = Detector.load(folder)
  changed = detector.with_thresholds(image=0.75)
  assert (changed.thresholds.image, changed.thresholds.pixel) == (0.75, 0.5)
  changed = changed.with_thresholds(image=0.25)
  assert (changed.thresholds.image, changed.thresholds.pixel) == (0.25, 0.25)
  changed = changed.with_thresholds(pixel=0.75)
  assert (changed.thresholds.image, changed.thresholds.pixel) == (0.25, 0.75)
  assert detector.thresholds.image == 0.5
  for wrong in (-0.1, 1.1, float('nan'), float('inf')):
    for name in ('image', 'pixel'):
      with pytest.raises(UserError, match=f'{name} threshold .*: take 0 to 1'):
        detector.with_thresholds(**{name: wrong})


def test_without_thresholds_there_is_no_verdict(tmp_path):
  detector = Detector.load(write_workdir(tmp_path, thresholds=None))
  with pytest.raises(UserError, match='thresholds.json'):
    detector(random_images(1, 32)[0])
  with pytest.raises(UserError, match='thresholds.json'):
    detector.with_thresholds(pixel=0.5)
  given = detector.with_thresholds(image=0.25)
  assert given.thresholds.pixel == 0.25


def test_chosen_thresholds_let_good_images_pass():
  detector = redness()
  # Fifty levels of red.
  good = np.zeros((50, 32, 32, 3), np.uint8)
  good[..., 0] = np.arange(100, 200, 2)[:, None, None]
  chosen = detector.choose_thresholds(
    good, source='good images', quantile=0.9, pixel_quantile=0.99
  )
  found = detector(good)
  assert found.is_anomalous.sum() == 5
  assert found.mask.any(axis=(1, 2)).sum() == 5
  assert chosen.pixel <= chosen.image
  # A verdict is the same in float32 and in float64.
  assert np.float32(chosen.image) == chosen.image


def test_thresholds_are_stored(tmp_path):
  thresholds = Thresholds(0.1 + 0.2, 0.7, 'here and there', 0.99, None)
  thresholds_lib.write_thresholds(tmp_path, thresholds)
  assert thresholds_lib.read_thresholds(tmp_path) == thresholds
  assert thresholds_lib.read_thresholds(tmp_path / 'none') is None


SOUND = {
  'image': 0.5,
  'pixel': 1,
  'source': 'a test',
  'quantile': 0.99,
  'pixel_quantile': None,
}


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    *(
      ({name: value}, f'{name} threshold {value!r}')
      for name in ('image', 'pixel')
      for value in (math.nan, math.inf, -math.inf, -0.1, 1.1, True, '0.5', None)
    ),
    ({'image': [0.5]}, r'image threshold \[0.5\]'),
    ({'quantile': 1.5}, 'quantile 1.5'),
    ({'quantile': math.nan}, 'quantile nan'),
    ({'pixel_quantile': True}, 'pixel_quantile True'),
    ({'source': 3}, 'source 3'),
    ({'sauce': 3}, "'sauce' is no field"),
  ],
)
def test_thresholds_that_mean_nothing_are_named(
  tmp_path, unchecked, change, words
):
  path = tmp_path / 'thresholds.json'
  path.write_text(json.dumps(SOUND))
  assert thresholds_lib.read_thresholds(tmp_path).pixel == 1
  path.write_text(json.dumps(SOUND | change))
  with pytest.raises(UserError, match=words) as error:
    thresholds_lib.read_thresholds(tmp_path)
  message = str(error.value)
  assert message.startswith(f'{path} is damaged (') and '\n' not in message
  assert 'run draem_jax.main in this workdir again' in message


@pytest.mark.parametrize('lost', SOUND)
def test_a_threshold_that_is_missing_is_named(tmp_path, lost):
  kept = {name: value for name, value in SOUND.items() if name != lost}
  (tmp_path / 'thresholds.json').write_text(json.dumps(kept))
  with pytest.raises(UserError, match=rf'damaged \({lost} is missing'):
    thresholds_lib.read_thresholds(tmp_path)


def test_a_training_that_came_to_nothing_is_told(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('draem_jax'), 'propagate', True)
  run = write_workdir(tmp_path / 'run')
  for text in (
    '{"image_auroc": 0.9}',
    '{"failure": 3}',
    '{',
    '{"failure": ""}',
  ):
    (run / 'results.json').write_text(text)
    Detector.load(run)
  assert not caplog.text
  (run / 'results.json').write_text('{"failure": "it has diverged"}')
  Detector.load(run)
  assert f'{run} is of no use: it has diverged' in caplog.text


def test_what_is_no_workdir_is_named(tmp_path):
  with pytest.raises(UserError, match='config.json does not exist'):
    Detector.load(tmp_path)
  write_workdir(tmp_path)
  (tmp_path / 'checkpoints' / '1').rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='no complete checkpoint'):
    Detector.load(tmp_path)


def test_loading_does_without_what_only_training_needs(folder):
  code = (
    'import sys; from draem_jax.detection import Detector;'
    f' Detector.load({str(folder)!r});'
    ' print([name for name in sys.modules if name in'
    ' ("tensorflow_datasets", "array_record", "matplotlib", "optax")])'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert found.stdout.strip() == '[]'


def test_predictions_are_plain_arrays():
  found = redness()(random_images(2, 32))
  types = {
    field.name: getattr(found, field.name).dtype
    for field in dataclasses.fields(found)
  }
  assert types == {
    'anomaly_map': np.float32,
    'score': np.float32,
    'is_anomalous': np.bool_,
    'mask': np.bool_,
  }
  assert not any(isinstance(getattr(found, name), jax.Array) for name in types)


def test_regions_are_those_of_the_mask():
  images = np.zeros((2, 40, 60, 3), np.uint8)
  images[1, 10:30, 20:40, 0] = 255
  images[1, 2:6, 50:58, 0] = 230
  found = redness(image=0.5, pixel=0.5)(images)
  assert found.regions[0] == []
  assert sum(region.area for region in found.regions[1]) == found.mask[1].sum()
  first, second = found.regions[1]
  assert first.peak == found.anomaly_map[1].max() > second.peak
