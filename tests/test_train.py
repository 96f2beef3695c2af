import contextlib
import dataclasses
import functools
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import SMALL, random_images, small_config
from tensorboardX import event_file_writer

from draem_jax import devices, interrupt, score
from draem_jax import metrics as metrics_lib
from draem_jax.configs import mvtec
from draem_jax.data.on_demand import OnDemand
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.simulator import simulate
from draem_jax.training import optimizer as optimizer_lib
from draem_jax.training import step as train_step
from draem_jax.training import train, writer
from draem_jax.training import trainer as trainer_lib
from draem_jax.training.sampling import sample_batch
from draem_jax.workdir import checkpoint

IMAGES, TEXTURES = random_images(7), random_images(5, seed=1)


def on_demand(read=TEXTURES.__getitem__):
  """The textures, decoded by `read`."""
  names = [f'{place}.png' for place in range(len(TEXTURES))]
  return OnDemand(read, names, 32)


def make_trainer(num_devices=1, fed=(), textures=TEXTURES, **overrides):
  config = small_config(**overrides).to_dict()
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:num_devices])
  sources = {
    name: source
    if name in fed
    else jax.device_put(source, devices.replicated(mesh))
    for name, source in (('images', IMAGES), ('textures', textures))
  }
  return trainer_lib.Trainer(config, **sources, mesh=mesh)


def run_steps(trainer, count=3):
  state, losses = trainer.init_state(), []
  for step in range(count):
    state, metrics = trainer.step(state, step)
    losses.append(jax.device_get(metrics))
  return state, losses


@pytest.fixture(scope='module')
def resident_trainer():
  return make_trainer()


@pytest.fixture(scope='module')
def one_device_run(resident_trainer):
  return run_steps(resident_trainer)


def test_two_devices_give_the_losses_of_one(one_device_run):
  _, losses = run_steps(make_trainer(num_devices=2), count=2)
  # Adam's first step, the sign of the gradient, blows rounding up.
  for one, two, rtol in zip(
    one_device_run[1], losses, (1e-5, 1e-2), strict=False
  ):
    for name in one:
      np.testing.assert_allclose(two[name], one[name], rtol, err_msg=name)


def test_two_devices_make_the_updates_of_one_in_float64():
  # Where rounding is out of the way, all that a step leaves behind is the same.
  config = small_config(optimizer='sgd', ema=0.9, num_steps=2).to_dict()
  model = models.Draem(4, 2, param_dtype=jnp.float64)
  recipe = trainer_lib.make_recipe(config, 2)
  schedule = optimizer_lib.make_schedule(config, 2)
  optimizer = optimizer_lib.make_optimizer(schedule, 'sgd')
  update = jax.jit(train_step.make_update(model, optimizer, recipe))
  rng = np.random.default_rng(0)
  image, augmented = np.float64([random_images(4), random_images(4, seed=1)])
  batch = simulate.Example(
    image / 255, augmented / 255, np.float64(rng.integers(2, size=(4, 32, 32)))
  )
  found = []
  for count in (1, 2):
    mesh = devices.make_mesh(4, jax.devices()[:count])
    with jax.enable_x64(True):
      state = train_step.init_state(
        model, optimizer, seed=0, mesh=mesh, ema=0.9
      )
      example = jax.device_put(batch, devices.batch_sharded(mesh))
      for _ in range(2):
        state, _ = update(state, example)
      found.append(jax.device_get(state))
  for (path, two), one in zip(
    jax.tree.leaves_with_path(found[1]), jax.tree.leaves(found[0]), strict=True
  ):
    assert one.dtype in (np.float64, np.int32), path
    np.testing.assert_allclose(two, one, 1e-9, 1e-12, err_msg=path)


def feeders():
  return [t for t in threading.enumerate() if t.name.startswith('feeder')]


def assert_equal_trees(found, expected):
  for one, two in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(one, two)


