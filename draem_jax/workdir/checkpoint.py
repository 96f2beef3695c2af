"""Checkpoints of a run with orbax: save, restore, and what to keep.

A checkpoint is a folder named by its step that holds two items: `variables`
(`params` and `batch_stats`), which is what is evaluated, and `state`, which is
the rest of what going on needs. Where `variables` are the parameters that are
trained, `state` holds none; where they are an average of them, or the best so
far, it does.
Checkpoints of earlier versions hold the whole state as one item, `default`.

The item `checksums` has one of each array, for orbax keeps none: a bit that
flips on the disk would come back as a weight. Earlier checkpoints have no such
item and are taken as they are.

A save is asynchronous and lands under its final name only when complete, so a
crash leaves at most a temporary folder that nothing reads. A checkpoint whose
files were damaged afterwards is reported and passed over for the one before,
and set aside under another name before the next one is saved.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import inspect
import json
import logging
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import absl.logging
import jax
import numpy as np

from draem_jax import devices
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

_STATE, _VARIABLES, _OLD = 'state', 'variables', 'default'
_CHECKSUMS = 'checksums'
# What orbax knows of each array beside its values.
_ARRAY_METADATA = {'param_name', 'write_shape', 'chunk_shape'}

# What orbax, tensorstore and json raise when files of a checkpoint are cut
# short, altered or gone; and a plain `Exception` for an array's data.
_DAMAGE = (FileNotFoundError, KeyError, NotImplementedError, ValueError)
# What reading JSON of another shape raises besides; elsewhere it is our fault.
_MISSHAPEN = (
  AssertionError,
  AttributeError,
  IndexError,
  RecursionError,
  TypeError,
)
# Tensorstore says with a `ValueError` too that the system refuses to read.
_REFUSALS = ('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED')


class Checkpointer:
  """The numbered checkpoints of one folder, of a run that trains there."""

  def __init__(
    self, folder: str | pathlib.Path, *, keep: int, is_shared: bool = True
  ):
    """Opens `folder`, which is made if it is not there.

    Args:
      folder: where the checkpoints lie, one folder a step.
      keep: how many of the newest stay.
      is_shared: whether it is one folder for all processes of a cluster, which
        write its arrays together. Else the main one writes all of them, in its
        own.
    """
    self.folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._saves_alone = not is_shared and jax.process_count() > 1
    # The same filter is there but once.
    absl.logging.get_absl_logger().addFilter(_is_not_of_orbax)
    if devices.is_main_process() or not is_shared:
      # Of a save that was killed; whoever has the lock is alone here.
      for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path, ignore_errors=True)
      self.folder.mkdir(parents=True, exist_ok=True)

  @functools.cached_property
  def _manager(self) -> Any:
    """Orbax's, made when it is needed: a run that begins has nothing to read.

    In a cluster every process must ask for it at the same time, unless the
    main one saves alone.
    """
    # Here and below, as it takes a while to import.
    import orbax.checkpoint as ocp

    options = {}
    if self._saves_alone:
      options['create'] = False
      options['multiprocessing_options'] = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}
      )
    return ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=self._keep, enable_async_checkpointing=True, **options
      ),
    )

  def check_room(self, state: Any, variables: Any, *, saves: int = 1) -> None:
    """Raises a `UserError` if the disk has no room for checkpoints to come.

    Args:
      state: what they will hold, or its shapes.
      variables: what of it is evaluated, as `save` takes it.
      saves: how many there will be. No more than `keep` stay, and one more is
        there while the next is written.
    """
    leaves = jax.tree.leaves(_items(state, variables))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    saves = min(saves, max(self._keep + 1 - len(self.steps()), 1))
    free = shutil.disk_usage(self.folder).free
    # Together, or one process of a cluster would wait for another in vain.
    if devices.max_over_processes(saves * size > free):
      raise UserError(
        f'{self.folder} has {free / 2**20:,.0f} MiB of free space, where'
        f' {saves * size / 2**20:,.0f} MiB of checkpoints are to come: make'
        ' room, lower config.keep_checkpoints, or take another --workdir'
      )

  def save(self, step: int, state: Any, variables: Mapping[str, Any]) -> None:
    """Starts to save; returns once all was copied off the devices.

    Args:
      step: the number of the checkpoint, higher than those there.
      state: a dataclass of all that going on needs. A field that is a part of
        `variables` is not written again, nor is one that is `variables`, such
        as its `ema` or `best`.
      variables: what of it is evaluated, `params` and `batch_stats`.

    Raises:
      UserError: if there is no room on the disk, for this one or for one that
        was started before.
    """
    import orbax.checkpoint as ocp

    with self._naming_a_full_disk():
      self.check_room(state, variables)
      if self._saves_alone and not devices.is_main_process():
        return
      items = _items(state, variables)
      if self._saves_alone:
        # Orbax would leave a part of each array to the other processes.
        items = jax.tree.map(_own_copy, items)
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(item) for name, item in items.items()},
          **{_CHECKSUMS: ocp.args.JsonSave(_checksums(items))},
        ),
      )
    if not saved:
      raise ValueError(f'{self.folder}: step {step} after {self.steps()}')

  def wait(self) -> None:
    """Returns when every save that was started is on disk."""
    if '_manager' in vars(self):
      with self._naming_a_full_disk():
        self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, oldest first."""
    return list_steps(self.folder)

  def restore_latest(self, abstract_state: Any) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that can be read.

    Newer ones that cannot are renamed, so that the run may go on from there.
    In a cluster every process calls this, and restores the same step.

    Args:
      abstract_state: the state to restore as `jax.ShapeDtypeStruct`s, with the
        shardings it shall have. If its `ema` is not None and the checkpoint
        holds no average, the average starts from the parameters. If its `best`
        and `record` are not None and the checkpoint holds none, they are None.

    Returns:
      The step and the state, or None if the folder holds no checkpoint.

    Raises:
      UserError: if the checkpoint holds arrays of other names or shapes, or if
        there are some and none can be read.
    """
    newest = _read_newest(
      self.folder,
      lambda checkpoint: _read_state(checkpoint, abstract_state),
      together=True,
    )
    if newest is None:
      return None
    step, state, damaged = newest
    if damaged:
      self._set_aside(damaged)
    return step, state

  def close(self) -> None:
    """Waits for saves under way and releases the manager's threads."""
    if '_manager' in vars(self):
      with self._naming_a_full_disk():
        self._manager.close()

  def _set_aside(self, steps: list[int]) -> None:
    """Renames checkpoints, so that orbax neither counts nor deletes them."""
    if devices.is_main_process():
      for step in steps:
        path = self.folder / str(step)
        aside = path.with_name(f'{step}.damaged')
        number = 1
        while aside.exists():
          number += 1
          aside = path.with_name(f'{step}.damaged-{number}')
        path.rename(aside)
        _log.warning('checkpoint %s is kept as %s', path, aside)
    devices.wait_for_processes('checkpoints are set aside')
    if '_manager' in vars(self):
      self._manager.reload()

  @contextlib.contextmanager
  def _naming_a_full_disk(self) -> Iterator[None]:
    """Orbax wraps what the system said; the words are still in it."""
    try:
      yield
    except Exception as error:
      known = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))
      if isinstance(error, UserError) or not any(
        w in str(error) for w in known
      ):
        raise
      raise UserError(
        f'{self.folder}: a checkpoint could not be written, for the disk is'
        ' full: make room, and the same command goes on from the one before'
      ) from error


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  """Whether to show a record: what orbax traces, it raises as well."""
  return not _is_of_orbax(record.pathname)


