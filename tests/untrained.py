"""A workdir that looks trained, made in a moment from random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small import small_config

from draem_jax.networks import models
from draem_jax.training import step as train_step
from draem_jax.workdir import checkpoint, claim
from draem_jax.workdir import thresholds as thresholds_lib


def write_workdir(folder, *, seed=0, thresholds=(0.5, 0.5), **overrides):
  """Writes config, checkpoint and, unless None, thresholds; returns folder."""
  config = small_config(**{'eval.batch_size': 4, **overrides}).to_dict()
  claim.claim(folder, config, {'training images': '0', 'textures': '0'})
  checkpointer = checkpoint.Checkpointer(folder / 'checkpoints', keep=1)
  variables = random_variables(config['model'], seed)
  state = train_step.TrainState(
    step=jnp.int32(1), **variables, opt_state=optax.EmptyState()
  )
  checkpointer.save(1, state, variables)
  checkpointer.close()
  if thresholds is not None:
    image, pixel = thresholds
    thresholds_lib.write_thresholds(
      folder,
      thresholds_lib.Thresholds(image, pixel, '8 good images', 0.99, 0.9999),
    )
  return folder


def random_variables(widths, seed):
  """Weights that keep activations alive, so that maps differ by image."""
  rng = np.random.default_rng(seed)
  model = models.make(
    {'model': {'name': 'draem', **widths}, 'dtype': 'float32'}
  )
  shapes = models.abstract_variables(model)

  def fill(path, leaf):
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      scale = (2 / np.prod(shape[:-1])) ** 0.5
      return rng.normal(0, scale, shape).astype(np.float32)
    fixed = np.ones if name in ('norm_scale', 'var') else np.zeros
    return fixed(shape, np.float32)

  return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))
