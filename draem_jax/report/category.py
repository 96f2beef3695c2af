"""The report of one category: its test split as one HTML file to explore."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Bool

from draem_jax import figures, metrics
from draem_jax import workdir as workdir_lib
from draem_jax.data.category import Category
from draem_jax.data.images import map_parallel
from draem_jax.detector import Scored, Thresholds
from draem_jax.report import charts, details, document, pictures, scores
from draem_jax.report.document import escape

# Images whose pictures are kept; of more, those that are furthest from right.
_MAX_PICTURES = 1000


@dataclasses.dataclass(frozen=True)
class _TestSplit:
  """What there is to say of a test split that has images."""

  category: Category
  scored: Scored
  labels: Bool[np.ndarray, 'n']
  masks: Bool[np.ndarray, 'n h w'] | None
  thresholds: Thresholds
  results: Mapping[str, Any]

  @property
  def axis_end(self) -> float:
    return charts.axis_end(self.scored.score, self.thresholds.image)


def write_report(
  workdir: str | pathlib.Path,
  *,
  category: Category,
  scored: Scored | None,
  masks: Bool[np.ndarray, 'n h w'] | None,
  thresholds: Thresholds,
  results: Mapping[str, Any],
  notes: Sequence[str] = (),
) -> pathlib.Path:
  """Writes `report.html`, which needs no other file and no network.

  Args:
    workdir: the folder of the run; its config is told when it is there.
    category: with the test images, at the size of the networks.
    scored: what the networks say of them; None when there are none.
    masks: True for anomalous pixels; None when there is no ground truth.
    thresholds: of the detector.
    results: the content of `results.json`.
    notes: why figures are missing, as `metrics.evaluate_metrics` puts it.

  Returns:
    The path of the file.
  """
  path = pathlib.Path(workdir) / 'report.html'
  config = {}
  if (path.parent / 'config.json').exists():
    config = workdir_lib.read_config(workdir)
    config = traverse_util.flatten_dict(config, sep='.')
  labels = np.array([kind != 'good' for kind in category.test_defects], bool)
  headline, sections = 'There are no test images.', ''
  data: dict[str, Any] = {'images': []}
  reasons = dict.fromkeys(results, 'there are no test images')
  if scored is not None and len(labels):
    split = _TestSplit(category, scored, labels, masks, thresholds, results)
    headline, data, reasons = _headline(split), _data(split), _reasons(notes)
    sections = _sections(
      split, details.threshold_note(thresholds, results, config)
    )
  body = document.fill(
    'category.html',
    category=escape(results['category']),
    headline=escape(headline),
    scores=scores.table(results, reasons),
    comparability=details.comparability(results, config),
    test=sections,
    details=details.run(
      category.test_defects, results, config, has_truth=masks is not None
    ),
  )
  title = f'{results["category"]} · DRÆM report'
  workdir_lib.write_text(
    path,
    document.page(title=title, body=body, script='category.js', data=data),
  )
  return path


def _headline(split: _TestSplit) -> str:
  """The verdicts at the detector's threshold in a sentence."""
  rates = metrics.rates_at_threshold(
    split.scored.score, split.labels, split.thresholds.image
  )
  anomalous = int(np.sum(split.labels))
  good = len(split.labels) - anomalous
  parts = []
  if anomalous:
    found = rates.true_positives
    parts.append(f'finds {found} of {_count(anomalous, "anomalous image")}')
  if good:
    alarms = _count(rates.false_positives, 'false alarm')
    parts.append(f'raises {alarms} on {_count(good, "good image")}')
  return f'The detector {" and ".join(parts)}.'


def _sections(split: _TestSplit, threshold_note: str) -> str:
  """The sections on threshold, curves and pictures, as HTML."""
  labels, scored = split.labels, split.scored
  curves = charts.levels(
    scores=scored.score,
    labels=labels,
    maps=scored.anomaly_map,
    masks=split.masks,
  )
  best, best_button = split.results['best_f1_threshold'], ''
  if best is not None:
    best_button = (
      '<button type="button" id="use-best">Best F1: '
      f'{figures.number(best)}</button>'
    )
  kinds = Counter(split.category.test_defects)
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
    detector_threshold=figures.number(split.thresholds.image),
    best=best_button,
    threshold_note=escape(threshold_note),
    histogram=charts.histogram(scored.score, labels, split.axis_end),
    anomalous=str(int(np.sum(labels))),
    good=str(int(np.sum(~labels))),
    roc=charts.roc(curves),
    precision_recall=charts.precision_recall(curves),
    curve_tables=charts.curve_tables(curves),
    defects=options,
    left_out=left_out,
  )


def _data(split: _TestSplit) -> dict[str, Any]:
  """What the script reads: thresholds, and all there is of each image."""
  scored = split.scored
  count, height, width = scored.anomaly_map.shape
  side = pictures.picture_side(height, width, min(count, _MAX_PICTURES))
  sign = np.where(split.labels, 1, -1)
  margin = (scored.score - split.thresholds.image) * sign
  kept = set(np.argsort(margin, kind='stable')[:_MAX_PICTURES].tolist())

  def describe(index: int) -> dict[str, Any]:
    entry = {
      'file': split.category.test_files[index],
      'defect': split.category.test_defects[index],
      'score': float(scored.score[index]),
    }
    if index in kept:
      image = split.category.test_images[index]
      anomaly_map = scored.anomaly_map[index]
      kinds = {
        'input': image,
        'reconstruction': scored.reconstruction[index],
        'heat': figures.heat_map_overlay(image, anomaly_map),
        'map': figures.colorize(anomaly_map),
      }
      for name, picture in kinds.items():
        entry[name] = pictures.encode(picture, side)
      if split.masks is not None and split.masks[index].any():
        entry['outline'] = pictures.outline(split.masks[index])
    return entry

  return {
    'threshold': split.thresholds.image,
    'bestThreshold': split.results['best_f1_threshold'],
    'end': split.axis_end,
    'width': width,
    'height': height,
    'images': map_parallel(describe, range(count)),
  }


def _reasons(notes: Sequence[str]) -> dict[str, str]:
  """Why each figure is missing, from notes that name the figures first."""
  reasons = {}
  for note in notes:
    names, _, reason = note.partition(' undefined: ')
    for figure in scores.FIGURES:
      if figure.key in names.replace(',', '').split():
        reasons[figure.key] = reason
  return reasons


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'
