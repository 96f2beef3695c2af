"""A run: its compiled step, its state, and the loop that drives them."""

import collections
import contextlib
import logging
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from draem_jax import devices, interrupt, score, sizes
from draem_jax.data.on_demand import OnDemand
from draem_jax.data.pictures import Pictures
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.pictures import panels
from draem_jax.simulator import crops, simulate
from draem_jax.simulator.options import Options
from draem_jax.training import feeding, profiling, sampling, simulated
from draem_jax.training import writer as writer_lib
from draem_jax.training.step import (
  Recipe,
  TrainState,
  abstract,
  init_state,
  make_train_step,
)
from draem_jax.workdir import checkpoint, lock, storage

_log = logging.getLogger(__name__)

# So many times what the worst constant answer would have is no training's loss.
_DIVERGED = 10.0
# How often the processes of a cluster ask each other whether to stop.
_AGREE_EVERY = 10  # Steps.


def make_recipe(config: Mapping[str, Any], num_steps: int) -> Recipe:
  """The loss, the average and the seed that `config` describes.

  Args:
    config: the run's config.
    num_steps: how many steps the run has.
  """
  return Recipe(
    **config['loss'],
    ema=config['ema'],
    num_steps=max(num_steps, 1),
    seed=config['seed'],
  )


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
  optimizer = make_optimizer(lambda step: 0.0)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
  )
  checkpointer = checkpoint.Checkpointer(workdir / 'checkpoints', keep=1)
  state = jax.tree.map(jnp.asarray, state)
  checkpointer.save(0, state, state.evaluated)
  checkpointer.close()
  # Last, for a workdir counts as one when this is there.
  storage.write_json(
    workdir / 'config.json', {'config': dict(config), 'data': {}}
  )


