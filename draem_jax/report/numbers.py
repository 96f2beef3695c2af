"""Numbers as a report writes them, and the table of a category's metrics."""

from collections.abc import Iterable, Mapping
from typing import Any

from draem_jax.metrics import METRICS, Metric, shown
from draem_jax.paper import SYSTEMS
from draem_jax.report import results, systems
from draem_jax.report.document import escape

MISSING = '–'


def paper_note() -> str:
  """Where the paper's numbers are from, and which metrics it does not have."""
  lacking = [metric.name for metric in METRICS.values() if not metric.paper]
  return (
    'Paper: Zavrtanik, Kristan, Skočaj, ICCV 2021, tables 1 and 2, which have'
    f' no {" and no ".join(lacking)}.'
  )


def title(metric: Metric) -> str:
  """The metric's name as it begins a line."""
  return metric.name[0].upper() + metric.name[1:]


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
  # Of the rounded values, so that the three agree as they stand.
  points = round(round(100 * value, 1) - round(100 * paper, 1), 1)
  return '±0.0' if not points else f'{points:+.1f}'.replace('-', '−')


def lowest(values: Iterable[float | None]) -> float:
  """Where a scale that ends at 1 begins to hold all values: a full tenth."""
  known = [value for value in values if value is not None]
  return min([0.9, *(int(10 * value) / 10 for value in known)])


def scale(value: float | None, paper: float | None, low: float) -> str:
  """A dot for ours and a tick for the paper's on a line from `low` to 1."""

  def place(number: float) -> str:
    return f'{100 * (number - low) / (1 - low):.2f}%'

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


def legend_key(mark: str) -> str:
  """The mark of a scale, `'ours'` or `'paper'`, to stand before its name."""
  return f'<span class="key" aria-hidden="true"><i class="{mark}"></i></span>'


def table(row: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
  """The metrics of one category as an HTML table.

  Args:
    row: of the run, as `results` describes it.
    reasons: why a metric is missing, by key.
  """
  paper = results.published(row)
  metrics = shown([row])
  low = lowest([*(row.get(key) for key in metrics), *paper.values()])
  lines = []
  for key, metric in metrics.items():
    value, theirs = row.get(key), paper.get(key)
    meaning = metric.meaning
    if value is None and key in reasons:
      meaning = f'undefined: {reasons[key]}'
    name = escape(title(metric))
    cells = [
      f'<th scope="row">{name}<small>{escape(meaning)}</small></th>',
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
    '<table class="metrics">\n<caption class="hidden">Metrics of the test '
    f'split in percent</caption>\n<thead><tr>{_head(bool(paper), low)}</tr>'
    f'</thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>'
  )


def systems_section(beside: systems.Beside | None) -> str:
  """The systems of the paper and ours as a section of HTML; empty of None."""
  if beside is None:
    return ''
  head = ''.join(
    f'<th scope="col" class="number">{escape(name[0].upper() + name[1:])}</th>'
    for name in beside.columns.values()
  )
  lines = []
  for name, values in beside.published.items():
    label = f'{escape(name)} <small>{escape(SYSTEMS[name])}</small>'
    lines.append(_system(label, values, beside.columns))
  for name, values in beside.ours.items():
    lines.append(_system(escape(name), values, beside.columns, ours=True))
  return (
    '<section aria-labelledby="systems-title">\n'
    '<h2 id="systems-title">Published systems</h2>\n'
    '<table class="systems">\n<caption class="hidden">Published systems and'
    ' ours in percent</caption>\n<thead><tr><th scope="col">In percent</th>'
    f'{head}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n</table>\n'
    f'<p class="note">{escape(beside.note)}</p>\n</section>'
  )


def _system(
  label: str,
  values: Mapping[str, float | None],
  columns: Iterable[str],
  *,
  ours: bool = False,
) -> str:
  cells = ''.join(
    f'<td class="number">{percent(values.get(key))}</td>' for key in columns
  )
  kind = ' class="ours"' if ours else ''
  return f'<tr{kind}><th scope="row">{label}</th>{cells}</tr>\n'


def _head(has_paper: bool, low: float) -> str:
  columns = ['<th scope="col">In percent</th>']
  columns.append(
    f'<th scope="col" class="number">{legend_key("ours")}This run</th>'
  )
  if has_paper:
    columns.append(
      f'<th scope="col" class="number">{legend_key("paper")}Paper</th>'
    )
    columns.append(
      '<th scope="col" class="number"><abbr title="Difference">Diff.</abbr>'
      '</th>'
    )
  ends = f'<span>{100 * low:.0f}</span><span>100</span>'
  columns.append(
    f'<td class="wide"><span class="ends" aria-hidden="true">{ends}</span></td>'
  )
  return ''.join(columns)
