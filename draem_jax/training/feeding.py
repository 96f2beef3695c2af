"""Batches of what lies on the host, made ready while the devices work."""

import collections
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from draem_jax import devices
from draem_jax.data import images as images_lib
from draem_jax.data import pictures
from draem_jax.data.on_demand import OnDemand
from draem_jax.simulator import crops
from draem_jax.simulator.options import Options
from draem_jax.training import sampling

# Batches that are ready, and steps that the devices have not finished.
AHEAD = 4


class Feeder:
  """Prepares the batches of the coming steps on a thread.

  The thread works on no more than what it was told to, `AHEAD` batches, so
  there is nothing to be stopped but that; what goes wrong in it is raised where
  the batch is taken.
  """

  def __init__(self, prepare: Callable[[int], Any], *, num_steps: int):
    """Starts nothing yet.

    Args:
      prepare: makes the batch of a step, from 0; runs on the thread.
      num_steps: where it ends: no batch of later steps is prepared unasked.
    """
    self._prepare, self._num_steps = prepare, num_steps
    self._pool = None
    self._pending = collections.deque()  # Of (step, future).

  def take(self, step: int) -> Any:
    """The batch of a step; fast if it follows the last one that was taken."""
    if not self._pending or self._pending[0][0] != step:
      self.close()
      self._pool = futures.ThreadPoolExecutor(1, 'feeder')
      self._next = step
    end = max(step + 1, min(step + 1 + AHEAD, self._num_steps))
    while self._next < end:
      future = self._pool.submit(self._prepare, self._next)
      self._pending.append((self._next, future))
      self._next += 1
    _, future = self._pending.popleft()
    return future.result()

  def close(self) -> None:
    """Ends the thread after the batch it is at; the rest is dropped."""
    if self._pool:
      self._pool.shutdown(cancel_futures=True)
    self._pool = None
    self._pending.clear()


def gather(
  source: UInt8[np.ndarray | OnDemand, 'n h w c'],
  indices: Int[np.ndarray, 'b'],
  mesh: Mesh,
) -> UInt8[Array, 'b h w c']:
  """Puts some images on the devices as a batch.

  Args:
    source: all images, on the host.
    indices: which of them make the batch, equal in every process. Each process
      looks at its share only.
    mesh: over whose axis `'data'` the batch is split.
  """
  rows = devices.local_rows(len(indices), mesh)
  batch = np.zeros((len(indices), *source.shape[1:]), np.uint8)
  batch[rows] = source[indices[rows]]
  return devices.put_batch(batch, mesh)


def gather_parts(
  source: pictures.Pictures,
  indices: Int[np.ndarray, 'b'],
  corners: Int[np.ndarray, 'b 2'],
  size: tuple[int, int],
  mesh: Mesh,
) -> UInt8[Array, 'b h w 3']:
  """Puts parts of some pictures on the devices as a batch.

  Args:
    source: all pictures.
    indices: which of them make the batch, equal in every process. Each process
      looks at its share only.
    corners: the first row and column of each part; see `Pictures.cut`.
    size: height and width of the parts.
    mesh: over whose axis `'data'` the batch is split.
  """
  rows = devices.local_rows(len(indices), mesh)
  batch = np.zeros((len(indices), *size, 3), np.uint8)
  batch[rows] = take_parts(source, indices[rows], corners[rows], size)
  return devices.put_batch(batch, mesh)


def take_parts(
  source: UInt8[Array, 'n h w 3'] | pictures.Pictures,
  indices: Int[np.ndarray, 'b'],
  corners: Int[np.ndarray, 'b 2'],
  size: tuple[int, int],
) -> UInt8[np.ndarray, 'b {size[0]} {size[1]} 3']:
  """Parts of some pictures, on the host; see `Pictures.cut`.

  Args:
    source: all pictures, on the devices too.
    indices: which of them.
    corners: the first row and column of each part.
    size: height and width of the parts.
  """
  if isinstance(source, jax.Array):
    whole = source.addressable_data(0)  # On each device.
    one = lambda index, corner: pictures.cut(
      np.asarray(whole[index]), corner, size
    )
  else:
    one = lambda index, corner: source.cut(index, corner, size)
  tasks = list(zip(indices.tolist(), corners.tolist(), strict=True))
  return np.stack(images_lib.map_parallel(lambda task: one(*task), tasks))


def take_crops(
  source: UInt8[Array, 'n h w 3'] | pictures.Pictures,
  sampled: sampling.Sample,
  crop: tuple[int, int],
  options: Options,
) -> UInt8[np.ndarray, 'b h2 w2 3']:
  """The crops of a sample with their margins, on the host.

  Args:
    source: all pictures, none smaller than a crop.
    sampled: which of them, and by which keys.
    crop: height and width of a crop.
    options: what the simulator is told to do.
  """
  sampled = sampling.with_corners(sampled, picture_sizes(source), crop)
  margin = np.array(crops.margin(crop, options))
  return take_parts(
    source,
    np.asarray(sampled.images),
    np.asarray(sampled.corners) - margin,
    tuple((np.array(crop) + 2 * margin).tolist()),
  )


def picture_sizes(
  source: UInt8[Array, 'n h w 3'] | pictures.Pictures,
) -> Int[np.ndarray, 'n 2']:
  """Height and width of every picture."""
  if isinstance(source, pictures.Pictures):
    return source.sizes
  return np.tile(source.shape[1:3], (len(source), 1))


def sampling_device() -> jax.Device:
  """The device that says which images make a batch: the host, if it may.

  An accelerator would answer after the steps that it has been given before.
  """
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out.
    return jax.local_devices()[0]