def _is_of_orbax(path: str) -> bool:
  return f'{os.sep}orbax{os.sep}' in path


def restore_variables(
  folder: str | pathlib.Path, abstract_variables: Mapping[str, Any]
) -> dict[str, Any]:
  """Restores only what is evaluated of a run, from its newest checkpoint.

  Args:
    folder: the checkpoints of the run.
    abstract_variables: `params` and `batch_stats` as `jax.ShapeDtypeStruct`s.

  Raises:
    UserError: if there is no checkpoint, the newest is damaged, or it holds
      arrays of other names or shapes. An older one does not stand in for it:
      the thresholds are not of its networks.
  """
  folder = pathlib.Path(folder).absolute()
  if not folder.is_dir():
    raise UserError(
      f'{folder} does not exist: --workdir must be the folder of a trained run'
    )
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    dict(abstract_variables),
  )
  newest = _read_newest(
    folder,
    lambda checkpoint: _read(_item(checkpoint, _VARIABLES), abstract),
    together=False,
  )
  if newest is None:
    raise UserError(f'{folder} holds no complete checkpoint: train there first')
  step, variables, damaged = newest
  if damaged:
    raise UserError(
      f'{folder / str(max(damaged))} is damaged, and thresholds and results are'
      f' of its networks; {folder / str(step)} can be read: run draem_jax.main'
      ' in this workdir, which goes on from there, or restore it from a backup'
    )
  return variables


