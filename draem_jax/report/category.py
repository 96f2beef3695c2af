"""The report of one category: its test split as one HTML file to explore."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from draem_jax import config as config_lib
from draem_jax import names
from draem_jax.data.images import map_parallel
from draem_jax.evaluate import Evaluation
from draem_jax.pictures import panels
from draem_jax.report import (
  charts,
  details,
  document,
  numbers,
  pictures,
  systems,
)
from draem_jax.report.document import escape
from draem_jax.workdir import claim, storage

# Images whose pictures are kept; of more, those that are furthest from right.
_MAX_PICTURES = 1000


def write_report(
  workdir: str | pathlib.Path,
  evaluation: Evaluation,
  row: Mapping[str, Any],
  *,
  lines: Sequence[Mapping[str, float]] = (),
) -> pathlib.Path:
  """Writes `report.html`, which needs no other file and no network.

  Args:
    workdir: the folder of the run; its config is told when it is there.
    evaluation: of its test split.
    row: of the run, as `results.write` returns it.
    lines: of its `metrics.jsonl`; without evaluations while it trained, the
      report has no section on them.

  Returns:
    The path of the file.
  """
  path = pathlib.Path(workdir) / 'report.html'
  config = {}
  if (path.parent / 'config.json').exists():
    config = claim.read_config(workdir, check=False)
    config = config_lib.flatten(config)
  headline, sections = 'There are no test images.', ''
  data: dict[str, Any] = {'images': []}
  if evaluation.scored is not None:
    headline, data = _headline(evaluation), _data(evaluation)
    sections = _sections(
      evaluation, details.threshold_note(evaluation.thresholds, row, config)
    )
  body = document.fill(
    'category.html',
    category=escape(row['category']),
    headline=escape(headline),
    metrics=numbers.table(row, evaluation.reasons),
    comparability=details.comparability(row, config),
    systems=numbers.systems_section(systems.beside_category(row)),
    test=sections,
    training=_training_section(lines),
    details=details.run(
      row,
      config,
      defects=evaluation.category.test_defects,
      labels=evaluation.labels,
      has_truth=evaluation.masks is not None,
      coarse_truth=evaluation.category.coarse_masks,
    ),
  )
  title = f'{row["category"]} · DRÆM report'
  storage.write_text(
    path,
    document.page(title=title, body=body, script='category.js', data=data),
  )
  return path


def _headline(evaluation: Evaluation) -> str:
  """The verdicts at the detector's threshold in a sentence."""
  rates = evaluation.rates
  anomalous = rates.true_positives + rates.false_negatives
  good = rates.false_positives + rates.true_negatives
  parts = []
  if anomalous:
    found = rates.true_positives
    parts.append(f'finds {found} of {_count(anomalous, "anomalous image")}')
  if good:
    alarms = _count(rates.false_positives, 'false alarm')
    parts.append(f'raises {alarms} on {_count(good, "good image")}')
  return f'The detector {" and ".join(parts)}.'


def _axis_end(evaluation: Evaluation) -> float:
  return charts.axis_end(evaluation.scored.score, evaluation.thresholds.image)


def _sections(evaluation: Evaluation, threshold_note: str) -> str:
  """The sections on threshold, curves and pictures, as HTML."""
  labels, scored = evaluation.labels, evaluation.scored
  curves = charts.thin(evaluation.curves)
  best_button = ''
  if evaluation.best_f1_threshold is not None:
    best_button = (
      '<button type="button" id="use-best">Best F1: '
      f'{panels.number(evaluation.best_f1_threshold)}</button>'
    )
  kinds = Counter(evaluation.category.test_defects)
  options = ''.join(
    f'<option value="{escape(kind)}">{escape(kind)} ({kinds[kind]})</option>\n'
    for kind in sorted(kinds)
  )
  left_out = ''
  if len(labels) > _MAX_PICTURES:
    left_out = (
      f'<p class="note">To keep this file small it has pictures of'
      f' {_MAX_PICTURES} images only, mistakes first; the others have their'
      ' numbers.</p>'
    )
  return document.fill(
    'test.html',
    detector_threshold=panels.number(evaluation.thresholds.image),
    best=best_button,
    threshold_note=escape(threshold_note),
    histogram=charts.histogram(scored.score, labels, _axis_end(evaluation)),
    anomalous=str(int(np.sum(labels))),
    good=str(int(np.sum(~labels))),
    roc=charts.roc(curves),
    precision_recall=charts.precision_recall(curves),
    curve_tables=charts.curve_tables(curves),
    defects=options,
    left_out=left_out,
    tiles=_tiles(evaluation),
  )


