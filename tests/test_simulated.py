"""The evaluation on simulated anomalies, and the run that it may end."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from small import QUICK, SMALL, random_images, small_config
from test_train import (
  IMAGES,
  TEXTURES,
  assert_equal_trees,
  make_trainer,
  on_demand,
)

from draem_jax import config as config_lib
from draem_jax import devices, experiment
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.simulator.options import Options
from draem_jax.training import simulated, train
from draem_jax.training import trainer as trainer_lib
from draem_jax.training.step import TrainState
from draem_jax.workdir import checkpoint, claim

TIMES = 'seconds', 'images_per_second'


def make_examples(
  seed=3, count=12, textures=TEXTURES, images=IMAGES, **options
):
  config = small_config(
    **QUICK | {f'simulator.{name}': value for name, value in options.items()}
  )
  return simulated.make_examples(
    images,
    textures,
    Options(**config.to_dict()['simulator']),
    seed=seed,
    count=count,
  )


@pytest.fixture(scope='module')
def examples():
  return make_examples()


def test_half_are_anomalous_each_beside_its_image_without(examples):
  assert examples.mask.shape == (12, 32, 32)
  anomalous, good = (
    jax.tree.map(lambda x, start=start: x[start::2], examples)
    for start in (0, 1)
  )
  inside = anomalous.mask > 0
  assert inside.any(axis=(1, 2)).all() and not good.mask.any()
  np.testing.assert_array_equal(good.augmented, good.image)
  np.testing.assert_array_equal(good.image, anomalous.image)
  changed = (anomalous.augmented != anomalous.image).any(axis=-1)
  assert changed.any(axis=(1, 2)).all() and not changed[~inside].any()


def test_the_odd_one_is_anomalous(examples):
  odd = make_examples(count=11)
  assert_equal_trees(odd, jax.tree.map(lambda x: x[:11], examples))
  assert odd.mask.any(axis=(1, 2)).sum() == 6


def test_the_seed_decides_and_not_where_the_images_lie(examples):
  mesh = devices.make_mesh(4, jax.devices())
  placed = jax.device_put((IMAGES, TEXTURES), devices.replicated(mesh))
  assert_equal_trees(
    make_examples(images=placed[0], textures=placed[1]), examples
  )
  assert_equal_trees(make_examples(textures=on_demand()), examples)
  # How many of the training's examples have one does not matter.
  assert_equal_trees(make_examples(anomaly_probability=0.1), examples)
  other = make_examples(seed=4)
  assert (other.mask != examples.mask).any(axis=(1, 2)).sum() >= 6


def test_every_image_is_there_before_one_comes_again():
  flat = np.arange(0, 210, 30, np.uint8)[:, None, None, None]
  images = np.broadcast_to(flat, (7, 32, 32, 3)).copy()
  found = make_examples(
    images=images, count=14, rotation_probability=0.0, threshold=(-1.0, -1.0)
  )
  levels = np.round(255 * found.image[::2].mean(axis=(1, 2, 3)))
  assert sorted(levels.tolist()) == flat.reshape(-1).tolist()


def test_anomalies_that_are_all_empty_are_an_error():
  with pytest.raises(UserError, match=r'0 are not empty.*simulator.threshold'):
    make_examples(count=2, threshold=(10.0, 10.0))


def make_evaluating_trainer(**overrides):
  overrides = SMALL | {'eval.every': 2} | overrides
  return make_trainer(**overrides)


@pytest.fixture(scope='module')
def evaluator():
  return make_evaluating_trainer().make_evaluator()


@pytest.fixture(scope='module')
def variables():
  """Of networks that say something."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.abs(rng.normal(0.3, 0.5, x.shape).astype(x.dtype)),
    models.abstract_variables(make_evaluating_trainer().model),
  )


