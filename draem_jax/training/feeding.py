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
from draem_jax.data.on_demand import OnDemand

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
  source: UInt8[np.ndarray | OnDemand, 'n h w 3'],
  indices: Int[np.ndarray, 'b'],
  mesh: Mesh,
) -> UInt8[Array, 'b h w 3']:
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


def sampling_device() -> jax.Device:
  """The device that says which images make a batch: the host, if it may.

  An accelerator would answer after the steps that it has been given before.
  """
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out.
    return jax.local_devices()[0]
