"""The network of Božič et al. against PyTorch, and as a run of its own."""

import functools
import json
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import random_images, small_config

from draem_jax import config as config_lib
from draem_jax import devices, losses, metrics, score
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx as export_onnx
from draem_jax.export import stablehlo
from draem_jax.export import torch as export_torch
from draem_jax.networks import bozic, models
from draem_jax.report import details
from draem_jax.simulator import simulate
from draem_jax.training import optimizer as optimizer_lib
from draem_jax.training import step as train_step
from draem_jax.training import train
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import claim
from draem_jax.workdir.thresholds import Thresholds

torch = pytest.importorskip(
  'torch', reason='PyTorch is not installed: extra `test`'
)

OVERRIDES = {
  'model.name': 'bozic',
  'model.discriminative_width': 4,
  'loss.weights.l2': 0.0,
  'loss.weights.ssim': 0.0,
  'loss.weights.focal': 0.0,
  'loss.weights.segmentation': 1.0,
  'loss.weights.decision': 2.0,
  'loss.schedule': 'segmentation_first',
  'optimizer': 'sgd',
  'learning_rate': 0.1,
  'learning_rate_milestones': (),
  'score.map': 'segmentation',
  'score.image': 'decision',
}
WIDTH = 4
MODEL = models.Bozic(discriminative_width=WIDTH)
STAGES = (
  *('block1_conv1', 'block2_conv1', 'block2_conv2', 'block2_conv3'),
  *(f'block3_conv{i}' for i in range(1, 5)),
  'last_conv',
)


class FeatureNorm(torch.nn.Module):
  """(x - mean) / sqrt(std + 0.001) · scale + bias, of each image."""

  def __init__(self, channels):
    super().__init__()
    self.scale = torch.nn.Parameter(torch.ones(channels))
    self.bias = torch.nn.Parameter(torch.zeros(channels))

  def forward(self, x):
    mean = x.mean((2, 3), keepdim=True)
    deviation = x.std((2, 3), keepdim=True)
    scale, bias = (each[:, None, None] for each in (self.scale, self.bias))
    return (x - mean) / torch.sqrt(deviation + 0.001) * scale + bias


def torch_layer(inputs, outputs, side=5):
  return torch.nn.Sequential(
    torch.nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False),
    FeatureNorm(outputs),
    torch.nn.ReLU(),
  )


