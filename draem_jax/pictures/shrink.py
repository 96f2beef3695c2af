"""Large pictures and their maps at a fraction of their size, to be drawn.

Each new pixel stands for a square block of old ones; those at the right and the
lower border may be cut off.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8


def factor(shape: tuple[int, ...], side: int | None) -> int:
  """The side of the blocks with which the longer side is at most `side`.

  Args:
    shape: height and width first.
    side: pixels; None or 0 for a picture as it is.
  """
  return math.ceil(max(shape[:2]) / side) if side else 1


def means(
  picture: UInt8[np.ndarray, 'h w *c'], block: int
) -> UInt8[np.ndarray, 'h2 w2 *c']:
  """The mean of each block, rounded.

  Args:
    picture: the picture, or a strip of it that begins with a block.
    block: the side of the blocks.
  """
  if block == 1:
    return picture
  sums, counts = picture, 1
  for axis in (0, 1):
    starts = np.arange(0, picture.shape[axis], block)
    sums = np.add.reduceat(sums, starts, axis=axis, dtype=np.uint32)
    ends = np.append(starts[1:], picture.shape[axis])
    counts = np.multiply.outer(counts, (ends - starts).astype(np.uint32))
  counts = counts.reshape(*sums.shape[:2], *[1] * (sums.ndim - 2))
  return ((sums + counts // 2) // counts).astype(np.uint8)


def peaks(
  anomaly_map: Float[np.ndarray, 'h w'] | Bool[np.ndarray, 'h w'], block: int
) -> Float[np.ndarray, 'h2 w2'] | Bool[np.ndarray, 'h2 w2']:
  """The highest value of each block, so that no small defect fades.

  Args:
    anomaly_map: a map or a mask, or a strip of it that begins with a block.
    block: the side of the blocks.
  """
  if block == 1:
    return anomaly_map
  for axis in (0, 1):
    starts = np.arange(0, anomaly_map.shape[axis], block)
    anomaly_map = np.maximum.reduceat(anomaly_map, starts, axis=axis)
  return anomaly_map
