"""The networks with channels before pixels, as ONNX has them.

Written in operations that become one node each: the layers of `models.Draem`
would become twice as many, with a transposition around most of them.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from draem_jax import layers

Layers = Mapping[str, Mapping[str, Float[np.ndarray, '...']]]


def make_networks(
  folded: Mapping[str, Mapping[str, Layers]],
) -> Callable[[Float[Array, 'b h w 3']], Float[Array, 'b h w 2']]:
  """The function from images in [0, 1] to logits, in float32.

  Args:
    folded: variables of `models.Draem` with batch norm folded, on the host.
  """
  params = folded['params']

  def networks(images):
    x = jnp.transpose(images, (0, 3, 1, 2))
    reconstruction = _reconstruct(params['reconstructive'], x)
    x = jnp.concatenate([reconstruction, x], axis=1)
    logits = _segment(params['discriminative'], x)
    return jnp.transpose(logits, (0, 2, 3, 1))

  return networks


def _reconstruct(params: Layers, x: Array) -> Array:
  for i in range(1, 6):
    x = _max_pool(x) if i > 1 else x
    x = _block(params, f'encoder_block{i}', (1, 2), x)
  for i in range(1, 5):
    x = _block(params, f'decoder_block{i}', (1, 2, 3), _upsample(x))
  return _convolve(x, **params['last_conv'])


def _segment(params: Layers, x: Array) -> Array:
  skips = []
  for i in range(1, 7):
    x = _max_pool(x) if i > 1 else x
    x = _block(params, f'encoder_block{i}', (1, 2), x)
    skips.append(x)
  skips.pop()
  for i in range(1, 6):
    x = _block(params, f'decoder_block{i}', (1,), _upsample(x))
    x = jnp.concatenate([x, skips.pop()], axis=1)
    x = _block(params, f'decoder_block{i}', (2, 3), x)
  return _convolve(x, **params['last_conv'])


def _block(params: Layers, name: str, numbers: tuple, x: Array) -> Array:
  for j in numbers:
    x = nn.relu(_convolve(x, **params[f'{name}_conv{j}']))
  return x


def _convolve(x: Array, kernel: np.ndarray, bias: np.ndarray) -> Array:
  x = lax.conv_general_dilated(
    x,
    np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)),
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
  )
  return x + bias[:, None, None]


def _max_pool(x: Array) -> Array:
  # The transpositions cancel with those that the exporter puts around it.
  x = jnp.transpose(x, (0, 2, 3, 1))
  x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
  return jnp.transpose(x, (0, 3, 1, 2))


def _upsample(x: Array) -> Array:
  rows, columns = (
    layers.upsample_matrix(size).astype(np.float32) for size in x.shape[2:]
  )
  return jnp.matmul(rows, jnp.matmul(x, columns.T))
