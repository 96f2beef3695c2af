"""The PyTorch networks that benchmarks compare with are the same networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_images
from untrained import random_variables

from benchmarks import cost
from draem_jax import score
from draem_jax.networks import models
from draem_jax.simulator.simulate import Example
from draem_jax.torch_weights.convert import torch_arrays
from draem_jax.training import step as train_step
from fidelity import networks as fidelity_networks

torch = pytest.importorskip(
  'torch', reason='PyTorch is not installed: extra `peer`'
)
torch_peer = pytest.importorskip('benchmarks.torch_peer')

WIDTHS = {'reconstructive_width': 4, 'discriminative_width': 2}
MODEL = models.Draem(**WIDTHS)
CPU = torch.device('cpu')
TERMS = ('l2', 'ssim', 'focal')


@pytest.fixture(scope='module')
def variables():
  return jax.device_get(random_variables(WIDTHS, seed=0))


@pytest.fixture(scope='module')
def batch():
  """Augmented images, images and masks, NHWC float64."""
  images = random_images(6, size=64) / 255
  masks = np.random.default_rng(2).uniform(size=(3, 64, 64)) > 0.8
  return images[:3], images[3:], masks.astype(np.float64)


def to_torch(array):
  array = array[..., None] if array.ndim == 3 else array
  return torch.tensor(array.transpose(0, 3, 1, 2))


def to_numpy(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def make_peer(variables):
  """In float64, for batch norm over few values blows rounding up."""
  return torch_peer.Draem(4, 2).load(variables).double().train()


@pytest.fixture(scope='module')
def our_step(variables, batch):
  """Output, losses and gradients in training mode, float64."""
  with jax.enable_x64(True):
    variables, (augmented, image, mask) = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float64), (variables, batch)
    )
    example = Example(image=image, augmented=augmented, mask=mask)
    look = functools.partial(
      train_step.loss_and_gradients, MODEL, recipe=fidelity_networks.RECIPE
    )
    return jax.device_get(jax.jit(look)(variables, example))


@pytest.mark.parametrize(
  'variant', ['contiguous', 'channels_last', 'channels_last+folded']
)
def test_maps_and_scores_are_equal(variant, variables):
  images = random_images(2, size=64)
  output = jax.jit(lambda *given: MODEL.apply(*given, train=False))(
    variables, images.astype(np.float32) / 255
  )
  maps = score.anomaly_map(output.logits)
  scorer = torch_peer.Scorer(
    torch_peer.Draem(4, 2).load(variables),
    torch_peer.Variant.parse(variant),
    CPU,
  )
  reconstruction, found, scores = scorer(images)
  np.testing.assert_allclose(
    reconstruction.transpose(0, 2, 3, 1), output.reconstruction, 0, 1e-4
  )
  np.testing.assert_allclose(found, maps, 0, 1e-4)
  np.testing.assert_allclose(scores, score.image_score(maps), 0, 1e-4)


@pytest.mark.parametrize('release', [False, True])
def test_losses_and_gradients_are_equal(release, variables, batch, our_step):
  model = make_peer(variables)
  augmented, image, mask = map(to_torch, batch)
  reconstruction, logits = model(augmented)
  seen, gradients = our_step
  output = seen.output
  np.testing.assert_allclose(
    to_numpy(reconstruction), output.reconstruction, 0, 1e-9
  )
  np.testing.assert_allclose(to_numpy(logits), output.logits, 0, 1e-9)
  theirs = torch_peer.losses(
    reconstruction, logits, image, mask, release=release
  )
  for name in TERMS:
    np.testing.assert_allclose(
      theirs[name].item(), seen.terms[name], 1e-6, err_msg=name
    )
  sum(theirs.values()).backward()
  # The names are for gradients as well; there are none of the statistics.
  named = {'params': gradients, 'batch_stats': variables['batch_stats']}
  for network in gradients:
    expected = torch_arrays(named, network)
    for name, parameter in getattr(model, network).named_parameters():
      size = np.abs(expected[name]).max()
      if size:  # A bias before a batch norm has none.
        difference = np.abs(parameter.grad.numpy() - expected[name]).max()
        assert difference < 1e-5 * size, name


@pytest.mark.parametrize('variant', ['channels_last', 'release'])
def test_a_step_is_one_of_adam(variant, variables, batch, our_step):
  seen, gradients = our_step
  model = make_peer(variables)
  step = torch_peer.TrainStep(model, torch_peer.Variant.parse(variant), CPU)
  loss = step(*map(to_torch, batch))
  np.testing.assert_allclose(loss.item(), seen.loss, 1e-6)
  params = variables['params']['discriminative']['last_conv']
  # The first step of Adam is the sign of the gradient.
  sign = np.sign(gradients['discriminative']['last_conv']['bias'])
  last = model.discriminative.decoder_segment.fin_out[0]
  np.testing.assert_allclose(
    last.bias.detach(), params['bias'] - 1e-4 * sign, 0, 1e-7
  )


def test_the_cost_is_that_of_the_layers():
  counted = []

  def count(module, inputs, output):
    counted.append(module.weight.numel() * output[0, 0].numel())

  model = torch_peer.Draem(4, 2)
  for module in model.modules():
    if isinstance(module, torch.nn.Conv2d):
      module.register_forward_hook(count)
  model(torch.zeros(2, 3, 64, 64))
  assert sum(counted) == cost.multiply_adds(64, (4, 2))


def test_an_unknown_variant_is_named():
  with pytest.raises(ValueError, match='channels_first'):
    torch_peer.Variant.parse('channels_first+compiled')