def _training_section(lines: Sequence[Mapping[str, float]]) -> str:
  """The section on the evaluations while it trained; empty without any."""
  lines = [line for line in lines if 'eval_pixel_ap' in line]
  if not lines:
    return ''
  return document.fill(
    'training.html',
    accuracy=charts.while_training(
      lines,
      'Found on simulated anomalies',
      {
        'images': ('eval_image_auroc', 'image AUROC'),
        'pixels': ('eval_pixel_ap', 'pixel AP'),
      },
      end=1.0,
    ),
    loss=charts.while_training(
      lines,
      'Loss',
      {
        'images': ('loss', 'in training'),
        'pixels': ('eval_loss', 'on simulated anomalies'),
      },
    ),
  )


def _tiles(evaluation: Evaluation) -> str:
  """The pictures of the panel, those that there are, as HTML."""
  captions = {'input': 'Input', 'reconstruction': 'Reconstruction'}
  captions |= {'heat': 'Heat map'}
  if evaluation.drawn[0].reconstruction is None:
    del captions['reconstruction']
  tiles = [
    f'<figure><div class="picture" data-layers="{layer}"></div>'
    f'<figcaption>{caption}</figcaption></figure>'
    for layer, caption in captions.items()
  ]
  # The script says whether the ground truth is outlined.
  tiles.append(
    '<figure><div class="picture" data-layers="map outline"></div>'
    '<figcaption id="map-caption"></figcaption></figure>'
  )
  return (
    f'<div class="tiles" style="--tiles: {len(tiles)}">\n'
    + '\n'.join(tiles)
    + '\n</div>'
  )


def _data(evaluation: Evaluation) -> dict[str, Any]:
  """What the script reads: thresholds, and all there is of each image."""
  category, scored = evaluation.category, evaluation.scored
  threshold = evaluation.thresholds.image
  count, shapes = len(scored.score), [d.image.shape for d in evaluation.drawn]
  # Of pictures of several sizes the largest.
  height, width, _ = map(max, zip(*shapes, strict=True))
  side = pictures.picture_side(height, width, min(count, _MAX_PICTURES))
  sign = np.where(evaluation.labels, 1, -1)
  margin = (scored.score - threshold) * sign
  kept = set(np.argsort(margin, kind='stable')[:_MAX_PICTURES].tolist())

  def describe(index: int) -> dict[str, Any]:
    entry = {
      'file': names.shown(category.test_files[index]),
      'defect': names.shown(category.test_defects[index]),
      'anomalous': bool(evaluation.labels[index]),
      'score': float(scored.score[index]),
    }
    if index in kept:
      drawn = evaluation.drawn[index]
      kinds = {
        'input': drawn.image,
        'heat': panels.heat_map_overlay(drawn.image, drawn.anomaly_map),
        'map': panels.colorize(drawn.anomaly_map),
      }
      if drawn.reconstruction is not None:
        kinds['reconstruction'] = drawn.reconstruction
      if drawn.image.shape != (height, width, 3):
        entry['height'], entry['width'] = drawn.image.shape[:2]
      for name, picture in kinds.items():
        entry[name] = pictures.encode(picture, side)
      if drawn.mask is not None and drawn.mask.any():
        entry['outline'] = pictures.outline(drawn.mask)
    return entry

  return {
    'threshold': threshold,
    'bestThreshold': evaluation.best_f1_threshold,
    'end': _axis_end(evaluation),
    'width': width,
    'height': height,
    'images': map_parallel(describe, range(count)),
  }


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'
