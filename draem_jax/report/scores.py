"""The five figures of a category, and the paper's to set beside them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from draem_jax import results
from draem_jax.report.document import escape

MISSING = '–'
PAPER_NOTE = (
  'Paper: Zavrtanik, Kristan, Skočaj, ICCV 2021, tables 1 and 2, which have no'
  ' image AP and no AUPRO.'
)


class Figure(NamedTuple):
  """A figure of `results.json`: its key, its name, what it says."""

  key: str
  name: str
  meaning: str


FIGURES = (
  Figure(
    'image_auroc',
    'Image AUROC',
    'chance that an anomalous image scores above a good one',
  ),
  Figure(
    'image_ap',
    'Image AP',
    'precision of the verdict on images, averaged over recall',
  ),
  Figure(
    'pixel_auroc',
    'Pixel AUROC',
    'chance that an anomalous pixel scores above a normal one',
  ),
  Figure(
    'pixel_ap',
    'Pixel AP',
    'precision of the verdict on pixels, averaged over recall',
  ),
  Figure(
    'aupro',
    'AUPRO',
    'share found of each defect, at false positive rates of pixels up to 30 %',
  ),
)
# In the order of `results.PAPER`.
_IN_PAPER = ('image_auroc', 'pixel_auroc', 'pixel_ap')


def published(category: str) -> dict[str, float]:
  """The paper's figures of a category by key, in [0, 1]; none of others."""
  values = results.PAPER.get(category, ())
  return {
    key: value / 100 for key, value in zip(_IN_PAPER, values, strict=False)
  }


def average(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, float | None], dict[str, float]]:
  """Averages of each figure over the categories that have it.

  Args:
    rows: the content of one `results.json` each.

  Returns:
    Ours, None where no category has the figure; and the paper's, which there
    is only when all categories are among its 15.
  """
  ours = {}
  for figure in FIGURES:
    values = [row[figure.key] for row in rows if row[figure.key] is not None]
    ours[figure.key] = sum(values) / len(values) if values else None
  papers = [published(row['category']) for row in rows]
  if not papers or not all(papers):
    return ours, {}
  paper = {
    key: sum(one[key] for one in papers) / len(papers) for key in _IN_PAPER
  }
  return ours, paper


def percent(value: float | None) -> str:
  """Percent to one decimal, without the sign of percent."""
  return MISSING if value is None else f'{100 * value:.1f}'


def duration(seconds: float) -> str:
  """Seconds as a person says them."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest} s'
  return f'{minutes // 60} h {minutes % 60} min'


def difference(value: float | None, paper: float | None) -> str:
  """By how many percentage points ours is higher."""
  if value is None or paper is None:
    return MISSING
  # Of the rounded figures, so that the three agree as they stand.
  points = round(round(100 * value, 1) - round(100 * paper, 1), 1)
  return '±0.0' if not points else f'{points:+.1f}'.replace('-', '−')


def lowest(values: Iterable[float | None]) -> float:
  """Where a scale that ends at 1 begins to hold all values: a full tenth."""
  known = [value for value in values if value is not None]
  return min([0.9, *(int(10 * value) / 10 for value in known)])


def scale(value: float | None, paper: float | None, low: float) -> str:
  """A dot for ours and a tick for the paper's on a line from `low` to 1."""

  def place(figure: float) -> str:
    return f'{100 * (figure - low) / (1 - low):.2f}%'

  marks = ''
  if value is not None and paper is not None:
    left, right = sorted((value, paper))
    width = f'{100 * (right - left) / (1 - low):.2f}%'
    marks += f'<i class="gap" style="left:{place(left)};width:{width}"></i>'
  if value is not None:
    marks += f'<i class="ours" style="left:{place(value)}"></i>'
  if paper is not None:
    marks += f'<i class="paper" style="left:{place(paper)}"></i>'
  return f'<span class="scale" aria-hidden="true">{marks}</span>'


def key(mark: str) -> str:
  """The mark of a scale, `'ours'` or `'paper'`, to stand before its name."""
  return f'<span class="key" aria-hidden="true"><i class="{mark}"></i></span>'


def table(row: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
  """The figures of one category as an HTML table.

  Args:
    row: the content of `results.json`.
    reasons: why a figure is missing, by key.
  """
  paper = published(row['category'])
  low = lowest([*(row[figure.key] for figure in FIGURES), *paper.values()])
  lines = []
  for figure in FIGURES:
    value, theirs = row[figure.key], paper.get(figure.key)
    meaning = figure.meaning
    if value is None and figure.key in reasons:
      meaning = f'undefined: {reasons[figure.key]}'
    cells = [
      f'<th scope="row">{figure.name}<small>{escape(meaning)}</small></th>',
      f'<td class="number strong">{percent(value)}</td>',
    ]
    if paper:
      cells += [
        f'<td class="number">{percent(theirs)}</td>',
        f'<td class="number">{difference(value, theirs)}</td>',
      ]
    cells.append(f'<td class="wide">{scale(value, theirs, low)}</td>')
    lines.append(f'<tr>{"".join(cells)}</tr>')
  return (
    '<table class="scores">\n<caption class="hidden">Figures of the test '
    f'split in percent</caption>\n<thead><tr>{_head(bool(paper), low)}</tr>'
    f'</thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>'
  )


def _head(has_paper: bool, low: float) -> str:
  columns = ['<th scope="col">In percent</th>']
  columns.append(f'<th scope="col" class="number">{key("ours")}This run</th>')
  if has_paper:
    columns.append(f'<th scope="col" class="number">{key("paper")}Paper</th>')
    columns.append(
      '<th scope="col" class="number"><abbr title="Difference">Diff.</abbr>'
      '</th>'
    )
  ends = f'<span>{100 * low:.0f}</span><span>100</span>'
  columns.append(
    f'<td class="wide"><span class="ends" aria-hidden="true">{ends}</span></td>'
  )
  return ''.join(columns)
