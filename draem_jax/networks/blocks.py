"""The convolutions with parameters that the networks are built of."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from draem_jax import platforms
from draem_jax.networks import draws, pairs
from draem_jax.networks.convolution import conv3x3
from draem_jax.networks.layers import (
  batch_normalize,
  double4x4,
  halve4x4,
  normalize,
)

_KEEP = 0.9  # What a running average keeps of its old value in one step.


class _Convolution(nn.Module):
  """A convolution with bias; a subclass says of which kind."""

  features: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  side: ClassVar[int] = 3  # Of the kernel.

  def convolve(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c d']
  ) -> Float[Array, 'b h2 w2 d']:
    """The convolution without the bias, in the dtype of `x`."""
    return conv3x3(x, kernel.astype(x.dtype))

  def _declare(
    self, inputs: int
  ) -> tuple[Float[Array, 'k k {inputs} d'], Float[Array, 'd']]:
    """Declares the kernel and the bias."""
    bound = (self.side**2 * inputs) ** -0.5

    bias_init = functools.partial(draws.uniform, bound=bound)
    kernel = (self.side, self.side, inputs, self.features)
    return (
      self._parameter(
        'kernel', functools.partial(draws.normal, mean=0.0), kernel
      ),
      self._parameter('bias', bias_init, (self.features,)),
    )

  def _parameter(
    self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
  ) -> Float[Array, '...']:
    """Declares a parameter."""
    value = self.get_variable('params', name)
    # To compare the shapes, Flax would trace the initialization of each.
    if value is not None and value.shape == shape:
      return value
    return self.param(name, init, shape, self.param_dtype)

  def _convolve_and_shift(
    self,
    x: Float[Array, 'b h w c'],
    kernel: Float[Array, 'k k c d'],
    bias: Float[Array, 'd'],
  ) -> Float[Array, 'b h2 w2 d']:
    """Convolves in the dtype of `x`, adds the bias in float32 at least."""
    x = self.convolve(x, kernel)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias


class Conv(_Convolution):
  """3x3 convolution with bias; the result is float32 at least.

  Attributes:
    in_pairs: whether a TPU may take pixels by twos (`pairs`).
  """

  in_pairs: bool = False

  def convolve(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c d']
  ) -> Float[Array, 'b h2 w2 d']:
    """As in the parent."""
    channels = x.shape[-1], self.features
    if not self.in_pairs or not pairs.are_worth(channels, x.shape[2]):
      return super().convolve(x, kernel)
    return platforms.choose(
      x,
      kernel.astype(x.dtype),
      tpu=lambda x, kernel: pairs.convolve([x], kernel),
      default=super().convolve,
    )

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    """Returns the convolution of `x`."""
    return self._convolve_and_shift(x, *self._declare(x.shape[-1]))


class DoublingConv(Conv):
  """Transposed 4x4 convolution that doubles height and width, with bias."""

  side = 4

  def convolve(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, '4 4 c d']
  ) -> Float[Array, 'b 2*h 2*w d']:
    """As in the parent."""
    return double4x4(x, kernel.astype(x.dtype))


class ConvNormRelu(_Convolution):
  """3x3 convolution, batch norm and ReLU.

  Statistics and normalization are computed in float32 at least, whatever the
  computation's dtype; parameters and running averages have `param_dtype`.
  Under jit a batch sharded over devices is normalized as one batch.

  Attributes:
    in_pairs: whether a TPU may take pixels by twos in training (`pairs`).
  """

  in_pairs: bool = False

  @nn.compact
  def __call__(
    self, *parts: Float[Array, 'b h w _'], train: bool
  ) -> Float[Array, 'b h2 w2 d']:
    """Returns the activations, in the dtype of what is given.

    Args:
      *parts: arrays whose channels, one after the other, are the input.
      train: whether to normalize by the batch's own statistics.
    """
    kernel, conv_bias = self._declare(sum(x.shape[-1] for x in parts))
    x = _concatenate(parts)
    if not train and self._is_folded():
      y = self._convolve_and_shift(x, kernel, conv_bias)
      return nn.relu(y).astype(x.dtype)
    shape, param_dtype = (self.features,), self.param_dtype
    scale = self._parameter(
      'norm_scale', functools.partial(draws.normal, mean=1.0), shape
    )
    bias = self._parameter('norm_bias', nn.initializers.zeros, shape)
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, shape, param_dtype
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, shape, param_dtype
    )

    dtype = jnp.promote_types(x.dtype, jnp.float32)
    # The convolution's bias would cancel in the normalization. Left out, it has
    # the gradient zero, not rounding noise that Adam blows up to full steps.
    guess = (running_mean.value - conv_bias).astype(dtype)
    scale, bias = scale.astype(dtype), bias.astype(dtype)
    if not train:
      var = running_var.value.astype(dtype)
      return normalize(self.convolve(x, kernel), guess, var, scale, bias)
    y, mean, var = self._convolve_and_normalize(
      parts, kernel, scale, bias, guess
    )
    if not self.is_initializing():
      n = y.size // self.features
      _keep_average(running_mean, mean + conv_bias)
      _keep_average(running_var, var * (n / (n - 1)))
    return y

  def _convolve_and_normalize(
    self, parts, kernel, scale, bias, guess
  ) -> tuple[Float[Array, 'b h2 w2 d'], Float[Array, 'd'], Float[Array, 'd']]:
    """The activations, and the mean and variance before them."""
    arguments = parts, kernel.astype(parts[0].dtype), scale, bias, guess

    def by_pixels(parts, kernel, *others):
      x = self.convolve(_concatenate(parts), kernel)
      return batch_normalize(x, *others)

    channels = *(x.shape[-1] for x in parts), self.features
    width = parts[0].shape[2]
    if not self.in_pairs or not pairs.are_worth(channels, width):
      return by_pixels(*arguments)
    return platforms.choose(
      *arguments, tpu=pairs.convolve_and_normalize, default=by_pixels
    )

  def _is_folded(self) -> bool:
    """Whether the variables are those of `folding.fold`."""
    has_norm = self.has_variable('params', 'norm_scale')
    return not has_norm and not self.is_initializing()


class HalvingConvNormRelu(ConvNormRelu):
  """4x4 convolution that halves height and width, batch norm and ReLU."""

  side = 4

  def convolve(
    self, x: Float[Array, 'b h w c'], kernel: Float[Array, '4 4 c d']
  ) -> Float[Array, 'b h/2 w/2 d']:
    """As in the parent."""
    return halve4x4(x, kernel.astype(x.dtype))


def _concatenate(
  parts: Sequence[Float[Array, 'b h w _']],
) -> Float[Array, 'b h w c']:
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def computation_dtype(image: Array, module: nn.Module) -> DTypeLike:
  """The dtype that a network computes in with such an image."""
  return module.dtype or jnp.promote_types(image.dtype, module.param_dtype)


def _keep_average(average: nn.Variable, value: Float[Array, 'c']) -> None:
  new = _KEEP * average.value + (1 - _KEEP) * lax.stop_gradient(value)
  average.value = new.astype(average.value.dtype)
