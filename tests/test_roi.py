"""A region of interest from the config to scores."""

import contextlib
import functools
import logging

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from redness import Redness
from small import random_images, small_config
from splits import make_category
from test_stream import rows
from test_train import IMAGES, TEXTURES, run_steps
from untrained import write_workdir

from draem_jax import config as config_lib
from draem_jax import devices, evaluate, experiment
from draem_jax.data import roi
from draem_jax.data.files import find_images
from draem_jax.detection import stream
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.errors import UserError
from draem_jax.export import onnx as export_onnx
from draem_jax.export import program, stablehlo
from draem_jax.networks import models
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir.thresholds import Thresholds

LEFT = np.zeros((32, 32), bool)
LEFT[4:28, 3:17] = True
# One network alone, without augmentations, compiles sooner.
SMALL = {
  'simulator.num_augmentations': 0,
  'simulator.augmentations': (),
  'simulator.mask': 'rectangles',
  'simulator.anomaly_probability': 1.0,
  'model.name': 'discriminative',
  'loss.weights.l2': 0.0,
  'loss.weights.ssim': 0.0,
}


def with_region(images, inside):
  inside = np.broadcast_to(inside, images.shape[:3])
  return np.concatenate([images, np.uint8(255 * inside[..., None])], axis=-1)


def save(path, picture):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(picture)).save(path)
  return path


# The simulator.


@functools.cache
def simulator(**changes):
  config = small_config(**(SMALL | changes)).to_dict()
  options = Options(**config['simulator'])
  return functools.partial(simulate.simulate_batch, options=options)


def simulated(images, *, jit=True, seed=0, **changes):
  run = simulator(**changes)
  keys = jax.random.split(jax.random.key(seed), len(images))
  textures = np.resize(TEXTURES, (len(images), *TEXTURES.shape[1:]))
  batch = (keys, jnp.asarray(images), jnp.asarray(textures))
  return jax.device_get((jax.jit(run) if jit else run)(*batch))


def test_anomalies_are_inside_and_nothing_else_changes():
  still = {
    'simulator.rotation_probability': 0.0,
    'simulator.good_textures': 0.5,
  }
  whole = simulated(IMAGES, **still)
  assert whole.region is None
  found = simulated(with_region(IMAGES, LEFT), **still)
  np.testing.assert_array_equal(found.image, whole.image)
  np.testing.assert_array_equal(found.mask, whole.mask * LEFT)
  assert 0 < found.mask.sum() < whole.mask.sum()
  np.testing.assert_array_equal(
    found.augmented[:, ~LEFT], whole.image[:, ~LEFT]
  )
  np.testing.assert_allclose(
    found.augmented[:, LEFT], whole.augmented[:, LEFT], 0, 1e-6
  )
  everywhere = simulated(with_region(IMAGES, np.ones((32, 32), bool)), **still)
  for name in ('image', 'augmented', 'mask'):
    np.testing.assert_allclose(
      getattr(everywhere, name), getattr(whole, name), 0, 1e-6
    )


@pytest.mark.parametrize('probability', [0.0, 1.0])
def test_the_region_is_rotated_with_its_image(probability):
  images = np.repeat(np.uint8(255 * LEFT)[None, ..., None], 3, axis=-1)
  images = with_region(np.repeat(images, 6, axis=0), LEFT)
  found = simulated(
    images,
    **{
      'simulator.anomaly_probability': probability,
      'simulator.rotation_probability': 1.0,
    },
  )
  assert len({region.tobytes() for region in found.region}) > 3
  np.testing.assert_array_equal(found.region, found.image[..., 0] >= 0.5)
  assert not (found.mask * (1 - found.region)).any()
  assert found.mask.any() == bool(probability)


def test_compiled_or_not_the_examples_are_the_same():
  images = with_region(IMAGES[:2], LEFT)
  compiled, eager = simulated(images), simulated(images, jit=False)
  for found, expected in zip(
    jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True
  ):
    np.testing.assert_allclose(found, expected, 0, 1e-6)


def make_trainer(num_devices, fed=False):
  config = small_config(**SMALL).to_dict()
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:num_devices])
  put = lambda x: jax.device_put(x, devices.replicated(mesh))
  images = with_region(IMAGES, LEFT)
  return trainer_lib.Trainer(
    config,
    images=images if fed else put(images),
    textures=put(TEXTURES),
    mesh=mesh,
  )


@pytest.mark.slow
def test_devices_and_where_pictures_lie_make_no_difference():
  _, expected = run_steps(make_trainer(1), 2)
  trainer = make_trainer(2, fed=True)
  state, losses = run_steps(trainer, 2)
  for found, other in zip(losses, expected, strict=True):
    np.testing.assert_allclose(found['loss'], other['loss'], 1e-4)
  preview = trainer.preview(state, 0)
  trainer.close()
  outside = preview.example.region == 0
  assert outside.any() and not preview.anomaly_map[outside].any()
  assert preview.anomaly_map[~outside].any()


# Scores.


def redness(region=None, **options):
  return Detector(
    Redness(),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
    batch_size=4,
    roi=region,
    **options,
  )