def test_feeding_from_the_host_changes_no_bit(one_device_run):
  trainer = make_trainer(fed=('images', 'textures'))
  state, losses, saved = trainer.init_state(), [], None
  for step in range(3):
    with jax.transfer_guard('disallow'):
      state, metrics = trainer.step(state, step)
    losses.append(jax.device_get(metrics))
    saved = saved or jax.device_get(state)
  assert losses == one_device_run[1]
  assert_equal_trees(state, one_device_run[0])
  # From a later step on, as after a restart.
  state = jax.device_put(saved, devices.replicated(trainer.mesh))
  for step in (1, 2):
    state, _ = trainer.step(state, step)
  assert_equal_trees(state, one_device_run[0])
  trainer.close()
  assert not feeders()


@pytest.mark.slow
def test_a_run_decodes_on_demand_stops_and_goes_on(tmp_path, resident_trainer):
  reads, gone = [], threading.Event()

  def read(place):
    reads.append(place)
    if len(reads) == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    if gone.is_set():
      raise OSError('the disk is gone')
    return TEXTURES[place]

  trainer = make_trainer(fed=('textures',), textures=on_demand(read))
  with pytest.raises(interrupt.Interrupted, match=r'saved at step [1-5]:'):
    train.train(trainer, tmp_path / 'run')
  assert not feeders()
  state, _ = train.train(trainer, tmp_path / 'run')
  assert not feeders()
  assert_equal_trees(state, run_steps(resident_trainer, 6)[0])
  gone.set()
  with pytest.raises(OSError, match='the disk is gone'):
    train.train(trainer, tmp_path / 'other')
  assert not feeders()


def test_the_step_trains(one_device_run):
  state, losses = one_device_run
  assert int(state.step) == 3
  initial = make_trainer().init_state()
  changed = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)), state.params, initial.params
  )
  flat = jax.tree_util.tree_leaves_with_path(changed)
  # Biases before a batch norm have no gradient.
  still = [str(path) for path, value in flat if not value]
  assert all('bias' in path for path in still), still
  assert losses[0]['loss'] == pytest.approx(
    losses[0]['l2'] + losses[0]['ssim'] + losses[0]['focal'], rel=1e-6
  )


def draw(step, **changes):
  options = {
    'batch_size': 4,
    'num_images': 7,
    'num_textures': 5,
    'sampling': 'epochs',
  }
  return sample_batch(3, step, **(options | changes))


def test_epochs_show_every_image_once():
  seen = np.concatenate([draw(step).images for step in range(14)])
  for epoch in seen.reshape(8, 7):
    assert sorted(epoch) == list(range(7))
  assert (seen[:7] != seen[7:14]).any()


def test_draws_with_replacement_are_uniform():
  seen = np.concatenate(
    [
      draw(step, sampling='with_replacement', batch_size=100).images
      for step in range(20)
    ]
  )
  counts = np.bincount(seen, minlength=7)
  assert counts.sum() == 2000 and len(counts) == 7
  # 5 standard deviations.
  assert np.abs(counts - 2000 / 7).max() < 5 * np.sqrt(2000 * 6 / 49)


def test_draws_differ_between_steps_and_examples():
  keys = [jax.random.key_data(draw(step).keys) for step in range(5)]
  keys = np.concatenate(keys)
  assert len(np.unique(keys, axis=0)) == len(keys)


def test_draws_are_the_same_under_jit():
  eager, jitted = draw(9), jax.jit(draw)(jnp.int32(9))
  np.testing.assert_array_equal(eager.images, jitted.images)
  np.testing.assert_array_equal(eager.textures, jitted.textures)


def test_the_schedule_falls_at_its_milestones():
  config = small_config(
    learning_rate=1e-2,
    learning_rate_factor=0.5,
    learning_rate_milestones=(0.8, 0.9),
  )
  schedule = optimizer_lib.make_schedule(config.to_dict(), 100)
  rates = [float(schedule(step)) for step in (0, 79, 81, 89, 91, 99)]
  np.testing.assert_allclose(
    rates, [1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3], rtol=1e-6
  )


