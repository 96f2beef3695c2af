"""One run of a config: its data on the devices and its compiled step."""

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from draem_jax import devices, platforms, score, sizes
from draem_jax.data.on_demand import OnDemand
from draem_jax.data.pictures import Pictures
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.simulator import crops, simulate
from draem_jax.simulator.options import Options
from draem_jax.training import feeding, layouts, sampling, simulated
from draem_jax.training.optimizer import make_optimizer, make_schedule
from draem_jax.training.step import (
  Recipe,
  TrainState,
  init_state,
  make_train_step,
)


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
    self._device = self.mesh.local_devices[0]
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

    self._step = layouts.compiled(drawing_step, self.mesh)
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
      with platforms.known(self._device):
        state, metrics = self._step(state, self.images, self.textures)
      return state.replace(**kept), metrics
    # Batches that wait on the devices take room there.
    if len(self._unfinished) == feeding.AHEAD:
      jax.block_until_ready(self._unfinished.popleft())
    with platforms.known(self._device):
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
    index = jax.device_put(np.int32(step), self._everywhere)
    images, textures = self._fetch(step)
    with platforms.known(self._device):
      preview = self._preview(state.evaluated, index, images, textures)
    return jax.device_get(preview)

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
