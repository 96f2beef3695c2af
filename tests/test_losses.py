import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from benchmarks import fidelity_networks
from draem_jax import losses, models


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
    found = losses.focal_loss(logits, golden['focal/mask'][..., 0])
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
  found = losses.ssim(x[None], y[None], data_range=1.0)[0]
  inside = slice(5, -5)
  np.testing.assert_allclose(
    found[inside, inside], expected[inside, inside], rtol=0, atol=1e-5
  )


def test_ssim_of_equal_images_is_1():
  image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
  ssim = losses.ssim(image, image, data_range=1.0)
  np.testing.assert_allclose(ssim, 1, atol=1e-5)


def test_focal_loss_follows_its_definition():
  logits = np.random.default_rng(1).normal(0, 3, (2, 6, 5, 2))
  mask = np.random.default_rng(2).integers(0, 2, (2, 6, 5))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  one_hot = np.clip(np.eye(2)[mask], 1e-5, 1 - 1e-5)
  p_true = (one_hot * p).sum(-1) + 1e-5
  expected = (-((1 - p_true) ** 2) * np.log(p_true)).mean((1, 2))
  np.testing.assert_allclose(losses.focal_loss(logits, mask), expected, 1e-4)


def test_focal_loss_survives_certain_logits():
  logits = jnp.full((1, 4, 4, 2), 1e4) * jnp.array([1.0, -1.0])
  for mask in (jnp.zeros((1, 4, 4)), jnp.ones((1, 4, 4))):
    value, gradient = jax.value_and_grad(
      lambda logits, mask: losses.focal_loss(logits, mask).sum()
    )(logits, mask)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def output_and_image():
  keys = jax.random.split(jax.random.key(0), 3)
  image = jax.random.uniform(keys[0], (2, 32, 32, 3))
  reconstruction = image + 0.1 * jax.random.normal(keys[1], image.shape)
  logits = jax.random.normal(keys[2], (2, 32, 32, 2))
  return models.DraemOutput(reconstruction, logits), image


def test_total_is_the_sum_of_the_means():
  output, image = output_and_image()
  mask = jnp.zeros((2, 32, 32)).at[:, 3:9, 4:20].set(1)
  found = losses.draem_loss(output, image, mask, data_range='one')
  l2 = jnp.square(output.reconstruction - image).mean()
  ssim = losses.ssim(output.reconstruction, image, data_range=1.0)
  focal = losses.focal_loss(output.logits, mask)
  np.testing.assert_allclose(
    [found.l2, found.ssim, found.focal, found.total],
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
    losses.draem_loss(output, image, mask, data_range=data_range).ssim
    for data_range in ('one', 'from_batch')
  )
  for found, data_range in ((one, 1.0), (batch, 2.0)):
    ssim = losses.ssim(output.reconstruction, image, data_range=data_range)
    np.testing.assert_allclose(found, 1 - ssim.mean(), rtol=1e-5)
  assert batch < one
  with pytest.raises(ValueError, match="'one' or 'from_batch'"):
    losses.draem_loss(output, image, mask, data_range='two')


def test_bfloat16_inputs_give_float32_losses():
  output, image = output_and_image()
  output = jax.tree.map(lambda x: x.astype(jnp.bfloat16), output)
  found = losses.draem_loss(
    output, image.astype(jnp.bfloat16), jnp.zeros((2, 32, 32)), data_range='one'
  )
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
