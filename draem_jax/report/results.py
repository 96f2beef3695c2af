"""The results of runs: their files, and the table that sets them side by side.

A row is what there is to say of one run as plain values: of its test split, as
`evaluate.Evaluation.results` has it, `steps`, and the timing.

`results.json`, `predictions.csv` and `thresholds.json` are functions of config,
seed and data: the same three give the same bytes again on the same kind of
device with the same versions, interrupted or not. What was measured of the
machine (`train_seconds`, `images_per_second`, `device`) is none of that and
lies in `timing.json`; `metrics.jsonl` and `report.html` have seconds, too.
"""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax import names, paper
from draem_jax.errors import UserError
from draem_jax.evaluate import Evaluation
from draem_jax.metrics import (
  EXTRA,
  METRICS,
  PAPER_RATES,
  RATES,
  at_best_f1,
  shown,
)
from draem_jax.report import systems
from draem_jax.workdir import storage
from draem_jax.workdir.thresholds import is_share

_RESULTS, _TIMING = 'results.json', 'timing.json'
_WORDS = 'category', 'networks', 'threshold_source', 'device', 'failure'
_SHARES = 'threshold', 'f1', 'best_f1'
_NUMBERS = (
  *('steps', 'best_step', 'train_seconds', 'images_per_second'),
  'best_f1_threshold',
)
# What two thresholds do, the detector's and the one of best F1. It stands in a
# table in the place of pixel metrics where no category has any.
AT_THRESHOLDS = {key: RATES[key].short for key in PAPER_RATES} | {
  at_best_f1(key): f'{RATES[key].short} at best F1' for key in PAPER_RATES
}


def write(
  workdir: str | pathlib.Path,
  evaluation: Evaluation,
  *,
  networks: str = 'draem',
  steps: int,
  timing: Mapping[str, Any],
  best_step: int | None = None,
  failure: str | None = None,
) -> dict[str, Any]:
  """Writes `results.json`, `predictions.csv` and `timing.json`.

  Args:
    workdir: the folder of the run.
    evaluation: of its test split.
    networks: the name of its networks.
    steps: number of steps it was trained.
    timing: what was measured of the machine: `train_seconds`,
      `images_per_second` and `device`.
    best_step: the step whose weights are evaluated, if that is not the last.
    failure: why the training came to nothing, in words, if it did.

  Returns:
    The row of the run.
  """
  workdir = pathlib.Path(workdir)
  content = {
    'category': evaluation.category.name,
    'networks': networks,
    'steps': steps,
  }
  content |= {} if best_step is None else {'best_step': best_step}
  content |= evaluation.results()
  content |= {'failure': failure} if failure else {}
  storage.write_json(workdir / _RESULTS, content)
  storage.write_json(workdir / _TIMING, dict(timing))
  if evaluation.scored is not None:
    _write_predictions(workdir / 'predictions.csv', evaluation)
  return content | dict(timing)


def read(workdir: str | pathlib.Path) -> dict[str, Any]:
  """The row of a run, of an older one, too.

  A metric that an older `results.json` lacks is None; its timing stands in the
  file itself.

  Raises:
    UserError: if the folder holds no results, or damaged ones; the message
      names the field.
  """
  workdir, row = pathlib.Path(workdir), {}
  remedy = 'run draem_jax.main in this workdir again'
  for name in (_TIMING, _RESULTS):
    path = workdir / name
    try:
      found = storage.read_json(path, remedy=remedy)
    except FileNotFoundError as error:
      if name == _RESULTS:
        raise UserError(
          f'{path} does not exist: run draem_jax.main in this workdir to the'
          ' end'
        ) from error
      continue
    wrong = [key for key, value in found.items() if not _is_sound(key, value)]
    if name == _RESULTS:
      wrong += ['category'] if found.get('category') is None else []
    if wrong:
      raise UserError(
        f'{path} is damaged ({wrong[0]!r:.80} is'
        f' {found.get(wrong[0])!r:.80}): {remedy}'
      )
    row |= found
  return dict.fromkeys(METRICS) | row


def _is_sound(key: str, value: Any) -> bool:
  """Whether a value of a row can be what it says."""
  if value is None:
    return True
  if key in _WORDS:
    return isinstance(value, str)
  if key in METRICS or key in EXTRA or key in AT_THRESHOLDS or key in _SHARES:
    return is_share(value, most=1 + 1e-6)
  if key not in _NUMBERS:
    return True
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and abs(value) < math.inf


