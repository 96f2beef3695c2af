"""The images of a run on the devices, or on the host where they do not fit."""

import logging
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, UInt8

_log = logging.getLogger(__name__)

GIB = 2**30


def put(
  arrays: Sequence[UInt8[np.ndarray, '_ h w 3']],
  sharding: Sharding,
  *,
  max_device_share: float,
) -> list[UInt8[Array, '_ h w 3']] | list[UInt8[np.ndarray, '_ h w 3']]:
  """Puts images on the devices if all of them fit, and says so if not.

  Args:
    arrays: equal in every process.
    sharding: of the result; replicated, so that every device can draw any
      image.
    max_device_share: the share of a device's memory, in [0, 1], that the
      images may take.

  Returns:
    The arrays as JAX arrays, to be drawn from inside the compiled step, or as
    they came, to be drawn from on the host and fed batch by batch.
  """
  size = sum(array.nbytes for array in arrays)
  memory = device_memory(sharding)
  fits = memory is None or size <= max_device_share * memory
  if jax.process_count() > 1:
    # All hosts run the same program, so the one with the least room decides.
    fits = bool(multihost_utils.process_allgather(np.array(fits)).all())
  if not fits:
    _log.info(
      'batches are fed from the host: the images take %.2g GiB, a device has'
      ' %.2g GiB, and config.data.max_device_share=%g of it may be used',
      size / GIB,
      (memory or 0) / GIB,
      max_device_share,
    )
    return list(arrays)
  _log.info('the images lie on the devices and take %.2g GiB', size / GIB)
  return [
    jax.make_array_from_callback(
      array.shape, sharding, lambda index, array=array: array[index]
    )
    for array in arrays
  ]


def device_memory(sharding: Sharding) -> int | None:
  """Bytes of memory of the smallest device of this process in a sharding.

  Devices that do not tell, as the CPU, share the memory of the host evenly.
  None if that is unknown, too.
  """
  devices = sharding.addressable_devices
  stats = [device.memory_stats() for device in devices]
  if all(s and 'bytes_limit' in s for s in stats):
    return min(s['bytes_limit'] for s in stats)
  try:
    host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (AttributeError, ValueError, OSError):  # Not a Unix.
    return None
  return host // len(devices)
