import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from draem_jax import import_torch, losses, models

GOLDEN = pathlib.Path(__file__).parent / 'golden'
NETWORKS = ('reconstructive', 'discriminative')


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'network.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def variables():
  return import_torch.load_torch_checkpoint(
    GOLDEN / 'DRAEM_golden_part_.pckl',
    GOLDEN / 'DRAEM_golden_part__seg.pckl',
    channel_order='rgb',  # The golden networks ran on the arrays as they are.
  )


@functools.partial(jax.jit, static_argnames='dtype')
def evaluate(variables, image, dtype=None):
  return models.Draem(4, 2, dtype=dtype).apply(variables, image, train=False)


def loss_fn(params, batch_stats, augmented, image, mask, dtype=None):
  model = models.Draem(4, 2, dtype=dtype)
  output, updates = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    augmented,
    train=True,
    mutable=['batch_stats'],
  )
  terms = losses.draem_loss(output, image, mask, data_range='from_batch')
  return terms.total, (output, updates['batch_stats'], terms)


@functools.partial(jax.jit, static_argnames='dtype')
def train_step(params, batch_stats, batch, dtype=None):
  differentiate = jax.value_and_grad(loss_fn, has_aux=True)
  (_, aux), gradients = differentiate(params, batch_stats, *batch, dtype)
  return (*aux, gradients)


def batch_of(golden, step):
  return (
    golden['train/augmented'][step],
    golden['train/image'][step],
    golden['train/mask'][step, ..., 0].astype(np.float32),
  )


def test_evaluation_agrees_with_the_release(golden, variables):
  output = evaluate(variables, golden['image'])
  anomaly_map = models.anomaly_map(output.logits)
  score = models.image_score(anomaly_map)
  for found, name in (
    (output.reconstruction, 'reconstruction'),
    (output.logits, 'logits'),
    (anomaly_map[..., None], 'anomaly_map'),
    (score, 'image_score'),
  ):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
      found, golden[f'eval/{name}'], rtol=0, atol=5e-5, err_msg=name
    )


@jax.jit
def update(gradients, state, params):
  updates, state = optax.adam(1e-3).update(gradients, state, params)
  return optax.apply_updates(params, updates), state


@pytest.fixture(scope='module')
def float64_training(golden, variables):
  """Three steps of Adam in float64; what each saw and left behind."""
  steps = []
  with jax.enable_x64(True):
    params, batch_stats = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64),
      (variables['params'], variables['batch_stats']),
    )
    state = optax.adam(1e-3).init(params)
    for step in range(3):
      batch = [x.astype(np.float64) for x in batch_of(golden, step)]
      output, batch_stats, terms, gradients = train_step(
        params, batch_stats, batch
      )
      params, state = update(gradients, state, params)
      steps.append(
        jax.device_get((output, batch_stats, terms, gradients, params))
      )
  return steps


def compare_with_torch(params, batch_stats, golden, prefix, compare):
  """Compares every array that the golden values have under a prefix."""
  variables = {'params': params, 'batch_stats': batch_stats}
  compared = 0
  for network in NETWORKS:
    for name, array in import_torch.torch_arrays(variables, network).items():
      if f'{prefix}/{network}/{name}' in golden:
        compare(array, golden[f'{prefix}/{network}/{name}'], name)
        compared += 1
  assert compared == sum(name.startswith(f'{prefix}/') for name in golden)


def test_training_output_agrees_with_the_release(golden, float64_training):
  output = float64_training[0][0]
  assert output.logits.dtype == np.float64
  for name in ('reconstruction', 'logits'):
    np.testing.assert_allclose(
      getattr(output, name), golden[f'train/{name}0'], rtol=0, atol=1e-8
    )


