import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from small import random_images, small_config

from draem_jax import config as config_lib
from draem_jax import devices, experiment, losses
from draem_jax.configs import riad as riad_config
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx, program, stablehlo
from draem_jax.export import torch as torch_export
from draem_jax.networks import models, riad
from draem_jax.simulator import simulate
from draem_jax.training import optimizer, sampling
from draem_jax.training import step as train_step
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import checkpoint

SIZE = (32, 64)
WIDTH = 2
MODEL = models.Riad(reconstructive_width=WIDTH)
KEY = jax.random.key(5)


def recipe_config(**overrides):
  config = small_config()
  riad_config.recipe(config)
  config.model.reconstructive_width = WIDTH
  config.learning_rate = 1e-3
  config.update_from_flattened_dict(overrides)
  return config.to_dict()


@pytest.fixture(scope='module')
def variables():
  """Weights that keep activations alive; statistics other than 0 and 1."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      values = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
    elif name in ('norm_scale', 'var'):
      values = rng.uniform(0.5, 1.5, shape)
    else:
      values = rng.normal(0, 0.2, shape)
    return values.astype(np.float32)

  shapes = models.abstract_variables(MODEL)
  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).random((3, *SIZE, 3), np.float32)


# Which pixels are hidden.


@pytest.mark.parametrize('cell', riad.CELLS)
def test_the_sets_are_of_whole_cells_and_about_as_large(cell):
  split = np.asarray(riad.split_cells(KEY, (64, 96), cell=cell))
  cells = split.reshape(64 // cell, cell, 96 // cell, cell)
  assert (cells == cells[:, :1, :, :1]).all()
  counts = np.bincount(cells[:, 0, :, 0].ravel())
  assert len(counts) == 3 and counts.max() - counts.min() <= 1


def test_every_cell_is_in_every_set_as_often_as_chance_has_it():
  keys = jax.random.split(KEY, 600)
  split = functools.partial(riad.split_cells, size=SIZE, cell=16)
  first_pixels = np.asarray(jax.vmap(split)(keys))[:, ::16, ::16]
  for part, share in enumerate((3 / 8, 3 / 8, 2 / 8)):
    counts = (first_pixels == part).sum(axis=0)
    assert counts.shape == (2, 4)
    # 5 standard deviations.
    limit = 5 * (600 * share * (1 - share)) ** 0.5
    assert np.abs(counts - 600 * share).max() < limit


def cell_of(split):
  """The largest cells that the sets consist of."""
  for cell in reversed(riad.CELLS):
    cells = split.reshape(split.shape[0] // cell, cell, -1, cell)
    if (cells == cells[:, :1, :, :1]).all():
      return cell
  return None


def test_every_size_of_cells_is_as_likely():
  sample = lambda key: riad.sample_split(key, SIZE)
  splits = jax.lax.map(sample, jax.random.split(KEY, 400))
  sizes = [cell_of(split) for split in np.asarray(splits)]
  counts = [sizes.count(cell) for cell in riad.CELLS]
  assert sum(counts) == 400
  assert np.abs(np.array(counts) - 100).max() < 5 * (400 * 3 / 16) ** 0.5


def test_every_pixel_is_hidden_once_and_taken_from_there(images):
  split = np.asarray(riad.split_cells(KEY, SIZE, cell=4))
  seen = []

  def network(images):
    seen.extend(np.asarray(images))
    return jnp.stack([jnp.full(images[0].shape, part / 4) for part in range(3)])

  restored = riad.restore(network, jnp.asarray(images), split)
  hidden = [(image == 0).all(axis=-1) for image in seen]
  np.testing.assert_array_equal(sum(each.astype(int) for each in hidden), 1)
  for part, image in enumerate(seen):
    np.testing.assert_array_equal(hidden[part], [split == part] * 3)
    shown = ~hidden[part]
    np.testing.assert_allclose(image[shown], (2 * images - 1)[shown], 1e-6)
    np.testing.assert_allclose(restored[hidden[part]], (part + 4) / 8)


def test_images_are_scored_by_the_same_masks_as_ever():
  splits = riad.scoring_splits(SIZE)
  assert [cell_of(split) for split in splits] == list(riad.CELLS)
  assert zlib.crc32(splits.astype(np.uint8).tobytes()) == 1359010711


def test_every_step_has_masks_of_its_own():
  keys = {
    tuple(jax.random.key_data(sampling.masks_key(seed, step)).tolist())
    for seed in (0, 1)
    for step in range(4)
  }
  assert len(keys) == 8
  # Nor are they the keys of the examples.
  sampled = sampling.sample_batch(
    0,
    0,
    batch_size=4,
    num_images=3,
    num_textures=1,
    sampling='epochs',
  )
  assert keys.isdisjoint(map(tuple, jax.random.key_data(sampled.keys).tolist()))


# The network, layer by layer.


def make_peer(variables):
  """The layers in PyTorch, float64, by the names that they have here."""
  torch = pytest.importorskip('torch')
  nn, w, inputs = torch.nn, WIDTH, 3
  layers = {}
  for i, features in enumerate((w, 2 * w, 4 * w, 8 * w, 8 * w), start=1):
    shape = (3, 1, 1) if i == 1 else (4, 2, 1)
    layers[f'encoder_block{i}_conv1'] = nn.Conv2d(inputs, features, *shape)
    layers[f'encoder_block{i}_conv2'] = nn.Conv2d(features, features, 3, 1, 1)
    inputs = features
  for i, features in enumerate((8 * w, 4 * w, 2 * w, w), start=1):
    layers[f'decoder_block{i}_up'] = nn.ConvTranspose2d(
      inputs, features, 4, 2, 1
    )
    layers[f'decoder_block{i}_conv1'] = nn.Conv2d(
      2 * features, features, 3, 1, 1
    )
    layers[f'decoder_block{i}_conv2'] = nn.Conv2d(features, features, 3, 1, 1)
    inputs = features
  layers['last_conv'] = nn.Conv2d(inputs, 3, 3, 1, 1)
  for name, layer in layers.items():
    if name[-5:-1] == 'conv':
      norm = nn.BatchNorm2d(layer.out_channels)
      layers[name] = nn.Sequential(layer, norm, nn.ReLU())
  model = nn.ModuleDict(layers).double()
  for name, kinds in torch_arrays(variables['params']).items():
    for kind, array in kinds.items():
      parameter_of(model[name], kind).data = torch.tensor(np.float64(array))
  for name, kinds in variables['batch_stats']['inpainting'].items():
    model[name][1].running_mean = torch.tensor(np.float64(kinds['mean']))
    model[name][1].running_var = torch.tensor(np.float64(kinds['var']))
  return model


def torch_arrays(params):
  """Parameters, or gradients of them, in the order of PyTorch's axes."""
  order = lambda name: (2, 3, 0, 1) if name.endswith('up') else (3, 2, 0, 1)
  return {
    name: {
      kind: array.transpose(order(name)) if kind == 'kernel' else array
      for kind, array in kinds.items()
    }
    for name, kinds in params['inpainting'].items()
  }


