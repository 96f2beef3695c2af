import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax import checkpoint, train
from draem_jax.errors import UserError


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  batch_stats: dict


def make_state(step, width=3):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state = State(
    step=jnp.int32(step),
    params={'conv': {'kernel': jnp.full((2, width), float(step))}},
    batch_stats={'mean': jnp.arange(4.0)},
  )
  return jax.device_put(state, device)


def save(folder, *steps, keep=3):
  checkpointer = checkpoint.Checkpointer(folder, keep=keep)
  for step in steps:
    checkpointer.save(step, make_state(step))
  checkpointer.close()


def restore(folder, width=3):
  checkpointer = checkpoint.Checkpointer(folder, keep=3)
  try:
    return checkpointer.restore_latest(train.abstract(make_state(0, width)))
  finally:
    checkpointer.close()


def damage(folder):
  for path in folder.rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.write_bytes(b'')


def test_the_newest_is_restored_and_the_oldest_dropped(tmp_path):
  save(tmp_path, 1, 2, 3, keep=2)
  step, state = restore(tmp_path)
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['2', '3']


def test_nothing_to_restore(tmp_path):
  assert restore(tmp_path / 'none') is None


def test_a_save_cut_short_is_passed_over(tmp_path):
  save(tmp_path, 1)
  half = tmp_path / '2.orbax-checkpoint-tmp'
  (half / 'default').mkdir(parents=True)
  assert restore(tmp_path)[0] == 1


def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path, caplog):
  save(tmp_path, 1, 2)
  damage(tmp_path / '2')
  assert restore(tmp_path)[0] == 1
  save(tmp_path, 2)
  assert restore(tmp_path)[0] == 2


def test_only_damaged_checkpoints_are_an_error(tmp_path):
  save(tmp_path, 1)
  damage(tmp_path / '1')
  with pytest.raises(UserError, match='none of the checkpoints'):
    restore(tmp_path)


def test_another_width_is_named(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(UserError, match=r'kernel has the shape \(2, 3\)'):
    restore(tmp_path, width=5)


def test_the_networks_alone_are_restored(tmp_path):
  save(tmp_path, 1, 2)
  shapes = jax.eval_shape(
    lambda: {
      'params': make_state(0).params,
      'batch_stats': make_state(0).batch_stats,
    }
  )
  variables = checkpoint.restore_variables(tmp_path, shapes)
  assert variables.keys() == {'params', 'batch_stats'}
  np.testing.assert_array_equal(variables['params']['conv']['kernel'], 2.0)
  with pytest.raises(UserError, match='does not exist'):
    checkpoint.restore_variables(tmp_path / 'none', shapes)


def test_a_disk_too_small_is_named_before_anything_is_written(
  tmp_path, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)
  state = make_state(1)
  size = 4 + 4 * 6 + 4 * 4
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=2 * size)
  )
  checkpointer.check_room(state, saves=2)
  with pytest.raises(UserError, match='config.keep_checkpoints'):
    checkpointer.check_room(state, saves=9)  # Of which three at a time.
  checkpointer.save(1, state)
  checkpointer.wait()
  checkpointer.check_room(state, saves=9)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=size - 1)
  )
  with pytest.raises(UserError, match='make room'):
    checkpointer.save(2, state)
  assert checkpointer.steps() == [1]
  checkpointer.close()


def test_a_disk_that_fills_while_it_is_written_is_named(tmp_path, monkeypatch):
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)

  def fail(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: ... No space left on device')

  monkeypatch.setattr(checkpointer._manager, 'wait_until_finished', fail)
  with pytest.raises(UserError, match='the disk is full'):
    checkpointer.wait()
