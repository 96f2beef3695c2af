"""The pictures of a test split, drawn from its evaluation into a folder."""

import logging
import pathlib

from draem_jax.data import roi
from draem_jax.data.category import Category
from draem_jax.evaluate import Evaluation
from draem_jax.pictures import naming, panels, plots

_log = logging.getLogger(__name__)


def draw_regions(folder: str | pathlib.Path, category: Category) -> None:
  """Draws where the object is in the first good images, if that is known.

  Args:
    folder: where `roi.png` goes.
    category: whose images are to be trained on.
  """
  images = category.train_images
  if getattr(images, 'shape', (3,))[-1] == 3:
    return
  path = pathlib.Path(folder) / roi.FILE
  shown, inside = roi.split(images[: panels.MAX_REGIONS])
  panels.save_png(path, panels.region_sheet(shown, inside))
  _log.info('what config.data.roi takes for the object is in %s', path)


def draw(folder: str | pathlib.Path, evaluation: Evaluation) -> None:
  """Draws a panel per test image, the worst mistakes, curves and histogram.

  Args:
    folder: where the PNG files go; nothing is written without test images.
    evaluation: of the test split.
  """
  category, scored = evaluation.category, evaluation.scored
  if scored is None:
    return
  folder, threshold = pathlib.Path(folder), evaluation.thresholds.image
  _log.info('drawing %d panels', len(evaluation.labels))
  # As a rule all are in one folder, whose name tells nothing.
  tops = {file[: file.find('/') + 1] for file in category.test_files}
  common = len(tops.pop()) if len(tops) == 1 else 0
  for index, file in enumerate(category.test_files):
    drawn = evaluation.drawn[index]
    panel = panels.panel(
      image=drawn.image,
      reconstruction=drawn.reconstruction,
      anomaly_map=drawn.anomaly_map,
      mask=drawn.mask,
      score=float(scored.score[index]),
      threshold=threshold,
      label=bool(evaluation.labels[index]),
      defect=category.test_defects[index],
      name=file,
    )
    # 'test/crack/000.png' becomes 'panels/crack/000.png'.
    picture = naming.picture_name(file[common:])
    panels.save_png(folder / 'panels' / picture, panel)
  gallery = panels.mistakes_gallery(
    images=[drawn.image for drawn in evaluation.drawn],
    anomaly_maps=[drawn.anomaly_map for drawn in evaluation.drawn],
    masks=evaluation.masks,
    scores=scored.score,
    labels=evaluation.labels,
    names=category.test_files,
    threshold=threshold,
  )
  panels.save_png(folder / 'mistakes.png', gallery)
  plots.draw_curves(
    folder / 'curves.png',
    evaluation.curves,
    rates=evaluation.rates,
    threshold=threshold,
  )
  plots.draw_histogram(
    folder / 'histogram.png',
    scores=scored.score,
    labels=evaluation.labels,
    threshold=threshold,
  )
