"""The loop that trains a run, saves it and goes on with it."""

import contextlib
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from draem_jax import devices, interrupt
from draem_jax.errors import UserError
from draem_jax.pictures import panels
from draem_jax.training import layouts, optimizer, profiling, simulated
from draem_jax.training import trainer as trainer_lib
from draem_jax.training import writer as writer_lib
from draem_jax.training.step import (
  TrainState,
  abstract,
)
from draem_jax.workdir import checkpoint, lock, storage

_log = logging.getLogger(__name__)

# So many times what the worst constant answer would have is no training's loss.
_DIVERGED = 10.0
# How often the processes of a cluster ask each other whether to stop.
_AGREE_EVERY = 10  # Steps.


def save_imported(
  workdir: str | pathlib.Path,
  variables: Mapping[str, Any],
  config: Mapping[str, Any],
) -> None:
  """Writes networks from elsewhere as a run of which no step is done yet.

  `main` can evaluate such a workdir (with `config.num_epochs=0`) or train on
  from it, with any recipe for networks of these widths.

  Args:
    workdir: a folder that holds no run yet.
    variables: `params` and `batch_stats` of `models.Networks`.
    config: the fields that `Detector.load` needs.

  Raises:
    UserError: if the folder holds a run.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with lock.hold(workdir):
    _save_imported(workdir, variables, config)


def _save_imported(
  workdir: pathlib.Path,
  variables: Mapping[str, Any],
  config: Mapping[str, Any],
) -> None:
  """Does what `save_imported` says, alone in `workdir`."""
  if (workdir / 'config.json').exists():
    raise UserError(f'{workdir} holds a run already: take another --workdir')
  storage.clear_partial(workdir, deep=True)
  if checkpoint.list_steps(workdir / 'checkpoints') == [0]:
    # Of an import that was killed.
    shutil.rmtree(workdir / 'checkpoints')
  unused = optimizer.make_optimizer(lambda step: 0.0)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=unused.init(variables['params']),
  )
  checkpointer = checkpoint.Checkpointer(workdir / 'checkpoints', keep=1)
  state = jax.tree.map(jnp.asarray, state)
  checkpointer.save(0, state, state.evaluated)
  checkpointer.close()
  # Last, for a workdir counts as one when this is there.
  storage.write_json(
    workdir / 'config.json', {'config': dict(config), 'data': {}}
  )


def train(
  trainer: trainer_lib.Trainer,
  workdir: str | pathlib.Path,
  *,
  is_shared: bool = True,
) -> tuple[TrainState, writer_lib.Writer | None]:
  """Trains to the last step, from the newest checkpoint if there is one.

  With `config.stop_when_flat` the last step is the one where so many
  evaluations have found nothing better, and every checkpoint has the variables
  of the best one as those that are evaluated.

  Args:
    trainer: the run.
    workdir: its folder.
    is_shared: whether that is one folder for all processes of a cluster.

  Returns:
    The state after the last step, and the (closed) writer; None for the writer
    in the processes of a cluster that do not write.

  Raises:
    interrupt.Interrupted: on SIGTERM or SIGINT, once the state is saved.
    UserError: if a loss or a weight is not finite; the message names the step
      and the last good checkpoint. If the disk has no room for the checkpoints.
  """
  config, workdir = trainer.config, pathlib.Path(workdir)
  checkpointer = checkpoint.Checkpointer(
    workdir / 'checkpoints',
    keep=config['keep_checkpoints'],
    is_shared=is_shared,
  )
  state = trainer.init_state()
  shapes = abstract(state)
  if config['stop_when_flat']:
    shapes = _with_best(shapes)
  restored = checkpointer.restore_latest(shapes)
  first, state = restored or (0, state)
  if not restored and not trainer.num_steps:
    raise UserError(
      f'{checkpointer.folder} holds no checkpoint to evaluate: set'
      ' config.num_epochs or config.num_steps to train'
    )
  if restored:
    _log.info('going on from %s', checkpointer.folder / str(first))
  end = first if _is_flat(config, state, first) else trainer.num_steps
  saves = -(-(end - first) // config['checkpoint_every'])
  checkpointer.check_room(shapes, shapes.evaluated, saves=saves)
  evaluator = trainer.make_evaluator() if first < end else None
  writer = None
  if devices.is_main_process():
    writer = writer_lib.Writer(
      workdir,
      first_step=first,
      num_steps=trainer.num_steps,
      batch_size=config['batch_size'],
    )
  profiler = profiling.Profiler(
    workdir / 'profile',
    steps=config['profile_steps'],
    first=first + 1,
    last=trainer.num_steps,
  )
  pending = []
  # One small program, and not one for each operation.
  schedule = jax.jit(trainer.schedule)
  try:
    if writer and first < end:
      writer.progress.start()
    with interrupt.SignalWatch() as watch:
      for step in range(first + 1, end + 1):
        # What goes to the devices unasked would make them wait for the host.
        with profiler.before(step), jax.transfer_guard('disallow'):
          state, metrics = trainer.step(state, step - 1)
        profiler.after(step, state)
        if writer:
          writer.progress.hand_over(step, metrics['loss'])
        pending.append(metrics)
        last = step == end
        evaluates = evaluator and (last or not step % config['eval']['every'])
        # Looked at once a step: a signal may come at any line of it.
        stop = _agree_to_stop(watch.caught, step)
        save = last or stop or step % config['checkpoint_every'] == 0
        panel = last or step % config['panel_every'] == 0
        if save or panel or evaluates or step % config['log_every'] == 0:
          values = _check_finite(pending, step, checkpointer)
          if save or evaluates:
            _check_finite_weights(state, step, checkpointer)
          values['learning_rate'] = float(schedule(step - 1))
          if evaluates:
            with writer.away() if writer else contextlib.nullcontext():
              found = _evaluate(evaluator, state, step, checkpointer)
            values |= {f'eval_{name}': value for name, value in found.items()}
            if config['stop_when_flat']:
              state = _keep_best(state, step, found['pixel_ap'])
            if _is_flat(config, state, step):
              last = save = panel = True
          if writer:
            writer.write(step, values)
          pending = []
        if save:
          stored = layouts.plain(state, trainer.mesh)
          checkpointer.save(step, stored, stored.evaluated)
        if panel:
          _write_panel(trainer, state, step, workdir, writer)
        if stop and not last:
          checkpointer.wait()
          raise interrupt.Interrupted(
            stop,
            f'stopped and saved at step {step}: the same command goes on from'
            ' there',
            is_everywhere=True,
          )
        if last:
          break
    checkpointer.wait()
    _tell_of_best(state, trainer.num_steps)
  finally:
    trainer.close()
    profiler.close()
    if writer:
      writer.close()
    checkpointer.close()
  return state, writer


def _agree_to_stop(signal_number: int, step: int) -> int:
  """The signal to stop for after this step, or 0, equal in every process.

  A signal reaches the processes of a cluster at different steps, or but one.
  """
  if jax.process_count() > 1 and step % _AGREE_EVERY:
    return 0
  return devices.max_over_processes(signal_number)


def _evaluate(
  evaluator: simulated.Evaluator,
  state: TrainState,
  step: int,
  checkpointer: checkpoint.Checkpointer,
) -> dict[str, float]:
  found = evaluator(state.current, step)
  if not np.isfinite(list(found.values())).all():
    _fail_at(step, 'evaluation is not finite', checkpointer)
  return found


def _with_best(shapes: TrainState) -> TrainState:
  """The shapes of a state that keeps the variables of the best evaluation."""
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=shapes.step.sharding)
  return shapes.replace(
    best=jax.tree.map(lambda shape: shape, shapes.current),
    record={'step': shapes.step, 'pixel_ap': number},
  )


# A step is given the memory of what it changes.
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _keep_best(state: TrainState, step: int, pixel_ap: float) -> TrainState:
  """The state with what was just evaluated kept, if none was better."""
  # As it is stored, and the same in all processes of a cluster.
  pixel_ap = devices.main_process_says(pixel_ap)
  if state.record and pixel_ap <= float(state.record['pixel_ap']):
    return state
  record = {'step': np.int32(step), 'pixel_ap': np.float32(pixel_ap)}
  return state.replace(
    best=_copy(state.current),
    record=jax.device_put(record, state.step.sharding),
  )


def _is_flat(config: Mapping[str, Any], state: TrainState, step: int) -> bool:
  """Whether `config.stop_when_flat` evaluations have found nothing better."""
  if not config['stop_when_flat'] or state.record is None:
    return False
  evaluations = (step - int(state.record['step'])) // config['eval']['every']
  return evaluations >= config['stop_when_flat']


def _tell_of_best(state: TrainState, num_steps: int) -> None:
  """Says which step the variables that are kept come from, if any are."""
  if state.record is None:
    return
  step, best = int(state.step), int(state.record['step'])
  ended = 'trained to the end'
  if step < num_steps:
    ended = f'ended at step {step} of {num_steps}, since nothing got better'
  _log.info(
    '%s: the weights of step %d are kept, with a pixel AP of %.1f %% on'
    ' simulated anomalies',
    *(ended, best, 100 * float(state.record['pixel_ap'])),
  )


def find_divergence(
  config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> str | None:
  """Why a training has failed, in words, though its losses are finite.

  An answer that looks at no image, such as a black reconstruction, has no more
  than about 1 of each term of the loss; networks start not far from that.

  Args:
    config: the run's config.
    lines: of its `metrics.jsonl`; there may be none.

  Returns:
    What is wrong; None if nothing is.
  """
  most = _DIVERGED * sum(config['loss']['weights'].values())
  if not lines or lines[-1]['loss'] <= most:
    return None
  return (
    f'the training has diverged: the loss is {lines[-1]["loss"]:.3g} at step'
    f' {lines[-1]["step"]}, where networks that look at no image have less than'
    f' {most:.3g}: lower config.learning_rate, and take another --workdir'
  )


@jax.jit
def _are_finite(tree: Any) -> Bool[Array, '']:
  return jnp.all(
    jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
  )


def _check_finite_weights(
  state: TrainState, step: int, checkpointer: checkpoint.Checkpointer
) -> None:
  """Raises a `UserError` for weights that no checkpoint may hold.

  The loss of a step is from before its update.
  """
  if not _are_finite((state.params, state.current)):
    _fail_at(step, 'weights are not finite', checkpointer)


def _fail_at(
  step: int, what: str, checkpointer: checkpoint.Checkpointer
) -> NoReturn:
  good = checkpointer.steps()
  where = (
    f'the last good checkpoint is {checkpointer.folder / str(good[-1])}'
    if good
    else 'there is no checkpoint yet'
  )
  raise UserError(
    f'the {what} at step {step}; {where}: lower config.learning_rate, and take'
    ' another --workdir'
  )


def _check_finite(
  pending: list[dict[str, Float[Array, '']]],
  step: int,
  checkpointer: checkpoint.Checkpointer,
) -> dict[str, float]:
  """The means of the losses of some steps, none of which may be NaN or inf."""
  steps = jax.device_get(pending)
  first = step - len(steps) + 1
  for offset, metrics in enumerate(steps):
    if not np.isfinite(metrics['loss']):
      _fail_at(first + offset, f'loss is {metrics["loss"]}', checkpointer)
  return {
    name: float(np.mean([metrics[name] for metrics in steps]))
    for name in steps[0]
  }


def _write_panel(
  trainer: trainer_lib.Trainer,
  state: TrainState,
  step: int,
  workdir: pathlib.Path,
  writer: writer_lib.Writer | None,
) -> None:
  preview = trainer.preview(state, step)
  if not writer:
    return
  example, reconstruction = preview.example, preview.reconstruction
  sheet = panels.simulated_sheet(
    images=example.image,
    augmented=example.augmented,
    masks=example.mask,
    reconstructions=(
      None if reconstruction is None else np.clip(reconstruction, 0, 1)
    ),
    anomaly_maps=preview.anomaly_map,
  )
  panels.save_png(workdir / 'figures' / 'simulated.png', sheet)
  writer.write_panel(step, sheet)
  writer.skip_time()