def fixed(inside=LEFT):
  return roi.Roi('mask.png', np.uint8(255 * inside))


def with_red(place, size=(32, 32)):
  image = np.full((*size, 3), 30, np.uint8)
  image[place] = (255, 0, 0)
  return image


def test_only_what_is_inside_counts():
  right = with_red(np.s_[8:24, 20:30])
  left = with_red(np.s_[8:24, 4:14])
  whole, inside = redness(), redness(fixed())
  assert whole(right).is_anomalous and not inside(right).is_anomalous
  found, expected = inside(left), whole(left)
  np.testing.assert_allclose(found.score, expected.score, 1e-6)
  np.testing.assert_allclose(
    found.anomaly_map, expected.anomaly_map * LEFT, 1e-6
  )
  np.testing.assert_array_equal(found.mask, expected.mask)
  # At the picture's own size, but for what half a pixel of the networks is.
  large = inside(with_red(np.s_[:, :], (96, 64)))
  far = np.ones((96, 64), bool)
  far[9:87, 4:36] = False
  assert not large.anomaly_map[0][far].any()
  assert large.mask[0].mean() == pytest.approx(LEFT.mean(), rel=0.05)


def test_a_region_of_everything_is_none_to_the_bit():
  images = random_images(5, 64)
  found, expected = (
    detector(images)
    for detector in (redness(fixed(np.ones((7, 5), bool))), redness())
  )
  np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
  np.testing.assert_array_equal(found.score, expected.score)


def test_pixels_inside_choose_their_threshold():
  images = random_images(6)
  detector = redness(fixed())
  prepared = np.stack([detector.prepare(image) for image in images])
  chosen = detector.choose_thresholds(
    prepared, source='a test', quantile=0.5, pixel_quantile=0.25
  )
  scored = detector.score_all(prepared)
  assert chosen.image == np.quantile(scored.score, 0.5)
  inside = redness().score_all(images).anomaly_map[:, LEFT]
  assert chosen.pixel == pytest.approx(
    min(np.quantile(inside, 0.25), chosen.image)
  )
  assert chosen.pixel > 0


def test_another_region_is_another_detector(tmp_path):
  whole, inside = redness(), redness(fixed())
  other = inside.with_roi(save(tmp_path / 'right.png', ~LEFT))
  assert len({each.fingerprint() for each in (whole, inside, other)}) == 3
  right = with_red(np.s_[8:24, 20:30])
  assert other(right).is_anomalous and not inside(right).is_anomalous
  assert other.thresholds == inside.thresholds
  with pytest.raises(UserError, match='leave it out'):
    redness(resolution=0).with_roi('auto')
  with pytest.raises(ValueError, match='3 channels: 4 are wanted'):
    inside.score_all(np.zeros((1, 32, 32, 3), np.uint8))


def test_smoothed_maps_are_0_outside_and_know_nothing_of_it():
  class Restoring(Redness):
    outputs = ('restorations',)

    def run(self, image, *, train):
      noise = jax.random.uniform(jax.random.key(0), (1, *image.shape))
      return models.Output(None, None, restorations=noise)

  def scored(inside):
    detector = Detector(
      Restoring(),
      {},
      image_size=32,
      score_window=5,
      score_map='riad',
      roi=fixed(inside),
    )
    return detector.score_all(detector.prepare(IMAGES[0])[None])

  found, whole = scored(LEFT), scored(np.ones((32, 32), bool))
  assert not found.anomaly_map[:, ~LEFT].any()
  assert found.score == found.anomaly_map.max() > 0
  deep = LEFT.copy()
  deep[:6] = deep[26:] = deep[:, :5] = deep[:, 15:] = False
  np.testing.assert_allclose(
    found.anomaly_map[0][deep], whole.anomaly_map[0][deep], 0, 1e-6
  )


def test_pictures_with_masks_of_their_names(tmp_path):
  for name in ('a', 'b', 'c'):
    save(tmp_path / f'in/{name}.png', with_red(np.s_[8:24, 20:30]))
  save(tmp_path / 'masks/a.png', LEFT)
  save(tmp_path / 'masks/b.bmp', ~LEFT)
  detector = redness().with_roi(tmp_path / 'masks')
  with contextlib.closing(Predictions(tmp_path / 'out', {})) as predictions:
    found = find_images(str(tmp_path / 'in'))
    assert stream.score_files(detector, found, predictions) == 1
  assert [row['is_anomalous'] for row in rows(tmp_path / 'out')] == [
    'false',
    'true',
  ]


def test_defects_outside_are_told(caplog, monkeypatch):
  monkeypatch.setattr(evaluate._log, 'handlers', [])
  caplog.set_level(logging.INFO, logger=evaluate._log.name)
  category = make_category(count=6)
  detector = redness(fixed(np.eye(32, dtype=bool)[::-1]))
  category.test_images = np.stack(
    [detector.prepare(image) for image in category.test_images]
  )
  found = evaluate.evaluate(detector, category, mask_threshold=0.5)
  assert found.drawn[0].image.shape == (32, 32, 3)
  inside = np.eye(32, dtype=bool)[::-1]
  masks = category.test_masks > 0
  lost = masks[:, ~inside].sum()
  assert f'{lost} of {masks.sum()} anomalous pixels lie outside' in caplog.text
  assert not found.scored.anomaly_map[:, ~inside].any()
  assert sum(map(np.sum, found.masks)) == masks.sum()


