"""Images on the devices, or on the host."""

from unittest import mock

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from draem_jax.data import resident

ARRAYS = [
  np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
  for n in (5, 3)
]
SHARDING = SingleDeviceSharding(jax.devices()[0])


def test_what_fits_goes_to_the_devices():
  put = resident.put(ARRAYS, SHARDING, max_device_share=0.5)
  take = jax.jit(lambda images, indices: images[indices])
  for array, images in zip(ARRAYS, put, strict=True):
    assert isinstance(images, jax.Array)
    assert images.dtype == np.uint8 and images.sharding == SHARDING
    indices = np.array([2, 0, 2])
    np.testing.assert_array_equal(take(images, indices), array[indices])


def test_what_does_not_fit_stays(caplog, monkeypatch):
  monkeypatch.setattr(resident._log, 'handlers', [])
  caplog.set_level('INFO', logger=resident._log.name)
  size = sum(array.nbytes for array in ARRAYS)
  # Each array alone would fit.
  monkeypatch.setattr(resident, 'device_memory', lambda _: 2 * size - 1)
  put = resident.put(ARRAYS, SHARDING, max_device_share=0.5)
  assert all(a is b for a, b in zip(put, ARRAYS, strict=True))
  assert 'max_device_share' in caplog.text
  monkeypatch.setattr(resident, 'device_memory', lambda _: 2 * size)
  put = resident.put(ARRAYS, SHARDING, max_device_share=0.5)
  assert all(isinstance(images, jax.Array) for images in put)


class Device:
  def __init__(self, stats):
    self.memory_stats = lambda: stats


def sharding_over(*stats):
  return mock.Mock(
    spec=jax.sharding.Sharding, addressable_devices={Device(s) for s in stats}
  )


def test_memory_is_that_of_the_smallest_device():
  sharding = sharding_over({'bytes_limit': 300}, {'bytes_limit': 200})
  assert resident.device_memory(sharding) == 200
  # Devices that do not tell share the host's memory.
  host = resident.device_memory(sharding_over(None))
  assert host > 2**28
  assert resident.device_memory(sharding_over(None, {})) == host // 2
