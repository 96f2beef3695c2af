"""The images of a run on the devices, or on the host where they do not fit."""

import logging
import math
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, UInt8

from draem_jax import devices
from draem_jax.data import images
from draem_jax.data.on_demand import OnDemand
from draem_jax.data.pictures import Pictures

_log = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30
_DECODED = 16  # Pictures that wait for their way to the devices.


def put(
  arrays: Mapping[str, UInt8[np.ndarray | OnDemand, '_ _ _ _'] | Pictures],
  sharding: Sharding,
  *,
  max_device_share: float,
  max_host_bytes: int | None = None,
) -> dict[str, UInt8[Array | np.ndarray | OnDemand, '_ _ _ _'] | Pictures]:
  """Puts images on the devices where they fit, and says where they lie.

  The smallest array goes first, so that a category stays on the devices while
  a large collection of textures is fed.

  Args:
    arrays: by what they hold, in words; equal in every process.
    sharding: of the result; replicated, so that every device can draw any
      image.
    max_device_share: the share of a device's memory, in [0, 1], that the
      images may take.
    max_host_bytes: what the images may take on the host; None for no bound.

  Returns:
    Each as a JAX array, to be drawn from inside the compiled step, or as it
    came, to be drawn from on the host and fed batch by batch. `Pictures` need
    one size to become an array; others keep of what they have decoded as much
    as there is room for on the host.
  """
  memory = device_memory(sharding)
  room = math.inf if memory is None else max_device_share * memory
  names = sorted(arrays, key=lambda name: arrays[name].nbytes)
  fits = []
  for name in names:
    array = arrays[name]
    one_size = isinstance(array, np.ndarray) or (
      isinstance(array, Pictures) and array.common_size is not None
    )
    fits.append(one_size and array.nbytes <= room)
    room -= array.nbytes if one_size else 0
  if jax.process_count() > 1:
    # All hosts run the same program, so the one with the least room decides.
    fits = multihost_utils.process_allgather(np.array(fits)).all(axis=0)
  placed = dict(arrays)
  for name, on_devices in zip(names, fits, strict=True):
    array = arrays[name]
    size = array.nbytes / GIB
    if on_devices and isinstance(array, Pictures):
      placed[name] = _stack(array, sharding)
      _log.info('the %s lie on the devices and take %.2g GiB', name, size)
    elif isinstance(array, Pictures):
      held = sum(a.nbytes for a in arrays.values() if isinstance(a, np.ndarray))
      left = None if max_host_bytes is None else max(0, max_host_bytes - held)
      array.keep(left)
      _log.info(
        'crops of the %s are fed by the host, since %s: decoded they take %.2g'
        ' GiB, of which %.2g GiB are kept, and the rest is decoded whenever it'
        ' is drawn (config.data.max_device_share, config.data.max_host_share)',
        name,
        'they are too large for a device'
        if array.common_size
        else 'their sizes differ',
        size,
        min(size, math.inf if left is None else left / GIB),
      )
    elif on_devices:
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


def _stack(pictures: Pictures, sharding: Sharding) -> UInt8[Array, 'n h w 3']:
  """Pictures of one size as an array on the devices.

  The host holds a few of them at a time: it may be a device itself.
  """
  shape = (len(pictures), *pictures.common_size, 3)
  stack = jax.jit(lambda: jnp.zeros(shape, jnp.uint8), out_shardings=sharding)()
  put = jax.jit(
    lambda stack, picture, place: jax.lax.dynamic_update_index_in_dim(
      stack, picture, place, axis=0
    ),
    donate_argnums=0,
    out_shardings=sharding,
  )
  for first in range(0, len(pictures), _DECODED):
    places = range(first, min(first + _DECODED, len(pictures)))
    for place, picture in zip(
      places, images.map_parallel(pictures.__getitem__, places), strict=True
    ):
      picture = jax.make_array_from_callback(
        picture.shape, sharding, lambda index, picture=picture: picture[index]
      )
      stack = put(stack, picture, np.int32(place))
    # What waits on the devices takes room, too.
    stack.block_until_ready()
  return stack


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
