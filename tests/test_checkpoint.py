import contextlib
import logging
import os
import shutil
import sys

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from draem_jax.errors import UserError
from draem_jax.training import train
from draem_jax.training.step import TrainState
from draem_jax.workdir import checkpoint

MANY = 30_000  # Values that are stored in a file of their own.


def make_state(step, width=3, average=None):
  """A state whose parameters are `step`, and `average` on average."""

  def variables(value):
    return {
      'params': {
        'conv': {'kernel': jnp.full((2, width), float(value))},
        'large': value + jnp.linspace(0, 1, MANY),
      },
      'batch_stats': {'mean': value + jnp.arange(4.0)},
    }

  optimizer = optax.adam(lambda step: 0.0)
  opt_state = jax.tree.map(
    lambda moment: (
      moment + step + jnp.arange(moment.size).reshape(moment.shape)
    ),
    optimizer.init(variables(step)['params']),
  )
  state = TrainState(
    step=jnp.int32(step),
    **variables(step),
    opt_state=opt_state,
    ema=None if average is None else variables(average),
  )
  return jax.device_put(state, one_device())


def one_device():
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def save(folder, *steps, keep=3, average=None):
  checkpointer = checkpoint.Checkpointer(folder, keep=keep)
  for step in steps:
    state = make_state(step, average=average)
    checkpointer.save(step, state, state.evaluated)
  checkpointer.close()


def save_as_before(folder, *steps):
  """Checkpoints of one item, of a state that had no field for an average."""
  manager = ocp.CheckpointManager(
    folder, item_handlers=ocp.StandardCheckpointHandler()
  )
  for step in steps:
    state = make_state(step)
    parts = ('step', 'params', 'batch_stats', 'opt_state')
    old = {name: getattr(state, name) for name in parts}
    manager.save(step, args=ocp.args.StandardSave(old))
  manager.close()


def restore(folder, width=3, average=None):
  checkpointer = checkpoint.Checkpointer(folder, keep=3)
  try:
    return checkpointer.restore_latest(
      train.abstract(make_state(0, width, average))
    )
  finally:
    checkpointer.close()


def restore_variables(folder, width=3):
  shapes = jax.eval_shape(lambda: make_state(0, width).evaluated)
  return checkpoint.restore_variables(folder, shapes)


def assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def damage(folder):
  for path in folder.rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.write_bytes(b'')


def test_the_newest_is_restored_and_the_oldest_dropped(tmp_path):
  save(tmp_path, 1, 2, 3, keep=2)
  step, state = restore(tmp_path)
  assert step == 3
  assert_equal(state, make_state(3))
  assert names(tmp_path) == ['2', '3']


def test_nothing_to_restore(tmp_path):
  assert restore(tmp_path / 'none') is None


def test_a_save_cut_short_is_passed_over(tmp_path):
  save(tmp_path, 1)
  half = tmp_path / '2.orbax-checkpoint-tmp'
  (half / 'state').mkdir(parents=True)
  restore_variables(tmp_path)
  assert half.exists()
  assert restore(tmp_path)[0] == 1
  assert names(tmp_path) == ['1']


