"""A test split in; metrics, predictions and figures out."""

import csv
import io
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from draem_jax import figures, metrics, plots, report
from draem_jax import workdir as workdir_lib
from draem_jax.data.category import Category
from draem_jax.detector import Detector, Scored

_log = logging.getLogger(__name__)


def evaluate(
  detector: Detector,
  category: Category,
  *,
  mask_threshold: float,
  workdir: str | pathlib.Path,
  run: Mapping[str, Any],
) -> dict[str, Any]:
  """Scores the test split of a category and writes all that comes of it.

  Writes `results.json`, `predictions.csv`, `figures/` and `report.html` in
  `workdir`.

  Args:
    detector: trained, with thresholds.
    category: with images at the size of the detector.
    mask_threshold: share of a pixel that the ground truth must cover for the
      pixel to count as anomalous.
    workdir: the folder of the run.
    run: what the results say of the run beside the metrics.

  Returns:
    The content of `results.json`. Metrics that do not exist are None.
  """
  workdir = pathlib.Path(workdir)
  labels = np.array([defect != 'good' for defect in category.test_defects])
  masks = None
  if category.test_masks is not None:
    masks = category.test_masks >= mask_threshold
  results = dict(run)
  scored, notes = None, []
  if not len(labels):
    _log.info('%s has no test images: nothing to evaluate', category.name)
    results |= dict.fromkeys(
      ('image_auroc', 'image_ap', 'pixel_auroc', 'pixel_ap', 'aupro')
    )
  else:
    scored = detector.score_all(category.test_images)
    results |= metrics.evaluate_metrics(
      scores=scored.score, maps=scored.anomaly_map, labels=labels, masks=masks
    )
    notes = results.pop('notes')
    for note in notes:
      _log.info('%s: %s', category.name, note)
    results |= _at_threshold(detector, scored.score, labels)
    _write_predictions(workdir, detector, category, scored.score)
    _log.info('drawing %d panels', len(labels))
    _draw(workdir / 'figures', detector, category, scored, labels, masks)
  workdir_lib.write_json(workdir / 'results.json', results)
  report.write_report(
    workdir,
    category=category,
    scored=scored,
    masks=masks,
    thresholds=detector.thresholds,
    results=results,
    notes=notes,
  )
  return results


def _at_threshold(
  detector: Detector, scores: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
  threshold = detector.thresholds.image
  rates = metrics.rates_at_threshold(scores, labels, threshold)
  best_f1, best_threshold = metrics.best_f1(scores, labels)
  return {
    'threshold': threshold,
    'threshold_source': detector.thresholds.source,
    'true_positive_rate': rates.true_positive_rate,
    'false_positive_rate': rates.false_positive_rate,
    'f1': rates.f1,
    'best_f1': best_f1,
    'best_f1_threshold': best_threshold,
  }


def _write_predictions(
  workdir: pathlib.Path,
  detector: Detector,
  category: Category,
  scores: np.ndarray,
) -> None:
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(('file', 'defect', 'score', 'is_anomalous'))
  for file, defect, score, is_anomalous in zip(
    category.test_files,
    category.test_defects,
    scores,
    detector.is_anomalous(scores),
    strict=True,
  ):
    # Nine digits name a float32 exactly.
    table.writerow((file, defect, f'{score:.9g}', str(is_anomalous).lower()))
  workdir_lib.write_text(workdir / 'predictions.csv', text.getvalue())


def _draw(
  folder: pathlib.Path,
  detector: Detector,
  category: Category,
  scored: Scored,
  labels: np.ndarray,
  masks: np.ndarray | None,
) -> None:
  """Draws a panel per test image, the worst mistakes, curves, histogram."""
  threshold = detector.thresholds.image
  for index, file in enumerate(category.test_files):
    panel = figures.panel(
      image=category.test_images[index],
      reconstruction=scored.reconstruction[index],
      anomaly_map=scored.anomaly_map[index],
      mask=None if masks is None else masks[index],
      score=float(scored.score[index]),
      threshold=threshold,
      label=category.test_defects[index],
      name=file,
    )
    # 'test/crack/000.png' becomes 'panels/crack/000.png'.
    picture = pathlib.Path(*pathlib.Path(file).parts[1:]).with_suffix('.png')
    figures.save_png(folder / 'panels' / picture, panel)
  gallery = figures.mistakes_gallery(
    images=category.test_images,
    anomaly_maps=scored.anomaly_map,
    masks=masks,
    scores=scored.score,
    labels=category.test_defects,
    names=category.test_files,
    threshold=threshold,
  )
  figures.save_png(folder / 'mistakes.png', gallery)
  plots.curves_figure(
    folder / 'curves.png',
    scores=scored.score,
    labels=labels,
    maps=scored.anomaly_map,
    masks=masks,
    threshold=threshold,
  )
  plots.score_histogram(
    folder / 'histogram.png',
    scores=scored.score,
    labels=labels,
    threshold=threshold,
  )
