"""A config small enough for tests, and data to go with it."""

import numpy as np

from draem_jax.configs import mvtec

# Without augmentations a step compiles sooner.
QUICK = {'simulator.num_augmentations': 0, 'simulator.augmentations': ()}
# And one network alone.
SMALL = QUICK | {
  'model.name': 'discriminative',
  'loss.weights.l2': 0.0,
  'loss.weights.ssim': 0.0,
}


def small_config(**overrides):
  """Nested plain values of a run that takes seconds."""
  config = mvtec.get_config('pens,release')
  config.image_size = 32
  config.batch_size = 4
  config.num_steps = 6
  config.learning_rate = 1e-3
  config.model.reconstructive_width = 4
  config.model.discriminative_width = 2
  config.score_window = 5
  config.log_every = 2
  config.checkpoint_every = 2
  config.panel_every = 1000
  with config.ignore_type():  # A size may be one number or two.
    config.update_from_flattened_dict(overrides)
  return config


def random_images(count, size=32, seed=0):
  """Smooth random pictures, uint8 [count size size 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (count, size // 8, size // 8, 3))
  return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
