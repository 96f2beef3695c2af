"""The operations that the networks consist of, each with a cheap gradient."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from draem_jax import platforms

EPSILON = 1e-5
_PIXELS = (0, 1, 2)  # The axes that batch norm takes its statistics over.


def normalize(
  x: Float[Array, 'b h w c'],
  mean: Float[Array, 'c'],
  var: Float[Array, 'c'],
  scale: Float[Array, 'c'],
  bias: Float[Array, 'c'],
) -> Float[Array, 'b h w c']:
  """Normalizes by given statistics, scales, shifts and applies ReLU.

  Computed in the statistics' dtype, returned in that of `x`.
  """
  factor = scale * lax.rsqrt(var + EPSILON)
  return jax.nn.relu((x - mean) * factor + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnames=('copies',))
def batch_normalize(
  x: Float[Array, 'b h w c'],
  scale: Float[Array, 'd'],
  bias: Float[Array, 'd'],
  guess: Float[Array, 'd'],
  copies: int = 1,
) -> tuple[Float[Array, 'b h w c'], Float[Array, 'd'], Float[Array, 'd']]:
  """Normalizes by the batch's own statistics and applies ReLU.

  Args:
    x: What to normalize.
    scale: Of each channel; its dtype is that of the computation.
    bias: Of each channel.
    guess: About the mean of each channel. Any value gives the same result but
      for rounding; a good one lets both moments be taken in a single pass.
    copies: how many pixels lie side by side in the channels of `x`.

  Returns:
    The activations in the dtype of `x`, the mean and the biased variance. No
    gradient flows through mean and variance, nor into `guess`.
  """
  return _batch_normalize_forward(x, scale, bias, guess, copies)[0]


def _batch_normalize_forward(x, scale, bias, guess, copies):
  spread = functools.partial(_spread, copies=copies)
  centered = x.astype(scale.dtype) - spread(guess)
  offset = _gather(centered.mean(_PIXELS), copies, jnp.mean)
  square = _gather(jnp.square(centered).mean(_PIXELS), copies, jnp.mean)
  var = jnp.maximum(square - offset**2, 0)
  mean = guess + offset
  y = normalize(x, *map(spread, (mean, var, scale, bias)))
  return (y, mean, var), (x, y, mean, var, scale)


def _batch_normalize_backward(copies, residuals, cotangents):
  # Derived automatically, this would go over the activations more often.
  x, y, mean, var, scale = residuals
  spread = functools.partial(_spread, copies=copies)
  gradient = jnp.where(y > 0, cotangents[0], 0).astype(scale.dtype)
  deviation = lax.rsqrt(var + EPSILON)
  normalized = (x - spread(mean)) * spread(deviation)
  bias_gradient = _gather(gradient.sum(_PIXELS), copies)
  scale_gradient = platforms.choose(
    gradient,
    normalized,
    x,
    spread(mean),
    spread(deviation),
    cpu=_sum_of_products,
    default=lambda gradient, normalized, *_: (gradient * normalized).sum(
      _PIXELS
    ),
  )
  scale_gradient = _gather(scale_gradient, copies)
  count = x.size // mean.size
  x_gradient = spread(scale * deviation) * (
    gradient
    - spread(bias_gradient / count)
    - normalized * spread(scale_gradient / count)
  )
  zeros = jnp.zeros_like(mean)
  return x_gradient.astype(x.dtype), scale_gradient, bias_gradient, zeros


def _sum_of_products(
  gradient: Float[Array, 'b h w c'],
  normalized: Float[Array, 'b h w c'],
  x: Float[Array, 'b h w c'],
  mean: Float[Array, 'c'],
  deviation: Float[Array, 'c'],
) -> Float[Array, 'c']:
  """Sums the products of `gradient` with what `x` is normalized to.

  A CPU would write the normalized `x` down for it; `x` is there already.
  """
  del normalized
  products = (gradient * x.astype(gradient.dtype)).sum(_PIXELS)
  return (products - mean * gradient.sum(_PIXELS)) * deviation


batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


def _spread(
  values: Float[Array, 'd'], copies: int
) -> Float[Array, '{copies}*d']:
  """Values of channels, for each of the pixels that lie side by side."""
  return values if copies == 1 else jnp.tile(values, copies)


def _gather(
  values: Float[Array, 'n'], copies: int, combine=jnp.sum
) -> Float[Array, 'n/{copies}']:
  """What comes of the pixels that lie side by side, for each channel."""
  return values if copies == 1 else combine(values.reshape(copies, -1), axis=0)


def precision(x: Float[Array, '...']) -> lax.Precision | None:
  """What a product of `x` asks for, which a TPU may else round to bfloat16."""
  return None if jnp.finfo(x.dtype).bits < 32 else lax.Precision.HIGHEST


def halve4x4(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '4 4 c d']
) -> Float[Array, 'b h/2 w/2 d']:
  """Convolves with stride 2 and one row or column of zeros at each border.

  Args:
    x: what to convolve; height and width are even.
    kernel: of the dtype of `x`.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(2, 2),
    padding=((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@jax.custom_vjp
def double4x4(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '4 4 c d']
) -> Float[Array, 'b 2*h 2*w d']:
  """The transposed convolution: what `halve4x4` is the gradient of.

  PyTorch's `ConvTranspose2d(kernel_size=4, stride=2, padding=1)`, but for the
  order of the kernel's axes.

  Args:
    x: what to enlarge.
    kernel: of the dtype of `x`.
  """
  batch, height, width, _ = x.shape
  y = jnp.zeros((batch, 2 * height, 2 * width, kernel.shape[-1]), x.dtype)
  halve = lambda y: halve4x4(y, kernel.swapaxes(2, 3))
  return jax.linear_transpose(halve, y)(x)[0]


def _double4x4_transpose(residuals, y):
  # Derived automatically, that of the kernel would take a CPU a hundred times
  # as long.
  x, kernel = residuals
  kernel = kernel.swapaxes(2, 3)
  transpose = jax.linear_transpose(lambda kernel: halve4x4(y, kernel), kernel)
  return halve4x4(y, kernel), transpose(x)[0].swapaxes(2, 3)


double4x4.defvjp(
  lambda x, kernel: (double4x4(x, kernel), (x, kernel)), _double4x4_transpose
)