def test_another_width_is_named(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(UserError, match=r'kernel has the shape \(2, 3\)'):
    restore(tmp_path, width=5)
  with pytest.raises(UserError, match=r'kernel has the shape \(2, 3\)'):
    restore_variables(tmp_path, width=5)


def test_other_networks_are_named(tmp_path):
  save(tmp_path, 1)
  shapes = {'params': {'other': jax.ShapeDtypeStruct((3,), jnp.float32)}}
  with pytest.raises(UserError, match='holds no params/other'):
    checkpoint.restore_variables(tmp_path, shapes)


@pytest.mark.parametrize('average', [None, 7])
def test_each_array_is_written_once(tmp_path, average):
  save(tmp_path, 1, average=average)
  assert names(tmp_path / '1')[-2:] == ['state', 'variables']
  reader = ocp.StandardCheckpointer()
  state = reader.metadata(tmp_path / '1' / 'state').item_metadata
  assert ('params' in state) == ('batch_stats' in state) == bool(average)
  assert 'opt_state' in state and 'ema' not in state
  variables = reader.metadata(tmp_path / '1' / 'variables').item_metadata
  assert variables.keys() == {'params', 'batch_stats'}


def test_what_is_evaluated_is_restored_alone(tmp_path):
  save(tmp_path, 1, 2)
  assert_equal(restore_variables(tmp_path), make_state(2).evaluated)
  for step in '12':
    shutil.rmtree(tmp_path / step / 'state')
  assert_equal(restore_variables(tmp_path), make_state(2).evaluated)
  assert names(tmp_path) == ['1', '2']
  with pytest.raises(UserError, match='does not exist'):
    restore_variables(tmp_path / 'none')


def test_an_average_is_restored_beside_what_is_trained(tmp_path):
  save(tmp_path, 1, average=7)
  assert_equal(restore(tmp_path, average=0)[1], make_state(1, average=7))
  assert_equal(restore_variables(tmp_path), make_state(7).evaluated)
  # A run that keeps no average goes on from the parameters themselves.
  assert_equal(restore(tmp_path)[1], make_state(1))


def with_best(state, best):
  """The state with the variables of step `best` kept as the best."""
  record = {'step': jnp.int32(best), 'pixel_ap': jnp.float32(0.3)}
  record = jax.device_put(record, one_device())
  return state.replace(best=make_state(best).variables, record=record)


def restore_with_best(folder, average=None):
  checkpointer = checkpoint.Checkpointer(folder, keep=3)
  shapes = train.abstract(with_best(make_state(0, average=average), 0))
  _, state = checkpointer.restore_latest(shapes)
  checkpointer.close()
  return state


@pytest.mark.parametrize('average', [None, 7])
def test_the_best_is_restored_beside_what_is_trained(tmp_path, average):
  expected = with_best(make_state(3, average=average), 2)
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=3)
  checkpointer.save(3, expected, expected.evaluated)
  checkpointer.close()
  assert_equal(restore_variables(tmp_path), make_state(2).variables)
  assert_equal(restore_with_best(tmp_path, average and 0), expected)
  reader = ocp.StandardCheckpointer()
  state = reader.metadata(tmp_path / '3' / 'state').item_metadata
  assert 'best' not in state and ('ema' in state) == bool(average)


@pytest.mark.parametrize('average', [None, 7])
def test_before_an_evaluation_there_is_no_best(tmp_path, average):
  save(tmp_path, 3, average=average)
  state = restore_with_best(tmp_path, average and 0)
  assert_equal(state, make_state(3, average=average))
  assert state.best is None and state.record is None


@pytest.mark.parametrize('write', [save, save_as_before])
def test_an_average_starts_from_the_parameters(tmp_path, write):
  write(tmp_path, 1)
  _, state = restore(tmp_path, average=0)
  assert_equal(state, make_state(1, average=1))
  jax.jit(lambda state: state, donate_argnums=0)(state)


def test_checkpoints_of_earlier_versions_are_read_and_gone_on_from(tmp_path):
  save_as_before(tmp_path, 1, 2)
  assert names(tmp_path / '2')[-1] == 'default'
  assert_equal(restore_variables(tmp_path), make_state(2).evaluated)
  step, state = restore(tmp_path)
  assert step == 2
  assert_equal(state, make_state(2))
  save(tmp_path, 3, keep=2)
  assert names(tmp_path) == ['2', '3']
  assert_equal(restore(tmp_path)[1], make_state(3))
  assert_equal(restore_variables(tmp_path), make_state(3).evaluated)


def test_damaged_checkpoints_of_earlier_versions_are_passed_over(tmp_path):
  save_as_before(tmp_path, 1, 2)
  damage(tmp_path / '2')
  with pytest.raises(UserError, match='2 is damaged.*1 can be read'):
    restore_variables(tmp_path)
  assert restore(tmp_path)[0] == 1


def cut_short(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
  path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


@pytest.mark.parametrize(
  ('files', 'harm'),
  [
    ('_METADATA', os.remove),
    ('_METADATA', cut_short),
    ('_METADATA', garble),
    ('_METADATA', lambda path: path.write_text('{}')),
    ('_sharding', cut_short),
    ('_sharding', garble),
    ('array_metadatas/*', cut_short),
    ('array_metadatas/*', garble),
    ('manifest.ocdbt', os.remove),
    ('manifest.ocdbt', cut_short),
    ('manifest.ocdbt', garble),
    ('d/*', os.remove),
    ('d/*', cut_short),
    ('d/*', garble),
    ('ocdbt.process_0/d/*', os.remove),
    ('ocdbt.process_0/d/*', cut_short),
    ('ocdbt.process_0/d/*', garble),
    ('', shutil.rmtree),
  ],
)
@pytest.mark.parametrize('item', ['state', 'variables'])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, item, files, harm):
  save(tmp_path, 1, 2)
  harmed = list((tmp_path / '2').glob(f'{item}/{files}'))
  assert harmed
  for path in harmed:
    harm(path)
  if item == 'variables':
    # An older one does not stand in for it, for thresholds are not of that.
    with pytest.raises(UserError, match='2 is damaged.*1 can be read'):
      restore_variables(tmp_path)
  else:
    assert_equal(restore_variables(tmp_path), make_state(2).evaluated)
  step, state = restore(tmp_path)
  assert step == 1
  assert_equal(state, make_state(1))


