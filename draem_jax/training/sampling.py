"""Which images and textures a step is made of, and by which keys."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from draem_jax.simulator import crops

# Labels that keep the streams of random numbers of one seed apart.
_STEP_STREAM, _EPOCH_STREAM, _MASKS_STREAM, _EVAL_STREAM = 0, 1, 2, 3


@flax.struct.dataclass
class Sample:
  """Which images and textures a batch is made of, and each example's key.

  Where crops of the images make it, `corners` has the first row and column of
  each crop.
  """

  images: Int[Array, 'b']
  textures: Int[Array, 'b']
  keys: Key[Array, 'b']
  corners: Int[Array, 'b 2'] | None = None


def sample_batch(
  seed: int,
  step: Int[Array, ''] | int,
  *,
  batch_size: int,
  num_images: int,
  num_textures: int,
  sampling: str,
) -> Sample:
  """Samples the examples of one step.

  A function of the seed, the step and the place in the global batch alone, so
  that devices, hosts and restarts change nothing.

  Args:
    seed: of the run.
    step: number of the step, from 0.
    batch_size: examples of the global batch.
    num_images: anomaly-free images to sample from.
    num_textures: anomaly textures to sample from, with replacement.
    sampling: 'with_replacement' as the release, or 'epochs' as the paper:
      every image once, in an order new each time, before any comes again.
  """
  run_key = jax.random.key(seed)
  places = jnp.arange(batch_size)
  step_key = jax.random.fold_in(jax.random.fold_in(run_key, _STEP_STREAM), step)
  keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(places)
  image_keys, texture_keys, example_keys = jax.vmap(
    lambda key: jax.random.split(key, 3), out_axes=1
  )(keys)

  def uniform_index(key: Key[Array, ''], count: int) -> Int[Array, '']:
    return jax.random.randint(key, (), 0, count)

  if sampling == 'with_replacement':
    images = jax.vmap(lambda key: uniform_index(key, num_images))(image_keys)
  else:
    epoch_key = jax.random.fold_in(run_key, _EPOCH_STREAM)

    def epoch_index(position: Int[Array, '']) -> Int[Array, '']:
      key = jax.random.fold_in(epoch_key, position // num_images)
      return jax.random.permutation(key, num_images)[position % num_images]

    images = jax.vmap(epoch_index)(step * batch_size + places)
  textures = jax.vmap(lambda key: uniform_index(key, num_textures))(
    texture_keys
  )
  return Sample(images=images, textures=textures, keys=example_keys)


def with_corners(
  sampled: Sample, sizes: Int[np.ndarray, 'n 2'], crop: tuple[int, int]
) -> Sample:
  """The same sample, of crops of the images, by the examples' own keys.

  Args:
    sampled: a batch.
    sizes: height and width of every image.
    crop: those of a crop.
  """
  corners = jax.vmap(lambda key, size: crops.sample_corner(key, size, crop))(
    sampled.keys, jnp.asarray(sizes, jnp.int32)[sampled.images]
  )
  return sampled.replace(corners=corners)


def masks_key(seed: int, step: Int[Array, ''] | int) -> Key[Array, '']:
  """The key of the masks that networks sample in a step, one for the batch.

  Args:
    seed: of the run.
    step: number of the step, from 0.
  """
  run_key = jax.random.key(seed)
  return jax.random.fold_in(jax.random.fold_in(run_key, _MASKS_STREAM), step)


def sample_evaluation(
  seed: int,
  places: Int[Array | np.ndarray, 'b'],
  *,
  num_images: int,
  num_textures: int,
) -> Sample:
  """Samples examples to evaluate a training on, the same all along.

  A function of the seed and the place alone. Every image once, in an order of
  chance, before any comes again.

  Args:
    seed: of the run.
    places: the places of the examples among all, from 0.
    num_images: anomaly-free images to sample from.
    num_textures: anomaly textures to sample from, with replacement.
  """
  key = jax.random.fold_in(jax.random.key(seed), _EVAL_STREAM)
  order = jax.random.permutation(jax.random.fold_in(key, 0), num_images)
  places_key = jax.random.fold_in(key, 1)
  keys = jax.vmap(lambda i: jax.random.fold_in(places_key, i))(places)
  texture_keys, example_keys = jax.vmap(
    lambda key: jax.random.split(key), out_axes=1
  )(keys)
  textures = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_textures))(
    texture_keys
  )
  images = order[jnp.asarray(places) % num_images]
  return Sample(images=images, textures=textures, keys=example_keys)
