"""Trainings on crops of pictures at their own size."""

import functools

import jax
import numpy as np
import pytest
from encode import make_pictures
from PIL import Image
from small import random_images, small_config
from test_train import TEXTURES, assert_equal_trees, run_steps

from draem_jax import config as config_lib
from draem_jax import devices, experiment
from draem_jax.data import resident
from draem_jax.data.pictures import Pictures
from draem_jax.errors import UserError
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.training import simulated, writer
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import claim

# One network alone, without augmentations, compiles sooner.
SMALL = {
  'simulator.num_augmentations': 0,
  'simulator.augmentations': (),
  'simulator.rotation_probability': 0.7,
  'simulator.mask': 'rectangles',
  'model.name': 'discriminative',
  'loss.weights.l2': 0.0,
  'loss.weights.ssim': 0.0,
  'data.resolution': 0,
}
IMAGES = random_images(7, 64)[:, :, :48]
PLACES = [(slice(0, 64 - 4 * i), slice(0, 48 - i)) for i in range(7)]
MIXED = [image[place] for image, place in zip(IMAGES, PLACES, strict=True)]


def make_trainer(images, num_devices=1, **overrides):
  """From pictures, which stay on the host, or an array, which does not."""
  config = small_config(**(SMALL | overrides)).to_dict()
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:num_devices])
  everywhere = devices.replicated(mesh)
  if not isinstance(images, Pictures):
    images = jax.device_put(images, everywhere)
  textures = jax.device_put(TEXTURES, everywhere)
  return trainer_lib.Trainer(
    config, images=images, textures=textures, mesh=mesh
  )


@pytest.fixture(scope='module')
def resident_trainer():
  return make_trainer(IMAGES)


@pytest.fixture(scope='module')
def resident_run(resident_trainer):
  return run_steps(resident_trainer)


@pytest.fixture(scope='module')
def fed_trainer():
  pictures = make_pictures(IMAGES)
  pictures.keep(2 * IMAGES[0].nbytes)
  return make_trainer(pictures)


def test_crops_fed_from_the_host_change_no_bit(fed_trainer, resident_run):
  state, losses, saved = fed_trainer.init_state(), [], None
  for step in range(3):
    with jax.transfer_guard('disallow'):
      state, metrics = fed_trainer.step(state, step)
    losses.append(jax.device_get(metrics))
    saved = saved or jax.device_get(state)
  assert losses == resident_run[1]
  assert_equal_trees(state, resident_run[0])
  # From a later step on, as after a restart.
  state = jax.device_put(saved, devices.replicated(fed_trainer.mesh))
  for step in (1, 2):
    state, _ = fed_trainer.step(state, step)
  assert_equal_trees(state, resident_run[0])
  fed_trainer.close()


def test_two_devices_give_the_losses_of_one(resident_run):
  _, losses = run_steps(make_trainer(IMAGES, num_devices=2), count=2)
  # Adam's first step, the sign of the gradient, blows rounding up.
  for one, two, rtol in zip(
    resident_run[1], losses, (1e-5, 1e-2), strict=False
  ):
    for name in one:
      np.testing.assert_allclose(two[name], one[name], rtol, err_msg=name)


@functools.cache
def compiled(options):
  return jax.jit(functools.partial(simulate.simulate_batch, options=options))


def example(trainer, step):
  """What a step is trained on."""
  images, textures, keys = jax.jit(trainer._draw)(
    np.int32(step), *trainer._fetch(step)
  )
  return compiled(trainer.options)(keys, images, textures)


def test_a_picture_of_the_size_of_a_crop_is_seen_as_without():
  images = random_images(7)
  whole = make_trainer(images, **{'data.resolution': ''})
  for cropped in (make_trainer(images), make_trainer(make_pictures(images))):
    assert_equal_trees(example(cropped, 3), example(whole, 3))


def crop_of(trainer, step):
  """The parts that a step is fed, and where they are from."""
  sampled = trainer._sample(np.int32(step))
  parts = np.asarray(trainer._fetch(step)[0])
  return parts, np.asarray(sampled.images), np.asarray(sampled.corners)


def test_pictures_of_different_sizes_are_cropped_inside():
  trainer = make_trainer(make_pictures(MIXED))
  margin = (trainer._part[0] - 32) // 2
  corners = []
  for step in range(12):
    for part, index, corner in zip(*crop_of(trainer, step), strict=True):
      image = MIXED[index]
      top, left = corner
      assert 0 <= top <= image.shape[0] - 32
      assert 0 <= left <= image.shape[1] - 32
      framed = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
      around = framed[top : top + len(part), left : left + len(part)]
      np.testing.assert_array_equal(part, around)
      corners.append(tuple(corner))
  assert len(set(corners)) > 30


def test_an_epoch_shows_every_picture_once_however_large():
  trainer = make_trainer(
    make_pictures(MIXED), sampling='epochs', num_steps=0, num_epochs=4
  )
  assert trainer.num_steps == 7  # 28 pictures, 4 a step.
  seen = np.concatenate([crop_of(trainer, step)[1] for step in range(7)])
  for epoch in seen.reshape(4, 7):
    assert sorted(epoch) == list(range(7))