def test_the_numbers_are_those_of_the_networks(evaluator, variables):
  found = evaluator(variables, 3)
  examples, jitted = evaluator.examples, jax.jit(evaluator.evaluate_batch)
  assert len(examples.mask) == simulated.NUM_EXAMPLES
  half, mean, maps, scores = jnp.float32(0.5), [], [], []
  for first in range(0, 64, 4):
    batch = jax.tree.map(lambda x, i=first: x[i : i + 4], examples)
    parts = jitted(variables, batch, half)
    if first == 0:
      placed = jax.tree.map(jnp.asarray, (variables, batch))
      eager = evaluator.evaluate_batch(*placed, half)
      for one, other in zip(parts, eager, strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-6)
    mean.append(parts[0])
    maps.append(parts[1])
    scores.append(parts[2])
  masks = examples.mask.reshape(-1) > 0
  labels = examples.mask.any(axis=(1, 2))
  assert found['loss'] == pytest.approx(float(np.mean(mean)), rel=1e-4)
  assert found['pixel_ap'] == pytest.approx(
    average_precision_score(masks, np.concatenate(maps).reshape(-1)), abs=1e-3
  )
  assert found['image_auroc'] == pytest.approx(
    roc_auc_score(labels, np.concatenate(scores)), abs=2e-3
  )
  assert evaluator(variables, 3) == found


def test_two_devices_evaluate_as_one(evaluator, variables):
  two = make_evaluating_trainer(num_devices=2).make_evaluator()
  assert_equal_trees(two.examples, evaluator.examples)
  assert two(variables, 3) == pytest.approx(evaluator(variables, 3), rel=1e-4)


def test_networks_that_say_nan_end_the_run(evaluator, variables, tmp_path):
  broken = jax.tree.map(lambda x: x * np.nan, variables)
  assert np.isnan(list(evaluator(broken, 3).values())).all()


@pytest.fixture(autouse=True)
def no_panels(monkeypatch):
  """They are another program to compile."""
  monkeypatch.setattr(train, '_write_panel', lambda *arguments: None)


def read_lines(folder):
  return [
    {key: value for key, value in json.loads(line).items() if key not in TIMES}
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]


def quick_step(state, images, textures):
  """Stands for the step of a training, which takes long to compile."""
  del images, textures
  grow = lambda tree: jax.tree.map(lambda x: 1.01 * x + 1e-3, tree)
  loss = 0.1 * state.step
  return (
    state.replace(
      step=state.step + 1,
      params=grow(state.params),
      batch_stats=grow(state.batch_stats),
      ema=None if state.ema is None else grow(grow(state.ema)),
    ),
    {'loss': loss, 'focal': loss},
  )


def shorten(trainer, init_state=None):
  trainer._step = jax.jit(quick_step, donate_argnums=0)
  if init_state:
    everywhere = devices.replicated(trainer.mesh)
    trainer.init_state = lambda: jax.device_put(init_state(), everywhere)
  return trainer


class Killed(Exception):
  """Stands for `kill -9`: nothing is saved on the way out."""


def kill_at(monkeypatch, trainer, at):
  step = trainer.step

  def killed(state, index):
    if index == at:
      raise Killed
    return step(state, index)

  monkeypatch.setattr(trainer, 'step', killed)


def test_a_run_has_a_curve_and_goes_on_with_it(
  tmp_path, monkeypatch, variables
):
  def init_state():
    step = np.zeros((), np.int32)
    return TrainState(step=step, **variables, opt_state=())

  trainer = shorten(
    make_evaluating_trainer(log_every=3, checkpoint_every=3, num_steps=5),
    init_state,
  )
  with monkeypatch.context() as patched:
    patched.setitem(trainer.config['eval'], 'every', 0)
    plain, _ = train.train(trainer, tmp_path / 'plain')
  state, _ = train.train(trainer, tmp_path / 'whole')
  # To evaluate changes nothing.
  assert_equal_trees(state, plain)
  lines = read_lines(tmp_path / 'whole')
  assert [line['step'] for line in lines] == [2, 3, 4, 5]
  with_curve = [line['step'] for line in lines if 'eval_loss' in line]
  assert with_curve == [2, 4, 5]  # The last one always is.
  for line in lines[::2]:
    assert 0 < line['eval_pixel_ap'] <= 1 and 0 <= line['eval_image_auroc'] <= 1
  events = next((tmp_path / 'whole' / 'tensorboard').iterdir()).read_bytes()
  for tag in (b'eval/pixel_ap', b'eval/image_auroc', b'train/loss'):
    assert tag in events
  assert b'train/eval' not in events

  with monkeypatch.context() as patched:
    kill_at(patched, trainer, 4)
    with pytest.raises(Killed):
      train.train(trainer, tmp_path / 'killed')
  train.train(trainer, tmp_path / 'killed')
  assert read_lines(tmp_path / 'killed') == lines


