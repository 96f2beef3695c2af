"""The two networks of DRÆM, together and alone, and those beside them.

Images are `[b h w 3]` in [0, 1]; height and width are multiples of 32. A
network's variables are `{'params': ..., 'batch_stats': ...}`; in training call
`apply` with `mutable=['batch_stats']` to receive the new running statistics.
To predict, `apply` takes those of `folding.fold` as well.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, SupportsInt

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from draem_jax.networks import bozic, riad
from draem_jax.networks.blocks import Conv, ConvNormRelu, computation_dtype
from draem_jax.networks.scaling import max_pool, upsample

_STRIDE = 32  # Five poolings in the discriminative encoder.


@flax.struct.dataclass
class Output:
  """What networks say about a batch of images; None is what they do not give.

  Attributes:
    reconstruction: the image without its anomalies, about in [0, 1].
    logits: normal (channel 0) against anomalous (channel 1), for each pixel.
    segmentation: logits of being anomalous about every eighth pixel.
    decision: the logit of there being an anomaly in the image.
    restorations: several reconstructions of the image, each by other means.
  """

  reconstruction: Float[Array | np.ndarray, 'b h w 3'] | None
  logits: Float[Array | np.ndarray, 'b h w 2'] | None
  segmentation: Float[Array | np.ndarray, 'b rows columns'] | None = None
  decision: Float[Array | np.ndarray, 'b'] | None = None
  restorations: Float[Array | np.ndarray, 'k b h w 3'] | None = None


class ReconstructiveSubNetwork(nn.Module):
  """Removes anomalies from an image (section 3.1; layers as in the release)."""

  width: int = 128
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w 3'], *, train: bool
  ) -> Float[Array, 'b h w 3']:
    """Returns the reconstruction, float32 or float64."""
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    w = self.width
    x = image.astype(computation_dtype(image, self))
    for i, features in enumerate((w, 2 * w, 4 * w, 8 * w, 8 * w), start=1):
      x = max_pool(x, in_pairs=train and i == 2) if i > 1 else x
      types['in_pairs'] = train and i == 1
      for j in (1, 2):
        name = f'encoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    stages = (8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)
    for i, (a, b) in enumerate(stages, start=1):
      types['in_pairs'] = train and i == len(stages)
      x = upsample(x)
      for j, features in enumerate((a, a, b), start=1):
        name = f'decoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    return Conv(3, name='last_conv', **types)(x)


class DiscriminativeSubNetwork(nn.Module):
  """Segments anomalies (section 3.2; layers as in the release)."""

  width: int = 64
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b h w 2']:
    """Returns the logits, float32 or float64.

    Args:
      images: the reconstruction and the image, their channels joined in this
        order, or the image alone.
      train: whether to normalize by the batch's own statistics.
    """
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    w = self.width
    x = images.astype(computation_dtype(images, self))
    skips = []
    encoder = (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
    for i, features in enumerate(encoder, start=1):
      x = max_pool(x, in_pairs=train and i == 2) if i > 1 else x
      types['in_pairs'] = train and i == 1
      for j in (1, 2):
        name = f'encoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
      skips.append(x)
    skips.pop()
    for i, features in enumerate((8 * w, 4 * w, 2 * w, w, w), start=1):
      types['in_pairs'] = train and i == len(encoder) - 1
      x = upsample(x)
      for j in (1, 2, 3):
        parts = [x, skips.pop()] if j == 2 else [x]
        name = f'decoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(*parts, train=train)
    return Conv(2, name='last_conv', **types)(x)


class Networks(nn.Module):
  """Networks for images in [0, 1]; each kind says what it consists of.

  Attributes:
    reconstructive_width: channels of the first block, reconstructive.
    discriminative_width: channels of the first block, discriminative.
    dtype: of the convolutions; None takes that of image and parameters.
      Parameters, batch statistics and outputs stay float32 under bfloat16.
    param_dtype: of the parameters and running averages.
    reconstruction_gradient: share of the gradient of what the map says that
      reaches the reconstruction beneath it, and so the reconstructive network;
      only `Draem` has both.
    outputs: the fields of `Output` that these networks give.
    samples_masks: whether they sample masks in training, and then take their
      key as `rngs={'masks': key}`.
    draws_together: whether all parameters are drawn by `draws`.
  """

  reconstructive_width: int = 128
  discriminative_width: int = 64
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32
  reconstruction_gradient: float = 1.0

  outputs: ClassVar[tuple[str, ...]] = ()
  samples_masks: ClassVar[bool] = False
  draws_together: ClassVar[bool] = False

  def setup(self):
    """Builds the sub-networks that the outputs need."""
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    if 'reconstruction' in self.outputs:
      self.reconstructive = ReconstructiveSubNetwork(
        self.reconstructive_width, **types
      )
    if 'logits' in self.outputs:
      self.discriminative = DiscriminativeSubNetwork(
        self.discriminative_width, **types
      )

  def __call__(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    """Reconstructs and segments a batch, as far as these networks do.

    Args:
      image: RGB in [0, 1].
      train: whether to normalize by the batch's own statistics and update the
        running averages, rather than normalize by these.

    Returns:
      Reconstruction and logits, float32 (float64 where the computation is).

    Raises:
      ValueError: the shape is not `[b h w 3]`, height or width is no multiple
        of 32, or a training batch is too small for batch norm.
    """
    _check_shape(image.shape, train=train)
    return self.run(image, train=train)

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    """What `__call__` does with an image of a good shape."""
    raise NotImplementedError


class Draem(Networks):
  """The reconstructive and the discriminative sub-network in a row (DRÆM)."""

  outputs = ('reconstruction', 'logits')
  draws_together = True

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    reconstruction = self.reconstructive(image, train=train)
    seen = _scale_gradient(reconstruction, self.reconstruction_gradient)
    joined = jnp.concatenate([seen, image], axis=-1)
    return Output(reconstruction, self.discriminative(joined, train=train))


class Discriminative(Networks):
  """The discriminative sub-network alone, on the image (table 3, Disc.)."""

  outputs = ('logits',)
  draws_together = True

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    return Output(None, self.discriminative(image, train=train))


class Reconstructive(Networks):
  """The reconstructive sub-network alone (table 3, Recon.-AE)."""

  outputs = ('reconstruction',)
  draws_together = True

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    return Output(self.reconstructive(image, train=train), None)


class Bozic(Networks):
  """The two-stage network of Božič et al. (table 3): see `bozic`.

  Its channels follow `discriminative_width`; the other width is not used.
  """

  outputs = ('segmentation', 'decision')

  def setup(self):
    """Builds both stages."""
    self.segmentation = bozic.SegmentationNetwork(
      self.discriminative_width, dtype=self.dtype, param_dtype=self.param_dtype
    )
    self.decision = bozic.DecisionNetwork(param_dtype=self.param_dtype)

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    features, logits = self.segmentation(image)
    decision = self.decision(features, logits)
    return Output(None, None, segmentation=logits[..., 0], decision=decision)


class Riad(Networks):
  """RIAD, which restores each part of an image from the rest (`riad`).

  In training there are no `restorations`: the reconstruction is by one size of
  cells, sampled for the batch. Otherwise there is one by each of `riad.CELLS`,
  by masks that are always the same, and the reconstruction is their mean.
  """

  outputs = ('reconstruction', 'restorations')
  draws_together = True
  samples_masks = True

  def setup(self):
    """Builds the one network."""
    self.inpainting = riad.InpaintingSubNetwork(
      self.reconstructive_width, self.dtype, self.param_dtype
    )

  def run(self, image: Float[Array, 'b h w 3'], *, train: bool) -> Output:
    if self.is_initializing():
      # All passes share the parameters of one.
      return Output(self.inpainting(image, train=train), None)
    size = image.shape[1:3]
    if train:
      split = riad.sample_split(self.make_rng('masks'), size)
      return Output(riad.restore(self._one_by_one, image, split), None)
    restorations = jnp.stack(
      [
        riad.restore(self._joined, image, split)
        for split in riad.scoring_splits(size)
      ]
    )
    return Output(restorations.mean(axis=0), None, restorations=restorations)

  def _one_by_one(
    self, images: Float[Array, 'n b h w 3']
  ) -> Float[Array, 'n b h w 3']:
    """Restores in training: no batch statistics tell of what is hidden."""
    return jnp.stack([self.inpainting(each, train=True) for each in images])

  def _joined(
    self, images: Float[Array, 'n b h w 3']
  ) -> Float[Array, 'n b h w 3']:
    """Restores otherwise, in one pass."""
    joined = images.reshape(-1, *images.shape[2:])
    return self.inpainting(joined, train=False).reshape(images.shape)


MODELS: dict[str, type[Networks]] = {
  'draem': Draem,
  'discriminative': Discriminative,
  'reconstructive': Reconstructive,
  'bozic': Bozic,
  'riad': Riad,
}


def make(config: Mapping[str, Any]) -> Networks:
  """The networks that a config describes."""
  model = dict(config['model'])
  return MODELS[model.pop('name')](**model, dtype=jnp.dtype(config['dtype']))


def abstract_variables(model: Networks) -> dict[str, Any]:
  """The shapes and types of the variables of networks, without values."""
  image = jax.ShapeDtypeStruct((1, _STRIDE, _STRIDE, 3), jnp.float32)
  return jax.eval_shape(
    # No parameter depends on the size of the image.
    lambda image: model.init(jax.random.key(0), image, train=False),
    image,
  )


def _scale_gradient(
  x: Float[Array, '*shape'], share: float
) -> Float[Array, '*shape']:
  """What is given, and on the way back a share of its gradient."""
  if share == 1:
    return x
  stopped = jax.lax.stop_gradient(x)
  if share == 0:  # And nothing computes what nobody gets.
    return stopped
  return share * x + (1 - share) * stopped


def _check_shape(shape: tuple[SupportsInt, ...], *, train: bool) -> None:
  if len(shape) != 4 or shape[-1] != 3:
    raise ValueError(f'images have shape [b h w 3], not {list(shape)}')
  batch, height, width, _ = shape
  if height % _STRIDE or width % _STRIDE or not height or not width:
    raise ValueError(
      f'image is {height}x{width}; height and width must be multiples of '
      f'{_STRIDE}'
    )
  if train and batch * height * width == _STRIDE**2:
    raise ValueError(
      f'batch norm needs more than one value: train on more than one '
      f'{height}x{width} image at a time'
    )
