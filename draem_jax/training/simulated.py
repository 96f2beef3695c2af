"""The evaluation while a run trains: good images with simulated anomalies.

The images are the same all along, each with an anomaly and without, so that
what changes between two evaluations is the networks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8

from draem_jax import devices, losses, metrics, score
from draem_jax.data.on_demand import OnDemand
from draem_jax.data.pictures import Pictures
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.training import feeding, sampling

# What is evaluated on, at the least; half of it is anomalous.
NUM_EXAMPLES = 64
# How many are simulated at once, and for each that is needed at most.
_CHUNK, _TRIES = 16, 16


def make_examples(
  images: UInt8[Array | np.ndarray, 'n h w c'] | Pictures,
  textures: UInt8[Array | np.ndarray | OnDemand, 't h2 w2 3'],
  options: Options,
  *,
  seed: int,
  count: int,
  crop: bool = False,
) -> simulate.Example:
  """Simulates anomalies that are not empty, each beside its image without.

  Args:
    images: good images.
    textures: anomaly textures.
    options: what the simulator is told in training. How often there is an
      anomaly, and the noise on the images, do not count here.
    seed: of the run, which decides everything that chance does.
    count: number of examples, of which half are anomalous, and the odd one.
    crop: whether crops of the images, of the size of the textures, are taken,
      where the seed says.

  Raises:
    UserError: if next to all anomalies are empty.
  """
  options = dataclasses.replace(options, anomaly_probability=1.0, noise=0.0)
  size = textures.shape[1:3]
  run = _compiled(options)
  needed, found = -(-count // 2), []
  for first in range(0, _TRIES * needed, _CHUNK):
    sampled = sampling.sample_evaluation(
      seed,
      np.arange(first, first + _CHUNK),
      num_images=len(images),
      num_textures=len(textures),
    )
    made = jax.device_get(
      run(
        sampled.keys,
        feeding.take_crops(images, sampled, size, options)
        if crop
        else _take(images, sampled.images),
        _take(textures, sampled.textures),
      )
    )
    found += [
      jax.tree.map(lambda x, i=i: x[i], made)
      for i in np.flatnonzero(made.mask.any(axis=(1, 2)))
    ]
    if len(found) >= needed:
      break
  else:
    raise UserError(
      f'config.eval.every: of {_TRIES * needed} simulated anomalies'
      f' {len(found)} are not empty, where {needed} are needed: lower'
      ' config.simulator.threshold, or set config.eval.every=0'
    )
  pairs = []
  for example in found[:needed]:
    without = simulate.Example(
      example.image,
      example.image,
      np.zeros_like(example.mask),
      example.region,
    )
    pairs += [example, without]
  return jax.tree.map(lambda *parts: np.stack(parts), *pairs[:count])


@functools.cache
def _compiled(options: Options) -> Callable[..., simulate.Example]:
  """`simulate_batch` with these options."""
  # It runs a few times: unoptimized code is there sooner.
  quick = {'xla_backend_optimization_level': 0}
  return jax.jit(
    lambda keys, images, textures: simulate.simulate_batch(
      keys, images, textures, options
    ),
    compiler_options=quick if jax.default_backend() == 'cpu' else None,
  )


def _take(
  source: UInt8[Array | np.ndarray | OnDemand, 'n h w c'],
  indices: Int[Array, 'b'],
) -> UInt8[np.ndarray, 'b h w c']:
  """Some images, on the host."""
  if isinstance(source, jax.Array):  # Whole on each device.
    source = source.addressable_data(0)
    return np.asarray(source[np.asarray(indices)])
  return source[np.asarray(indices)]


class Evaluator:
  """Evaluates networks on simulated anomalies, which are made once.

  Attributes:
    examples: what is evaluated on, on the host.
  """

  def __init__(
    self,
    model: models.Networks,
    config: Mapping[str, Any],
    *,
    images: UInt8[Array | np.ndarray, 'n h w c'] | Pictures,
    textures: UInt8[Array | np.ndarray | OnDemand, 't h2 w2 3'],
    num_steps: int,
    mesh: Mesh,
  ):
    """Makes the examples.

    Args:
      model: the networks.
      config: the run's config as nested plain values.
      images: good images, best such as are not trained on.
      textures: anomaly textures.
      num_steps: of the run, for the schedule of the loss.
      mesh: over whose axis `'data'` the batches are split.
    """
    self._model, self._config = model, config
    self._num_steps, self._mesh = max(num_steps, 1), mesh
    # The batch of training: it can be split, and there is room for it.
    self._batch = config['batch_size']
    self.examples = make_examples(
      images,
      textures,
      Options(**config['simulator']),
      seed=config['seed'],
      count=-(-NUM_EXAMPLES // self._batch) * self._batch,
      crop=config['data']['resolution'] != '',
    )
    # Whole in every process.
    self._run = jax.jit(
      self.evaluate_batch, out_shardings=devices.replicated(mesh)
    )

  def __call__(
    self, variables: Mapping[str, PyTree], step: int
  ) -> dict[str, float]:
    """Evaluates networks; every process of a cluster must.

    Args:
      variables: of the networks.
      step: number of steps they were trained.

    Returns:
      The training loss, the image AUROC and the pixel AP. A network that says
      NaN has NaN for all of them.
    """
    progress = jax.device_put(
      np.float32(step / self._num_steps), devices.replicated(self._mesh)
    )
    parts = []
    for first in range(0, len(self.examples.mask), self._batch):
      place = slice(first, first + self._batch)
      batch = jax.tree.map(lambda x, p=place: self._put(x[p]), self.examples)
      parts.append(jax.device_get(self._run(variables, batch, progress)))
    loss, maps, scores = (np.stack(part) for part in zip(*parts, strict=True))
    found = {'loss': float(loss.mean())}
    if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
      return dict.fromkeys(('loss', 'image_auroc', 'pixel_ap'), float('nan'))
    masks = self.examples.mask > 0
    return found | {
      'image_auroc': metrics.auroc(scores.reshape(-1), masks.any(axis=(1, 2))),
      'pixel_ap': metrics.average_precision(maps.reshape(masks.shape), masks),
    }

  def evaluate_batch(
    self,
    variables: Mapping[str, PyTree],
    example: simulate.Example,
    progress: Float[Array, ''],
  ) -> tuple[Float[Array, ''], Float[Array, 'b h w'], Float[Array, 'b']]:
    """The loss, the maps and the image scores of a batch.

    Args:
      variables: of the networks.
      example: the batch.
      progress: the share of the training that is done.
    """
    config = self._config
    output = self._model.apply(variables, example.augmented, train=False)
    loss, _ = losses.training_loss(
      output,
      example.image,
      example.mask,
      weights=config['loss']['weights'],
      data_range=config['loss']['data_range'],
      gamma=config['loss']['gamma'],
      factors=losses.SCHEDULES[config['loss']['schedule']](progress),
    )
    maps, scores = score.map_and_score(
      output,
      example.augmented,
      map_name=config['score']['map'],
      window=config['score_window'],
      image_score_name=config['score']['image'],
      region=example.region,
    )
    return jnp.asarray(loss), maps, scores

  def _put(self, batch: Float[np.ndarray, 'b *s']) -> Float[Array, 'b *s']:
    return jax.make_array_from_callback(
      batch.shape,
      devices.batch_sharded(self._mesh),
      lambda index: batch[index],
    )
