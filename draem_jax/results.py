"""The table of results, and the paper's figures to set beside ours."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax import workdir as workdir_lib

# Tables 1 and 2 of the paper: image AUROC, pixel AUROC, pixel AP, in percent.
PAPER = {
  'bottle': (99.2, 99.1, 86.5),
  'cable': (91.8, 94.7, 52.4),
  'capsule': (98.5, 94.3, 49.4),
  'carpet': (97.0, 95.5, 53.5),
  'grid': (99.9, 99.7, 65.7),
  'hazelnut': (100.0, 99.7, 92.9),
  'leather': (100.0, 98.6, 75.3),
  'metal_nut': (98.7, 99.5, 96.3),
  'pill': (98.9, 97.6, 48.5),
  'screw': (93.9, 97.6, 58.2),
  'tile': (99.6, 99.2, 92.3),
  'toothbrush': (100.0, 98.1, 44.7),
  'transistor': (93.1, 90.9, 50.7),
  'wood': (99.1, 96.4, 77.7),
  'zipper': (100.0, 98.8, 81.5),
}

_METRICS = {
  'image_auroc': 'image AUROC',
  'image_ap': 'image AP',
  'pixel_auroc': 'pixel AUROC',
  'pixel_ap': 'pixel AP',
  'aupro': 'AUPRO',
}
_IN_PAPER = ('image_auroc', 'pixel_auroc', 'pixel_ap')


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table of results in percent, the paper's in parentheses.

  Args:
    rows: the content of one `results.json` each. Behind several rows follows
      one of their averages, over the categories that have the figure.
  """
  header = ['category', *_METRICS.values()]
  lines = [[row['category'], *_cells(row)] for row in rows]
  if len(rows) > 1:
    lines.append(['average', *_average_cells(rows)])
  widths = [
    max(map(len, column)) for column in zip(header, *lines, strict=True)
  ]
  rule = ['-' * width for width in widths]
  return '\n'.join(
    '| '
    + ' | '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    )
    + ' |'
    for line in (header, rule, *lines)
  )


def write_table(
  path: str | pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the table of several categories as Markdown."""
  text = (
    '# Results\n\nIn percent; in parentheses the paper (tables 1 and 2).\n\n'
  )
  workdir_lib.write_text(path, text + format_table(rows) + '\n')


def _cells(row: Mapping[str, Any]) -> list[str]:
  paper = PAPER.get(row['category'])
  published = dict(zip(_IN_PAPER, paper, strict=True)) if paper else {}
  return [_cell(row[name], published.get(name)) for name in _METRICS]


def _average_cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  cells = []
  for name in _METRICS:
    values = [row[name] for row in rows if row[name] is not None]
    published = [
      PAPER[row['category']][_IN_PAPER.index(name)]
      for row in rows
      if name in _IN_PAPER and row['category'] in PAPER
    ]
    cells.append(
      _cell(
        sum(values) / len(values) if values else None,
        sum(published) / len(published)
        if len(published) == len(rows)
        else None,
      )
    )
  return cells


def _cell(value: float | None, published: float | None) -> str:
  text = '-' if value is None else f'{100 * value:.1f}'
  return text if published is None else f'{text} ({published:.1f})'