# Pixel AP by step: the best is at 4, and 8 is as good, which is not better.
CURVE = {2: 0.3, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.9}
FLAT = SMALL | {
  'eval.every': 2,
  'stop_when_flat': 2,
  'num_steps': 12,
  'checkpoint_every': 3,
  'keep_checkpoints': 9,
}


class Scripted(simulated.Evaluator):
  """Finds what the test says, and notes what it was given."""

  def __init__(self, curve=CURVE):
    self.curve, self.given = curve, {}

  def __call__(self, variables, step):
    self.given[step] = jax.device_get(variables)
    return {'loss': 0.5, 'image_auroc': 0.5, 'pixel_ap': self.curve[step]}


@pytest.fixture(params=[0.0, 0.9])
def flat_trainer(request):
  def init_state():
    variables = {
      'params': {'kernel': np.ones((2, 3), np.float32)},
      'batch_stats': {'mean': np.ones(3, np.float32)},
    }
    return TrainState(
      step=np.zeros((), np.int32),
      **variables,
      opt_state={'moment': np.zeros(3, np.float32)},
      ema=jax.tree.map(lambda x: 2 * x, variables) if request.param else None,
    )

  return shorten(make_trainer(**FLAT, ema=request.param), init_state)


def train_scripted(trainer, folder, monkeypatch, curve=CURVE):
  scripted = Scripted(curve)
  monkeypatch.setattr(trainer, 'make_evaluator', lambda: scripted)
  state, _ = train.train(trainer, folder)
  return state, scripted


def restored(trainer, folder):
  shapes = jax.eval_shape(lambda: trainer.init_state().variables)
  return checkpoint.restore_variables(folder / 'checkpoints', shapes)


def test_a_flat_curve_ends_the_run_with_the_best(
  tmp_path, monkeypatch, flat_trainer, caplog
):
  caplog.set_level('INFO', 'draem_jax')
  folder = tmp_path / 'run'
  state, scripted = train_scripted(flat_trainer, folder, monkeypatch)
  assert int(state.step) == 8 and sorted(scripted.given) == [2, 4, 6, 8]
  assert int(state.record['step']) == 4
  assert_equal_trees(state.evaluated, scripted.given[4])
  assert_equal_trees(state.current, scripted.given[8])
  assert 'ended at step 8 of 12' in caplog.text
  assert 'the weights of step 4 are kept, with a pixel AP of 50.0 %' in (
    caplog.text
  )
  assert checkpoint.list_steps(folder / 'checkpoints') == [3, 6, 8]
  assert_equal_trees(restored(flat_trainer, folder), scripted.given[4])

  # It is finished, and the same command leaves it as it is.
  before = read_lines(folder)
  again, idle = train_scripted(flat_trainer, folder, monkeypatch)
  assert not idle.given and int(again.step) == 8
  assert_equal_trees(again, state)
  assert read_lines(folder) == before


@pytest.mark.parametrize('at', [5, 7])
def test_a_run_that_was_killed_ends_the_same(
  tmp_path, monkeypatch, flat_trainer, at
):
  """The checkpoints are of 3, before the best, and of 6, behind it."""
  whole, _ = train_scripted(flat_trainer, tmp_path / 'whole', monkeypatch)
  with monkeypatch.context() as patched:
    kill_at(patched, flat_trainer, at)
    with pytest.raises(Killed):
      train_scripted(flat_trainer, tmp_path / 'killed', patched)
  state, scripted = train_scripted(
    flat_trainer, tmp_path / 'killed', monkeypatch
  )
  assert min(scripted.given) == (4 if at < 6 else 8)
  assert_equal_trees(state, whole)
  assert read_lines(tmp_path / 'killed') == read_lines(tmp_path / 'whole')
  # What was saved on the way is the best by then, too.
  shutil.rmtree(tmp_path / 'killed' / 'checkpoints' / '8')
  assert_equal_trees(
    restored(flat_trainer, tmp_path / 'killed'), whole.evaluated
  )