def test_the_evaluation_has_crops_of_its_own():
  options = Options(**small_config(**SMALL).to_dict()['simulator'])
  make = lambda images, seed=3: simulated.make_examples(
    images, TEXTURES, options, seed=seed, count=12, crop=True
  )
  found = make(make_pictures(IMAGES))
  assert found.image.shape == (12, 32, 32, 3)
  assert_equal_trees(make(jax.device_put(IMAGES)), found)
  assert (make(make_pictures(IMAGES), seed=4).image != found.image).any()


def put(pictures, memory, monkeypatch, **options):
  monkeypatch.setattr(resident, 'device_memory', lambda _: memory)
  mesh = devices.make_mesh(4, jax.devices()[:2])
  return resident.put(
    {'images': pictures, 'textures': TEXTURES},
    devices.replicated(mesh),
    max_device_share=0.5,
    **options,
  )


def test_pictures_of_one_size_that_fit_lie_on_the_devices(monkeypatch):
  room = 2 * (IMAGES.nbytes + TEXTURES.nbytes)
  placed = put(make_pictures(IMAGES), room, monkeypatch)
  assert all(isinstance(array, jax.Array) for array in placed.values())
  np.testing.assert_array_equal(placed['images'], IMAGES)
  assert placed['images'].sharding.is_fully_replicated
  assert len(placed['images'].sharding.device_set) == 2


def test_others_stay_and_keep_what_there_is_room_for(monkeypatch):
  pictures = make_pictures(IMAGES)
  room = 2 * (IMAGES.nbytes + TEXTURES.nbytes) - 1
  host = TEXTURES.nbytes + 2 * IMAGES[0].nbytes
  placed = put(pictures, room, monkeypatch, max_host_bytes=host)
  assert placed['images'] is pictures
  assert isinstance(placed['textures'], jax.Array)
  list(pictures)
  assert len(pictures._kept) == 2
  # Of different sizes they are no array, and leave room for what is one.
  mixed = make_pictures(MIXED)
  placed = put(mixed, 2 * TEXTURES.nbytes, monkeypatch, max_host_bytes=0)
  assert placed['images'] is mixed
  assert isinstance(placed['textures'], jax.Array)
  assert not mixed._kept and mixed._room == 0


@pytest.fixture
def folder(tmp_path):
  """A category whose pictures differ in size, one smaller than a crop."""
  for number, image in enumerate([*MIXED, MIXED[0][:20]]):
    path = tmp_path / f'data/pens/train/good/{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  (tmp_path / 'dtd').mkdir()
  Image.fromarray(random_images(1, 64)[0]).save(tmp_path / 'dtd/a.png')
  return tmp_path


class Stop(Exception):
  """Raised in place of what comes behind the training."""


@pytest.fixture
def stopped(monkeypatch):
  def stop(*args, **options):
    raise Stop

  monkeypatch.setattr(experiment, '_evaluate', stop)


def settings(folder, **overrides):
  data = {
    'data.dir': str(folder / 'data'),
    'data.textures': str(folder / 'dtd'),
    'data.tfds_dir': str(folder / 'tfds'),
    'eval.every': 2,
    'eval.holdout': 0.2,
  }
  return small_config(**(SMALL | data | overrides)).to_dict()


def test_a_run_from_files(folder, stopped, caplog, monkeypatch):
  for module in (experiment, resident):
    monkeypatch.setattr(module._log, 'handlers', [])
    caplog.set_level('INFO', logger=module._log.name)
  whole = settings(folder, num_steps=2)
  with pytest.raises(Stop):
    experiment.train_and_evaluate(whole, folder / 'whole')
  assert '1 of 6 training images are smaller than' in caplog.text
  assert 'since their sizes differ' in caplog.text
  lines = writer.read_metrics(folder / 'whole')
  assert [line['step'] for line in lines] == [2]
  assert 0 <= lines[0]['eval_pixel_ap'] <= 1
  assert (folder / 'whole/figures/simulated.png').exists()
  # Other pictures are another training, and so is another size of them.
  with pytest.raises(UserError, match='config.data.resolution=64 .there 0'):
    experiment.train_and_evaluate(
      settings(folder, **{'data.resolution': 64}), folder / 'whole'
    )
  Image.fromarray(MIXED[1][::-1]).save(folder / 'data/pens/train/good/1.png')
  with pytest.raises(UserError, match='other training images'):
    experiment.train_and_evaluate(whole, folder / 'whole')


def test_a_resolution_less_than_a_crop_is_refused():
  wrong = small_config(**{'data.resolution': (64, 24)}).to_dict()
  with pytest.raises(UserError, match=r'resolution=64x24 is less than.*=32x32'):
    config_lib.check(wrong)
  for fine in ('', 0, 32, (32, 64)):
    config_lib.check(small_config(**{'data.resolution': fine}).to_dict())


def test_a_run_of_before_has_no_resolution(tmp_path):
  config = small_config().to_dict()
  del config['data']['resolution']
  claim.claim(tmp_path, config, {})
  assert claim.read_config(tmp_path)['data']['resolution'] == ''
