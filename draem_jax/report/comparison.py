"""The report that sets categories side by side, and beside the paper."""

import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax import names
from draem_jax.metrics import PAPER_RATES, RATES, at_best_f1, shown
from draem_jax.report import document, numbers, results, systems
from draem_jax.report.document import escape
from draem_jax.workdir import storage

# What a row says of the detector's threshold, beside the metrics, and of the
# threshold of best F1: the headings of the columns, as HTML.
_NAMES = {
  key: short if short == name else f'<abbr title="{name}">{short}</abbr>'
  for key, (name, short) in RATES.items()
}
_RATES = {
  **_NAMES,
  at_best_f1('f1'): 'Best F1',
  **{at_best_f1(key): f'{_NAMES[key]} at it' for key in PAPER_RATES},
}


def write_comparison(
  path: str | pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  *,
  missing: Mapping[str, str] | None = None,
) -> None:
  """Writes one HTML file that compares categories.

  It links to the report of each category where that lies at
  `<category>/report.html` beside it.

  Args:
    path: of the file.
    rows: one of each category, as `results` describes them; of older runs, too.
    missing: why other categories have no row, in words, by name.
  """
  path = pathlib.Path(path)
  averages, paper = results.average(rows)
  body = document.fill(
    'comparison.html',
    headline=escape(_headline(len(rows), averages, paper)),
    choices=_choices(rows),
    table=_table(path.parent, rows, averages, paper),
    note=escape(_note(rows, missing or {})),
    systems=numbers.systems_section(systems.beside_average(rows)),
    runs=_runs(rows),
  )
  text = document.page(
    title='DRÆM comparison', body=body, script='comparison.js', data={}
  )
  storage.write_text(path, text)


def _headline(
  count: int, averages: Mapping[str, float | None], paper: Mapping[str, float]
) -> str:
  text = f'{count} {"category" if count == 1 else "categories"}'
  if averages['image_auroc'] is not None:
    ours = numbers.percent(averages['image_auroc'])
    text += f', image AUROC {ours} on average'
  if 'image_auroc' in paper:
    text += f' where the paper has {numbers.percent(paper["image_auroc"])}'
  return f'{text}.'


def _choices(rows: Sequence[Mapping[str, Any]]) -> str:
  """Radio buttons that choose the metric where there is room for one."""
  return ''.join(
    f'<label><input type="radio" name="metric" value="{escape(key)}"'
    f'{" checked" if number == 0 else ""}>'
    f'<span>{escape(numbers.title(metric))}</span></label>\n'
    for number, (key, metric) in enumerate(shown(rows).items())
  )


def _table(
  folder: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  averages: Mapping[str, float | None],
  paper: Mapping[str, float],
) -> str:
  papers = [results.published(row) for row in rows]
  metrics = shown(rows)
  lows = {
    key: numbers.lowest(one.get(key) for one in (*rows, *papers))
    for key in metrics
  }
  head = ''.join(
    f'<th scope="col" data-metric="{escape(key)}">'
    f'<button type="button" class="sort">{escape(numbers.title(metric))}'
    '</button><span class="ends" aria-hidden="true">'
    f'<span>{100 * lows[key]:.0f}</span><span>100</span></span></th>'
    for key, metric in metrics.items()
  )
  body = ''.join(
    f'<tr><th scope="row">{_name(folder, row["category"])}</th>'
    f'{_cells(row, theirs, lows)}</tr>\n'
    for row, theirs in zip(rows, papers, strict=True)
  )
  foot = ''
  if len(rows) > 1:
    foot = (
      '<tfoot><tr><th scope="row">average</th>'
      f'{_cells(averages, paper, lows)}</tr></tfoot>'
    )
  return (
    '<table class="comparison" id="comparison">\n<caption class="hidden">'
    'Metrics of each category in percent</caption>\n<thead><tr>'
    '<th scope="col" aria-sort="none"><button type="button" class="sort">'
    f'Category</button></th>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n'
    f'{foot}\n</table>'
  )


def _name(folder: pathlib.Path, category: str) -> str:
  """The category, as a link where it has a report."""
  name = names.folder(category)
  if not (folder / name / 'report.html').exists():
    return escape(category)
  target = f'{urllib.parse.quote(name, safe="")}/report.html'
  return f'<a href="{target}">{escape(category)}</a>'


def _cells(
  ours: Mapping[str, Any],
  paper: Mapping[str, float],
  lows: Mapping[str, float],
) -> str:
  cells = []
  for key in lows:
    value, theirs = ours.get(key), paper.get(key)
    text = f'<b>{numbers.percent(value)}</b>'
    if theirs is not None:
      text += (
        '<span class="theirs"><span class="hidden">paper</span> '
        f'{numbers.percent(theirs)}</span>'
      )
    order = '' if value is None else f' data-value="{value:.9g}"'
    cells.append(
      f'<td data-metric="{escape(key)}"{order}><div class="pair">{text}</div>'
      f'{numbers.scale(value, theirs, lows[key])}</td>'
    )
  return ''.join(cells)


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
  """What each run was, and what its detector's threshold does."""
  columns = [*_RATES.values(), 'Steps', 'Time', 'Images/s']
  head = '<th scope="col">Category</th>' + ''.join(
    f'<th scope="col" class="number">{name}</th>' for name in columns
  )
  lines = []
  for row in rows:
    seconds, rate = row.get('train_seconds'), row.get('images_per_second')
    cells = [numbers.percent(row.get(key)) for key in _RATES]
    cells.append(_or_missing(row.get('steps'), ','))
    cells.append(
      numbers.MISSING if seconds is None else numbers.duration(seconds)
    )
    cells.append(_or_missing(rate, '.4g'))
    lines.append(
      f'<tr><th scope="row">{escape(row["category"])}</th>'
      + ''.join(f'<td class="number">{cell}</td>' for cell in cells)
      + f'<td>{escape(row.get("device") or numbers.MISSING)}</td></tr>\n'
    )
  foot = ''
  if len(rows) > 1:
    cells = [numbers.percent(systems.average(rows, key)) for key in _RATES]
    cells += [''] * (len(columns) - len(_RATES))
    foot = (
      '<tfoot><tr><th scope="row">average</th>'
      + ''.join(f'<td class="number">{cell}</td>' for cell in cells)
      + '<td></td></tr></tfoot>'
    )
  return (
    f'<table class="runs">\n<thead><tr>{head}<th scope="col">Device</th></tr>'
    f'</thead>\n<tbody>\n{"".join(lines)}</tbody>\n{foot}</table>'
  )


def _note(rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> str:
  """What the averages are over, and what a missing metric means."""
  text = (
    f'{numbers.paper_note()} Averages are over the categories that have the'
    ' metric; the paper’s is given where all are among its 15 or are the ten'
    ' classes of DAGM, of which table 4 has averages. Whether a run'
    ' followed the paper’s recipe stands in its own report.'
  )
  if any(row.get(key) is None for row in rows for key in shown(rows)):
    text += (
      f' {numbers.MISSING}: the test split does not define the metric, and the'
      ' report of the category says why, or a version without it evaluated the'
      ' run.'
    )
  if missing:
    reasons = '; '.join(f'{name} {why}' for name, why in missing.items())
    text += f' Not in the table: {names.shown(reasons)}.'
  return text


def _or_missing(value: float | None, form: str) -> str:
  return numbers.MISSING if value is None else f'{value:{form}}'
