import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal
from skimage import measure
from skimage.metrics import structural_similarity

from draem_jax import losses
from draem_jax.networks import models
from fidelity import networks as fidelity_networks


@pytest.fixture(scope='module')
def golden():
  return fidelity_networks.load_golden('losses')


def test_ssim_agrees_with_the_release(golden):
  cases = list(fidelity_networks.ssim_cases(golden))
  assert [data_range for data_range, *_ in cases] == [1, 1, 2]
  for _, ssim_map, loss in cases:
    np.testing.assert_allclose(ssim_map.found, ssim_map.expected, 0, 2e-5)
    np.testing.assert_allclose(loss.found, loss.expected, 0, 1e-6)


def test_focal_loss_agrees_with_the_release(golden):
  case = fidelity_networks.focal_case(golden)
  np.testing.assert_allclose(case.found, case.expected, rtol=5e-6)


def test_float64_agrees_to_the_release_rounding(golden):
  with jax.enable_x64(True):
    logits = jnp.asarray(golden['focal/logits'], jnp.float64)
    found = losses.focal_loss(logits, jnp.asarray(golden['focal/mask'][..., 0]))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found.mean(), golden['focal/loss'], rtol=1e-6)
    image, reconstruction = (
      jnp.asarray(golden[f'ssim0/{name}'], jnp.float64)
      for name in ('image', 'reconstruction')
    )
    ssim = losses.ssim(reconstruction, image, data_range=1.0)
    np.testing.assert_allclose(1 - ssim.mean(), golden['ssim0/loss'], rtol=1e-6)


def test_ssim_agrees_with_scikit_image_inside():
  rng = np.random.default_rng(0)
  x, y = rng.random((2, 24, 40, 3))
  _, expected = structural_similarity(
    x,
    y,
    gaussian_weights=True,
    use_sample_covariance=False,
    data_range=1.0,
    channel_axis=-1,
    full=True,
  )
  found = losses.ssim(
    jnp.asarray(x[None]), jnp.asarray(y[None]), data_range=1.0
  )[0]
  inside = slice(5, -5)
  np.testing.assert_allclose(
    found[inside, inside], expected[inside, inside], rtol=0, atol=1e-5
  )


def test_ssim_of_equal_images_is_1():
  image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
  ssim = losses.ssim(image, image, data_range=1.0)
  np.testing.assert_allclose(ssim, 1, atol=1e-5)


@pytest.mark.parametrize('gamma', [0, 1.5, 2, 4])
def test_focal_loss_follows_its_definition(gamma):
  logits = np.random.default_rng(1).normal(0, 3, (2, 6, 5, 2))
  mask = np.random.default_rng(2).integers(0, 2, (2, 6, 5))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  one_hot = np.clip(np.eye(2)[mask], 1e-5, 1 - 1e-5)
  p_true = (one_hot * p).sum(-1) + 1e-5
  missing = np.maximum(1 - p_true, 0)
  expected = (-(missing**gamma) * np.log(p_true)).mean((1, 2))
  found = losses.focal_loss(
    jnp.asarray(logits), jnp.asarray(mask, jnp.float32), gamma=gamma
  )
  np.testing.assert_allclose(found, expected, 1e-4)


@pytest.mark.parametrize('gamma', [0.5, 2, 4])
def test_focal_loss_survives_certain_logits(gamma):
  logits = jnp.full((1, 4, 4, 2), 1e4) * jnp.array([1.0, -1.0])
  for mask in (jnp.zeros((1, 4, 4)), jnp.ones((1, 4, 4))):
    value, gradient = jax.value_and_grad(
      lambda logits, mask: losses.focal_loss(logits, mask, gamma=gamma).sum()
    )(logits, mask)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def output_and_image():
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.uniform(keys[0], (2, 32, 32, 3))
  reconstruction = image + 0.1 * jax.random.normal(keys[1], image.shape)
  logits = jax.random.normal(keys[2], (2, 32, 32, 2))
  return models.Output(reconstruction, logits), image


def training_loss(*arguments, **options):
  weights = {'l2': 1.0, 'ssim': 1.0, 'msgms': 0.0, 'focal': 1.0}
  return losses.training_loss(*arguments, weights=weights, **options)


