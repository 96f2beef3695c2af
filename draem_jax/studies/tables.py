"""What a study ends with: tables of its runs beside the published numbers."""

import base64
import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draem_jax import paper
from draem_jax.metrics import METRICS, PAPER_RATES, RATES, at_best_f1
from draem_jax.report import document, numbers
from draem_jax.report.document import escape
from draem_jax.studies.cells import Cell, Results, cell
from draem_jax.workdir import storage


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the paper, as a study makes it.

  Attributes:
    title: what it shows.
    metrics: keys of `results.json`, the columns or parts of a cell.
    by_category: whether a line is a category and a column a system; otherwise
      a line is a row of the study, or a system, and a column is a metric.
    published: the paper's numbers in percent, of lines (or of systems and
      categories), as tuples in the order of `metrics`; None where it has none.
    variants: other keys of results to make another line of, by its name.
    note: what a reader must know of the published numbers.
  """

  title: str
  metrics: tuple[str, ...]
  by_category: bool = False
  published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  variants: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )
  note: str = ''


def _by_system(
  table: Mapping[str, Mapping[str, Any]],
  averages: Mapping[str, Any],
  values: Callable[[Any], tuple[float, ...]],
) -> dict[str, dict[str, tuple[float, ...]]]:
  """Published numbers by system and category, averages under `'average'`."""
  return {
    system: {
      **{name: values(value) for name, value in column.items()},
      'average': values(averages[system]),
    }
    for system, column in table.items()
  }


TABLES = {
  'table1': Table(
    'Table 1: detection on MVTec AD (image AUROC)',
    ('image_auroc',),
    by_category=True,
    published=_by_system(
      paper.TABLE1, paper.TABLE1_AVERAGES, lambda value: (value,)
    ),
    note=paper.NOTES[1],
  ),
  'table2': Table(
    'Table 2: localization on MVTec AD (pixel AUROC / AP)',
    ('pixel_auroc', 'pixel_ap'),
    by_category=True,
    published=_by_system(paper.TABLE2, paper.TABLE2_AVERAGES, tuple),
  ),
  'table3': Table(
    'Table 3: ablations',
    ('image_auroc', 'pixel_auroc', 'pixel_ap'),
    published={row: tuple(each[1:]) for row, each in paper.TABLE3.items()},
  ),
  'table4': Table(
    'Table 4: DAGM',
    ('image_auroc', *PAPER_RATES),
    published={name: tuple(row[:4]) for name, row in paper.TABLE4.items()},
    variants={
      'at the threshold of best F1': {
        key: at_best_f1(key) for key in PAPER_RATES
      },
    },
    note=paper.NOTES[4],
  ),
  'figure9': Table(
    'Figure 9: number of texture images',
    ('image_auroc', 'pixel_auroc', 'pixel_ap'),
    note=(
      'The paper draws its numbers and does not print them. Its text:'
      ' augmentation and random opacity allow a remarkably small number of'
      ' texture images, less than 10.'
    ),
  ),
  'recipes': Table(
    'Recipes',
    ('image_auroc', 'pixel_auroc', 'pixel_ap'),
  ),
}


@dataclasses.dataclass(frozen=True)
class Sheet:
  """A table as text: what stands in the files.

  Attributes:
    title: its heading.
    columns: the names of the columns.
    lines: the cells of each line, as many as there are columns.
    ours: the numbers of the lines that are of this study.
  """

  title: str
  columns: list[str]
  lines: list[list[str]]
  ours: frozenset[int]


def sheets(
  name: str,
  results: Results,
  *,
  rows: Sequence[str],
  categories: Sequence[str],
) -> list[Sheet]:
  """The sheets of one of `TABLES`.

  Args:
    name: of the table.
    results: of the runs that are finished.
    rows: of the study; one without a run has empty cells.
    categories: of the study.
  """
  table = TABLES[name]
  if table.by_category:
    return [_category_sheet(table, results, rows, categories)]
  found = [_row_sheet(table, results, rows, categories, table.title)]
  if len(categories) > 1:
    found += [
      _row_sheet(table, results, rows, [category], category, published=False)
      for category in categories
      if any(key[1] == category for key in results)
    ]
  return found


def write(
  workdir: str | pathlib.Path,
  results: Results,
  *,
  tables: Sequence[str],
  rows: Sequence[str],
  categories: Sequence[str],
  differences: Sequence[str],
  count: int,
  picture: pathlib.Path | None = None,
) -> str:
  """Writes `table.md`, `table.csv` and `table.html` of a study.

  Args:
    workdir: of the study.
    results: of the runs that are finished.
    tables: names in `TABLES`.
    rows: of the study.
    categories: of the study.
    differences: what differs from the paper's recipe, in words.
    count: number of runs that the study has.
    picture: a PNG that the HTML shows, in the folder of the study.

  Returns:
    The Markdown.
  """
  workdir = pathlib.Path(workdir)
  found = [
    (TABLES[name], sheets(name, results, rows=rows, categories=categories))
    for name in tables
  ]
  notes = _notes(results, differences, count)
  markdown = '\n\n'.join(
    '\n\n'.join([*map(_markdown, each), *([table.note] if table.note else [])])
    for table, each in found
  )
  if picture is not None:
    markdown += f'\n\n![{picture.stem}]({picture.name})'
  markdown = f'{markdown}\n\n' + '\n'.join(f'- {note}' for note in notes)
  storage.write_text(workdir / 'table.md', f'{markdown}\n')
  storage.write_text(
    workdir / 'table.csv', _csv(results, tables, rows, categories)
  )
  storage.write_text(workdir / 'table.html', _html(found, notes, picture))
  return markdown


def row_name(row: str) -> str:
  """A row as a reader knows it: its name in table 3, or its own."""
  known = paper.TABLE3.get(row)
  return row if known is None else f'{known.name} ({row})'


def _system_name(system: str) -> str:
  """What the paper calls a row that is not of this study."""
  known = paper.TABLE3.get(system)
  return f'{system if known is None else known.name} (published)'


def _row_sheet(
  table: Table,
  results: Results,
  rows: Sequence[str],
  categories: Sequence[str],
  title: str,
  *,
  published: bool = True,
) -> Sheet:
  """Lines are rows; the published systems that are no rows follow."""
  columns = ['', *map(_metric_name, table.metrics)]
  lines = []
  for row in rows:
    theirs = _of_row(table, row) if published else None
    theirs = theirs or (None,) * len(table.metrics)
    for variant in ('', *table.variants):
      keys = table.variants.get(variant, {})
      cells = [
        _text(cell(results, row, categories, keys.get(key, key)), value)
        for key, value in zip(table.metrics, theirs, strict=True)
      ]
      label = row_name(row)
      if table.variants:
        label += f', {variant or "at the detector’s threshold"}'
      lines.append([label, *cells])
  ours = frozenset(range(len(lines)))
  if published:
    lines += [
      [_system_name(system), *(_percent(value) for value in values)]
      for system, values in table.published.items()
      if system not in {*rows, *map(paper.SYSTEM_OF.get, rows)}
    ]
  partial = _partial(results, rows, categories, table.metrics[0])
  return Sheet(title + partial, columns, lines, ours)


def _category_sheet(
  table: Table,
  results: Results,
  rows: Sequence[str],
  categories: Sequence[str],
) -> Sheet:
  """Lines are categories and their average, columns are systems."""
  columns = ['', *(f'{system} (published)' for system in table.published)]
  columns += [f'{row} (this study)' for row in rows]
  lines = []
  for line in (*categories, 'average'):
    chosen = categories if line == 'average' else [line]
    cells = [line]
    for system in table.published.values():
      values = system.get(line)
      # Averages are over the 15: they stand beside those of the 15 alone.
      if line == 'average' and set(categories) != set(paper.CATEGORIES):
        values = None
      cells.append(_joined(values and [_percent(value) for value in values]))
    for row in rows:
      found = [cell(results, row, chosen, key) for key in table.metrics]
      cells.append(
        _joined([_text(each) for each in found] if found[0].seeds else None)
      )
    lines.append(cells)
  partial = _partial(results, rows, categories, table.metrics[0])
  return Sheet(table.title + partial, columns, lines, frozenset())


def _partial(
  results: Results, rows: Sequence[str], categories: Sequence[str], key: str
) -> str:
  """Says of which categories a table is, where not all are there."""
  counts = {cell(results, row, categories, key).categories for row in rows}
  counts -= {0}
  if not counts or counts == {len(categories)}:
    return ''
  low, high = min(counts), max(counts)
  span = f'{low}' if low == high else f'{low} to {high}'
  return f', of {span} of {len(categories)} categories'


def _notes(
  results: Results, differences: Sequence[str], count: int
) -> list[str]:
  seeds = sorted({seed for _, _, seed in results})
  notes = [
    f'{len(results)} of {count} runs are finished, seeds'
    f' {", ".join(map(str, seeds)) or "none"}; mean ± standard deviation over'
    ' the seeds, in percent; in parentheses the paper’s, averages over all its'
    ' categories.'
  ]
  if differences:
    notes.append(
      f'Not as in the paper’s recipe: {", ".join(differences)}. The published'
      ' numbers are of the paper’s.'
    )
  return notes


def _metric_name(key: str) -> str:
  return METRICS[key].name if key in METRICS else RATES[key].short


def _percent(value: float | None) -> str:
  return numbers.MISSING if value is None else f'{value:.1f}'


def _joined(cells: Sequence[str] | None) -> str:
  return numbers.MISSING if cells is None else ' / '.join(cells)


def _text(found: Cell, published: float | None = None) -> str:
  if found.mean is None:
    text = numbers.MISSING
  else:
    text = f'{100 * found.mean:.1f}'
    if found.deviation is not None:
      text += f' ± {100 * found.deviation:.1f}'
  return text if published is None else f'{text} ({published:.1f})'


def _markdown(sheet: Sheet) -> str:
  lines = [sheet.columns, ['---'] * len(sheet.columns), *sheet.lines]
  text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  return f'## {sheet.title}\n\n{text}'


def _csv(
  results: Results,
  tables: Sequence[str],
  rows: Sequence[str],
  categories: Sequence[str],
) -> str:
  """Every number of the tables in a line of its own, in [0, 1]."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    (
      *('table', 'row', 'category', 'metric', 'mean', 'standard_deviation'),
      *('seeds', 'categories', 'published'),
    )
  )
  for name in tables:
    for row in rows:
      for category in ('average', *categories):
        chosen = categories if category == 'average' else [category]
        for key in _keys(TABLES[name]):
          found = cell(results, row, chosen, key)
          published = _published(TABLES[name], row, category, key)
          values = found.mean, found.deviation
          writer.writerow(
            (
              *(name, row, category, key),
              *('' if each is None else f'{each:.6f}' for each in values),
              *(found.seeds, found.categories),
              '' if published is None else f'{published / 100:.3f}',
            )
          )
  return text.getvalue()