def test_the_learning_rate_rises_at_first():
  config = small_config(
    learning_rate=0.1,
    learning_rate_warmup=0.1,
    learning_rate_milestones=(0.5,),
    learning_rate_factor=0.01,
  ).to_dict()
  rate = optimizer_lib.make_schedule(config, 100)
  found = np.array([rate(step) for step in range(100)])
  expected = [0.01 * (1 + step) for step in range(10)]
  expected += 40 * [0.1] + 50 * [0.001]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_muon_makes_kernels_orthogonal_and_gives_adam_to_the_rest():
  rng = np.random.default_rng(0)
  params = {
    'kernel': jnp.asarray(rng.normal(size=(3, 3, 6, 8)), jnp.float32),
    'wide': jnp.asarray(rng.normal(size=(1, 1, 4, 16)), jnp.float32),
    'bias': jnp.asarray(rng.normal(size=8), jnp.float32),
  }
  gradients = jax.tree.map(lambda x: x**3, params)
  muon = optimizer_lib.make_optimizer(lambda step: 0.1, 'muon')
  adam = optax.nadam(0.1)
  found, _ = muon.update(gradients, muon.init(params), params)
  expected, _ = adam.update(gradients, adam.init(params), params)
  np.testing.assert_allclose(found['bias'], expected['bias'], rtol=1e-5)
  for name in ('kernel', 'wide'):
    matrix = np.asarray(found[name]).reshape(-1, found[name].shape[-1])
    singular = np.linalg.svd(matrix, compute_uv=False)
    whole = 0.1 * 0.2 * np.sqrt(max(matrix.shape))
    assert (singular > 0.6 * whole).all() and (singular < 1.3 * whole).all()
    # Along the gradient's own axes.
    gradient = np.asarray(gradients[name]).reshape(matrix.shape)
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    inner = left.T @ matrix @ right.T
    np.testing.assert_allclose(
      inner, np.diag(np.diag(inner)), rtol=0, atol=0.02 * whole
    )
    assert (np.diag(inner) < 0).all()