@pytest.mark.parametrize('average', [None, 7])
def test_no_flipped_bit_is_silent(tmp_path, average):
  save(tmp_path / 'sound', 1, average=average)
  sound = make_state(1, average=average)
  files = [path for path in (tmp_path / 'sound').rglob('*') if path.is_file()]
  # Some names are new each time: in an order by what the files are.
  files.sort(key=lambda path: (path.parent.as_posix(), path.stat().st_size))
  files = [path for path in files if path.stat().st_size]
  rng = np.random.default_rng(0)
  noticed = 0
  for number in range(40):
    harmed = tmp_path / f'{number}'
    shutil.copytree(tmp_path / 'sound', harmed)
    file = files[number % len(files)].relative_to(tmp_path / 'sound')
    data = bytearray((harmed / file).read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    (harmed / file).write_bytes(data)
    try:
      # What neither notices has harmed nothing that they read.
      assert_equal(restore_variables(harmed), sound.evaluated)
      assert_equal(restore(harmed, average=average)[1], sound)
    except UserError:
      noticed += 1
  assert noticed > 10


def test_a_renamed_field_of_an_array_is_damage(tmp_path):
  save(tmp_path, 1, 2)
  path = tmp_path / '2/variables/array_metadatas/process_0'
  text = path.read_text()
  for old, new in (
    ('"array_metadata":', '"array_metadaua":'),
    ('name', 'nbme'),
  ):
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match='2 is damaged'):
      restore_variables(tmp_path)


def test_a_place_in_a_tuple_that_is_another_is_damage(tmp_path):
  save(tmp_path, 1, 2)
  path = tmp_path / '2/state/_METADATA'
  text = path.read_text()
  assert '"key": "1"' in text
  path.write_text(text.replace('"key": "1"', '"key": "3"'))
  assert restore(tmp_path)[0] == 1


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_damage(tmp_path, value):
  save(tmp_path, 1)
  state = make_state(2)
  state = state.replace(params=jax.tree.map(lambda x: x * value, state.params))
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=3)
  checkpointer.save(2, state, state.evaluated)
  checkpointer.close()
  with pytest.raises(UserError, match='2 is damaged.*1 can be read'):
    restore_variables(tmp_path)
  assert restore(tmp_path)[0] == 1


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('variables/_METADATA', '[]'),
    ('variables/_METADATA', '[' * 100_000),
    ('variables/_METADATA', '{"tree_metadata": 3}'),
    ('variables/array_metadatas/process_0', '[]'),
    ('variables/array_metadatas/process_0', '{"array_metadatas": [3]}'),
    ('checksums/metadata', '[]'),
    ('checksums/metadata', '{"variables": 3, "state": 3}'),
  ],
)
def test_json_of_another_shape_is_damage(tmp_path, file, text):
  save(tmp_path, 1, 2)
  assert (tmp_path / '2' / file).exists()
  (tmp_path / '2' / file).write_text(text)
  with pytest.raises(UserError, match='2 is damaged.*1 can be read'):
    restore_variables(tmp_path)


def test_what_orbax_raises_it_need_not_trace(tmp_path, capfd):
  save(tmp_path, 1)
  for path, shown in (('x/orbax/a.py', False), ('x/etils/a.py', True)):
    record = logging.LogRecord('absl', 40, path, 1, 'a trace', (), None)
    logger = absl.logging.get_absl_logger()
    assert bool(logger.filter(record)) is shown


def test_reads_that_end_late_leave_no_trace(tmp_path, monkeypatch):
  traced = []
  monkeypatch.setattr(sys, 'unraisablehook', traced.append)
  save(tmp_path / 'sound', 1)
  for number, path in enumerate((tmp_path / 'sound').rglob('d/*')):
    folder = tmp_path / str(number)
    shutil.copytree(tmp_path / 'sound', folder)
    (folder / path.relative_to(tmp_path / 'sound')).unlink()
    with contextlib.suppress(UserError):
      restore_variables(folder)
    with contextlib.suppress(UserError):
      restore(folder)
  assert not [f'{each.exc_value}: {each.object}' for each in traced]


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_a_checkpoint_is_as_readable_as_the_umask_says(tmp_path, umask):
  before = os.umask(umask)
  try:
    save(tmp_path / 'checkpoints', 1)
  finally:
    os.umask(before)
  for path in (tmp_path / 'checkpoints').rglob('*'):
    most = 0o777 if path.is_dir() else 0o666
    assert path.stat().st_mode & 0o777 == most & ~umask, path


