"""How the numbers of a report came about: recipe, threshold, run."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from draem_jax import config as config_lib
from draem_jax import sizes
from draem_jax.configs import mvtec
from draem_jax.metrics import PAPER_RATES, RATES, at_best_f1
from draem_jax.report import numbers, results
from draem_jax.report.document import escape
from draem_jax.workdir.thresholds import Thresholds

# Fields that shape no weights, but the scores or what is compared with them.
_READ_FIELDS = (
  'data.textures',
  'eval.mask_threshold',
  'score.map',
  'score.image',
  'score_window',
)
# Chance and places, which are no part of a recipe.
_NO_RECIPE = ('category', 'seed', 'data.dir', 'data.layout', 'data.tfds_dir')
# What a row says of the detector's threshold, and of the one of best F1.
_RATES = {key: rate.name for key, rate in RATES.items()}
_BEST_RATES = {at_best_f1(key): RATES[key].name for key in (*PAPER_RATES, 'f1')}
# The networks that are not called like the one width they have.
_WIDTHS = {
  'draem': ('reconstructive', 'discriminative'),
  'bozic': ('discriminative',),
}
_EPOCHS, _STEPS = 'num_epochs', 'num_steps'
_TEXTURES = 'data.textures'
_RESOLUTION = 'data.resolution'


def paper_recipe() -> dict[str, Any]:
  """The paper's whole recipe: all that shapes weights or scores, by field."""
  return {
    name: field.default
    for name, field in config_lib.FIELDS.items()
    if field.shapes_weights or name in _READ_FIELDS
  }


def release_recipe() -> dict[str, Any]:
  """What the authors' PyTorch release does otherwise, by field."""
  config = config_lib.default()
  mvtec.release(config)
  return {
    name: value
    for name, value in config_lib.flatten(config.to_dict()).items()
    if value != config_lib.FIELDS[name].default
  }