class Peer(torch.nn.Module):
  """Both stages; what `forward` returns are all activations by name."""

  def __init__(self, width):
    super().__init__()
    w = width
    inputs = (3, w // 2, w, w, w, w, w, w)
    layers = {
      name: torch_layer(a, b)
      for name, a, b in zip(STAGES, inputs, (w // 2, *[w] * 7), strict=False)
    }
    layers['last_conv'] = torch_layer(w, 16 * w, side=15)
    self.segmentation = torch.nn.ModuleDict(layers)
    self.segmentation['logits'] = torch.nn.Conv2d(16 * w, 1, 1, bias=False)
    channels = (16 * w + 1, 8, 16, 32)
    self.decision = torch.nn.ModuleDict(
      {f'conv{i}': torch_layer(channels[i - 1], channels[i]) for i in (1, 2, 3)}
    )
    self.linear = torch.nn.Linear(66, 1)

  def forward(self, x):
    seen = {}
    pool = torch.nn.functional.max_pool2d
    for name in STAGES:
      x = self.segmentation[name](x)
      seen[f'segmentation/{name}'] = x
      if name in ('block1_conv1', 'block2_conv3', 'block3_conv4'):
        x = pool(x, 2)
    logits = self.segmentation['logits'](x)
    seen['segmentation/logits'] = logits
    x, stopped = x.detach(), logits.detach()
    x = torch.cat([x, stopped], 1)
    for name, layer in self.decision.items():
      x = layer(pool(x, 2))
      seen[f'decision/{name}'] = x
    seen['decision'] = self.linear(
      torch.cat(
        [x.amax((2, 3)), x.mean((2, 3))]
        + [stopped.amax((2, 3)), stopped.mean((2, 3))],
        1,
      )
    )
    return seen

  def losses(self, seen, mask):
    """The authors' targets: a mean about each eighth pixel, and any pixel."""
    padded = torch.nn.functional.pad(mask, (8, 8, 8, 8), mode='reflect')
    target = torch.nn.functional.avg_pool2d(padded, 17, stride=8)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    return {
      'segmentation': entropy(seen['segmentation/logits'], target),
      'decision': entropy(seen['decision'], mask.amax((2, 3))),
    }

  def parameter_of(self, path):
    """The parameter for a path in our variables."""
    if path == ('segmentation', 'logits_kernel'):
      return self.segmentation['logits'].weight
    if path[-2:] in (('decision', 'kernel'), ('decision', 'bias')):
      return self.linear.weight if path[-1] == 'kernel' else self.linear.bias
    stage, name, parameter = path
    layer = getattr(self, stage)[name]
    return (
      layer[0].weight if parameter == 'kernel' else getattr(layer[1], parameter)
    )


def to_torch(x):
  x = x[..., None] if x.ndim == 3 else x
  return torch.tensor(np.moveaxis(np.asarray(x, np.float64), -1, 1))


def as_torch_layout(array):
  """A kernel as PyTorch has it."""
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
  return np.asarray(array if axes is None else array.transpose(axes))


@pytest.fixture(scope='module')
def variables():
  """With scales and biases that are not what they begin as."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if not path[-1].key.endswith('kernel'):
      return rng.normal(path[-1].key == 'scale', 0.3, leaf.shape)
    return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)

  shapes = models.abstract_variables(MODEL)
  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope='module')
def batch():
  """Images, masks and what they were, with an odd size in the decision."""
  images = random_images(6, size=160)[:, :128] / 255
  noise = np.random.default_rng(1).uniform(size=(3, 128, 160)) > 0.999
  masks = np.float64(noise.repeat(1, axis=1))
  masks[0, 30:70, 20:90] = 1
  masks[2] = 0
  return simulate.Example(image=images[3:], augmented=images[:3], mask=masks)


@pytest.fixture(scope='module')
def peer(variables):
  peer = Peer(WIDTH).double()
  flat = flax.traverse_util.flatten_dict(variables['params'])
  with torch.no_grad():
    for path, array in flat.items():
      parameter = peer.parameter_of(path)
      parameter.copy_(
        torch.tensor(as_torch_layout(np.asarray(array))).reshape(
          parameter.shape
        )
      )
  return peer


@pytest.fixture(scope='module')
def theirs(peer, batch):
  """All activations, the losses, and the gradients of each loss alone."""
  seen = peer(to_torch(batch.augmented))
  terms = peer.losses(seen, to_torch(batch.mask))
  gradients = {}
  for name, value in terms.items():
    peer.zero_grad()
    value.backward(retain_graph=True)
    gradients[name] = {
      key: parameter.grad.numpy().copy()
      for key, parameter in peer.named_parameters()
      if parameter.grad is not None
    }
  return seen, terms, gradients


@pytest.fixture(scope='module')
def ours(variables, batch):
  """What a step makes of it in float64, and all activations."""
  with jax.enable_x64(True):
    given, example = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64), (variables, batch)
    )
    model = models.Bozic(discriminative_width=WIDTH, param_dtype=jnp.float64)
    recipe = train_step.Recipe({'segmentation': 1.0, 'decision': 1.0}, 'one')
    look = functools.partial(
      train_step.loss_and_gradients, model, recipe=recipe
    )
    seen, gradients = jax.device_get(jax.jit(look)(given, example))
    apply = functools.partial(
      model.apply,
      train=False,
      capture_intermediates=True,
      mutable=['intermediates'],
    )
    _, state = jax.jit(apply)(given, example.augmented)
    return seen, gradients, jax.device_get(state['intermediates'])


@pytest.mark.parametrize(
  'name',
  [f'segmentation/{stage}' for stage in STAGES]
  + [f'decision/conv{i}' for i in (1, 2, 3)],
)
def test_each_layer_is_that_of_pytorch(name, ours, theirs):
  stage, layer = name.split('/')
  (found,) = ours[2][stage][layer]['__call__']
  expected = theirs[0][name].detach().numpy()
  np.testing.assert_allclose(
    np.moveaxis(found, -1, 1), expected, 1e-9, 1e-9 * np.abs(expected).max()
  )
  assert np.ptp(expected) > 0.1


def test_outputs_and_losses_are_those_of_pytorch(ours, theirs):
  (seen, *_), (expected, terms, _) = ours, theirs
  output = seen.output
  assert output.reconstruction is None and output.logits is None
  logits = expected['segmentation/logits'][:, 0].detach()
  np.testing.assert_allclose(output.segmentation, logits, 1e-9, 1e-9)
  decision = expected['decision'][:, 0].detach()
  np.testing.assert_allclose(output.decision, decision, 1e-9)
  assert np.ptp(output.decision) > 1e-3
  assert set(seen.terms) == set(terms)
  for name, value in terms.items():
    np.testing.assert_allclose(seen.terms[name], value.item(), 1e-9)


def test_gradients_are_those_of_pytorch(peer, ours, theirs):
  """So the decision's, summed up with it, does not reach the segmentation."""
  names = {id(value): key for key, value in peer.named_parameters()}
  for path, found in flax.traverse_util.flatten_dict(ours[1]).items():
    key = names[id(peer.parameter_of(path))]
    expected = theirs[2][path[0]][key]
    size = np.abs(expected).max()
    assert size > 1e-8, path
    np.testing.assert_allclose(
      as_torch_layout(found).reshape(expected.shape),
      expected,
      1e-6,
      1e-9 * size,
      err_msg=str(path),
    )


def test_full_width_has_the_channels_of_the_authors():
  shapes = models.abstract_variables(models.Bozic())
  assert set(shapes) == {'params'}
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  expected = sum(each.numel() for each in Peer(64).parameters())
  assert count == expected
  segmentation = shapes['params']['segmentation']
  assert segmentation['last_conv']['kernel'].shape == (15, 15, 64, 1024)


@pytest.fixture(scope='module')
def fresh():
  """Networks of width 8, their optimizer, and the state before any step."""
  model = models.Bozic(discriminative_width=8)
  optimizer = optimizer_lib.make_optimizer(lambda step: 0.3, 'sgd')
  mesh = devices.make_mesh(1, jax.devices()[:1])
  state = train_step.init_state(model, optimizer, seed=0, mesh=mesh)
  return model, optimizer, state


def test_it_begins_as_the_authors_do(fresh):
  params = jax.device_get(fresh[2].params)
  kernel = params['segmentation']['last_conv']['kernel']
  # Xavier's normal, not cut off.
  deviation = (2 / (225 * (8 + 128))) ** 0.5
  assert abs(kernel.std() / deviation - 1) < 0.01
  assert np.abs(kernel).max() > 3 * deviation
  assert abs(kernel.mean()) < 0.01 * deviation
  linear = params['decision']['kernel']
  assert 0.8 * 66**-0.5 < np.abs(linear).max() <= 66**-0.5
  norm = params['segmentation']['block3_conv2']
  assert (norm['scale'] == 1).all() and (norm['bias'] == 0).all()


@pytest.mark.parametrize('channels', [4, 16])
def test_large_kernels_convolve_alike(channels):
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(2, 8, 12, channels)))
  kernel = np.float32(rng.normal(size=(15, 15, channels, 5)))
  expected = torch.nn.functional.conv2d(
    to_torch(x), torch.tensor(kernel.transpose(3, 2, 0, 1)).double(), padding=7
  )
  found = np.moveaxis(jax.jit(bozic.convolve)(x, kernel), -1, 1)
  np.testing.assert_allclose(found, expected, 1e-4, 1e-3)


@pytest.mark.parametrize('size', [32, 96])
def test_small_images_can_be_decided_on(size):
  """Where PyTorch would divide by the deviation of a single value."""
  images = jnp.asarray(random_images(3, size=96)[:, :size, :size] / 255)
  model = models.Bozic(discriminative_width=2)

  def total(params):
    decision = model.apply({'params': params}, images, train=True).decision
    return decision.sum(), decision

  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: np.float32(rng.normal(0.1, 0.3, leaf.shape)),
    models.abstract_variables(model)['params'],
  )
  gradients, decision = jax.jit(jax.grad(total, has_aux=True))(params)
  assert np.isfinite(decision).all() and np.ptp(decision) > 1e-4
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  # Its last features say something, too.
  assert np.abs(gradients['decision']['conv1']['kernel']).max() > 0


