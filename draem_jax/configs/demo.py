"""The built-in demo: no download, no file but the package, a few minutes.

  python -m draem_jax.main --config=configs/demo.py --workdir=runs/demo

Draws a small category of its own into `runs/demo/data`, 100 good pictures of a
pavement and 60 test pictures with five kinds of defects, trains a narrow DRÆM
on it and shows what it finds.
"""

from ml_collections import config_dict

from draem_jax.configs import mvtec


def get_config() -> config_dict.ConfigDict:
  """The release's recipe, shrunken to two CPU cores."""
  config = mvtec.get_config('demo,release')
  config.data.dir = 'builtin'
  config.data.textures = 'builtin'
  config.data.tfds_dir = ''  # In the workdir.
  mvtec.small(config)
  config.num_steps = 1500
  # The camera of the demo is held about level, and so is the pavement.
  config.simulator.rotation_degrees = (-5.0, 5.0)
  config.eval.holdout = 0.1
  config.eval.mask_threshold = 0.5
  config.checkpoint_every = 500
  config.panel_every = 500
  return config
