"""Images on the devices, or on the host."""

from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from draem_jax.data import resident
from draem_jax.data.on_demand import OnDemand

ARRAYS = {
  name: np.random.default_rng(n).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
  for name, n in (('textures', 5), ('images', 3))
}
SHARDING = SingleDeviceSharding(jax.devices()[0])


def put(**options):
  return resident.put(ARRAYS, SHARDING, max_device_share=0.5, **options)


@pytest.fixture
def log(caplog, monkeypatch):
  monkeypatch.setattr(resident._log, 'handlers', [])
  caplog.set_level('INFO', logger=resident._log.name)
  return caplog


def test_what_fits_goes_to_the_devices(log):
  placed = put()
  take = jax.jit(lambda images, indices: images[indices])
  assert placed.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    images = placed[name]
    assert isinstance(images, jax.Array)
    assert images.dtype == np.uint8 and images.sharding == SHARDING
    indices = np.array([2, 0, 2])
    np.testing.assert_array_equal(take(images, indices), array[indices])
    assert f'the {name} lie on the devices' in log.text


def test_what_does_not_fit_stays(log, monkeypatch):
  size = sum(array.nbytes for array in ARRAYS.values())
  # Each array alone would fit: the smaller one goes first.
  monkeypatch.setattr(resident, 'device_memory', lambda _: 2 * size - 1)
  placed = put()
  assert placed['textures'] is ARRAYS['textures']
  np.testing.assert_array_equal(placed['images'], ARRAYS['images'])
  assert isinstance(placed['images'], jax.Array)
  assert 'the images lie on the devices' in log.text
  assert 'the textures lie on the host' in log.text
  assert 'max_device_share' in log.text
  monkeypatch.setattr(resident, 'device_memory', lambda _: 2 * size)
  assert all(isinstance(images, jax.Array) for images in put().values())
  small = ARRAYS['images'].nbytes
  monkeypatch.setattr(resident, 'device_memory', lambda _: 2 * small - 1)
  assert all(put()[name] is array for name, array in ARRAYS.items())


def test_what_is_decoded_on_demand_stays(log):
  bank = OnDemand(lambda place: ARRAYS['images'][place], ['a', 'b', 'c'], 4)
  placed = resident.put(
    {'images': ARRAYS['images'], 'textures': bank},
    SHARDING,
    max_device_share=0.5,
  )
  assert placed['textures'] is bank
  assert isinstance(placed['images'], jax.Array)
  assert 'the textures are decoded when they are drawn' in log.text


def test_the_room_on_the_host_is_a_share(monkeypatch):
  monkeypatch.setattr(resident, 'host_memory', lambda: 2**40)
  assert resident.host_room(0.5) == 2**39
  assert resident.host_room(0.0) == 0
  monkeypatch.setattr(resident, 'host_memory', lambda: None)
  assert resident.host_room(0.5) is None


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
