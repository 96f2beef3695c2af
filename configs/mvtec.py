"""DRÆM on MVTec AD, or on any folder of that layout.

The recipe of the paper (Zavrtanik, Kristan, Skočaj: DRÆM, ICCV 2021, section
4.1), at full width on 256x256:

  python -m draem_jax.main --config=configs/mvtec.py:bottle \
    --workdir=runs/bottle --config.data.dir=/data/mvtec_ad

`:category` is a folder of `config.data.dir`, one of the 15 or the user's own;
`:all` runs the 15 one after the other and writes a table. Behind a comma stands
the preset, `paper` (the default) or `release`: `configs/mvtec.py:all,release`.
The presets train on every good image, as published. A category of the user's
own without a preset is the paper's recipe, too, but for a tenth of its good
images, which choose the threshold instead.

Expected after the whole recipe (tables 1 and 2 of the paper): on bottle 99.2
image AUROC, 99.1 pixel AUROC and 86.5 pixel AP; on average over the categories
98.0, 97.3 and 68.4. Single categories vary between runs.
"""

from ml_collections import config_dict

from draem_jax import results

PRESETS = ('paper', 'release')


def get_config(arguments: str = 'bottle') -> config_dict.ConfigDict:
  """The config for `'category'`, `'category,preset'` or `'all'`."""
  category, _, named_preset = (arguments or 'bottle').partition(',')
  preset = named_preset or 'paper'
  if preset not in PRESETS:
    raise ValueError(
      f'unknown preset {preset!r}: take one of {", ".join(PRESETS)}'
    )
  config = paper()
  config.category = category
  if preset == 'release':
    release(config)
  if not named_preset and category not in (*results.PAPER, 'all'):
    config.eval.holdout = 0.1
  return config


def paper() -> config_dict.ConfigDict:
  """What the paper says, and where it is silent what the release does."""
  config = config_dict.ConfigDict()
  config.category = 'bottle'
  config.image_size = 256
  config.seed = 0
  config.dtype = 'float32'  # Or 'bfloat16': parameters and losses stay float32.

  config.data = data = config_dict.ConfigDict()
  data.dir = 'data/mvtec_ad'
  data.tfds_dir = 'data/tfds'  # Where data sets are prepared, once.
  data.textures = 'dtd'  # Or 'builtin', or a folder of images.
  data.max_device_share = 0.5  # Of a device's memory; else fed from the host.

  config.model = model = config_dict.ConfigDict()
  model.reconstructive_width = 128
  model.discriminative_width = 64

  config.loss = loss = config_dict.ConfigDict()
  loss.data_range = 'one'  # L of SSIM; 'from_batch' is the release's guess.

  config.batch_size = 8
  config.num_epochs = 700
  config.num_steps = 0  # Not 0: decides instead. Both 0: only evaluates.
  config.sampling = 'epochs'  # Or 'with_replacement'.
  config.learning_rate = 1e-4
  config.learning_rate_factor = 0.1
  config.learning_rate_milestones = (4 / 7, 6 / 7)  # Shares of the steps.

  config.simulator = simulator = config_dict.ConfigDict()
  simulator.rotation_probability = 1.0
  simulator.rotation_degrees = (-45.0, 45.0)
  # "Sampled uniformly at random", says section 3.3, and not from where.
  simulator.threshold = (0.3, 0.7)
  simulator.augmentations = (
    'posterize',
    'sharpness',
    'solarize',
    'equalize',
    'brightness',
    'color',
    'autocontrast',
  )
  simulator.num_augmentations = 3
  simulator.opacity = (0.1, 1.0)
  simulator.anomaly_probability = 0.5

  config.score_window = 21
  config.eval = evaluation = config_dict.ConfigDict()
  evaluation.batch_size = 16
  evaluation.mask_threshold = 0.5  # Share of a pixel that must be covered.
  evaluation.holdout = 0.0  # Share of train/good kept for the threshold.
  evaluation.threshold_quantile = 0.99  # Of the scores of good images.
  evaluation.pixel_quantile = 0.9999  # Of the pixels of good images.

  config.log_every = 50
  config.panel_every = 1000
  config.checkpoint_every = 1000
  config.keep_checkpoints = 3
  config.profile_steps = 0  # Of each start: traced into the workdir's profile/.
  return config


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