def parameter_of(layer, kind):
  conv, norm = (layer, None) if hasattr(layer, 'weight') else layer[:2]
  return {
    'kernel': lambda: conv.weight,
    'bias': lambda: conv.bias,
    'norm_scale': lambda: norm.weight,
    'norm_bias': lambda: norm.bias,
  }[kind]()


def run_peer(model, x):
  """The result, and that of each layer by its name."""
  torch = pytest.importorskip('torch')
  seen, skips = {}, []

  def run(name, x):
    seen[name] = model[name](x)
    return seen[name]

  for i in range(1, 6):
    for j in (1, 2):
      x = run(f'encoder_block{i}_conv{j}', x)
    skips.append(x)
  skips.pop()
  for i in range(1, 5):
    x = torch.cat([run(f'decoder_block{i}_up', x), skips.pop()], dim=1)
    for j in (1, 2):
      x = run(f'decoder_block{i}_conv{j}', x)
  return torch.tanh(run('last_conv', x)), seen


def to_torch(images):
  torch = pytest.importorskip('torch')
  return torch.tensor(np.float64(images).transpose(0, 3, 1, 2))


def to_numpy(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def as_float64(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


@pytest.mark.parametrize('train', [False, True])
def test_each_layer_is_that_of_pytorch(train, variables, images):
  peer = make_peer(variables).train(train)
  network = riad.InpaintingSubNetwork(WIDTH)
  with jax.enable_x64(True):
    apply = functools.partial(
      network.apply,
      train=train,
      capture_intermediates=True,
      mutable=['intermediates', 'batch_stats'],
    )
    found, state = jax.jit(apply)(
      {
        kind: as_float64(tree['inpainting']) for kind, tree in variables.items()
      },
      as_float64(images),
    )
  expected, seen = run_peer(peer, to_torch(images))
  layers = state['intermediates']
  assert set(seen) == set(layers) - {'__call__'}
  for name, activations in seen.items():
    np.testing.assert_allclose(
      layers[name]['__call__'][0], to_numpy(activations), 0, 1e-9, err_msg=name
    )
  np.testing.assert_allclose(found, to_numpy(expected), 0, 1e-9)


def test_a_training_step_is_that_of_pytorch(variables, images, monkeypatch):
  """Three passes, what they restore, statistics and gradients, in float64."""
  split = np.asarray(riad.split_cells(KEY, SIZE, cell=8))
  monkeypatch.setattr(riad, 'sample_split', lambda key, size: split)
  with jax.enable_x64(True):
    image = as_float64(images)
    example = simulate.Example(image, image, image[..., 0])
    recipe = train_step.Recipe(weights={'l2': 1.0}, data_range='one')
    look = functools.partial(
      train_step.loss_and_gradients, MODEL, recipe=recipe, key=KEY
    )
    seen, gradients = jax.device_get(
      jax.jit(look)(as_float64(variables), example)
    )
  assert seen.output.restorations is None
  peer, image = make_peer(variables).train(), to_torch(images)
  restored = 0
  for part in range(3):
    hidden = to_torch(np.tile((split == part)[None, :, :, None], (3, 1, 1, 3)))
    output, _ = run_peer(peer, (2 * image - 1) * (1 - hidden))
    restored = restored + hidden * (output + 1) / 2
  ((restored - image) ** 2).mean().backward()
  np.testing.assert_allclose(
    seen.output.reconstruction, to_numpy(restored), 0, 1e-9
  )
  for name, kinds in seen.batch_stats['inpainting'].items():
    norm = peer[name][1]
    np.testing.assert_allclose(kinds['mean'], norm.running_mean, 1e-8, 1e-9)
    np.testing.assert_allclose(kinds['var'], norm.running_var, 1e-8, 1e-9)
  for name, kinds in torch_arrays(gradients).items():
    for kind, array in kinds.items():
      found = parameter_of(peer[name], kind).grad.numpy()
      if kind == 'bias' and 'norm_scale' in kinds:
        # Before a batch norm it cancels: here 0, there rounding.
        assert not array.any() and np.abs(found).max() < 1e-12
        continue
      size = np.abs(array).max()
      assert size > 0
      assert np.abs(found - array).max() < 1e-7 * size, (name, kind)


# What RIAD rests on.


def test_what_is_hidden_decides_nothing_in_training(
  variables, images, monkeypatch
):
  split = np.asarray(riad.split_cells(KEY, SIZE, cell=4))
  monkeypatch.setattr(riad, 'sample_split', lambda key, size: split)

  def restore(variables, image):
    output, _ = MODEL.apply(
      variables,
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'masks': KEY},
    )
    return output.reconstruction

  restore = functools.partial(jax.jit(restore), variables)
  expected = restore(images)
  for part in range(3):
    hidden = split == part
    found = restore(np.where(hidden[..., None], images[:, ::-1], images))
    difference = np.abs(found - expected)
    # Running means, of all passes, decide how batch norm rounds.
    assert difference[:, hidden].max() < 1e-4
    assert difference[:, ~hidden].mean() > 1e-2


@pytest.fixture(scope='module')
def look():
  """The networks in evaluation, compiled."""
  return jax.jit(functools.partial(MODEL.apply, train=False))


def test_what_is_hidden_decides_nothing_in_scoring(variables, images, look):
  expected = look(variables, images)
  assert expected.restorations.shape == (4, 3, *SIZE, 3)
  assert 0 <= expected.restorations.min() <= expected.restorations.max() <= 1
  np.testing.assert_allclose(
    expected.reconstruction, expected.restorations.mean(axis=0), 1e-6
  )
  for number, split in enumerate(riad.scoring_splits(SIZE)):
    hidden = split == number % 3
    found = look(
      variables, np.where(hidden[..., None], images[:, ::-1], images)
    ).restorations[number]
    before = expected.restorations[number]
    np.testing.assert_array_equal(found[:, hidden], before[:, hidden])
    assert (found[:, ~hidden] != before[:, ~hidden]).mean() > 0.9


# Scoring.


def make_detector(variables, model=MODEL, **options):
  return Detector(
    model,
    variables,
    **{
      'image_size': 32,
      'score_window': 5,
      'score_map': 'riad',
      'batch_size': 2,
      **options,
    },
  )


@pytest.fixture(scope='module')
def detector(variables):
  return make_detector(variables)


def test_the_map_is_the_smoothed_distance_and_its_maximum_the_score(
  variables, look, detector
):
  images = random_images(2)
  scored = detector.score_all(images)
  small = np.float32(images / 255)
  output = look(variables, small)
  distances = [
    np.asarray(losses.msgms_distance(restoration, jnp.asarray(small)))
    for restoration in output.restorations
  ]
  expected = [
    ndimage.uniform_filter(each, 5, mode='constant')
    for each in np.mean(distances, axis=0)
  ]
  # As much as folding batch norm rounds.
  np.testing.assert_allclose(scored.anomaly_map, expected, 0, 1e-4)
  np.testing.assert_array_equal(scored.score, scored.anomaly_map.max((1, 2)))
  np.testing.assert_allclose(
    scored.reconstruction, output.reconstruction, 0, 1e-4
  )
  assert scored.score.std() > 1e-4


def test_a_score_does_not_depend_on_the_images_beside_it(detector):
  images = random_images(3)
  scored = detector.score_all(images)
  order = np.array([2, 0, 1])
  again = detector.score_all(images[order])
  np.testing.assert_array_equal(again.score, scored.score[order])
  np.testing.assert_array_equal(again.anomaly_map, scored.anomaly_map[order])
  assert len(np.unique(scored.score)) == 3


def test_the_stablehlo_program_scores_as_the_detector(detector):
  exported = stablehlo.trace(detector, channel_order='bgr')
  difference = program.largest_difference(
    detector, exported.call, channel_order='bgr'
  )
  assert difference < 1e-5


def test_formats_without_riad_name_one_that_has_it(detector, tmp_path):
  for write in (torch_export.write, onnx.write):
    if write is onnx.write:
      pytest.importorskip('onnx')
    with pytest.raises(UserError, match='--format=stablehlo') as error:
      write(detector, tmp_path, channel_order='rgb', category='pens')
    assert '\n' not in str(error.value)


# Training.


def stripes(count):
  """Stripes of some place and color, which their neighbors tell of."""
  rng = np.random.default_rng(3)
  phase = rng.integers(0, 16, (count, 1))
  line = (np.sin(2 * np.pi * (np.arange(32) + phase) / 16) + 1) / 2
  color = rng.uniform(0.4, 1, (count, 1, 1, 3))
  return np.uint8(255 * color * line[:, None, :, None]).repeat(32, axis=1)


def make_trainer(num_devices=1, **overrides):
  config = recipe_config(
    **{'model.reconstructive_width': 4, 'learning_rate': 5e-3} | overrides
  )
  config_lib.check(config)
  mesh = devices.make_mesh(config['batch_size'], jax.devices()[:num_devices])
  images, textures = jax.device_put(
    (stripes(12), np.zeros((1, 32, 32, 3), np.uint8)),
    devices.replicated(mesh),
  )
  return trainer_lib.Trainer(
    config, images=images, textures=textures, mesh=mesh
  )


@pytest.fixture(scope='module')
def run():
  """A trainer, its states by the steps that are done, and the losses."""
  trainer = make_trainer()
  state, states, lines = trainer.init_state(), {}, []
  for step in range(150):
    state, metrics = trainer.step(state, step)
    lines.append(metrics)
    if step + 1 in (2, 4, 150):
      states[step + 1] = jax.device_get(state)
  return trainer, states, jax.device_get(lines)


def test_the_losses_are_those_of_the_recipe(run):
  for line in run[2][:5]:
    assert set(line) == {'loss', 'l2', 'ssim', 'msgms'}
    total = line['l2'] + line['ssim'] + line['msgms']
    np.testing.assert_allclose(line['loss'], total, 1e-6)


def test_two_devices_give_the_losses_of_one(run):
  trainer = make_trainer(num_devices=2)
  state = trainer.init_state()
  for step, rtol in enumerate((1e-5, 1e-2)):
    state, metrics = trainer.step(state, step)
    for name, value in metrics.items():
      np.testing.assert_allclose(value, run[2][step][name], rtol, err_msg=name)


def test_it_learns_stripes_and_finds_what_is_none(run):
  trainer, states, lines = run
  first, last = (
    np.mean([line['loss'] for line in part])
    for part in (lines[:5], lines[-20:])
  )
  assert last < 0.5 * first
  good = stripes(8)
  broken = good.copy()
  broken[:, 10:22, 8:24] = good.transpose(0, 2, 1, 3)[:, 10:22, 8:24]
  detector = make_detector(
    states[150].variables, model=trainer.model, batch_size=8
  )
  good, broken = (detector.score_all(each) for each in (good, broken))
  assert broken.score.min() > good.score.max()
  inside = np.zeros((32, 32), bool)
  inside[10:22, 8:24] = True
  maps = broken.anomaly_map
  assert maps[:, inside].mean() > 2 * maps[:, ~inside].mean()


def test_a_run_that_goes_on_is_one_that_never_stopped(run, tmp_path):
  trainer, states, lines = run
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=1)
  checkpointer.save(2, states[2], states[2].evaluated)
  checkpointer.wait()
  shapes = train_step.abstract(trainer.init_state())
  first, state = checkpointer.restore_latest(shapes)
  checkpointer.close()
  assert first == 2
  for step in (2, 3):
    state, metrics = trainer.step(state, step)
    assert jax.device_get(metrics) == lines[step]
  for found, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(states[4]), strict=True
  ):
    np.testing.assert_array_equal(found, expected)


