"""Checkpoints of a run with orbax: save, restore, and what to keep.

A save is asynchronous and lands under its final name only when complete, so a
crash leaves at most a temporary folder that nothing reads. A checkpoint whose
files were damaged afterwards is reported and passed over for the one before.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from draem_jax.errors import UserError

_log = logging.getLogger(__name__)


class Checkpointer:
  """The numbered checkpoints of one folder."""

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    keep: int | None,
    handler: ocp.CheckpointHandler | None = None,
  ):
    """Opens `folder`, which is made if something is to be kept.

    Args:
      folder: where the checkpoints lie, one folder a step.
      keep: how many of the newest stay; None opens the folder to read only.
      handler: how a state is laid out on disk; orbax's standard by default.
    """
    self.folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers=handler or ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=keep is not None,
        # A reader must not tidy up under a training that is still writing.
        cleanup_tmp_directories=keep is not None,
        enable_async_checkpointing=True,
      ),
    )

  def check_room(self, state: Any, *, saves: int = 1) -> None:
    """Raises a `UserError` if the disk has no room for checkpoints to come.

    Args:
      state: what they will hold, or its shapes.
      saves: how many there will be. No more than `keep` stay, and one more is
        there while the next is written.
    """
    leaves = jax.tree.leaves(state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if self._keep is not None:
      saves = min(saves, max(self._keep + 1 - len(self.steps()), 1))
    free = shutil.disk_usage(self.folder).free
    if saves * size > free:
      raise UserError(
        f'{self.folder} has {free / 2**20:,.0f} MiB of free space, where'
        f' {saves * size / 2**20:,.0f} MiB of checkpoints are to come: make'
        ' room, lower config.keep_checkpoints, or take another --workdir'
      )

  def save(self, step: int, state: Any) -> None:
    """Starts to save `state`; returns once it was copied off the devices.

    Raises:
      UserError: if there is no room on the disk, for this one or for one that
        was started before.
    """
    with self._naming_a_full_disk():
      if step in self._manager.all_steps():
        # Only a checkpoint that was passed over as damaged is met again.
        self._manager.delete(step)
      self.check_room(state)
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def wait(self) -> None:
    """Returns when every save that was started is on disk."""
    with self._naming_a_full_disk():
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The steps that have a complete checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def restore_latest(
    self, abstract_state: Any, args: ocp.args.CheckpointArgs | None = None
  ) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that can be read.

    Args:
      abstract_state: the state to restore as `jax.ShapeDtypeStruct`s, with the
        shardings it shall have.
      args: how to restore; the whole state by default.

    Returns:
      The step and the state, or None if the folder holds no checkpoint.

    Raises:
      UserError: if the checkpoints hold arrays of other shapes, or if there
        are some and none can be read.
    """
    args = args or ocp.args.StandardRestore(abstract_state)
    steps = self.steps()
    for step in reversed(steps):
      try:
        self._check_shapes(step, abstract_state)
        return step, self._manager.restore(step, args=args)
      except UserError:
        raise
      except Exception as error:
        _log.warning(
          'checkpoint %s cannot be read and is passed over: %s',
          self.folder / str(step),
          str(error).split('\n', 1)[0][:160],
        )
    if steps:
      raise UserError(
        f'{self.folder}: none of the checkpoints {steps} can be read;'
        ' remove the folder to train anew'
      )
    return None

  def close(self) -> None:
    """Waits for saves under way and releases the manager's threads."""
    with self._naming_a_full_disk():
      self._manager.close()

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

  def _check_shapes(self, step: int, abstract_state: Any) -> None:
    found = _shapes(self._manager.item_metadata(step))
    expected = _shapes(abstract_state)
    for name in sorted(expected.keys() & found.keys()):
      if expected[name] != found[name]:
        raise UserError(
          f'{self.folder / str(step)}: {name} has the shape {found[name]} where'
          f' the config asks for {expected[name]}: set config.model.*_width as'
          ' the run was trained, or take another workdir'
        )


def restore_variables(
  folder: str | pathlib.Path, abstract_variables: Mapping[str, Any]
) -> dict[str, Any]:
  """Restores only the networks of a run, from its newest checkpoint.

  Args:
    folder: the checkpoints of the run.
    abstract_variables: `params` and `batch_stats` as `jax.ShapeDtypeStruct`s.

  Raises:
    UserError: as `Checkpointer.restore_latest`, or if there is no checkpoint.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(
      f'{folder} does not exist: --workdir must be the folder of a trained run'
    )
  checkpointer = Checkpointer(
    folder, keep=None, handler=ocp.PyTreeCheckpointHandler()
  )
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  item = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    dict(abstract_variables),
  )
  args = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  try:
    restored = checkpointer.restore_latest(item, args)
  finally:
    checkpointer.close()
  if restored is None:
    raise UserError(f'{folder} holds no complete checkpoint: train there first')
  return restored[1]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    '/'.join(_key_name(key) for key in path): tuple(leaf.shape)
    for path, leaf in leaves
    if getattr(leaf, 'shape', None) is not None
  }


def _key_name(key: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
