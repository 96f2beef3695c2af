"""How the figures of a report came about: recipe, threshold, run."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax.detector import Thresholds
from draem_jax.report import scores
from draem_jax.report.document import escape

# What makes figures comparable with the paper's (section 4.1), by field.
_RECIPE = {
  'image_size': 256,
  'model.reconstructive_width': 128,
  'model.discriminative_width': 64,
  'batch_size': 8,
  'learning_rate': 1e-4,
  'score_window': 21,
}
_EPOCHS = 700


def comparability(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  """What the figures of the paper are, and what differs in this run.

  Args:
    results: the content of `results.json`.
    config: of the run, flat; empty when it is not known.

  Returns:
    HTML, empty for categories that are not in the paper.
  """
  if not scores.published(results['category']):
    return ''
  text = scores.PAPER_NOTE
  differing = [
    f'{name.rpartition(".")[2].replace("_", " ")} {config[name]} (paper:'
    f' {value})'
    for name, value in _RECIPE.items()
    if config.get(name, value) != value
  ]
  if config.get('num_steps'):
    differing.append(f'{results["steps"]:,} steps (paper: {_EPOCHS} epochs)')
  elif config.get('num_epochs', _EPOCHS) != _EPOCHS:
    differing.append(f'{config["num_epochs"]} epochs (paper: {_EPOCHS})')
  if differing:
    text += f' This run is not the paper’s recipe: {", ".join(differing)}.'
  return f'<p class="note">{escape(text)}</p>'


def threshold_note(
  thresholds: Thresholds, results: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
  """Where the two thresholds come from, and what that is worth, as text."""
  sentences = [
    f'The detector’s threshold is the {100 * thresholds.quantile:g} % quantile'
    f' of the scores of {thresholds.source}: it aims at a false alarm rate of'
    f' {100 * (1 - thresholds.quantile):.3g} %.'
  ]
  if config.get('eval.holdout') == 0:
    sentences.append(
      'The networks were trained on these images, so that new ones may raise'
      ' more false alarms.'
    )
  if results['best_f1_threshold'] is not None:
    sentences.append(
      'The threshold of the best F1 is chosen on the test images themselves:'
      ' it says what could be reached at best.'
    )
  return ' '.join(sentences)


def run(
  defects: Sequence[str],
  results: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  has_truth: bool,
) -> str:
  """The run as an HTML list, and its whole config.

  Args:
    defects: the kind of each test image, 'good' for none.
    results: the content of `results.json`.
    config: of the run, flat; empty when it is not known.
    has_truth: whether the category has ground truth masks.
  """
  entries = {
    'Test images': _split(defects),
    'Training': _training(results, config),
    'Device': results.get('device') or scores.MISSING,
  }
  if 'threshold_source' in results:
    entries['Threshold'] = f'from {results["threshold_source"]}'
    entries['At this threshold'] = _operating_point(results)
  if 'image_size' in config:
    entries['Networks'] = (
      f'images of {config["image_size"]} × {config["image_size"]} pixels, width'
      f' {config["model.reconstructive_width"]} (reconstructive) and'
      f' {config["model.discriminative_width"]} (discriminative),'
      f' {config["dtype"]}'
    )
  if not has_truth:
    entries['Ground truth'] = 'no masks'
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


def _split(defects: Sequence[str]) -> str:
  """Number of images, in all and of each kind, good ones first."""
  kinds = Counter(defects)
  order = sorted(kinds, key=lambda kind: (kind != 'good', kind))
  counts = ', '.join(f'{kinds[kind]} {kind}' for kind in order)
  return f'{len(defects)}: {counts}' if counts else 'none'


def _training(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  parts = []
  if results.get('steps') is not None:
    parts.append(f'{results["steps"]:,} steps')
  if 'batch_size' in config:
    parts.append(f'batches of {config["batch_size"]}')
  if results.get('train_seconds') is not None:
    parts.append(scores.duration(results['train_seconds']))
  if results.get('images_per_second') is not None:
    parts.append(f'{results["images_per_second"]:.4g} images a second')
  if 'seed' in config:
    parts.append(f'seed {config["seed"]}')
  return ', '.join(parts) or scores.MISSING


def _operating_point(results: Mapping[str, Any]) -> str:
  names = {
    'true_positive_rate': 'true positive rate',
    'false_positive_rate': 'false positive rate',
    'f1': 'F1',
    'best_f1': 'best possible F1',
  }
  return 'in percent: ' + ', '.join(
    f'{name} {scores.percent(results.get(key))}' for key, name in names.items()
  )