def test_epochs_make_steps():
  config = small_config(num_steps=0, num_epochs=700, batch_size=8).to_dict()
  assert trainer_lib.count_steps(config, 209) == 18288  # 146,300 images.
  assert trainer_lib.count_steps(small_config(num_steps=5).to_dict(), 209) == 5


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
  trainer = make_trainer(learning_rate=float('inf'), **SMALL)
  with pytest.raises(UserError, match=r'loss is nan at step \d.*checkpoint'):
    train.train(trainer, tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text()
  assert 'NaN' not in lines


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
  trainer = make_trainer(num_steps=2, checkpoint_every=1, **SMALL)
  step = trainer.step

  def spoil(state, index):
    state, metrics = step(state, index)
    if index == 1:  # The loss of a step is from before its update.
      state = state.replace(params=jax.tree.map(lambda x: x / 0, state.params))
    return state, metrics

  monkeypatch.setattr(trainer, 'step', spoil)
  monkeypatch.setattr(jax, 'transfer_guard', lambda _: contextlib.nullcontext())
  words = r'weights are not finite at step 2; .*/checkpoints/1: lower config'
  with pytest.raises(UserError, match=words):
    train.train(trainer, tmp_path)
  assert checkpoint.list_steps(tmp_path / 'checkpoints') == [1]


def test_a_loss_beyond_any_constant_answer_is_a_failure():
  config = small_config().to_dict()  # Three terms of weight 1.
  find = lambda loss: train.find_divergence(config, [{'step': 9, 'loss': loss}])
  assert 'loss is 1.8e+07 at step 9' in find(1.8e7)
  assert 'lower config.learning_rate' in find(31.0)
  assert find(3.0) is None
  assert train.find_divergence(config, []) is None


def test_a_training_without_room_is_refused():
  config = small_config(**{'model.reconstructive_width': 4096}).to_dict()
  config['model']['discriminative_width'] = 4096
  with pytest.raises(UserError, match='GiB of memory at the least'):
    trainer_lib.check_memory(config, 2**36, 1)
  config = small_config(image_size=8192, batch_size=65536).to_dict()
  with pytest.raises(UserError, match='^config.batch_size, config.image_size'):
    trainer_lib.check_memory(config, 2**40, 8)
  trainer_lib.check_memory(mvtec.get_config('bottle').to_dict(), 2**32, 1)
  config = small_config(num_steps=0, num_epochs=2**31 - 1).to_dict()
  with pytest.raises(UserError, match='steps: take fewer'):
    trainer_lib.count_steps(config, 100)


SOUND = {'step': 2, 'seconds': 1.0, 'images_per_second': 3.0, 'loss': 0.5}


@pytest.mark.parametrize(
  ('text', 'count'),
  [
    ('{"step": 4, "sec', 1),
    ('\n\n', 1),
    ('\0\xff\n' * 3, 1),
    ('[' * 100_000 + '\n', 1),
    (json.dumps(SOUND) + '\n', 1),  # The same step again.
    (json.dumps(SOUND | {'step': 4, 'loss': None}) + '\n', 1),
    (json.dumps({'step': 4}) + '\n', 1),
    (json.dumps(SOUND | {'step': 4}) + '\n', 2),
  ],
)
def test_lines_that_are_damaged_stop_nothing(tmp_path, text, count):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes((json.dumps(SOUND) + '\n' + text).encode('latin-1'))
  assert len(writer.read_metrics(tmp_path)) == count


def test_a_finished_run_is_evaluated_without_its_lines(tmp_path):
  opened = writer.Writer(tmp_path, first_step=6, num_steps=6, batch_size=4)
  opened.close()
  assert (opened.lines, opened.seconds) == ([], 0.0)
  assert writer.typical_rate(opened.lines) is None


def test_events_that_cannot_be_written_stop_nothing(tmp_path, caplog):
  opened = writer.Writer(tmp_path, first_step=0, num_steps=6, batch_size=4)
  # The thread is told by its class.
  thread = event_file_writer._EventLoggerThread(None, None, 0)
  failed = threading.ExceptHookArgs(
    (OSError, OSError(28, 'No space left'), None, thread)
  )
  threading.excepthook(failed)
  for step in range(1, 9):
    opened.write(step, {'loss': 0.5})
  opened.close()
  assert caplog.text.count('No space left') == 1
  assert len(writer.read_metrics(tmp_path)) == 8


def test_the_step_learns_one_batch():
  """The loss falls, and the map tells the mask from the rest."""
  trainer = make_trainer(**{'model.reconstructive_width': 8})
  example = simulate.simulate_batch(
    jax.random.split(jax.random.key(1), 4),
    jnp.asarray(IMAGES[:4]),
    jnp.asarray(TEXTURES[:4]),
    dataclasses.replace(
      trainer.options,
      anomaly_probability=1.0,
      opacity=(0.8, 1.0),
      mask='rectangles',
    ),
  )
  optimizer = optimizer_lib.make_optimizer(lambda step: 3e-3)
  update = jax.jit(
    train_step.make_update(
      trainer.model,
      optimizer,
      trainer_lib.make_recipe(trainer.config, trainer.num_steps),
    )
  )
  state = trainer.init_state().replace(step=jnp.int32(0))
  losses = []
  for _ in range(120):
    state, metrics = update(state, example)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert np.mean(losses[-5:]) < np.mean(losses[20:25])
  look = functools.partial(
    trainer.model.apply, train=True, mutable=['batch_stats']
  )
  output, _ = jax.jit(look)(state.variables, example.augmented)
  maps, inside = score.anomaly_map(output.logits), example.mask > 0
  assert maps[inside].mean() > 2 * maps[~inside].mean()
  assert metrics_lib.auroc(np.asarray(maps), np.asarray(inside)) > 0.9


def test_the_average_follows_the_variables(resident_trainer):
  trainer = make_trainer(ema=0.9)
  state = trainer.init_state()
  expected = jax.device_get(state.evaluated)
  jax.tree.map(np.testing.assert_array_equal, expected, state.variables)
  for step in range(4):
    state, _ = trainer.step(state, step)
    keep = min(0.9, (1 + step) / (10 + step))
    expected = jax.tree.map(
      lambda old, new, keep=keep: keep * old + (1 - keep) * new,
      expected,
      jax.device_get(state.variables),
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
    jax.device_get(state.evaluated),
    expected,
  )
  plain, _ = run_steps(resident_trainer, count=4)
  jax.tree.map(np.testing.assert_array_equal, plain.variables, state.variables)
  assert plain.ema is None
  assert plain.evaluated is not state.evaluated
