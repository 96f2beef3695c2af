"""The path that GPUs take, forced on a CPU, which has any layout as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from small import random_images, small_config

from draem_jax import devices
from draem_jax.training import layouts, train
from draem_jax.training import trainer as trainer_lib
from draem_jax.training.step import TrainState
from draem_jax.workdir import checkpoint

# JAX puts layouts into the state's place, which is annotated with arrays.
pytestmark = pytest.mark.usefixtures('unchecked')

IMAGES = random_images(7)


def make_trainer(num_devices=1, **overrides):
  config = small_config(**overrides).to_dict()
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:num_devices])
  images = jax.device_put(IMAGES, devices.replicated(mesh))
  return trainer_lib.Trainer(config, images=images, textures=images, mesh=mesh)


class Turned:
  """Stands for `layouts.choosing`: a program that wants all axes reversed."""

  def __init__(self, step, mesh):
    self._step, self._everywhere = step, devices.replicated(mesh)

  def lower(self, state, *others):
    wanted = jax.tree.map(self._format, state)
    jitted = jax.jit(
      self._step,
      donate_argnums=0,
      in_shardings=(wanted, None, None),
      out_shardings=(self.returned(wanted), None),
    )
    return jitted.lower(state, *others)

  def _format(self, leaf):
    return Format(Layout(tuple(range(leaf.ndim))[::-1]), self._everywhere)

  def returned(self, wanted):
    return wanted


class TurnedBack(Turned):
  """One whose next state lies in memory in another way."""

  def returned(self, wanted):
    return self._everywhere


class Refused(Turned):
  """One that a compiler does not know."""

  def lower(self, state, *others):
    raise RuntimeError('UNIMPLEMENTED: layouts\nand a trace')


class Failed(Turned):
  """One that fails when it runs, with its arguments gone."""

  def lower(self, state, *others):
    compiled = super().lower(state, *others).compile()

    class Run:
      compile = lambda self: self
      input_formats = compiled.input_formats
      output_formats = compiled.output_formats

      def __call__(self, *arguments):
        compiled(*arguments)
        raise RuntimeError('INTERNAL: the kernel was launched in vain')

    return Run()


@pytest.fixture
def chosen(monkeypatch):
  """Whose layouts the CPU takes; nobody's, which is AUTO, without a call."""
  monkeypatch.setattr(layouts, '_PLATFORMS', ('cpu',))
  return lambda way: monkeypatch.setattr(layouts, 'choosing', way)


def order(array):
  return array.format.layout.major_to_minor


def assert_equal_trees(found, expected):
  for one, two in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(one, two)


def quick_step(state, images, textures):
  """Stands for the step of a training, the same in any layout to the bit."""
  loss = jnp.float32(images.mean() + textures.mean()) + state.step
  grow = lambda tree: jax.tree.map(lambda x: 1.01 * x + 1e-3, tree)
  return (
    state.replace(
      step=state.step + 1,
      params=grow(state.params),
      batch_stats=grow(state.batch_stats),
      ema=grow(grow(state.ema)),
    ),
    {'loss': loss},
  )


def init_state(mesh):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {'kernel': draw(3, 3, 4, 5), 'bias': draw(5)}
  variables = {'params': params, 'batch_stats': {'mean': draw(5)}}
  state = TrainState(
    step=np.zeros((), np.int32),
    **variables,
    opt_state=(draw(3, 3, 4, 5),),
    ema=jax.tree.map(np.copy, variables),
  )
  return jax.device_put(state, devices.replicated(mesh))


def make_quick_trainer(**overrides):
  trainer = make_trainer(num_steps=5, ema=0.9, keep_checkpoints=9, **overrides)
  trainer._step = layouts.compiled(quick_step, trainer.mesh)
  trainer.init_state = lambda: init_state(trainer.mesh)
  return trainer


def take_steps(trainer, count):
  state, losses = trainer.init_state(), []
  for step in range(count):
    given = jax.tree.leaves(state)
    with jax.transfer_guard('disallow'):
      state, metrics = trainer.step(state, step)
    assert all(leaf.is_deleted() for leaf in given)
    losses.append(jax.device_get(metrics))
  return state, losses