def test_lost_checksums_are_damage(tmp_path):
  save(tmp_path, 1, 2)
  shutil.rmtree(tmp_path / '2' / 'checksums')
  assert restore(tmp_path)[0] == 1


def test_a_damaged_checkpoint_is_set_aside_and_kept(tmp_path, caplog):
  save(tmp_path, 1, 5)
  damage(tmp_path / '5')
  before = contents(tmp_path / '5')
  # Who only reads changes nothing.
  with pytest.raises(UserError, match='5 is damaged.*1 can be read'):
    restore_variables(tmp_path)
  assert names(tmp_path) == ['1', '5']
  caplog.clear()
  assert restore(tmp_path)[0] == 1
  assert names(tmp_path) == ['1', '5.damaged']
  assert f'{tmp_path / "5"} is kept as {tmp_path / "5.damaged"}' in caplog.text
  # The run goes on and comes to the same step, with any steps between.
  save(tmp_path, 2, 5, keep=2)
  assert names(tmp_path) == ['2', '5', '5.damaged']
  damage(tmp_path / '5')
  assert restore(tmp_path)[0] == 2
  assert names(tmp_path) == ['2', '5.damaged', '5.damaged-2']
  assert contents(tmp_path / '5.damaged') == before


def test_the_same_checkpointer_goes_on_behind_a_damaged_one(tmp_path):
  save(tmp_path, 1, 5)
  damage(tmp_path / '5')
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=3)
  _, state = checkpointer.restore_latest(train.abstract(make_state(0)))
  for step in (3, 5):
    checkpointer.save(step, state, state.evaluated)
  checkpointer.close()
  assert names(tmp_path) == ['1', '3', '5', '5.damaged']


def test_only_damaged_checkpoints_are_an_error(tmp_path):
  save(tmp_path, 1, 2)
  damage(tmp_path / '1')
  damage(tmp_path / '2')
  for read in (restore, restore_variables):
    with pytest.raises(UserError) as error:
      read(tmp_path)
    assert 'none of the checkpoints [1, 2]' in str(error.value)
    assert 'backup' in str(error.value) and '--workdir' in str(error.value)
    assert 'remove' not in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)
  assert names(tmp_path) == ['1', '2']


@pytest.mark.parametrize(
  'error',
  [
    TypeError('ours'),
    AttributeError('ours'),
    KeyboardInterrupt(),
    PermissionError('not ours to read'),
    ValueError('PERMISSION_DENIED: not ours to read'),
  ],
)
def test_what_is_no_damage_comes_through(tmp_path, monkeypatch, error):
  save(tmp_path, 1, 2)

  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', fail)
  for read in (restore, restore_variables):
    with pytest.raises(type(error)) as caught:
      read(tmp_path)
    assert caught.value is error
  assert names(tmp_path) == ['1', '2']


def test_a_save_that_would_not_be_the_newest_is_no_silence(tmp_path):
  save(tmp_path, 1, 5)
  with pytest.raises(ValueError, match='3'):
    save(tmp_path, 3)


@pytest.mark.parametrize('average', [None, 7])
def test_a_disk_too_small_is_named_before_anything_is_written(
  tmp_path, monkeypatch, average
):
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)
  state = make_state(1, average=average)
  networks = 4 * (6 + MANY + 4)
  size = 4 + 4 + networks * (1 if average is None else 2)
  size += 4 + 2 * 4 * (6 + MANY)
  arguments = (state, state.evaluated)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=2 * size)
  )
  checkpointer.check_room(*arguments, saves=2)
  with pytest.raises(UserError, match='config.keep_checkpoints'):
    checkpointer.check_room(*arguments, saves=9)  # Of which three at a time.
  checkpointer.save(1, *arguments)
  checkpointer.wait()
  checkpointer.check_room(*arguments, saves=9)
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda path: usage._replace(free=size - 1)
  )
  with pytest.raises(UserError, match='make room'):
    checkpointer.save(2, *arguments)
  assert checkpointer.steps() == [1]
  checkpointer.close()


def test_a_disk_that_fills_while_it_is_written_is_named(tmp_path, monkeypatch):
  checkpointer = checkpoint.Checkpointer(tmp_path, keep=2)

  def fail(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: ... No space left on device')

  monkeypatch.setattr(checkpointer._manager, 'wait_until_finished', fail)
  with pytest.raises(UserError, match='the disk is full'):
    checkpointer.wait()
