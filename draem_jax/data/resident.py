"""The images of a run on the devices, or on the host where they do not fit."""

import logging
import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, UInt8

from draem_jax import devices
from draem_jax.data.on_demand import OnDemand

_log = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30


def put(
  arrays: Mapping[str, UInt8[np.ndarray | OnDemand, '_ h w 3']],
  sharding: Sharding,
  *,
  max_device_share: float,
) -> dict[str, UInt8[Array | np.ndarray | OnDemand, '_ h w 3']]:
  """Puts images on the devices where they fit, and says where they lie.

  The smallest array goes first, so that a category stays on the devices while
  a large collection of textures is fed.

  Args:
    arrays: by what they hold, in words; equal in every process.
    sharding: of the result; replicated, so that every device can draw any
      image.
    max_device_share: the share of a device's memory, in [0, 1], that the
      images may take.

  Returns:
    Each as a JAX array, to be drawn from inside the compiled step, or as it
    came, to be drawn from on the host and fed batch by batch.
  """
  memory = device_memory(sharding)
  room = math.inf if memory is None else max_device_share * memory
  names = sorted(arrays, key=lambda name: arrays[name].nbytes)
  fits = []
  for name in names:
    fits.append(
      isinstance(arrays[name], np.ndarray) and arrays[name].nbytes <= room
    )
    room -= arrays[name].nbytes
  if jax.process_count() > 1:
    # All hosts run the same program, so the one with the least room decides.
    fits = multihost_utils.process_allgather(np.array(fits)).all(axis=0)
  placed = dict(arrays)
  for name, on_devices in zip(names, fits, strict=True):
    array = arrays[name]
    size = array.nbytes / GIB
    if on_devices:
      placed[name] = jax.make_array_from_callback(
        array.shape, sharding, lambda index, array=array: array[index]
      )
      _log.info('the %s lie on the devices and take %.2g GiB', name, size)
    elif isinstance(array, np.ndarray):
      _log.info(
        'the %s lie on the host, which feeds them: they take %.2g GiB, a device'
        ' has %.2g GiB, and config.data.max_device_share=%g of it may be used',
        name,
        size,
        (memory or 0) / GIB,
        max_device_share,
      )
    else:
      _log.info(
        'the %s are decoded when they are drawn, on the host, which feeds them:'
        ' all together would take %.2g GiB, and config.data.max_host_share of'
        " the host's memory may be used",
        name,
        size,
      )
  return placed


def host_room(max_host_share: float) -> int | None:
  """Bytes that images may take on a host; the least of the processes'.

  Args:
    max_host_share: the share of the host's memory, in [0, 1].

  Returns:
    The bytes; None if the memory is unknown.
  """
  memory = host_memory()
  if memory is None:
    return None
  # In MiB, as the processes tell each other numbers of 32 bits only.
  room = int(max_host_share * memory) // MIB
  return -devices.max_over_processes(-room) * MIB


def host_memory() -> int | None:
  """Bytes of memory of the host; None if it does not tell."""
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (AttributeError, ValueError, OSError):  # Not a Unix.
    return None


def device_memory(sharding: Sharding) -> int | None:
  """Bytes of memory of the smallest device of this process in a sharding.

  Devices that do not tell, as the CPU, share the memory of the host evenly.
  None if that is unknown, too.
  """
  addressable = sharding.addressable_devices
  stats = [device.memory_stats() for device in addressable]
  if all(s and 'bytes_limit' in s for s in stats):
    return min(s['bytes_limit'] for s in stats)
  host = host_memory()
  return None if host is None else host // len(addressable)