def test_gradients_agree_with_the_release(golden, float64_training):
  _, batch_stats, _, gradients, _ = float64_training[0]

  def compare(found, expected, name):
    # PyTorch's gradient of a bias before a batch norm is rounding noise.
    atol = max(1e-7 * np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(found, expected, 0, atol, err_msg=name)

  compare_with_torch(gradients, batch_stats, golden, 'grad0', compare)


def test_running_statistics_agree_with_the_release(golden, float64_training):
  _, batch_stats, _, gradients, _ = float64_training[0]

  def compare(found, expected, name):
    np.testing.assert_allclose(found, expected, 1e-9, 1e-10, err_msg=name)

  compare_with_torch(gradients, batch_stats, golden, 'stats1', compare)


def test_losses_of_three_steps_agree_with_the_release(golden, float64_training):
  for step, (_, _, terms, _, _) in enumerate(float64_training):
    found = terms.l2, terms.ssim, terms.focal, terms.total
    expected = golden[f'train/losses{step}']
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_parameters_after_three_steps_agree(golden, float64_training):
  _, batch_stats, _, _, params = float64_training[-1]

  def compare(found, expected, name):
    # Adam moves each number by up to 1e-3 a step, however small its gradient.
    np.testing.assert_allclose(found, expected, 0, 2e-7, err_msg=name)

  compare_with_torch(params, batch_stats, golden, 'params3', compare)


def test_upsampling_agrees_with_pytorch():
  with np.load(GOLDEN / 'losses.npz') as arrays:
    found = models.upsample(arrays['upsample/input'])
    np.testing.assert_allclose(found, arrays['upsample/output'], 0, 2e-6)


def test_upsampling_keeps_corners_and_is_linear_between():
  ramp = jnp.arange(5.0)[None, :, None, None] + jnp.arange(3.0)[:, None] / 4
  y = models.upsample(ramp)[0, :, :, 0]
  expected = np.linspace(0, 4, 10)[:, None] + np.linspace(0, 0.5, 6)
  np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_upsampling_gradient_is_its_transpose(size):
  x, y = (
    jax.random.normal(key, (2, n, 2 * n, 3))
    for key, n in zip(
      jax.random.split(jax.random.key(0)), (size, 2 * size), strict=False
    )
  )
  _, transpose = jax.vjp(models.upsample, x)
  np.testing.assert_allclose(
    jnp.vdot(models.upsample(x), y), jnp.vdot(x, transpose(y)[0]), rtol=1e-4
  )


def test_score_agrees_with_the_release():
  with np.load(GOLDEN / 'losses.npz') as arrays:
    found = models.image_score(arrays['score/map'][..., 0])
    np.testing.assert_allclose(found, arrays['score/score'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('window', [1, 5, 41])
def test_score_counts_zeros_beyond_the_border(window):
  anomaly_map = np.random.default_rng(0).random((3, 24, 17), np.float32)
  r = window // 2
  padded = np.pad(anomaly_map, ((0, 0), (r, r), (r, r)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (window,) * 2, (1, 2)
  )
  expected = windows.mean(axis=(-2, -1)).max(axis=(1, 2))
  found = models.image_score(anomaly_map, window=window)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_score_refuses_even_windows():
  with pytest.raises(ValueError, match='window is 20; it must be odd'):
    models.image_score(jnp.zeros((1, 32, 32)), window=20)


def test_anomaly_map_is_channel_1_of_the_softmax():
  logits = jax.random.normal(jax.random.key(0), (2, 5, 7, 2)) * 30
  found = models.anomaly_map(logits)
  np.testing.assert_allclose(found, jax.nn.softmax(logits)[..., 1], atol=1e-6)
  assert models.anomaly_map(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def init_shapes(model, image_shape=(1, 64, 64, 3)):
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), image)


def test_parameter_counts_are_those_of_the_release():
  params = init_shapes(models.Draem())['params']
  counts = [
    sum(x.size for x in jax.tree.leaves(params[name])) for name in NETWORKS
  ]
  assert counts == [69_048_579, 28_374_146]


def test_initialisation_is_that_of_the_release():
  layer = models.ConvNormRelu(128)
  variables = layer.init(
    jax.random.key(0), jnp.zeros((1, 2, 2, 128)), train=False
  )
  params, stats = variables['params'], variables['batch_stats']
  kernel, bias = params['kernel'], params['bias'] * np.sqrt(9 * 128)
  assert abs(kernel.mean()) < 1e-3
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.02)
  assert -1 <= bias.min() < -0.9
  assert 0.9 < bias.max() <= 1
  np.testing.assert_allclose(params['norm_scale'].mean(), 1, atol=0.01)
  np.testing.assert_allclose(params['norm_scale'].std(), 0.02, rtol=0.25)
  assert not params['norm_bias'].any()
  assert not stats['mean'].any()
  assert (stats['var'] == 1).all()


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((1, 48, 64, 3), '48x64; height and width must be multiples of 32'),
    ((1, 64, 80, 3), '64x80; height and width must be multiples of 32'),
    ((1, 64, 64, 1), r'shape \[b h w 3\], not \[1, 64, 64, 1\]'),
    ((64, 64, 3), r'shape \[b h w 3\], not \[64, 64, 3\]'),
  ],
)
def test_images_of_bad_shape_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    init_shapes(models.Draem(4, 2), shape)