def test_a_curve_that_rises_is_trained_to_the_end(
  tmp_path, monkeypatch, flat_trainer
):
  curve = {2: 0.3, 4: 0.2, 6: 0.5, 8: 0.4, 10: 0.6, 12: 0.1}
  state, scripted = train_scripted(flat_trainer, tmp_path, monkeypatch, curve)
  assert int(state.step) == 12
  assert_equal_trees(state.evaluated, scripted.given[10])
  assert_equal_trees(restored(flat_trainer, tmp_path), scripted.given[10])


def test_it_needs_evaluations_and_goes_on_with_the_same_ones(tmp_path):
  values = config_lib.default()
  values.stop_when_flat = 3
  with pytest.raises(UserError, match=r'stop_when_flat=3 .*set config.eval.ev'):
    config_lib.check(values.to_dict())
  folder = tmp_path / 'run'
  (folder / 'checkpoints' / '2').mkdir(parents=True)
  stored = small_config(**FLAT).to_dict()
  claim._write(folder / 'config.json', stored, {})
  for field, value in (('eval.every', 3), ('score_window', 9)):
    changed = small_config(**FLAT | {field: value}).to_dict()
    with pytest.raises(UserError, match=rf'config.{field}={value} .there'):
      claim.check(folder, changed)
  # Where nothing ends by them, they are free.
  free = FLAT | {'stop_when_flat': 0}
  claim._write(folder / 'config.json', small_config(**free).to_dict(), {})
  claim.check(folder, small_config(**free | {'eval.every': 3}).to_dict())


def test_a_run_from_files_to_results(tmp_path, monkeypatch, caplog):
  caplog.set_level('INFO', 'draem_jax')
  folders = {'train/good': 6, 'test/good': 2, 'test/bent': 2}
  for folder, count in folders.items():
    (tmp_path / 'data/pens' / folder).mkdir(parents=True)
    for index, image in enumerate(random_images(count, seed=count)):
      path = tmp_path / 'data/pens' / folder / f'{index}.png'
      Image.fromarray(image).save(path)
  config = small_config(
    **FLAT
    | {
      'data.dir': str(tmp_path / 'data'),
      'data.tfds_dir': str(tmp_path / 'tfds'),
      'data.textures': str(tmp_path / 'data/pens/train'),
    }
  ).to_dict()
  kept = []

  def make_evaluator(trainer):
    kept.append((trainer._eval_images, Scripted()))
    return kept[-1][1]

  monkeypatch.setattr(trainer_lib.Trainer, 'make_evaluator', make_evaluator)
  # It takes long, and others test it.
  monkeypatch.setattr(experiment.drawings, 'draw', lambda *arguments: None)
  make = trainer_lib.Trainer
  monkeypatch.setattr(
    trainer_lib,
    'Trainer',
    lambda *args, **parts: shorten(make(*args, **parts)),
  )
  row = experiment.train_and_evaluate(config, tmp_path / 'run')
  assert (row['steps'], row['best_step']) == (8, 4)
  assert 'every 2 steps: evaluated on the 6 good images of the training' in (
    caplog.text
  )
  assert 'config.eval.holdout keeps some out' in caplog.text
  assert len(kept[0][0]) == 6
  stored = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert (stored['steps'], stored['best_step']) == (8, 4)
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'While it trained' in page and 'pixel AP, 0.5 at the end' in page

  # Held out, they are others than those that are trained on.
  config['eval']['holdout'] = 0.34
  with monkeypatch.context() as patched:
    patched.setattr(train, 'train', lambda *_, **options: 1 / 0)
    tell = []
    patched.setattr(
      trainer_lib, 'Trainer', lambda *args, **parts: tell.append(parts)
    )
    with pytest.raises(ZeroDivisionError):
      experiment.train_and_evaluate(config, tmp_path / 'held_out')
  assert len(tell[0]['images']) == 4 and len(tell[0]['eval_images']) == 2
