import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from draem_jax import score
from draem_jax.networks import models
from draem_jax.simulator.simulate import Example
from draem_jax.training import step as train_step
from fidelity import networks as fidelity_networks


@pytest.fixture(scope='module')
def golden():
  return fidelity_networks.load_golden('network')


@pytest.fixture(scope='module')
def variables():
  return fidelity_networks.load_variables()


def assert_cases_close(cases, rtol, atol):
  for case in cases:
    np.testing.assert_allclose(
      case.found, case.expected, rtol, atol, err_msg=case.name
    )


def test_evaluation_agrees_with_the_release(golden, variables):
  cases = list(fidelity_networks.evaluation_cases(golden, variables))
  assert {case.found.dtype for case in cases} == {np.dtype(np.float32)}
  assert_cases_close(cases, 0, 5e-5)


@pytest.fixture(scope='module')
def float64_training(golden, variables):
  """Three steps of Adam in float64; what each saw and left behind."""
  return fidelity_networks.train_in_float64(golden, variables)


def test_training_output_agrees_with_the_release(golden, float64_training):
  assert float64_training[0].seen.output.logits.dtype == np.float64
  cases = fidelity_networks.training_output_cases(golden, float64_training)
  assert_cases_close(cases, 0, 1e-8)


def test_gradients_agree_with_the_release(golden, float64_training):
  for case in fidelity_networks.gradient_cases(golden, float64_training):
    # PyTorch's gradient of a bias before a batch norm is rounding noise.
    atol = max(1e-7 * np.abs(case.expected).max(), 1e-12)
    assert_cases_close([case], 0, atol)


def test_running_statistics_agree_with_the_release(golden, float64_training):
  cases = fidelity_networks.statistics_cases(golden, float64_training)
  assert_cases_close(cases, 1e-9, 1e-10)


def test_losses_of_three_steps_agree_with_the_release(golden, float64_training):
  cases = list(fidelity_networks.loss_cases(golden, float64_training))
  assert len(cases) == 3
  assert_cases_close(cases, 1e-6, 0)


def test_parameters_after_three_steps_agree(golden, float64_training):
  cases = fidelity_networks.parameter_cases(golden, float64_training)
  # Adam moves each number by up to 1e-3 a step, however small its gradient.
  assert_cases_close(cases, 0, 2e-7)


def test_upsampling_agrees_with_pytorch():
  golden = fidelity_networks.load_golden('losses')
  assert_cases_close([fidelity_networks.upsample_case(golden)], 0, 2e-6)


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
  golden = fidelity_networks.load_golden('losses')
  assert_cases_close([fidelity_networks.score_case(golden)], 0, 1e-6)


@pytest.mark.parametrize('window', [1, 5, 41])
def test_score_counts_zeros_beyond_the_border(window):
  anomaly_map = np.random.default_rng(0).random((3, 24, 17), np.float32)
  r = window // 2
  padded = np.pad(anomaly_map, ((0, 0), (r, r), (r, r)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (window,) * 2, (1, 2)
  )
  expected = windows.mean(axis=(-2, -1)).max(axis=(1, 2))
  found = score.image_score(anomaly_map, window=window)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_score_refuses_even_windows():
  with pytest.raises(ValueError, match='window is 20; it must be odd'):
    score.image_score(jnp.zeros((1, 32, 32)), window=20)


def test_anomaly_map_is_channel_1_of_the_softmax():
  logits = jax.random.normal(jax.random.key(0), (2, 5, 7, 2)) * 30
  found = score.anomaly_map(logits)
  np.testing.assert_allclose(found, jax.nn.softmax(logits)[..., 1], atol=1e-6)
  assert score.anomaly_map(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def init_shapes(model, image_shape=(1, 64, 64, 3)):
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), image)


def test_parameter_counts_are_those_of_the_release():
  params = init_shapes(models.Draem())['params']
  counts = [
    sum(x.size for x in jax.tree.leaves(params[name]))
    for name in ('reconstructive', 'discriminative')
  ]
  assert counts == [69_048_579, 28_374_146]


def test_initialization_is_that_of_the_release():
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
@pytest.mark.usefixtures('unchecked')
def test_images_of_bad_shape_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    init_shapes(models.Draem(4, 2), shape)


def loss_and_gradients(variables, example, **types):
  return train_step.loss_and_gradients(
    models.Draem(4, 2, **types), variables, example, fidelity_networks.RECIPE
  )


def test_batch_norm_refuses_a_single_value(variables):
  image = jnp.zeros((1, 32, 32, 3))
  example = Example(image=image, augmented=image, mask=image[..., 0])
  with pytest.raises(ValueError, match='more than one 32x32 image'):
    jax.eval_shape(loss_and_gradients, variables, example)


def test_bias_before_batch_norm_has_no_gradient(float64_training):
  gradients = float64_training[0].gradients['discriminative']
  assert not gradients['encoder_block1_conv1']['bias'].any()
  assert gradients['last_conv']['bias'].all()


class Layer(nn.Module):
  """Stands for a network."""

  features: int

  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(self.features)(x)


class DraemOfLayers(models.Draem):
  """The way from one network to the other is what is looked at."""

  def setup(self):
    self.reconstructive, self.discriminative = Layer(3), Layer(2)


@pytest.mark.parametrize('share', [0.0, 0.25])
def test_the_map_passes_a_share_of_its_gradient(share):
  image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3))
  params = DraemOfLayers().init(jax.random.key(1), image, train=False)

  def gradients(share, of):
    model = DraemOfLayers(reconstruction_gradient=share)

    def loss(params):
      output = model.apply(params, image, train=False)
      return jnp.sum(getattr(output, of)[..., -1])

    return jax.grad(loss)(params)['params']

  # What is asked of the reconstruction itself reaches it whole.
  for of, passed in ('logits', share), ('reconstruction', 1.0):
    found, expected = gradients(share, of), gradients(1.0, of)
    assert all(
      jax.tree.leaves(jax.tree.map(np.any, expected['reconstructive']))
    )
    for name, scale in ('reconstructive', passed), ('discriminative', 1.0):
      scaled = jax.tree.map(lambda x, scale=scale: scale * x, expected[name])
      jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
        found[name],
        scaled,
      )


def test_bfloat16_is_close_to_float32(golden, variables):
  image = golden['image']
  exact = fidelity_networks.evaluate(variables, image)
  rounded = fidelity_networks.evaluate(variables, image, dtype=jnp.bfloat16)
  assert rounded.logits.dtype == rounded.reconstruction.dtype == jnp.float32
  difference = score.anomaly_map(rounded.logits) - score.anomaly_map(
    exact.logits
  )
  assert 0 < jnp.abs(difference).mean() < 0.02
  assert jnp.abs(rounded.reconstruction - exact.reconstruction).mean() < 0.02


def test_bfloat16_trains_float32_parameters(golden, variables):
  types = jax.eval_shape(
    lambda *given: jax.tree.leaves(
      loss_and_gradients(*given, dtype=jnp.bfloat16)
    ),
    variables,
    fidelity_networks.golden_example(golden, 0),
  )
  assert {x.dtype for x in types} == {jnp.dtype(jnp.float32)}


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


def test_two_devices_normalize_as_one(layer_and_arguments):
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
  for function in (models.upsample, lambda x: score.image_score(x, window=3)):
    assert_trees_close(jax.jit(function)(x), function(x))