def comparability(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  """What the paper's numbers are, and in what this run differs from them.

  Args:
    row: of the run, as `results` describes it.
    config: of the run, flat; empty when it is not known.

  Returns:
    HTML, empty for categories that are not in the paper.
  """
  if not results.published(row):
    return ''
  text = numbers.paper_note()
  recipe, release = paper_recipe(), release_recipe()
  differing = _differing(config, recipe)
  is_release = all(
    differing.get(name) == _plain(value) for name, value in release.items()
  )
  if is_release:
    for name in release:
      del differing[name]
  phrases = _phrases(row, differing, recipe)
  if is_release:
    text += ' This run follows the recipe of the authors’ PyTorch release'
    text += f', but for: {phrases}.' if phrases else ', not the paper’s.'
  elif phrases:
    text += f' This run is not the paper’s recipe: {phrases}.'
  return f'<p class="note">{escape(text)}</p>'


def _differing(
  config: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
  """The values that are not the recipe's, by field.

  A field that an older config lacks has the recipe's value. The number of steps
  stands for that of epochs where it decides.
  """
  differing = {
    name: _plain(config[name])
    for name, value in recipe.items()
    if name not in _NO_RECIPE
    and _plain(config.get(name, value)) != _plain(value)
  }
  if _STEPS in differing:
    differing.pop(_EPOCHS, None)
  return differing


def _phrases(
  row: Mapping[str, Any],
  differing: Mapping[str, Any],
  recipe: Mapping[str, Any],
) -> str:
  """`name value (paper: value)` of each field."""
  phrases = []
  for name, value in differing.items():
    if name == _STEPS:
      steps = row.get('steps', value)
      phrases.append(f'{steps:,} steps (paper: {recipe[_EPOCHS]} epochs)')
    elif name == _EPOCHS:
      phrases.append(f'{value} epochs (paper: {recipe[name]})')
    elif name == _TEXTURES and value != 'builtin':
      # Whose folder it was is nobody's business whom the report is sent to.
      phrases.append('textures from a folder of images (paper: dtd)')
    elif name == _RESOLUTION:
      size = _at(value)
      phrases.append(f'crops of images {size} (paper: whole, resized)')
    else:
      words = name.replace('.', ' ').replace('_', ' ')
      theirs = _words(_plain(recipe[name]))
      phrases.append(f'{words} {_words(value)} (paper: {theirs})')
  return '; '.join(phrases)


def _plain(value: Any) -> Any:
  """The value as it comes back from JSON."""
  return json.loads(json.dumps(value))


def _words(value: Any) -> str:
  if isinstance(value, list):
    return ', '.join(map(_words, value)) or 'none'
  if isinstance(value, float):
    return f'{value:.4g}'
  return str(value).replace('_', ' ')


def threshold_note(
  thresholds: Thresholds, row: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
  """Where the two thresholds come from, and what that is worth, as text."""
  sentences = [
    f'The detector’s threshold is the {100 * thresholds.quantile:g} % quantile'
    f' of the scores of {thresholds.source}: it aims at a false alarm rate of'
    f' {100 * (1 - thresholds.quantile):.3g} %.'
  ]
  is_trained_on = thresholds.source.endswith('of the training')
  if config.get('eval.holdout') == 0 and is_trained_on:
    sentences.append(
      'The networks were trained on these images, so that new ones may raise'
      ' more false alarms.'
    )
  if row.get('best_f1_threshold') is not None:
    sentences.append(
      'The threshold of the best F1 is chosen on the test images themselves:'
      ' it says what could be reached at best.'
    )
  return ' '.join(sentences)


def run(
  row: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  defects: Sequence[str],
  labels: Bool[np.ndarray, 'n'],
  has_truth: bool,
  coarse_truth: bool = False,
) -> str:
  """The run as an HTML list, and its whole config.

  Args:
    row: of the run, as `results` describes it.
    config: of the run, flat; empty when it is not known.
    defects: the kind of each test image.
    labels: True for anomalous images.
    has_truth: whether the category has ground truth masks.
    coarse_truth: whether these only surround the defects.
  """
  entries = {
    'Test images': _split(defects, labels),
    'Training': _training(row, config),
    'Device': row.get('device') or numbers.MISSING,
  }
  if 'threshold_source' in row:
    entries['Threshold'] = f'from {row["threshold_source"]}'
    entries['At this threshold'] = _operating_point(row, _RATES)
    entries['At the one of best F1'] = _operating_point(row, _BEST_RATES)
  if 'image_size' in config:
    entries['Networks'] = _networks(config)
  if not has_truth:
    entries['Ground truth'] = 'no masks'
  elif coarse_truth:
    entries['Ground truth'] = (
      'coarse outlines, which are shown, but no pixel is compared with them'
    )
  elif 'eval.mask_threshold' in config:
    share = config['eval.mask_threshold']
    covers = 'all' if share == 1 else f'at least {100 * share:g} %'
    entries['Ground truth'] = (
      f'a pixel is anomalous when a defect covers {covers} of it'
    )
  items = ''.join(
    f'<div><dt>{name}</dt><dd>{escape(value)}</dd></div>\n'
    for name, value in entries.items()
  )
  return f'<dl class="details">\n{items}</dl>\n{_whole(config)}'


def _whole(config: Mapping[str, Any]) -> str:
  if not config:
    return ''
  rows = ''.join(
    f'<tr><th scope="row">{escape(name)}</th>'
    f'<td>{escape(json.dumps(value))}</td></tr>\n'
    for name, value in sorted(config.items())
  )
  return (
    '<details><summary>The whole config</summary>\n<div class="scroll" '
    'tabindex="0" role="region" aria-label="Config"><table class="config">'
    f'\n<tbody>{rows}</tbody></table></div></details>'
  )


def _networks(config: Mapping[str, Any]) -> str:
  """Size of the images, the networks that there are and their widths."""
  size = sizes.shown(config['image_size'], ' × ')
  name = config.get('model.name', 'draem')
  # DRÆM is the two together; a network alone is called what it is.
  used = _WIDTHS.get(name, (name,))
  seen = f'images of {size} pixels'
  if config.get(_RESOLUTION, '') not in ('', config['image_size']):
    seen = f'tiles of {size} pixels of images {_at(config[_RESOLUTION])}'
  widths = [
    f'width {config[field]} ({part})'
    for part in ('reconstructive', 'discriminative')
    if part in used and (field := f'model.{part}_width') in config
  ]
  parts = [f'{name}, {seen}', ' and '.join(widths)]
  return ', '.join(filter(None, [*parts, config.get('dtype')]))


def _at(resolution: int | Sequence[int]) -> str:
  if not resolution:
    return 'at their own size'
  return f'resized to {sizes.shown(resolution, " × ")} pixels'


def _split(defects: Sequence[str], labels: Bool[np.ndarray, 'n']) -> str:
  """Number of images, in all and of each kind, good ones first."""
  kinds = Counter(zip(labels.tolist(), defects, strict=True))
  counts = ', '.join(f'{kinds[kind]} {kind[1]}' for kind in sorted(kinds))
  return f'{len(defects)}: {counts}' if counts else 'none'


def _training(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  parts = []
  if row.get('steps') is not None:
    parts.append(f'{row["steps"]:,} steps')
  if 'batch_size' in config:
    parts.append(f'batches of {config["batch_size"]}')
  if row.get('train_seconds') is not None:
    parts.append(numbers.duration(row['train_seconds']))
  if row.get('images_per_second') is not None:
    parts.append(f'{row["images_per_second"]:.4g} images a second')
  if 'seed' in config:
    parts.append(f'seed {config["seed"]}')
  return ', '.join(parts) or numbers.MISSING


def _operating_point(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
  return 'in percent: ' + ', '.join(
    f'{name} {numbers.percent(row.get(key))}' for key, name in names.items()
  )
