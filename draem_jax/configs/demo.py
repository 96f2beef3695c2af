"""The built-in demo: no download, no file but the package, a few minutes.

  python -m draem_jax.main --config=configs/demo.py --workdir=runs/demo

Draws a small category of its own into `runs/demo/data`, 100 good pictures of a
pavement and 60 test pictures with five kinds of defects, trains a narrow DRÆM
on it and shows what it finds. The recipe is the preset `light` of
`configs/mvtec.py`, but longer; `configs/demo.py:release` takes that of the
PyTorch release.
"""

from ml_collections import config_dict

from draem_jax.configs import mvtec


def get_config(preset: str = 'light') -> config_dict.ConfigDict:
  """The recipe of a preset of `configs/mvtec.py`, at the size of `light`."""
  preset = preset or 'light'
  mvtec.check_preset(preset)
  setting = '' if preset == 'light' else ',small'
  config = mvtec.get_config(f'demo,{preset}{setting}')
  config.data.dir = 'builtin'
  config.data.textures = 'builtin'
  config.data.tfds_dir = ''  # In the workdir.
  config.num_steps = 1500
  if preset in ('best', 'light'):
    # Its defects are small, and take longer to be found.
    config.num_steps = 1000
  # The camera of the demo is held about level, and so is the pavement.
  config.simulator.rotation_degrees = (-5.0, 5.0)
  # A brick on bricks that look alike is an anomaly that nobody can see.
  config.simulator.good_textures = 0.0
  config.eval.holdout = 0.1
  config.eval.mask_threshold = 0.5
  config.checkpoint_every = 500
  config.panel_every = 500
  return config