# The config and the files of a run.


def test_what_a_region_does_not_go_with():
  for wrong, words in (
    ({'data.resolution': 0}, r'data\.roi=.auto. with config\.data\.resolution'),
    (
      {'score.image': 'decision', 'model.name': 'bozic'},
      r'data\.roi=.auto. with config\.score\.image=.decision',
    ),
  ):
    config = small_config(**({'data.roi': 'auto'} | wrong)).to_dict()
    with pytest.raises(UserError, match=words):
      config_lib.check(config)
  with pytest.raises(UserError, match="config.data.roi=3: take ''"):
    config = small_config().to_dict()
    config['data']['roi'] = 3
    config_lib.check(config)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A category of pictures with a bright part on a dark background."""
  folder = tmp_path_factory.mktemp('roi')
  rng = np.random.default_rng(0)
  inside = np.zeros((64, 64), bool)
  inside[12:50, 14:46] = True

  def photo():
    gray = np.where(inside, 180, 30)[..., None]
    return np.uint8(np.clip(rng.normal(gray, 6, (64, 64, 3)), 0, 255))

  for name in ('train/good/0', 'train/good/1', 'train/good/2', 'test/good/0'):
    save(folder / f'data/pens/{name}.png', photo())
  broken, mask = photo(), np.zeros((64, 64), bool)
  broken[20:30, 20:30] = 0
  mask[20:30, 20:30] = True
  save(folder / 'data/pens/test/hole/0.png', broken)
  save(folder / 'data/pens/ground_truth/hole/0_mask.png', mask)
  save(folder / 'mask.png', inside)
  return folder


def settings(folder, **overrides):
  data = {
    'data.dir': str(folder / 'data'),
    'data.tfds_dir': str(folder / 'tfds'),
    'data.textures': 'builtin',
    'num_steps': 1,
    'eval.every': 1,
    'batch_size': 2,
    'eval.batch_size': 2,
    'data.resize': 'area',
  }
  return small_config(**(SMALL | data | overrides)).to_dict()


def test_a_run_keeps_where_the_object_is(folder):
  work = folder / 'run'
  source = folder / 'own.png'
  save(source, Image.open(folder / 'mask.png'))
  config = settings(folder, **{'data.roi': str(source)})
  row = experiment.train_and_evaluate(config, work)
  assert row['pixel_auroc'] is not None
  assert (work / 'figures/roi.png').exists()
  with pytest.raises(UserError, match=r"other|config.data.roi=''"):
    experiment.train_and_evaluate(settings(folder), work)
  source.unlink()
  detector = Detector.load(work)
  expected = roi.read(str(folder / 'mask.png'))
  np.testing.assert_array_equal(detector.roi.mask, expected.mask)
  found = detector(np.asarray(Image.open(folder / 'data/pens/test/hole/0.png')))
  inside = expected.mask > 0
  assert found.anomaly_map[0][inside].all()
  assert not found.anomaly_map[0][:9].any()
  assert experiment.train_and_evaluate(config, work)['pixel_auroc'] is not None


def test_a_region_that_finds_itself_is_with_every_image(folder):
  config = settings(folder, **{'data.roi': 'auto', 'data.layout': 'mvtec'})
  category = experiment.load_category(config, folder)
  for images in (category.train_images, category.test_images):
    inside = roi.region(images)
    assert inside[:, 8:23, 9:21].all()
    assert not inside[:, :4].any() and not inside[:, :, 27:].any()
  config['data']['roi'] = str(folder / 'nothing')
  (folder / 'nothing').mkdir()
  with pytest.raises(UserError, match=r'train/good/\d\.png has no mask in'):
    experiment.load_category(config, folder)


# Programs for others.


def differences(detector, run):
  return program.largest_difference(detector, run, channel_order='rgb')


def test_programs_hold_the_mask(tmp_path):
  exported = stablehlo.trace(redness(fixed()), channel_order='rgb')
  assert differences(redness(fixed()), exported.call) < 1e-5
  assert differences(redness(), exported.call) > 0.1
  for each in (redness(roi.read('auto')), redness(roi.read(str(tmp_path)))):
    with pytest.raises(UserError, match='region of its own'):
      stablehlo.trace(each, channel_order='rgb')


def test_onnx_holds_the_mask(tmp_path):
  detector = Detector.load(write_workdir(tmp_path / 'run'))
  inside = detector.with_roi(save(tmp_path / 'mask.png', LEFT))
  write = functools.partial(
    export_onnx.serialize, channel_order='rgb', category='pens'
  )
  run = export_onnx.load_onnx_runtime(write(inside))
  assert differences(inside, run) < 1e-4 < differences(detector, run)
  with pytest.raises(UserError, match='region of its own'):
    write(detector.with_roi('auto'))