def test_batch_norm_refuses_a_single_value(variables):
  with pytest.raises(ValueError, match='more than one 32x32 image'):
    jax.eval_shape(
      train_step,
      variables['params'],
      variables['batch_stats'],
      [jnp.zeros((1, 32, 32, 3))] * 2 + [jnp.zeros((1, 32, 32))],
    )


def test_bias_before_batch_norm_has_no_gradient(float64_training):
  gradients = float64_training[0][3]['discriminative']
  assert not gradients['encoder_block1_conv1']['bias'].any()
  assert gradients['last_conv']['bias'].all()


def test_bfloat16_is_close_to_float32(golden, variables):
  image = golden['image']
  exact = evaluate(variables, image)
  rounded = evaluate(variables, image, dtype=jnp.bfloat16)
  assert rounded.logits.dtype == rounded.reconstruction.dtype == jnp.float32
  difference = models.anomaly_map(rounded.logits) - models.anomaly_map(
    exact.logits
  )
  assert 0 < jnp.abs(difference).mean() < 0.02
  assert jnp.abs(rounded.reconstruction - exact.reconstruction).mean() < 0.02


def test_bfloat16_trains_float32_parameters(golden, variables):
  types = jax.eval_shape(
    functools.partial(train_step, dtype=jnp.bfloat16),
    variables['params'],
    variables['batch_stats'],
    batch_of(golden, 0),
  )
  assert {x.dtype for x in jax.tree.leaves(types)} == {jnp.dtype(jnp.float32)}


@pytest.fixture(scope='module')
def layer_and_arguments():
  """Gradients and statistics of a layer, as a function, and what it takes."""
  layer = models.ConvNormRelu(5)
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (4, 8, 6, 3))
  weight = jax.random.normal(keys[1], (4, 8, 6, 5))
  variables = layer.init(keys[2], x, train=False)

  def value_and_gradients(variables, x, weight):
    def loss(params):
      y, updates = layer.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
      )
      return (y * weight).sum(), updates

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  return value_and_gradients, (variables, x, weight)


def assert_trees_close(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), found, expected
  )


def test_two_devices_normalise_as_one(layer_and_arguments):
  function, (variables, x, weight) = layer_and_arguments
  expected = jax.jit(function)(variables, x, weight)
  mesh = jax.make_mesh((2,), ('data',))
  x, weight = jax.device_put(
    (x, weight), NamedSharding(mesh, PartitionSpec('data'))
  )
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  found = jax.jit(function)(variables, x, weight)
  assert len(found[0][0].sharding.device_set) == 2
  assert_trees_close(found, expected)


def test_jit_and_eager_agree(layer_and_arguments):
  function, arguments = layer_and_arguments
  assert_trees_close(jax.jit(function)(*arguments), function(*arguments))
  x = arguments[1]
  for function in (models.upsample, lambda x: models.image_score(x, window=3)):
    assert_trees_close(jax.jit(function)(x), function(x))