def test_cpus_and_tpus_keep_what_they_had():
  mesh = devices.make_mesh(1, jax.devices()[:1])
  jitted = layouts.compiled(quick_step, mesh)
  assert isinstance(jitted, type(jax.jit(quick_step)))
  state = init_state(mesh)
  assert layouts.plain(state, mesh) is state
  assert layouts._PLATFORMS == ('gpu',)


@pytest.mark.parametrize(
  ('way', 'words'),
  [
    (layouts.choosing, ''),
    (Turned, ''),
    (TurnedBack, 'the next state would have other layouts'),
    (Refused, 'UNIMPLEMENTED: layouts'),
    (Failed, 'INTERNAL: the kernel was launched in vain'),
  ],
)
@pytest.mark.parametrize('num_devices', [1, 2])
def test_what_fails_costs_no_state(way, words, num_devices, chosen, caplog):
  expected = take_steps(make_quick_trainer(num_devices=num_devices), 3)
  chosen(way)
  trainer = make_quick_trainer(num_devices=num_devices)
  state, losses = take_steps(trainer, 3)
  assert losses == expected[1]
  assert_equal_trees(state, expected[0])
  turned = (3, 2, 1, 0) if way is Turned else (0, 1, 2, 3)
  assert order(state.params['kernel']) == order(state.opt_state[0]) == turned
  assert words in caplog.text and bool(words) == bool(caplog.text)
  assert 'trace' not in caplog.text
  # One program is compiled, unless the first was none.
  assert (trainer._step._run is trainer._step._plain) == bool(words)


def test_a_state_from_elsewhere_is_put_in_order(chosen):
  chosen(Turned)
  trainer = make_quick_trainer()
  state, _ = take_steps(trainer, 2)
  other = layouts.plain(state, trainer.mesh)
  assert order(other.params['kernel']) == (0, 1, 2, 3)
  assert_equal_trees(other, state)
  expected, _ = trainer.step(state, 2)
  found, _ = trainer.step(other, 2)
  assert order(found.params['kernel']) == (3, 2, 1, 0)
  assert_equal_trees(found, expected)


@pytest.mark.parametrize('num_devices', [1, 2])
def test_a_training_ends_in_the_same_bytes(
  num_devices, tmp_path, chosen, monkeypatch
):
  monkeypatch.setattr(train, '_write_panel', lambda *arguments: None)
  plain, turned = tmp_path / 'plain', tmp_path / 'turned'
  expected, _ = train.train(make_quick_trainer(), plain)
  chosen(Turned)
  started = make_quick_trainer(num_devices=num_devices)
  started.num_steps = 3
  train.train(started, turned)
  # And from a checkpoint on.
  state, _ = train.train(make_quick_trainer(num_devices=num_devices), turned)
  assert order(state.params['kernel']) == (3, 2, 1, 0)
  assert_equal_trees(state, expected)
  last = 'checkpoints/5'
  checksums = [
    (folder / last / 'checksums/metadata').read_text()
    for folder in (plain, turned)
  ]
  assert checksums[0] == checksums[1]
  variables = checkpoint.restore_variables(
    turned / 'checkpoints', state.evaluated
  )
  assert_equal_trees(variables, expected.evaluated)


@pytest.mark.slow
def test_networks_train_and_are_evaluated_in_other_layouts(chosen):
  make = lambda **how: make_trainer(num_steps=3, **{'eval.every': 2}, **how)
  _, expected = take_steps(make(), 2)
  chosen(Turned)
  trainer = make(num_devices=2)
  state, losses = take_steps(trainer, 2)
  kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 4]
  assert kernels and all(order(leaf) == (3, 2, 1, 0) for leaf in kernels)
  # Adam's first step, the sign of the gradient, blows rounding up.
  for one, two, rtol in zip(expected, losses, (1e-5, 1e-2), strict=True):
    for name in one:
      np.testing.assert_allclose(two[name], one[name], rtol, err_msg=name)
  plain = layouts.plain(state, trainer.mesh)
  np.testing.assert_allclose(
    trainer.preview(state, 2).anomaly_map,
    trainer.preview(plain, 2).anomaly_map,
    rtol=0,
    atol=1e-5,
  )
  evaluate = trainer.make_evaluator()
  found = evaluate(state.current, 2)
  assert found == pytest.approx(evaluate(plain.current, 2), rel=1e-4)
