"""RIAD, which the paper compares DRÆM with, on MVTec AD or a folder like it.

Zavrtanik, Kristan, Skočaj: Reconstruction by inpainting for visual anomaly
detection, Pattern Recognition 112, 2021. Its recipe, at full width on 256x256:

  python -m draem_jax.main --config=configs/riad.py:bottle \
    --workdir=runs/riad_bottle --config.data.dir=/data/mvtec_ad

`:category` is a folder of `config.data.dir`; `:all` runs every category of that
folder. `:bottle,small` is the same at 64x64 on narrow networks, for two cores.
It trains on good images as they are: no anomaly is simulated, and no texture
read.

Published image AUROC (table 1 of the paper): bottle 99.9, capsule 88.4, grid
99.6, leather 100, pill 83.8, tile 98.7, transistor 90.9, zipper 98.1, cable
81.9, carpet 84.2, hazelnut 83.3, metal nut 88.5, screw 84.5, toothbrush 100,
wood 93.0; on average 91.7.
"""

from ml_collections import config_dict

from draem_jax import config as config_lib

SETTINGS = ('full', 'small')


def get_config(arguments: str = 'bottle') -> config_dict.ConfigDict:
  """The config for `'category'`, `'category,setting'` or `'all'`."""
  category, _, setting = (arguments or 'bottle').partition(',')
  if (setting or 'full') not in SETTINGS:
    raise ValueError(
      f'unknown setting {setting!r}: take one of {", ".join(SETTINGS)}'
    )
  config = config_lib.default()
  config.category = category
  # The category decides: 0 for the 15 of MVTec AD, 0.1 for any other.
  config.eval.holdout = -1.0
  config.data.resize = 'auto'
  recipe(config)
  if setting == 'small':
    small(config)
  return config


def recipe(config: config_dict.ConfigDict) -> None:
  """Changes `config` to RIAD's networks, loss, schedule and scoring."""
  config.model.name = 'riad'
  config.model.reconstructive_width = 64
  # Of images in [0, 1], as the constant of MSGMS wants them. Of images in
  # [-1, 1], which the network sees, the squared error would be four times that.
  config.loss.weights.update(l2=1.0, ssim=1.0, msgms=1.0, focal=0.0)
  config.simulator.anomaly_probability = 0.0
  config.simulator.rotation_probability = 0.0
  config.batch_size = 4
  config.num_epochs = 300
  config.learning_rate = 1e-4
  config.learning_rate_factor = 0.1
  config.learning_rate_milestones = (250 / 300,)
  config.score.map = 'riad'


def small(config: config_dict.ConfigDict) -> None:
  """Shrinks `config` to two CPU cores and as many images as small DRÆM's."""
  config.image_size = 64
  config.model.reconstructive_width = 16
  config.learning_rate = 1e-3
  config.score_window = 5
  config.num_steps = 6000