def _keys(table: Table) -> list[str]:
  """The keys of results that a table shows, each once."""
  keys = list(table.metrics)
  for variant in table.variants.values():
    keys += variant.values()
  return list(dict.fromkeys(keys))


def _of_row(table: Table, row: str) -> Any:
  """What the paper has of a row: by its name, or that of its system."""
  name = row if row in table.published else paper.SYSTEM_OF.get(row)
  return table.published.get(name)


def _published(table: Table, row: str, category: str, key: str) -> float | None:
  """The paper's number for a row, in percent, where it has one."""
  if key not in table.metrics:
    return None
  values = _of_row(table, row) or {}
  if table.by_category:
    values = values.get(category)
  elif category != 'average':
    values = None
  return values[table.metrics.index(key)] if values else None


def _html(
  found: Sequence[tuple[Table, Sequence[Sheet]]],
  notes: Sequence[str],
  picture: pathlib.Path | None,
) -> str:
  parts = []
  for table, each in found:
    parts += map(_html_table, each)
    if table.note:
      parts.append(f'<p class="note">{escape(table.note)}</p>')
  if picture is not None:
    data = base64.b64encode(picture.read_bytes()).decode()
    parts.append(
      f'<p><img alt="{escape(picture.stem)}" style="max-width:100%"'
      f' src="data:image/png;base64,{data}"></p>'
    )
  parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
  body = document.fill('study.html', tables='\n'.join(parts))
  return document.page(title='DRÆM study', body=body)


def _html_table(sheet: Sheet) -> str:
  head = ''.join(
    f'<th scope="col"{" class=number" if number else ""}>{escape(name)}</th>'
    for number, name in enumerate(sheet.columns)
  )
  body = ''
  for number, line in enumerate(sheet.lines):
    kind = ' class="strong"' if number in sheet.ours else ''
    cells = ''.join(
      f'<td class="number">{escape(each)}</td>' for each in line[1:]
    )
    body += f'<tr{kind}><th scope="row">{escape(line[0])}</th>{cells}</tr>\n'
  return (
    f'<section><h2>{escape(sheet.title)}</h2>\n<div class="scroll" tabindex="0"'
    f' role="region" aria-label="{escape(sheet.title)}"><table class="runs">\n'
    f'<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'
    '</section>'
  )
