"""The plot of figure 9: what comes of how many texture images."""

import pathlib
from collections.abc import Sequence

from draem_jax.metrics import METRICS
from draem_jax.pictures import plots
from draem_jax.studies.cells import Results, cell
from draem_jax.studies.tables import TABLES

FILE = 'figure9.png'
_KINDS = {
  'augmented': 'augmentation and random opacity',
  'plain': 'without both',
}


def draw(
  path: str | pathlib.Path,
  results: Results,
  *,
  rows: Sequence[str],
  categories: Sequence[str],
) -> None:
  """Writes the plot: a pane a metric, error bars over the seeds.

  Args:
    path: the PNG file.
    results: of the runs that are finished.
    rows: of the study, such as `'augmented_10'` and `'plain_all'`.
    categories: of the study.
  """
  ticks = list(dict.fromkeys(row.partition('_')[2] for row in rows))
  panes = {}
  for key in TABLES['figure9'].metrics:
    panes[METRICS[key].name] = {
      name: [
        _point(results, f'{kind}_{tick}', categories, key) for tick in ticks
      ]
      for kind, name in _KINDS.items()
    }
  plots.draw_series(path, panes, ticks=ticks, label='Texture images')


def _point(
  results: Results, row: str, categories: Sequence[str], key: str
) -> tuple[float, float] | None:
  found = cell(results, row, categories, key)
  if found.mean is None:
    return None
  return 100 * found.mean, 100 * (found.deviation or 0)