def test_a_channel_of_one_value_has_a_gradient():
  x = np.zeros((1, 4, 4, 2), np.float32)
  x[0, 1, 1, 1] = 1
  gradient = jax.grad(
    lambda x: (
      bozic.normalize_each(x, jnp.ones(2), jnp.ones(2)) * x[..., ::-1]
    ).sum()
  )(jnp.asarray(x))
  assert np.isfinite(gradient).all()
  found = bozic.normalize_each(jnp.asarray(x), jnp.ones(2), jnp.full(2, 3.0))
  assert (found[..., 0] == 3).all() and np.ptp(found[..., 1]) > 1


def test_targets_and_maps_are_of_the_same_pixels():
  mask = np.zeros((1, 64, 96), np.float32)
  mask[0, 24, 40] = 1
  cells = np.asarray(bozic.cell_means(jnp.asarray(mask)))
  expected = np.zeros((8, 12))
  expected[2:5, 4:7] = 1 / 17**2
  np.testing.assert_allclose(cells[0], expected, 1e-5, 1e-9)
  enlarged = np.asarray(bozic.enlarge(jnp.asarray(cells)))[0]
  np.testing.assert_array_equal(enlarged[::8, ::8], cells[0])
  rows, columns = np.nonzero(enlarged == enlarged.max())
  assert (rows.mean(), columns.mean()) == (24, 40)
  line = np.interp(np.arange(96) / 8, np.arange(12), cells[0, 3])
  np.testing.assert_allclose(enlarged[24], line, 1e-5)
  whole = bozic.cell_means(jnp.ones((1, 32, 32)))
  np.testing.assert_allclose(whole, 1, 1e-6)