# What a user sets.


@pytest.mark.parametrize('arguments', ['bottle', 'bottle,small', 'all', ''])
def test_the_recipes_pass(arguments):
  from configs import riad as recipe

  config = recipe.get_config(arguments).to_dict()
  config_lib.check(config)
  assert config['category'] == (arguments.partition(',')[0] or 'bottle')
  assert models.make(config).samples_masks
  schedule = optimizer.make_schedule(config, 300)
  rates = np.array([schedule(step) for step in (0, 249, 251, 299)])
  rate = 1e-3 if 'small' in arguments else 1e-4
  np.testing.assert_allclose(rates / rate, [1, 1, 0.1, 0.1], 1e-5)


def test_an_unknown_setting_names_those_there_are():
  with pytest.raises(ValueError, match='full, small'):
    riad_config.get_config('bottle,tiny')


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'loss.weights.focal': 1.0}, "'riad' give no logits: take 0"),
    ({'score.map': 'softmax'}, 'take one of ssim, msgms, riad'),
    (
      {'model.name': 'reconstructive'},
      "score.map='riad': .* no restorations: take one of ssim, msgms",
    ),
  ],
)
def test_parts_that_do_not_fit_are_named(overrides, words):
  with pytest.raises(UserError, match=words):
    config_lib.check(recipe_config(**overrides))


