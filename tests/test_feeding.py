"""Batches that are prepared ahead of the steps."""

import threading
import time

import jax
import numpy as np
import pytest
from small import random_images

from draem_jax import devices
from draem_jax.data.on_demand import OnDemand
from draem_jax.training import feeding


@pytest.fixture
def threads():
  """Finds the feeders that run, but for what other tests have left running."""
  left = threading.enumerate()
  return lambda: [
    thread
    for thread in threading.enumerate()
    if thread.name.startswith('feeder') and thread not in left
  ]


def settle(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def test_a_few_batches_are_prepared_ahead_and_no_more(threads):
  made = []
  feeder = feeding.Feeder(made.append, num_steps=100)
  feeder.take(7)
  settle(lambda: len(made) == 1 + feeding.AHEAD)
  time.sleep(0.05)
  assert made == list(range(7, 8 + feeding.AHEAD))
  feeder.take(8)
  settle(lambda: made[-1] == 8 + feeding.AHEAD)
  feeder.close()
  assert not threads()


def test_nothing_is_prepared_beyond_the_last_step():
  made = []
  feeder = feeding.Feeder(lambda step: made.append(step) or step, num_steps=3)
  assert [feeder.take(step) for step in range(3)] == [0, 1, 2]
  feeder.close()
  assert made == [0, 1, 2]
  # Unless it is asked for.
  assert feeder.take(3) == 3
  feeder.close()


def test_any_step_can_be_the_next(threads):
  feeder = feeding.Feeder(lambda step: step, num_steps=100)
  assert [feeder.take(step) for step in (0, 1, 50, 51, 2)] == [0, 1, 50, 51, 2]
  assert len(threads()) == 1
  feeder.close()


def test_what_goes_wrong_is_the_error_of_its_step(threads):
  def prepare(step):
    if step == 2:
      raise OSError('the disk is gone')
    return step

  feeder = feeding.Feeder(prepare, num_steps=100)
  assert [feeder.take(step) for step in range(2)] == [0, 1]
  with pytest.raises(OSError, match='the disk is gone'):
    feeder.take(2)
  feeder.close()
  assert not threads()


def test_closing_waits_for_one_batch_only(threads):
  release, made = threading.Event(), []

  def prepare(step):
    made.append(step)
    if step:
      release.wait(10)

  feeder = feeding.Feeder(prepare, num_steps=100)
  feeder.take(0)
  settle(lambda: made == [0, 1])
  threading.Timer(0.05, release.set).start()
  feeder.close()
  assert made == [0, 1] and not threads()


def test_a_batch_is_split_over_the_devices():
  source = random_images(5)
  indices = np.array([4, 1, 1, 0])
  for count in (1, 2):
    mesh = devices.make_mesh(4, jax.devices()[:count])
    batch = feeding.gather(source, indices, mesh)
    np.testing.assert_array_equal(batch, source[indices])
    assert batch.sharding == devices.batch_sharded(mesh)


def test_a_process_looks_at_its_own_rows_only(monkeypatch):
  mesh = devices.make_mesh(4, jax.devices()[:2])
  np.testing.assert_array_equal(devices.local_rows(4, mesh), range(4))

  reads = []
  source = OnDemand(
    lambda place: reads.append(place) or np.full((8, 8, 3), place, np.uint8),
    list('abcdefghi'),
    8,
  )
  reads.clear()
  monkeypatch.setattr(devices, 'local_rows', lambda *_: np.array([1, 2]))
  batch = feeding.gather(source, np.array([8, 7, 6, 5]), mesh)
  assert sorted(reads) == [6, 7]
  np.testing.assert_array_equal(batch[1:3, 0, 0, 0], [7, 6])
