"""The fields of a config: what each is by default, may be, and decides.

`FIELDS` is the one table of them. Its defaults are the recipe of the paper
(section 4.1) and, where the paper is silent, what the authors' release does.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from draem_jax import losses, score, sizes
from draem_jax.data.layouts import AUTO, LAYOUTS
from draem_jax.data.resizing import WAYS
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.simulator.masks import MASKS
from draem_jax.simulator.options import Options
from draem_jax.simulator.textures import TEXTURES


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config.

  Attributes:
    default: the value in the paper's recipe, and of a stored config that is
      older than the field.
    holds: whether a value can work.
    remedy: what to do if it cannot, or the function of the value that says it.
    shapes_weights: whether another value makes another training. A run is gone
      on with only if no such field differs.
  """

  default: Any
  holds: Callable[[Any], bool]
  remedy: str | Callable[[Any], str]
  shapes_weights: bool = True


# Steps are counted in 32 bits; other numbers need no more.
_MOST = 2**31 - 1
# What no machine has the memory for.
_LARGEST_IMAGE, _LARGEST_BATCH, _WIDEST = 8192, 65536, 4096
_LARGEST_PICTURE = 65535  # A side, in pixels; no JPEG has more.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # Bytes, where a system says so.


def _is_number(value: Any) -> bool:
  """Whether a value is a finite number, as the devices have it, too."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and abs(value) < 3e38


def _is_list(value: Any) -> bool:
  return isinstance(value, list | tuple)


def _folder(
  default: str, *, may_be_empty: bool = False, **options: Any
) -> Field:
  """A path, or a word that stands for one."""

  def holds(value: Any) -> bool:
    if not isinstance(value, str) or '\0' in value:
      return False
    path = os.fsencode(value)
    parts = path.split(b'/')
    return (
      (may_be_empty or bool(path))
      and len(path) <= _LONGEST_PATH
      and max(map(len, parts)) <= _LONGEST_NAME
    )

  return Field(default, holds, 'take the name of a folder', **options)


def _name(default: str, **options: Any) -> Field:
  """The name of one folder in another."""
  inner = _folder(default)

  def holds(value: Any) -> bool:
    return inner.holds(value) and value not in ('.', '..') and '/' not in value

  remedy = 'take the name of a folder in config.data.dir, without slashes'
  return Field(default, holds, remedy, **options)


def _one_of(default: str, *choices: str, **options: Any) -> Field:
  remedy = f'take one of {", ".join(choices)}'
  return Field(
    default,
    lambda value: isinstance(value, str) and value in choices,
    remedy,
    **options,
  )


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _whole(
  default: int, least: int, most: int = _MOST, **options: Any
) -> Field:
  holds = lambda value: _is_whole(value) and least <= value <= most

  def remedy(value: Any) -> str:
    if _is_whole(value) and value > most:
      return f'take {most} or less'
    return f'take {least} or more, whole'

  return Field(default, holds, remedy, **options)


def _positive(default: float, **options: Any) -> Field:
  # What is less is 0 on the devices.
  holds = lambda value: _is_number(value) and value > 1e-37
  return Field(default, holds, 'take more than 0', **options)


def _not_negative(default: float, **options: Any) -> Field:
  holds = lambda value: _is_number(value) and value >= 0
  return Field(default, holds, 'take 0 or more', **options)


def _share(default: float, **options: Any) -> Field:
  holds = lambda value: _is_number(value) and 0 <= value <= 1
  return Field(default, holds, 'take 0 to 1', **options)


def _below_one(default: float, **options: Any) -> Field:
  holds = lambda value: _is_number(value) and 0 <= value < 1
  return Field(default, holds, 'take 0 to below 1', **options)


def _interval(
  default: tuple[float, float],
  least: float,
  most: float,
  *,
  whole: bool = False,
  **options: Any,
) -> Field:
  """An interval (low, high) inside [least, most]."""
  fits = _is_whole if whole else _is_number

  def holds(value: Any) -> bool:
    return (
      _is_list(value)
      and len(value) == 2
      and all(map(fits, value))
      and least <= value[0] <= value[1] <= most
    )

  numbers = ' of whole numbers' if whole else ''
  remedy = f'take an interval (low, high){numbers}, in {least:g} to {most:g}'
  return Field(default, holds, remedy, **options)


def _size(default: int) -> Field:
  """One number, or height and width."""

  def fits(value: Any) -> bool:
    return (
      _is_whole(value) and 32 <= value <= _LARGEST_IMAGE and value % 32 == 0
    )

  def holds(value: Any) -> bool:
    if not _is_list(value):
      return fits(value)
    return len(value) == 2 and all(map(fits, value))

  def near(value: Any) -> int:
    if not _is_number(value):
      return default
    return min(max(32, round(value / 32) * 32), _LARGEST_IMAGE)

  def remedy(value: Any) -> str:
    if _is_list(value) and len(value) != 2:
      return 'take one number, or height and width, such as (256, 512)'
    both = tuple(map(near, value)) if _is_list(value) else near(value)
    every = value if _is_list(value) else (value,)
    if any(_is_whole(each) and each > _LARGEST_IMAGE for each in every):
      return f'take {both} or less'
    return (
      'not a multiple of 32, which the pooling of the networks needs: take'
      f' {both}'
    )

  return Field(default, holds, remedy)


def _is_side(value: Any) -> bool:
  return _is_whole(value) and 1 <= value <= _LARGEST_PICTURE


FIELDS = {
  'category': _name('bottle'),
  # Or (height, width).
  'image_size': _size(256),
  # A key of JAX has no more bits: a higher one would be another again.
  'seed': _whole(0, 0, 2**32 - 1),
  # Or 'bfloat16': parameters and losses stay float32.
  'dtype': _one_of('float32', 'float32', 'bfloat16'),
  'data.dir': _folder('data/mvtec_ad', shapes_weights=False),
  # Or how the files lie; 'auto' finds out.
  'data.layout': _one_of(AUTO, AUTO, *LAYOUTS, shapes_weights=False),
  # Or 'area': by the mean of what each pixel covers; 'auto': as the release for
  # the categories of the paper, by the mean for any other.
  'data.resize': _one_of('bilinear', AUTO, *WAYS),
  # What images are loaded at: '', the size of the networks' input; 0, their
  # own; or a number, or (height, width). The networks see crops of that.
  'data.resolution': Field(
    '',
    lambda value: (
      value == ''
      or (_is_whole(value) and (value == 0 or _is_side(value)))
      or (_is_list(value) and len(value) == 2 and all(map(_is_side, value)))
    ),
    "take '' for config.image_size, 0 for the images' own, or height and width",
  ),
  # Where the object is: an image that is white there, a folder with one per
  # picture, by name, or 'auto'; '': everywhere.
  'data.roi': Field(
    '',
    _folder('', may_be_empty=True).holds,
    "take '' for whole pictures, the name of an image or of a folder of images,"
    ' or auto',
  ),
  # Where data sets are prepared, once; '': in the workdir.
  'data.tfds_dir': _folder(
    'data/tfds', may_be_empty=True, shapes_weights=False
  ),
  # Or 'builtin', or a folder of images.
  'data.textures': _folder('dtd', shapes_weights=False),
  # Sampled from them by the seed; 0: all.
  'data.num_textures': _whole(0, 0),
  # Of a device's memory; what takes more is fed from the host.
  'data.max_device_share': _share(0.5, shapes_weights=False),
  # Of the host's memory; textures and pictures that take more are decoded when
  # drawn.
  'data.max_host_share': _share(0.5, shapes_weights=False),
  'model.name': _one_of('draem', *models.MODELS),
  'model.reconstructive_width': _whole(128, 1, _WIDEST),
  'model.discriminative_width': _whole(64, 1, _WIDEST),
  # Share of the gradient of the map's losses that passes through the
  # reconstruction into the reconstructive network.
  'model.reconstruction_gradient': _share(1.0),
  # A term of weight 0 is not computed.
  'loss.weights.l2': _not_negative(1.0),
  'loss.weights.ssim': _not_negative(1.0),
  'loss.weights.msgms': _not_negative(0.0),
  'loss.weights.focal': _not_negative(1.0),
  'loss.weights.segmentation': _not_negative(0.0),
  'loss.weights.decision': _not_negative(0.0),
  # Of the focal loss.
  'loss.gamma': _not_negative(2.0),
  # Of the weights; 'segmentation_first' shifts them to the decision.
  'loss.schedule': _one_of('constant', *losses.SCHEDULES),
  # L of SSIM; 'from_batch' is the release's guess.
  'loss.data_range': _one_of('one', 'one', 'from_batch'),
  'batch_size': _whole(8, 1, _LARGEST_BATCH),
  'num_epochs': _whole(700, 0),
  # Not 0: decides instead of the epochs. Both 0: only evaluates.
  'num_steps': _whole(0, 0),
  'sampling': _one_of('epochs', 'epochs', 'with_replacement'),
  'optimizer': _one_of('adam', 'adam', 'muon', 'sgd'),
  'learning_rate': _positive(1e-4),
  # Share of the steps over which it rises to that in a straight line.
  'learning_rate_warmup': _below_one(0.0),
  'learning_rate_factor': _positive(0.1),
  # Shares of the steps.
  'learning_rate_milestones': Field(
    (4 / 7, 6 / 7),
    lambda value: (
      _is_list(value)
      and all(_is_number(share) and 0 <= share <= 1 for share in value)
      and len(set(value)) == len(value)
    ),
    'take shares of the steps, 0 to 1, each once',
  ),
  # What an average of the weights keeps in a step; 0: there is none.
  'ema': _below_one(0.0),
  'simulator.mask': _one_of('perlin', *MASKS),
  'simulator.texture': _one_of('images', *TEXTURES),
  'simulator.rotation_probability': _share(1.0),
  'simulator.rotation_degrees': _interval((-45.0, 45.0), -360, 360),
  # Of the lattice of Perlin noise along a side, powers of two.
  'simulator.cells': _interval((1, 32), 1, 32, whole=True),
  # Shares of the masks of noise that are unions and intersections of two.
  'simulator.unions': _share(0.0),
  'simulator.intersections': _share(0.0),
  # "Sampled uniformly at random", says section 3.3, and not from where.
  'simulator.threshold': _interval((0.3, 0.7), -10, 10),
  # Of 'rectangles', whose number and sides the paper does not tell: together
  # about as large as the masks of Perlin noise are in the release.
  'simulator.rectangles': _interval((1, 4), 1, 1000, whole=True),
  'simulator.rectangle_sides': _interval((0.05, 0.25), 0, 1),
  'simulator.augmentations': Field(
    (
      'posterize',
      'sharpness',
      'solarize',
      'equalize',
      'brightness',
      'color',
      'autocontrast',
    ),
    lambda value: (
      _is_list(value) and all(isinstance(name, str) for name in value)
    ),
    'take names of operations',
  ),
  'simulator.num_augmentations': _whole(3, 0),
  # Share of the textures that are augmented at all.
  'simulator.augmentation_probability': _share(1.0),
  # Share of the textures that are another good image of the batch instead,
  # shifted and mirrored, and not augmented.
  'simulator.good_textures': _share(0.0),
  'simulator.opacity': _interval((0.1, 1.0), 0, 1),
  'simulator.anomaly_probability': _share(0.5),
  # Standard deviation of noise on what the networks see, in [0, 1].
  'simulator.noise': _share(0.0),
  'score.map': _one_of('softmax', *score.MAPS, shapes_weights=False),
  # 'window' is equation 5.
  'score.image': _one_of('window', *score.IMAGE_SCORES, shapes_weights=False),
  'score_window': Field(
    21,
    lambda value: (
      _is_whole(value) and 0 < value < 2 * _LARGEST_IMAGE and value % 2 == 1
    ),
    f'take an odd one, below {2 * _LARGEST_IMAGE}',
    shapes_weights=False,
  ),
  'eval.batch_size': _whole(16, 1, _LARGEST_BATCH, shapes_weights=False),
  # Share of a pixel that the ground truth must cover.
  'eval.mask_threshold': Field(
    0.5,
    # Every pixel is covered by nothing, or more.
    lambda value: _is_number(value) and 0 < value <= 1,
    'take more than 0, to 1',
    shapes_weights=False,
  ),
  # Share of the good images kept out of the training, for the thresholds; -1:
  # 0 for the 15 categories of MVTec AD and the 10 of DAGM, 0.1 for any other.
  'eval.holdout': Field(
    0.0,
    lambda value: _is_number(value) and (value == -1 or 0 <= value < 1),
    'take 0 to below 1, or -1 to let the category decide',
  ),
  # Steps from one evaluation on simulated anomalies to the next; 0: none.
  'eval.every': _whole(0, 0, shapes_weights=False),
  # Of the scores of good images, and of their pixels.
  'eval.threshold_quantile': _share(0.99, shapes_weights=False),
  'eval.pixel_quantile': _share(0.9999, shapes_weights=False),
  # So many evaluations without a better pixel AP end the run, and the best
  # weights are kept; 0: the last ones are.
  'stop_when_flat': _whole(0, 0),
  'log_every': _whole(50, 1, shapes_weights=False),
  'panel_every': _whole(1000, 1, shapes_weights=False),
  'checkpoint_every': _whole(1000, 1, shapes_weights=False),
  'keep_checkpoints': _whole(3, 1, shapes_weights=False),
  # Of each start: traced into the workdir's profile/.
  'profile_steps': _whole(0, 0, shapes_weights=False),
}


def default() -> config_dict.ConfigDict:
  """The recipe of the paper."""
  return config_dict.ConfigDict(complete({}))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """A nested config of plain values, with defaults for what it lacks.

  Configs that were stored may be older than some fields.

  Raises:
    UserError: if it has what is no field.
  """
  completed = {}
  given = flatten(config)
  _check_names(given)
  defaults = {name: field.default for name, field in FIELDS.items()}
  for name, value in (defaults | given).items():
    *parents, last = name.split('.')
    place = completed
    for parent in parents:
      place = place.setdefault(parent, {})
    # A tuple comes back from JSON as a list.
    place[last] = tuple(value) if isinstance(value, list) else value
  return completed


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The fields of a nested config by dotted names."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def check(config: Mapping[str, Any]) -> None:
  """Checks what can be checked before any file is read.

  Raises:
    UserError: for the first field that is none or is missing, or whose value
      cannot work.
  """
  values = flatten(config)
  _check_names(values)
  for name, field in FIELDS.items():
    if name not in values:
      raise UserError(
        f'config.{name} is missing: begin with what draem_jax.config.default()'
        ' gives'
      )
    value = values[name]
    try:
      holds = field.holds(value)
    # Such as text that is no name of a file, or a number like 10**400.
    except (TypeError, ValueError, OverflowError):
      holds = False
    if not holds:
      remedy = field.remedy
      remedy = remedy if isinstance(remedy, str) else remedy(value)
      raise UserError(f'config.{name}={_shown(value)}: {remedy}')
  if sizes.short(config['image_size']) == 32 and config['batch_size'] == 1:
    # The deepest layers would have one value of each channel.
    raise UserError(
      'config.batch_size=1 with config.image_size=32 leaves batch norm no'
      ' variance: take 2 or more, or larger images'
    )
  _check_resolution(config)
  _check_roi(config)
  Options(**config['simulator'])
  if config['stop_when_flat'] and not config['eval']['every']:
    raise UserError(
      f'config.stop_when_flat={config["stop_when_flat"]} counts evaluations'
      ' while it trains, and there are none: set config.eval.every'
    )
  _check_outputs(config)


def _check_resolution(config: Mapping[str, Any]) -> None:
  """Checks that images are loaded no smaller than the crops of them."""
  resolution = config['data']['resolution']
  if resolution in ('', 0):
    return
  loaded, crop = sizes.pair(resolution), sizes.pair(config['image_size'])
  if any(side < least for side, least in zip(loaded, crop, strict=True)):
    raise UserError(
      f'config.data.resolution={sizes.shown(loaded)} is less than'
      f' config.image_size={sizes.shown(crop)}, which is cut out of it: take'
      " that or more, 0 for the images' own size, or '' to resize them to"
      ' config.image_size'
    )


def _check_roi(config: Mapping[str, Any]) -> None:
  """Checks that a region of interest goes with the rest."""
  data, way = config['data'], config['score']['image']
  if not data['roi']:
    return
  if data['resolution'] != '':
    raise UserError(
      f'config.data.roi={_shown(data["roi"])} with config.data.resolution='
      f'{_shown(data["resolution"])}: crops and tiles know no region: leave one'
      ' of them out'
    )
  if score.IMAGE_SCORES[way].reads:
    raise UserError(
      f'config.data.roi={_shown(data["roi"])} with config.score.image={way!r},'
      ' by which networks decide about whole pictures: take window, or leave'
      ' config.data.roi out'
    )


def _check_outputs(config: Mapping[str, Any]) -> None:
  """Checks that loss, map and score read what the networks give."""
  name = config['model']['name']
  given = models.MODELS[name].outputs
  for term, weight in config['loss']['weights'].items():
    needed = losses.TERMS[term].reads
    if weight and needed not in given:
      raise UserError(
        f'config.loss.weights.{term}={weight:g}: the networks {name!r} give no'
        f' {needed}: take 0'
      )
  if not any(config['loss']['weights'].values()):
    raise UserError(
      'config.loss.weights are all 0: take more than 0 for one of them'
    )
  for term in losses.SCHEDULES[config['loss']['schedule']](0.0):
    if not config['loss']['weights'][term]:
      raise UserError(
        f'config.loss.schedule={config["loss"]["schedule"]!r} shifts the weight'
        f' of {term}, which is 0: take constant, or set'
        f' config.loss.weights.{term}'
      )
  needed = score.MAPS[config['score']['map']].reads
  if needed not in given:
    fitting = [key for key, one in score.MAPS.items() if one.reads in given]
    raise UserError(
      f'config.score.map={config["score"]["map"]!r}: the networks {name!r} give'
      f' no {needed}: take one of {", ".join(fitting)}'
    )
  needed = score.IMAGE_SCORES[config['score']['image']].reads
  if needed and needed not in given:
    raise UserError(
      f'config.score.image={config["score"]["image"]!r}: the networks {name!r}'
      f' give no {needed}: take window'
    )


def _check_names(names: Iterable[str]) -> None:
  """Raises a `UserError` for the first name that is no field's."""
  weights = {f'loss.weights.{term}' for term in losses.TERMS}
  for name in names:
    if name in FIELDS or name in weights:
      continue
    if name.startswith('study.'):
      raise UserError(
        'config.study: this is a study and no run: run it with draem_jax.study'
      )
    near = difflib.get_close_matches(name, FIELDS, n=1)
    hint = f'did you mean config.{near[0]}? T' if near else 't'
    raise UserError(
      f'config.{_shown(name)[1:-1]} is no field: {hint}ake it out, or the'
      ' version of draem_jax that knows it'
    )


def _shown(value: Any) -> str:
  """A value in a message: in a line, and not a long one."""
  try:
    text = repr(value)
  except ValueError:  # Python shows no number of thousands of digits.
    return 'a number of thousands of digits'
  return text if len(text) <= 80 else f'{text[:80]}...'
