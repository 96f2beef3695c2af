"""Images that are decoded when they are drawn."""

import numpy as np
import pytest

from draem_jax.data import on_demand
from draem_jax.errors import UserError

NAMES = ['a.png', 'b.png', 'c.png', 'd.png']


def stack(broken=(), reads=None):
  def read(place):
    if reads is not None:
      reads.append(place)
    if place in broken:
      raise UserError(f'{NAMES[place]} is broken')
    return np.full((8, 8, 3), place, np.uint8)

  return on_demand.OnDemand(read, NAMES, 8)


def test_it_is_indexed_as_an_array():
  images = stack()
  array = np.arange(4, dtype=np.uint8)[:, None, None, None]
  array = np.broadcast_to(array, (4, 8, 8, 3))
  for name in ('shape', 'dtype', 'nbytes'):
    assert getattr(images, name) == getattr(array, name)
  assert len(images) == 4
  indices = np.array([2, 0, 2, 3])
  np.testing.assert_array_equal(images[indices], array[indices])


def test_only_what_is_drawn_is_decoded():
  reads = []
  images = stack(reads=reads)
  reads.clear()
  images[np.array([3, 1])]
  assert sorted(reads) == [1, 3]


def test_a_broken_image_gives_way_to_the_next_whatever_came_before(caplog):
  places = np.array([3, 0, 1, 2])
  expected = [0, 0, 1, 0]
  images = stack(broken={2, 3})
  for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
    drawn = [images[places[i : i + 1]][0, 0, 0, 0] for i in order]
    assert drawn == [expected[i] for i in order]
  assert list(stack(broken={2, 3})[places][:, 0, 0, 0]) == expected


def test_each_broken_image_is_named_once(caplog, monkeypatch):
  monkeypatch.setattr(on_demand._log, 'handlers', [])
  caplog.set_level('WARNING', logger=on_demand._log.name)
  images = stack(broken={2, 3})
  for _ in range(3):
    images[np.array([2])]
  assert caplog.text.count('c.png is broken') == 1
  assert caplog.text.count('d.png is broken') == 1
  # Of many there are a few lines and a count now and then.
  caplog.clear()
  with pytest.raises(UserError, match='none of the 250') as error:
    on_demand.OnDemand(
      lambda place: (_ for _ in ()).throw(UserError('no image')),
      [f'{index}.png' for index in range(250)],
      8,
    )
  assert '\n' not in str(error.value)
  assert len(caplog.records) == 7 and 'no. 200' in caplog.text


def test_the_checksum_is_of_the_names():
  other = on_demand.OnDemand(
    lambda place: np.zeros((8, 8, 3), np.uint8), NAMES[::-1], 8
  )
  assert stack().checksum() == stack(broken={1}).checksum()
  assert stack().checksum() != other.checksum()