def test_without_anomalies_no_texture_is_read(tmp_path):
  good = tmp_path / 'data' / 'pens' / 'train' / 'good'
  good.mkdir(parents=True)
  for index, image in enumerate(random_images(4)):
    Image.fromarray(image).save(good / f'{index}.png')
  paths = {
    'data.dir': str(tmp_path / 'data'),
    'data.tfds_dir': str(tmp_path / 'tfds'),
    'data.textures': str(tmp_path / 'nowhere'),
  }
  category, textures = experiment._load(recipe_config(**paths), tmp_path)
  assert len(category.train_images) == 4 and textures.shape == (1, 32, 32, 3)
  paths['simulator.anomaly_probability'] = 0.5
  with pytest.raises(UserError, match='nowhere'):
    experiment._load(recipe_config(**paths), tmp_path)


def test_without_anomalies_the_images_are_those_with_them():
  images = jnp.asarray(random_images(3))
  options = make_trainer(**{'simulator.rotation_probability': 1.0}).options
  keys = jax.random.split(KEY, 3)
  found = simulate.simulate_batch(keys, images, images, options)
  rotation_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
  expected = jax.lax.map(
    lambda each: simulate.rotate_image(*each, options),
    (rotation_keys, images.astype(jnp.float32) / 255),
  )
  np.testing.assert_array_equal(found.image, expected)
  np.testing.assert_array_equal(found.augmented, expected)
  assert not found.mask.any()