def make_trainer(**overrides):
  config = small_config(**{**OVERRIDES, **overrides}).to_dict()
  config_lib.check(config)
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:1])
  images, textures = jax.device_put(
    (random_images(6), random_images(5, seed=1)), devices.replicated(mesh)
  )
  return trainer_lib.Trainer(
    config, images=images, textures=textures, mesh=mesh
  )


def test_sgd_has_neither_momentum_nor_scale():
  optimizer = optimizer_lib.make_optimizer(lambda step: 0.5 / (1 + step), 'sgd')
  params = jnp.asarray([1.0, -2.0])
  state = optimizer.init(params)
  for step in range(3):
    gradient = jnp.asarray([4.0, 1e-3]) * (step + 1)
    update, state = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(update, -0.5 / (1 + step) * gradient)
  fields = config_lib.FIELDS['optimizer']
  assert fields.default == 'adam' and fields.holds('sgd')


def test_an_older_recipe_has_the_same_program():
  """Schedule and optimizer are of no weight where they are not asked for."""
  config = small_config().to_dict()
  recipe = trainer_lib.make_recipe(config, 6)
  assert losses.SCHEDULES[recipe.schedule](jnp.float32(0.5)) == {}
  plain, named = (
    optimizer_lib.make_optimizer(lambda step: 1e-3, *name)
    for name in ([], ['adam'])
  )
  params = jnp.ones(3)
  for optimizer in (plain, named, optax.adam(1e-3)):
    update, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(update, -1e-3, 1e-5)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir of a short run, with an average, and its last state."""
  workdir = tmp_path_factory.mktemp('bozic') / 'run'
  trainer = make_trainer(ema=0.5, log_every=1)
  claim.claim(workdir, trainer.config, {'training images': '0'})
  state, _ = train.train(trainer, workdir)
  return workdir, trainer, jax.device_get(state)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_the_weights_shift_from_segmentation_to_decision(trained):
  workdir, trainer, _ = trained
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
  assert len(lines) == trainer.num_steps
  for step, line in enumerate(lines):
    share = step / trainer.num_steps
    np.testing.assert_allclose(
      line['loss'],
      (1 - share) * line['segmentation'] + 2 * share * line['decision'],
      1e-5,
    )
    assert line['learning_rate'] == pytest.approx(0.1)


def test_a_run_goes_on_from_its_checkpoint(trained, tmp_path):
  workdir, trainer, expected = trained
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  shutil.rmtree(copy / 'checkpoints' / '6')
  state, _ = train.train(trainer, copy)
  assert_equal(jax.device_get(state), expected)


def test_the_detector_decides_by_the_second_stage(trained):
  workdir, trainer, state = trained
  detector = Detector.load(workdir, batch_size=2)
  assert_equal(detector.variables['params'], state.evaluated['params'])
  images = random_images(3, seed=4)
  scored = detector.score_all(images)
  apply = jax.jit(functools.partial(trainer.model.apply, train=False))
  output = apply(
    {'params': state.evaluated['params']}, np.float32(images) / 255
  )
  logits = np.float64(output.decision)
  np.testing.assert_allclose(scored.score, 1 / (1 + np.exp(-logits)), 1e-5)
  cells = 1 / (1 + np.exp(-np.float64(output.segmentation)))
  np.testing.assert_allclose(scored.anomaly_map[:, ::8, ::8], cells, 1e-4)
  assert scored.reconstruction is None
  assert 0 < scored.anomaly_map.min() < scored.anomaly_map.max() < 1
  assert trainer.preview(state, 0).reconstruction is None
  by_window = Detector(
    trainer.model,
    detector.variables,
    image_size=32,
    score_window=5,
    score_map='segmentation',
    batch_size=3,
  )
  assert by_window.fingerprint() != detector.fingerprint()


def test_thresholds_of_decision_and_map_do_not_mix(trained):
  detector = Detector.load(trained[0])
  images = random_images(6, seed=5)
  chosen = detector.choose_thresholds(
    images, source='6 images', quantile=0.0, pixel_quantile=1.0
  )
  maps = detector.score_all(images).anomaly_map
  np.testing.assert_allclose(chosen.pixel, maps.max(), 1e-6)
  changed = detector.with_thresholds(image=0.01)
  assert changed.thresholds.pixel == chosen.pixel
  # A decision below every map value does not make every pixel anomalous.
  anomaly_map = np.linspace(0.2, 0.6, 64).reshape(8, 8)
  changed.thresholds = Thresholds(0.01, 0.9, 'hand', None, None)
  assert changed.find_mask(anomaly_map, 0.02).sum() == 1
  assert not changed.find_mask(anomaly_map, 0.005).any()


def test_stablehlo_holds_it_and_the_other_formats_refuse(trained, tmp_path):
  detector = Detector.load(trained[0])
  detector = detector.with_thresholds(image=0.5, pixel=0.5)
  exported = stablehlo.trace(detector, channel_order='rgb')
  images = random_images(2, 64)[:, :50, :40]
  anomaly_map, found = exported.call(images)
  expected = detector(images)
  np.testing.assert_allclose(anomaly_map, expected.anomaly_map, 0, 1e-5)
  np.testing.assert_allclose(found, expected.score, 0, 1e-5)
  given = {'channel_order': 'rgb', 'category': 'pens'}
  with pytest.raises(UserError, match='needs a reconstructive .*stablehlo'):
    export_torch.write(detector, tmp_path / 'out', **given)
  pytest.importorskip('onnx')
  with pytest.raises(UserError, match="no networks 'bozic'.*stablehlo"):
    export_onnx.write(detector, tmp_path / 'out', **given)
  assert not list(tmp_path.iterdir())


def test_the_report_says_which_width_counts():
  config = config_lib.flatten(small_config(**OVERRIDES).to_dict())
  text = details._networks(config)
  assert text.startswith('bozic, images of 32') and 'width 4' in text
  assert '(reconstructive)' not in text


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (
      {'loss.weights.focal': 1.0},
      "config.loss.weights.focal=1: the networks 'bozic' give no logits",
    ),
    ({'score.map': 'softmax'}, 'take one of segmentation'),
    (
      {'loss.weights.decision': 0.0},
      'config.loss.schedule.*weight of decision, which is 0: take constant',
    ),
    ({'loss.schedule': 'linear'}, 'constant, segmentation_first'),
    ({'optimizer': 'adamw'}, 'take one of adam, muon, sgd'),
    ({'score.image': 'mean'}, 'take one of window, decision'),
    (
      {
        'model.name': 'discriminative',
        'loss.weights.focal': 1.0,
        'loss.weights.segmentation': 0.0,
        'loss.weights.decision': 0.0,
        'loss.schedule': 'constant',
        'score.map': 'softmax',
      },
      "score.image='decision': the networks 'discriminative' give no decision:"
      ' take window',
    ),
  ],
)
def test_what_does_not_fit_is_named(overrides, words):
  given = {**OVERRIDES, **overrides}
  config_lib.check(small_config(**OVERRIDES).to_dict())
  with pytest.raises(UserError, match=words) as error:
    config_lib.check(small_config(**given).to_dict())
  assert '\n' not in str(error.value)


def test_the_step_learns_one_batch(fresh):
  """Both stages: where the anomaly is, and in which images."""
  model, optimizer, state = fresh
  images = jnp.asarray(random_images(8) / 255, jnp.float32)
  noise = np.random.default_rng(0).uniform(size=images.shape)
  mask = np.zeros(images.shape[:3], np.float32)
  for i in range(4):
    mask[i, 4 * i : 4 * i + 12, 18 - 4 * i : 30 - 4 * i] = 1
  example = simulate.Example(
    image=images,
    augmented=jnp.where(mask[..., None] > 0, noise, images),
    mask=jnp.asarray(mask),
  )
  recipe = trainer_lib.make_recipe(small_config(**OVERRIDES).to_dict(), 80)
  update = jax.jit(train_step.make_update(model, optimizer, recipe))
  first = None
  for _ in range(80):
    state, terms = update(state, example)
    first = first or jax.device_get(terms)
  assert terms['decision'] < 0.5 * first['decision']
  assert terms['segmentation'] < first['segmentation'] - 0.02
  apply = jax.jit(functools.partial(model.apply, train=False))
  output = apply(state.variables, example.augmented)
  np.testing.assert_array_equal(output.decision > 0, np.arange(8) < 4)
  maps = np.asarray(score.segmentation_map(output, example.augmented))
  assert metrics.auroc(maps, mask > 0) > 0.9