def test_total_is_the_sum_of_the_means():
  output, image = output_and_image()
  mask = jnp.zeros((2, 32, 32)).at[:, 3:9, 4:20].set(1)
  loss, found = training_loss(output, image, mask, data_range='one')
  l2 = jnp.square(output.reconstruction - image).mean()
  ssim = losses.ssim(output.reconstruction, image, data_range=1.0)
  focal = losses.focal_loss(output.logits, mask)
  np.testing.assert_allclose(
    [found['l2'], found['ssim'], found['focal'], loss],
    [l2, 1 - ssim.mean(), focal.mean(), l2 + 1 - ssim.mean() + focal.mean()],
    rtol=1e-5,
  )


def test_data_range_follows_the_batch_only_when_asked():
  output, image = output_and_image()
  output = output.replace(
    reconstruction=output.reconstruction.at[0, 0, 0, 0].set(-0.6)
  )
  mask = jnp.zeros((2, 32, 32))
  one, batch = (
    training_loss(output, image, mask, data_range=data_range)[1]['ssim']
    for data_range in ('one', 'from_batch')
  )
  for found, data_range in ((one, 1.0), (batch, 2.0)):
    ssim = losses.ssim(output.reconstruction, image, data_range=data_range)
    np.testing.assert_allclose(found, 1 - ssim.mean(), rtol=1e-5)
  assert batch < one


@pytest.mark.usefixtures('unchecked')
def test_an_unknown_data_range_is_refused():
  output, image = output_and_image()
  with pytest.raises(ValueError, match="'one' or 'from_batch'"):
    training_loss(output, image, jnp.zeros((2, 32, 32)), data_range='two')


def test_bfloat16_inputs_give_float32_losses():
  output, image = output_and_image()
  output = jax.tree.map(lambda x: x.astype(jnp.bfloat16), output)
  found = training_loss(
    output, image.astype(jnp.bfloat16), jnp.zeros((2, 32, 32)), data_range='one'
  )
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def test_weights_weigh_and_leave_out():
  output, image = output_and_image()
  mask = jnp.zeros((2, 32, 32)).at[:, 3:9, 4:20].set(1)
  weights = {'l2': 2.0, 'ssim': 0.0, 'msgms': 0.5, 'focal': 0.0}
  loss, terms = losses.training_loss(
    output, image, mask, weights=weights, data_range='from_batch'
  )
  assert set(terms) == {'l2', 'msgms'}
  l2 = jnp.square(output.reconstruction - image).mean()
  distance = losses.msgms_distance(output.reconstruction, image).mean()
  np.testing.assert_allclose(loss, 2 * l2 + 0.5 * distance, rtol=1e-5)
  # What has weight 0 is not in the program, so that it may be undefined.
  focal = {'focal': 1.0, 'l2': 0.0}
  _, terms = losses.training_loss(
    output.replace(reconstruction=None),
    image,
    mask,
    weights=focal,
    data_range='from_batch',
  )
  assert set(terms) == {'focal'}


def msgms_by_scipy(x, y):
  """RIAD's distance, written with whole-array operations of scipy."""
  prewitt = np.array([[1, 0, -1]] * 3) / 3
  x, y = x.mean(-1), y.mean(-1)
  total = np.zeros(x.shape)
  for scale in range(4):
    magnitudes = [
      np.hypot(
        signal.convolve2d(each, prewitt, 'same'),
        signal.convolve2d(each, prewitt.T, 'same'),
      )
      for each in (x, y)
    ]
    a, b = magnitudes
    similarity = (2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)
    # Half-pixel centers: a zoom by whole factors on a grid of cells.
    total += ndimage.zoom(
      similarity, 2**scale, order=1, grid_mode=True, mode='nearest'
    )
    x, y = (measure.block_reduce(each, (2, 2), np.mean) for each in (x, y))
  return 1 - total / 4


def test_msgms_agrees_with_scipy():
  x, y = np.random.default_rng(3).random((2, 32, 40, 3))
  found = losses.msgms_distance(jnp.asarray(x[None]), jnp.asarray(y[None]))[0]
  np.testing.assert_allclose(found, msgms_by_scipy(x, y), rtol=0, atol=1e-5)


def test_msgms_of_equal_and_of_flat_images():
  image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
  np.testing.assert_allclose(losses.msgms_distance(image, image), 0, atol=1e-6)
  flat = jnp.full((1, 16, 16, 3), 0.5)
  gradient = jax.grad(lambda x: losses.msgms_distance(x, flat).sum())(flat)
  assert jnp.isfinite(gradient).all()