def count_steps(config: Mapping[str, Any], num_images: int) -> int:
  """Steps of the run: `num_steps`, or what `num_epochs` come to."""
  if config['num_steps']:
    return config['num_steps']
  steps = -(-config['num_epochs'] * num_images // config['batch_size'])
  if steps >= 2**31:
    raise UserError(
      f'config.num_epochs={config["num_epochs"]} of {num_images} images are'
      f' {steps:,} steps: take fewer'
    )
  return steps


def check_memory(config: Mapping[str, Any], memory: int, devices: int) -> None:
  """Raises a `UserError` for a training that no way has room on a device.

  What it takes at the least: parameters, their gradients and moments, the
  examples, and one activation at the images' size of many. What passes may
  still be too large.

  Args:
    config: the run's config.
    memory: bytes of the smallest device.
    devices: number of all devices.
  """
  model = models.abstract_variables(models.make(config))
  numbers = sum(leaf.size for leaf in jax.tree.leaves(model))
  copies = {'adam': 4, 'muon': 3, 'sgd': 2}[config['optimizer']]
  trains = bool(config['num_steps'] or config['num_epochs'])
  # Some networks have half of a width there.
  channels = min(
    config['model']['reconstructive_width'],
    config['model']['discriminative_width'],
  )
  pixel = 4 * 3 + channels // 2 * jnp.dtype(config['dtype']).itemsize
  pixels = math.prod(sizes.pair(config['image_size']))
  needs = {
    'batch_size': (
      trains
      * (
        4 * copies * numbers
        + -(-config['batch_size'] // devices) * pixels * pixel
      )
    ),
    'eval.batch_size': 4 * numbers
    + config['eval']['batch_size'] * pixels * pixel,
  }
  for name, need in needs.items():
    if need > memory:
      raise UserError(
        f'config.{name}, config.image_size and config.model.*_width take'
        f' {need / 2**30:,.3g} GiB of memory at the least, where a device has'
        f' {memory / 2**30:,.3g}: lower one of them'
      )


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
  """The learning rate by step: it rises at first, and falls at milestones."""
  falls = optax.piecewise_constant_schedule(
    config['learning_rate'],
    {
      int(share * num_steps): config['learning_rate_factor']
      for share in config['learning_rate_milestones']
    },
  )
  warmup = int(config['learning_rate_warmup'] * num_steps)
  if not warmup:
    return falls
  # A step of rate 0 would be lost: the first one is above it.
  return lambda step: falls(step) * jnp.minimum(1, (step + 1) / warmup)


def make_optimizer(
  schedule: optax.Schedule, name: str = 'adam'
) -> optax.GradientTransformation:
  """Adam with PyTorch's defaults, as the release uses it, Muon or plain SGD.

  Muon (Jordan et al., https://kellerjordan.github.io/posts/muon, 2024) makes
  the update of each kernel orthogonal, as a matrix of all that it reads by the
  channels that it gives, and as large as an update of Adam (Liu et al.,
  arXiv:2502.16982). Everything else gets Adam with Nesterov's momentum.

  Args:
    schedule: the learning rate by step.
    name: 'adam', 'muon', or 'sgd', which is without momentum.
  """
  if name == 'sgd':
    return optax.sgd(schedule)
  if name == 'muon':
    return optax.contrib.muon(
      schedule,
      beta=0.9,
      muon_weight_dimension_numbers=_kernels_as_matrices,
      consistent_rms=0.2,
    )
  return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def _kernels_as_matrices(params: PyTree) -> PyTree:
  """Which axes Muon makes rows and columns; None where there are no two."""
  matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda x: matrix if x.ndim == 4 else None, params)


class Preview(NamedTuple):
  """Examples of a step, and what the networks make of them."""

  example: simulate.Example
  reconstruction: Float[Array, 'b h w 3'] | None
  anomaly_map: Float[Array, 'b h w']


class Trainer:
  """One run: its data on the devices, its compiled step, its state."""

  def __init__(
    self,
    config: Mapping[str, Any],
    *,
    images: UInt8[Array | np.ndarray, 'n h w c'] | Pictures,
    textures: UInt8[Array | np.ndarray | OnDemand, 't h2 w2 3'],
    mesh: Mesh | None = None,
    eval_images: UInt8[np.ndarray, 'k h w c'] | Pictures | None = None,
  ):
    """Compiles nothing yet.

    Args:
      config: the run's config as nested plain values.
      images: anomaly-free images. A JAX array stays on the devices and is
        drawn from inside the step; from anything else each batch is fed. With
        `config.data.resolution` they are as large as it says, none smaller
        than `config.image_size`, and crops of them are drawn. With
        `config.data.roi` their region is a fourth channel.
      textures: anomaly textures, likewise.
      mesh: over every device by default.
      eval_images: good images that get simulated anomalies, to evaluate on
        while it trains; those it trains on by default.
    """
    self.config = config
    self.mesh = mesh or devices.make_mesh(config['batch_size'])
    self.model = models.make(config)
    self.options = Options(**config['simulator'])
    self.num_steps = count_steps(config, len(images))
    self.schedule = make_schedule(config, self.num_steps)
    self.optimizer = make_optimizer(self.schedule, config['optimizer'])
    self.images, self.textures = images, textures
    self._crop = self._margin = None
    if config['data']['resolution'] != '':
      self._crop = sizes.pair(config['image_size'])
      self._margin = np.array(crops.margin(self._crop, self.options))
      self._sizes = feeding.picture_sizes(images)
    self._eval_images = images if eval_images is None else eval_images
    self._everywhere = devices.replicated(self.mesh)
    # On a device of this process alone: a thread asks when it likes.
    self._sample = jax.jit(self._sample_batch)
    self._sampling_device = feeding.sampling_device()
    self._feeder, self._unfinished = None, collections.deque()
    if not (isinstance(images, jax.Array) and isinstance(textures, jax.Array)):
      self._feeder = feeding.Feeder(self._fetch, num_steps=self.num_steps)
    step = make_train_step(
      self.model,
      self.optimizer,
      make_recipe(config, self.num_steps),
      self.options,
      mesh=self.mesh,
    )

    def drawing_step(
      state: TrainState,
      images: UInt8[Array, '_ h w c'],
      textures: UInt8[Array, '_ h2 w2 3'],
    ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
      return step(state, *self._draw(state.step, images, textures))

    self._step = jax.jit(drawing_step, donate_argnums=0)
    # Whole in every process, wherever its batch was computed.
    self._preview = jax.jit(
      self._preview_batch, out_shardings=devices.replicated(self.mesh)
    )

  def init_state(self) -> TrainState:
    """The state before the first step."""
    return init_state(
      self.model,
      self.optimizer,
      seed=self.config['seed'],
      mesh=self.mesh,
      ema=self.config['ema'],
    )

  def step(
    self, state: TrainState, step: int
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    """Runs step number `step`; `state` is donated."""
    kept = {'best': state.best, 'record': state.record}
    state = state.replace(best=None, record=None)
    if not self._feeder:
      state, metrics = self._step(state, self.images, self.textures)
      return state.replace(**kept), metrics
    # Batches that wait on the devices take room there.
    if len(self._unfinished) == feeding.AHEAD:
      jax.block_until_ready(self._unfinished.popleft())
    state, metrics = self._step(state, *self._feeder.take(step))
    self._unfinished.append(metrics)
    return state.replace(**kept), metrics

  def make_evaluator(self) -> simulated.Evaluator | None:
    """What evaluates while it trains; None where nothing shall."""
    if not self.config['eval']['every']:
      return None
    return simulated.Evaluator(
      self.model,
      self.config,
      images=self._eval_images,
      textures=self.textures,
      num_steps=self.num_steps,
      mesh=self.mesh,
    )

  def close(self) -> None:
    """Ends what reads ahead; another step would begin it anew."""
    if self._feeder:
      self._feeder.close()

  def preview(self, state: TrainState, step: int) -> Preview:
    """The examples of step `step`, and what the networks make of them."""
    return jax.device_get(
      self._preview(
        state.evaluated,
        jax.device_put(np.int32(step), self._everywhere),
        *self._fetch(step),
      )
    )

  def _sample_batch(self, step: Int[Array, ''] | int) -> sampling.Sample:
    sampled = sampling.sample_batch(
      self.config['seed'],
      step,
      batch_size=self.config['batch_size'],
      num_images=len(self.images),
      num_textures=len(self.textures),
      sampling=self.config['sampling'],
    )
    if self._crop:
      sampled = sampling.with_corners(sampled, self._sizes, self._crop)
    return sampled

  @property
  def _part(self) -> tuple[int, int]:
    """Height and width of a crop with its margin."""
    return tuple((np.array(self._crop) + 2 * self._margin).tolist())

  def _fetch(
    self, step: int
  ) -> tuple[UInt8[Array, '_ h w c'], UInt8[Array, '_ h2 w2 3']]:
    """Images and textures for `_draw`: those that are fed as batches."""
    images, textures = self.images, self.textures
    if self._feeder:
      index = jax.device_put(np.int32(step), self._sampling_device)
      sampled = self._sample(index)
      if not isinstance(images, jax.Array):
        indices = jax.device_get(sampled.images)
        if self._crop:
          corners = jax.device_get(sampled.corners) - self._margin
          images = feeding.gather_parts(
            images, indices, corners, self._part, self.mesh
          )
        else:
          images = feeding.gather(images, indices, self.mesh)
      if not isinstance(textures, jax.Array):
        indices = jax.device_get(sampled.textures)
        textures = feeding.gather(textures, indices, self.mesh)
    return images, textures

  def _draw(
    self,
    step: Int[Array, ''],
    images: UInt8[Array, '_ h w c'],
    textures: UInt8[Array, '_ h2 w2 3'],
  ) -> tuple[
    UInt8[Array, 'b h3 w3 c'], UInt8[Array, 'b h2 w2 3'], Key[Array, 'b']
  ]:
    """The batch of a step from all images, or from the batch that was fed."""
    sampled = self._sample_batch(step)
    if isinstance(self.images, jax.Array):
      if self._crop:
        images = jax.vmap(
          lambda index, corner: crops.cut(images, index, corner, self._part)
        )(sampled.images, sampled.corners - self._margin)
      else:
        images = images[sampled.images]
    if isinstance(self.textures, jax.Array):
      textures = textures[sampled.textures]
    return images, textures, sampled.keys

  def _preview_batch(
    self,
    variables: Any,
    step: Int[Array, ''],
    images: UInt8[Array, '_ h w c'],
    textures: UInt8[Array, '_ h2 w2 3'],
  ) -> Preview:
    images, textures, keys = self._draw(step, images, textures)
    example = simulate.simulate_batch(keys, images, textures, self.options)
    output = self.model.apply(variables, example.augmented, train=False)
    anomaly_map = score.make_map(
      output,
      example.augmented,
      map_name=self.config['score']['map'],
      window=self.config['score_window'],
      region=example.region,
    )
    return Preview(example, output.reconstruction, anomaly_map)


def train(
  trainer: Trainer, workdir: str | pathlib.Path, *, is_shared: bool = True
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
          values['learning_rate'] = float(trainer.schedule(step - 1))
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
          checkpointer.save(step, state, state.evaluated)
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
  trainer: Trainer,
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