def list_steps(folder: str | pathlib.Path) -> list[int]:
  """The steps that have a complete checkpoint in a folder, oldest first."""
  return sorted(
    int(path.name)
    for path in pathlib.Path(folder).glob('*')
    if path.name.isdecimal() and _is_complete(path)
  )


def _is_complete(path: pathlib.Path) -> bool:
  import orbax.checkpoint as ocp
  from etils import epath

  return ocp.utils.is_checkpoint_finalized(epath.Path(path))


def _items(state: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
  """The items of a checkpoint by name, each array in one of them."""
  rest = {
    name: part
    for name, part in _parts(state).items()
    if part is not variables and part is not variables.get(name)
  }
  return {_STATE: rest, _VARIABLES: dict(variables)}


def _own_copy(array: jax.Array) -> np.ndarray:
  """A replicated array as this process has it, which no step writes over."""
  return np.array(array.addressable_data(0))


def _parts(state: Any) -> dict[str, Any]:
  """The fields of a state that are not None, by name."""
  parts = {x.name: getattr(state, x.name) for x in dataclasses.fields(state)}
  return {name: part for name, part in parts.items() if part is not None}


def _read_newest(
  folder: pathlib.Path,
  read: Callable[[pathlib.Path], Any],
  *,
  together: bool,
) -> tuple[int, Any, list[int]] | None:
  """Reads the newest checkpoint that can be read.

  Args:
    folder: where the checkpoints lie.
    read: the function from a checkpoint's folder to what is made of it.
    together: whether all processes of a cluster do this at once. Then the main
      one says which step, and what one of them cannot read, none takes.

  Returns:
    The step, what was read, and the newer steps that are damaged; None if
    there is no checkpoint.
  """
  damaged, cause = [], None
  while True:
    step = max(set(list_steps(folder)) - set(damaged), default=-1)
    if together:
      step = devices.main_process_says(step)
    if step < 0:
      break
    path, result, error = folder / str(step), None, None
    try:
      with _passing_over_late_reads():
        result = read(path)
    except Exception as caught:
      error = caught
    # A process that fails must not leave the others waiting: all know first.
    worst = own = 0 if error is None else 1 if _is_damage(error) else 2
    if together:
      worst = devices.max_over_processes(own)
    if own == 2:
      raise error
    if worst == 2:
      raise UserError(f'{path}: another process failed to restore it')
    if worst == 0:
      return step, result, damaged
    _log.warning(
      'checkpoint %s cannot be read and is passed over: %s',
      path,
      str(error or 'nor could another process').split('\n', 1)[0][:160],
    )
    damaged.append(step)
    cause = cause or error
  if damaged:
    raise UserError(
      f'{folder}: none of the checkpoints {sorted(damaged)} can be read:'
      ' restore them from a backup, or train in another --workdir'
    ) from cause
  return None


@contextlib.contextmanager
def _passing_over_late_reads() -> Iterator[None]:
  """Keeps quiet about reads that end after the one that failed.

  Orbax has closed its event loop by then, and Python would print a traceback
  for each of them. They may come at any time, so that a failure leaves this in
  place.
  """
  shown = sys.unraisablehook

  def hook(raised: 'sys.UnraisableHookArgs') -> None:
    if not _is_late_read(raised):
      shown(raised)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = shown


def _is_late_read(raised: 'sys.UnraisableHookArgs') -> bool:
  if inspect.iscoroutine(raised.object):
    return _is_of_orbax(raised.object.cr_code.co_filename)
  return (
    isinstance(raised.exc_value, RuntimeError)
    and str(raised.exc_value) == 'Event loop is closed'
  )


def _is_damage(error: Exception) -> bool:
  if isinstance(error, UserError):
    return False
  words = f'{error} {error.__cause__}'
  return (isinstance(error, _DAMAGE) or type(error) is Exception) and not any(
    refusal in words for refusal in _REFUSALS
  )


def _read_state(checkpoint: pathlib.Path, abstract_state: Any) -> Any:
  wanted = _parts(abstract_state)
  folder = _item(checkpoint, _STATE)
  there = {name.split('/', 1)[0] for name in _shapes(_metadata(folder))}
  best, none = wanted.pop('best', None), {}
  if best is not None and 'record' not in there:
    # There was no evaluation yet.
    none, best = dict.fromkeys(('best', 'record')), None
    wanted.pop('record')
  # Beside the best variables the average is a part of the state.
  average = None if 'ema' in there else wanted.pop('ema', None)
  state = {name: part for name, part in wanted.items() if name in there}
  rest = {name: part for name, part in wanted.items() if name not in there}
  variables = _item(checkpoint, _VARIABLES)
  read = _read(folder, state) | _read(variables, rest)
  if average is not None:
    # Read again where it is the parameters: a step is given the memory of both.
    read['ema'] = _read(variables, average)
  if best is not None:
    read['best'] = _read(variables, best)
  return dataclasses.replace(abstract_state, **read, **none)


def _item(checkpoint: pathlib.Path, name: str) -> pathlib.Path:
  old = checkpoint / _OLD
  return old if old.is_dir() else checkpoint / name


def _read(folder: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
  """Reads that part of an item which `abstract` names.

  By the handler and not by the manager, which makes the processes of a cluster
  wait for each other: one that fails would keep the others for minutes.
  """
  if not jax.tree.leaves(abstract):
    return abstract
  expected, found = _shapes(abstract), _shapes(_metadata(folder))
  for name in sorted(expected):
    if name not in found:
      raise UserError(
        f'{folder} holds no {name}, which the config asks for: set config.model'
        ' and config.optimizer as the run was trained, or take another'
        ' --workdir'
      )
    if expected[name] != found[name]:
      raise UserError(
        f'{folder}: {name} has the shape {found[name]} where the config asks'
        f' for {expected[name]}: set config.model.*_width as the run was'
        ' trained, or take another --workdir'
      )
  _check_array_metadata(folder)
  import orbax.checkpoint as ocp
  from etils import epath

  read = ocp.PyTreeCheckpointHandler().restore(
    epath.Path(folder),
    args=ocp.args.PyTreeRestore(
      item=abstract,
      restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
      partial_restore=True,
    ),
  )
  _compare_checksums(folder, read)
  _check_finite(read)
  return read


def _check_array_metadata(folder: pathlib.Path) -> None:
  """Raises a `ValueError` for an entry that orbax would take for another's.

  What raises in orbax because of it says nothing of a damaged file.
  """
  for path in folder.glob('array_metadatas/*'):
    with _misshapen_is_damage(path):
      entries = json.loads(path.read_text(encoding='utf-8'))['array_metadatas']
      for entry in entries:
        fields = entry['array_metadata']
        if not fields.keys() >= _ARRAY_METADATA:
          raise ValueError(f'{path} lacks fields of {fields}')


@contextlib.contextmanager
def _misshapen_is_damage(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except _MISSHAPEN as error:
    raise ValueError(f'{path} holds something else ({error})') from error


def _checksums(items: Mapping[str, Any]) -> dict[str, dict[str, int]]:
  """The CRC-32 of each array by item and name.

  Arrays are replicated, so that every process of a cluster has the same.
  """

  def checksum(leaf: jax.Array | np.ndarray) -> int:
    if isinstance(leaf, jax.Array):
      leaf = leaf.addressable_data(0)
    return zlib.crc32(np.ascontiguousarray(leaf))

  found = {}
  # In threads, for a large state takes a second otherwise, at each save.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for item, tree in items.items():
      leaves = _leaves(tree)
      sums = pool.map(checksum, leaves.values())
      found[item] = dict(zip(leaves, sums, strict=True))
  return found


def _compare_checksums(folder: pathlib.Path, read: dict[str, Any]) -> None:
  """Raises a `ValueError` if an array is not as it was saved."""
  path = folder.parent / _CHECKSUMS
  # Orbax lists the items of a checkpoint: earlier ones have no checksums.
  listing = folder.parent / '_CHECKPOINT_METADATA'
  if not path.exists() and f'"{_CHECKSUMS}"' not in listing.read_text():
    return
  found = _checksums({folder.name: read})[folder.name]
  import orbax.checkpoint as ocp
  from etils import epath

  with _misshapen_is_damage(path):
    saved = ocp.JsonCheckpointHandler().restore(epath.Path(path))[folder.name]
    for name, value in found.items():
      if saved[name] != value:
        raise ValueError(f'the checksum of {name} is not as it was saved')


def _check_finite(read: dict[str, Any]) -> None:
  """Raises a `ValueError` if there is a weight that is no number."""
  for name, leaf in _leaves(read).items():
    if name.split('/', 1)[0] in ('params', 'batch_stats'):
      value = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
      if not np.isfinite(np.asarray(value)).all():
        raise ValueError(f'{name} is not finite')


def _metadata(folder: pathlib.Path) -> Any:
  import orbax.checkpoint as ocp
  from etils import epath

  with _misshapen_is_damage(folder):
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
  """The arrays of a tree by name."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    '/'.join(_key_name(key) for key in path): leaf
    for path, leaf in leaves
    if getattr(leaf, 'shape', None) is not None
  }


def _key_name(key: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