def published(row: Mapping[str, Any]) -> dict[str, float]:
  """What the paper has of the same system and category, in [0, 1], by key.

  Args:
    row: of the run. Where it does not name its networks, they are DRÆM's; of
      networks that the paper has no such numbers of there are none.
  """
  return systems.of_category(row['category']).get(_system(row), {})


def _system(row: Mapping[str, Any]) -> str | None:
  return paper.SYSTEM_OF.get(row.get('networks', 'draem'))


def average(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, float | None], dict[str, float]]:
  """Averages of each metric and rate over the categories that have it.

  Returns:
    Ours, None where no category has it; and the paper's metrics of the same
    system, which there are only when all categories are among its 15, or are
    the classes of DAGM.
  """
  keys = (*shown(rows), *AT_THRESHOLDS)
  ours = {key: systems.average(rows, key) for key in keys}
  theirs = systems.of_average([row['category'] for row in rows])
  of = set(map(_system, rows))
  theirs = theirs.get(of.pop(), {}) if len(of) == 1 else {}
  return ours, {key: theirs[key] for key in METRICS if key in theirs}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table of metrics in percent, the paper's in parentheses.

  Where no category has a pixel metric, as in DAGM, rates stand in their place.

  Args:
    rows: one of each category. Behind several follows their average, over the
      categories that have the metric.
  """
  columns = _columns(rows)
  header = ['category', *columns.values()]
  lines = [
    [row['category'], *_cells(row, published(row), columns)] for row in rows
  ]
  if len(rows) > 1:
    lines.append(['average', *_cells(*average(rows), columns)])
  return _markdown(header, lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  lines = [
    [names.shown(cell).replace('|', '\\|') for cell in line] for line in lines
  ]
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
  path: str | pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  *,
  missing: Mapping[str, str] | None = None,
) -> None:
  """Writes the table of several categories as Markdown.

  Behind it follow the systems of the paper, where it has these categories.

  Args:
    path: of the file.
    rows: one of each category; there may be none.
    missing: why other categories have no row, in words, by name.
  """
  text = (
    '# Results\n\nIn percent; in parentheses the paper (tables 1, 2 and 4).\n\n'
  )
  if 'accuracy' in _columns(rows):
    text += (
      'TPR, TNR and accuracy (CA) are at the threshold of each detector, and at'
      '\nthe one of best F1, which is chosen on the test images.\n\n'
    )
  text += format_table(rows) + '\n' if rows else ''
  if missing:
    text += '\n' * bool(rows) + format_missing(missing) + '\n'
  beside = systems.beside_average(rows)
  if beside is not None:
    text += f'\n## Published systems\n\nIn percent. {beside.note}\n\n'
    text += _format_systems(beside) + '\n'
  storage.write_text(path, text)


def format_missing(missing: Mapping[str, str]) -> str:
  """A Markdown list of the categories that no table has a row of.

  Args:
    missing: why, in words, by category.
  """
  return '\n'.join(
    ['Not in the table:', '']
    + [names.shown(f'- {name} {why}') for name, why in missing.items()]
  )


def _format_systems(beside: systems.Beside) -> str:
  lines = [
    [name, *(_cell(values.get(key), None) for key in beside.columns)]
    for name, values in (beside.published | beside.ours).items()
  ]
  return _markdown(['system', *beside.columns.values()], lines)


def _write_predictions(path: pathlib.Path, evaluation: Evaluation) -> None:
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(('file', 'defect', 'score', 'is_anomalous'))
  for file, defect, score, is_anomalous in zip(
    evaluation.category.test_files,
    evaluation.category.test_defects,
    evaluation.scored.score,
    evaluation.is_anomalous,
    strict=True,
  ):
    # Nine digits name a float32 exactly.
    table.writerow((file, defect, f'{score:.9g}', str(is_anomalous).lower()))
  storage.write_text(path, text.getvalue())


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """What a table of these rows has, by key."""
  table = shown(rows)
  names = {key: metric.name for key, metric in table.items()}
  of_pixels = [key for key in table if table[key].level == 'pixel']
  if any(row.get(key) is not None for row in rows for key in of_pixels):
    return names
  if all(row.get(key) is None for row in rows for key in AT_THRESHOLDS):
    return names
  return {
    key: names[key] for key in names if key not in of_pixels
  } | AT_THRESHOLDS


def _cells(
  ours: Mapping[str, Any],
  theirs: Mapping[str, float],
  columns: Mapping[str, str],
) -> list[str]:
  return [_cell(ours.get(key), theirs.get(key)) for key in columns]


def _cell(value: float | None, theirs: float | None) -> str:
  text = '-' if value is None else f'{100 * value:.1f}'
  return text if theirs is None else f'{text} ({100 * theirs:.1f})'
