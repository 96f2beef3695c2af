"""The devices: the mesh, its two shardings, and what processes tell each other.

Everything that is the same everywhere (the train state, the images of a
category, the textures) is replicated; everything that has a batch axis is split
over the mesh axis `'data'`. Batch norm under `jit` then sees the global batch,
so that the number of devices changes nothing but the order of float sums.
"""

import logging
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

_Number = TypeVar('_Number', int, float)


def find() -> None:
  """Finds the devices of this process, as the first that asks JAX for them.

  Says so once if there is a GPU that JAX does not use.

  Raises:
    UserError: if there is none of the kind that `JAX_PLATFORMS` names.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '')
  try:
    jax.devices()
  # JAX raises an AssertionError without words where a plug-in finds nothing.
  except (RuntimeError, AssertionError, ValueError) as error:
    words = ' '.join(str(error).split())
    raise UserError(
      f'JAX_PLATFORMS={wanted}: JAX finds no such device'
      f'{words and f" ({words:.300})"}: {_install(wanted)}, or unset'
      ' JAX_PLATFORMS to run on what there is'
    ) from error
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
  if (
    jax.default_backend() == 'cpu' and not wanted and not hidden and _has_gpu()
  ):
    _log.warning(
      'this machine has an NVIDIA GPU that JAX does not see: %s, or set'
      ' JAX_PLATFORMS=cpu',
      _install('cuda'),
    )


def _install(platform: str) -> str:
  """How to install what JAX needs for a platform."""
  packages = {'cuda': 'cuda13', 'gpu': 'cuda13', 'tpu': 'tpu'}
  for name, extra in packages.items():
    if name in platform:
      return f"pip install 'jax[{extra}]'"
  return 'install what it needs'


def _has_gpu() -> bool:
  """Whether the machine has a GPU of NVIDIA, by its driver."""
  gpus = pathlib.Path('/proc/driver/nvidia/gpus')
  return shutil.which('nvidia-smi') is not None or gpus.is_dir()


def make_mesh(
  batch_size: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A one-axis mesh `('data',)`.

  Args:
    batch_size: examples of the global batch.
    devices: those to use; by default every device of every process.

  Raises:
    UserError: if `batch_size` cannot be split evenly over the devices.
  """
  devices = devices or jax.devices()
  count = len(devices)
  if batch_size % count:
    raise UserError(
      f'config.batch_size={batch_size} cannot be split over {count} devices:'
      f' take a multiple of {count}, or fewer devices'
    )
  return jax.make_mesh(
    (count,), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what is the same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
  """The sharding of what has a batch axis, which must come first."""
  return NamedSharding(mesh, PartitionSpec('data'))


def is_main_process() -> bool:
  """Whether this process writes the files of the run."""
  return jax.process_index() == 0


def max_over_processes(number: int) -> int:
  """The largest of the processes' numbers; every process must call it."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.process_allgather(np.int32(number)).max())


def main_process_says(number: _Number) -> _Number:
  """The number that the main process calls this with; every process must.

  Args:
    number: a whole one of 32 bits, or a float, which comes back in 32 bits.
  """
  as_bits = np.int32 if isinstance(number, int) else np.float32
  told = as_bits(number)
  if jax.process_count() > 1:
    told = multihost_utils.broadcast_one_to_all(told)
  return type(number)(told)


def wait_for_processes(name: str) -> None:
  """Returns once every process has called it with this name."""
  multihost_utils.sync_global_devices(name)


def device_name() -> str:
  """The devices in words, as results name them: `'2 x TFRT_CPU'`."""
  kind = jax.devices()[0].device_kind
  return f'{jax.device_count()} x {kind}'


def local_rows(count: int, mesh: Mesh) -> Int[np.ndarray, 'n']:
  """Which rows of a batch of `count` the devices of this process take."""
  places = batch_sharded(mesh).addressable_devices_indices_map((count,))
  rows = np.arange(count)
  return np.unique(np.concatenate([rows[place] for place in places.values()]))


def put_batch(
  batch: UInt8[np.ndarray, 'b h w c'], mesh: Mesh
) -> UInt8[Array, 'b h w c']:
  """Puts one global host batch on the devices, split over `'data'`.

  Args:
    batch: the whole batch, of which only `local_rows` are looked at.
    mesh: the mesh.
  """
  return jax.make_array_from_callback(
    batch.shape, batch_sharded(mesh), lambda index: batch[index]
  )
