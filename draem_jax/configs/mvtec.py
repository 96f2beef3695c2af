"""DRÆM on MVTec AD, or on any folder of that layout.

The recipe of the paper (Zavrtanik, Kristan, Skočaj: DRÆM, ICCV 2021, section
4.1), at full width on 256x256:

  python -m draem_jax.main --config=configs/mvtec.py:bottle \
    --workdir=runs/bottle --config.data.dir=/data/mvtec_ad

`:category` is a folder of `config.data.dir`, one of the 15 or the user's own;
`:all` runs every category of that folder, one after the other, and writes a
table. Behind a comma stands the preset, `paper` (the default), `release`,
`best` or `light`: `configs/mvtec.py:all,release`. `best` trains the same
networks another way, see docs/recipes.md; `light` does so on narrow networks
and images of 64 pixels, for machines without a GPU. The presets train on every
good image, as published. Without a preset it is the paper's recipe, too, but in
a category of the user's own for a tenth of its good images, which choose the
threshold instead, and images are resized by the mean of what each pixel covers.

Expected after the whole recipe (tables 1 and 2 of the paper): on bottle 99.2
image AUROC, 99.1 pixel AUROC and 86.5 pixel AP; on average over the categories
98.0, 97.3 and 68.4. Single categories vary between runs.
"""

from ml_collections import config_dict

from draem_jax import config as config_lib

PRESETS = ('paper', 'release', 'best', 'light')


def get_config(arguments: str = 'bottle') -> config_dict.ConfigDict:
  """The config for `'category'`, `'category,preset'` or `'all'`.

  Behind a preset but `light`, `small` makes networks and images small:
  `'bottle,release,small'`.
  """
  category, *named = (arguments or 'bottle').split(',')
  preset, setting = (*named, '', '')[:2]
  preset = preset or 'paper'
  check_preset(preset)
  if len(named) > 2 or setting not in ('', 'small'):
    raise ValueError(
      f'{arguments!r} is not category,preset or category,preset,small'
    )
  config = config_lib.default()
  config.category = category
  if preset == 'release':
    release(config)
  if preset in ('best', 'light'):
    best(config)
  if setting or preset == 'light':
    small(config)
  if not named:
    # The category decides: 0 for the 15 of MVTec AD, 0.1 for any other.
    config.eval.holdout = -1.0
    config.data.resize = 'auto'  # Likewise.
  return config


def check_preset(preset: str) -> None:
  """Raises a `ValueError` where there is no such preset."""
  if preset not in PRESETS:
    raise ValueError(
      f'unknown preset {preset!r}: take one of {", ".join(PRESETS)}'
    )


def shared(setting: str = '') -> config_dict.ConfigDict:
  """What the runs of a study share: the paper's recipe, or that `'small'`."""
  if setting not in ('', 'small'):
    raise ValueError(f'unknown setting {setting!r}: take small, or none')
  config = config_lib.default()
  if setting:
    small(config)
  return config


def small(config: config_dict.ConfigDict) -> None:
  """Changes `config` to a setting that two CPU cores train in minutes.

  It tells a good recipe from a bad one, and reaches no published number.
  """
  config.image_size = 64
  config.model.reconstructive_width = 16
  config.model.discriminative_width = 8
  # Of the 3,000 of the release a preset takes its share.
  config.num_steps = 3000 * config.num_epochs // 700
  config.learning_rate = round(10 * config.learning_rate, 9)
  config.score_window = 5


def release(config: config_dict.ConfigDict) -> None:
  """Changes `config` to what the authors' PyTorch release does."""
  config.sampling = 'with_replacement'
  config.learning_rate_factor = 0.2
  config.learning_rate_milestones = (0.8, 0.9)
  config.loss.data_range = 'from_batch'
  config.eval.mask_threshold = 1.0
  config.simulator.update(
    rotation_probability=0.3,
    rotation_degrees=(-90.0, 90.0),
    threshold=(0.5, 0.5),
    augmentations=(
      'gamma_contrast',
      'brightness',
      'sharpness',
      'hue_saturation',
      'solarize',
      'posterize',
      'invert',
      'autocontrast',
      'equalize',
      'rotate',
    ),
    opacity=(0.2, 1.0),
  )


def best(config: config_dict.ConfigDict) -> None:
  """Changes `config` to how the same networks are trained best.

  What differs from the release, and what each change gains and where it loses,
  is in docs/recipes.md.
  """
  release(config)
  config.eval.mask_threshold = 0.5
  config.num_epochs = 105
  config.optimizer = 'muon'
  config.learning_rate = round(6 * config.learning_rate, 9)
  config.learning_rate_warmup = 1 / 15
  config.ema = 0.995
  config.model.reconstruction_gradient = 0.0
  config.loss.data_range = 'one'
  config.loss.gamma = 4.0
  config.loss.weights.focal = 4.0
  config.simulator.update(
    cells=(1, 8),
    unions=0.25,
    intersections=0.25,
    augmentation_probability=0.7,
    good_textures=0.33,
    anomaly_probability=0.75,
    noise=0.02,
  )
