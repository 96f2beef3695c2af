"""The systems that the paper prints numbers of, to be set beside a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax import paper
from draem_jax.metrics import METRICS, PAPER_RATES, RATES, at_best_f1

# The fields of a `paper.Table4Row` by the key in `results.json`.
_TABLE4 = {
  'image_auroc': 'auroc',
  'true_positive_rate': 'tpr',
  'true_negative_rate': 'tnr',
  'accuracy': 'accuracy',
}
_TABLE4_COLUMNS = {
  'image_auroc': METRICS['image_auroc'].name,
  **{key: RATES[key].short for key in PAPER_RATES},
}


@dataclasses.dataclass(frozen=True)
class Beside:
  """Published systems, and ours at their end.

  Attributes:
    columns: what the columns are called, by key.
    published: the values of each system, in [0, 1], by key; a key is left out
      where the paper gives no number.
    ours: the same of ours, by what the row is called; None where missing.
    note: what the numbers are of, in plain text.
  """

  columns: Mapping[str, str]
  published: Mapping[str, Mapping[str, float]]
  ours: Mapping[str, Mapping[str, float | None]]
  note: str


def of_category(category: str) -> dict[str, dict[str, float]]:
  """What the paper prints of a category, by system and key of a metric.

  Args:
    category: the category's name; of one that tables 1 and 2 do not have there
      is nothing.
  """
  if category not in paper.CATEGORIES:
    return {}
  return {
    system: _by_key(values[category])
    for system, values in paper.PUBLISHED.items()
  }


def of_average(categories: Sequence[str]) -> dict[str, dict[str, float]]:
  """What the paper has on average, by system and key of a result.

  Args:
    categories: all of them among the 15 of tables 1 and 2, whose printed
      averages are taken where they are all 15, and those of the numbers of
      the given ones otherwise; or the ten classes of table 4. Of others there
      is nothing.
  """
  if _is_dagm(categories):
    return {
      system: _of_fields(row, _TABLE4) for system, row in paper.TABLE4.items()
    }
  if sorted(categories) == list(paper.CATEGORIES):
    return {
      system: _by_key(values) for system, values in paper.AVERAGES.items()
    }
  each = [of_category(category) for category in categories]
  if not all(each):
    return {}
  return {
    system: {key: mean([one[system][key] for one in each]) for key in values}
    for system, values in (each[0] if each else {}).items()
  }


def beside_category(row: Mapping[str, Any]) -> Beside | None:
  """The systems beside a run; None where the paper lacks its category."""
  published = of_category(row['category'])
  if not published:
    return None
  columns = _columns()
  return Beside(
    columns=columns,
    published=published,
    ours={'This run': {key: row.get(key) for key in columns}},
    note=_note([row['category']]),
  )


def beside_average(rows: Sequence[Mapping[str, Any]]) -> Beside | None:
  """The systems' averages beside those of several runs.

  Args:
    rows: one of each category, as `results` describes them.

  Returns:
    None where the paper has not all of these categories.
  """
  categories = [row['category'] for row in rows]
  published = of_average(categories)
  if not published:
    return None
  if _is_dagm(categories):
    # The area under the curve is of no threshold.
    best = {key: at_best_f1(key) for key in PAPER_RATES}
    return Beside(
      columns=_TABLE4_COLUMNS,
      published=published,
      ours={
        'These runs': {key: average(rows, key) for key in _TABLE4},
        'These runs, best F1': {
          key: average(rows, best.get(key, key)) for key in _TABLE4
        },
      },
      note=_dagm_note(),
    )
  columns = _columns()
  return Beside(
    columns=columns,
    published=published,
    ours={'These runs': {key: average(rows, key) for key in columns}},
    note=_note(categories),
  )


def average(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
  """The mean over the rows that have the key; None where none has it."""
  return mean([row[key] for row in rows if row.get(key) is not None])


def mean(values: Sequence[float]) -> float | None:
  """The mean; None of nothing."""
  return sum(values) / len(values) if values else None


def _is_dagm(categories: Sequence[str]) -> bool:
  return sorted(categories) == sorted(paper.DAGM_CLASSES)


def _columns() -> dict[str, str]:
  return {key: metric.name for key, metric in METRICS.items() if metric.paper}


def _by_key(values: paper.Published) -> dict[str, float]:
  fields = {key: metric.paper for key, metric in METRICS.items()}
  return _of_fields(values, {key: name for key, name in fields.items() if name})


def _of_fields(values: Any, fields: Mapping[str, str]) -> dict[str, float]:
  """The values that there are, in [0, 1], by the key of their field."""
  found = {key: getattr(values, name) for key, name in fields.items()}
  return {key: value / 100 for key, value in found.items() if value is not None}


def _note(categories: Sequence[str]) -> str:
  """What the numbers of tables 1 and 2 are of."""
  is_all = sorted(categories) == list(paper.CATEGORIES)
  if is_all:
    text = f'The paper’s averages over its {len(paper.CATEGORIES)} categories'
  elif len(categories) == 1:
    text = f'The paper’s numbers on {categories[0]}'
  else:
    text = (
      f'Averages over these {len(categories)} of the paper’s'
      f' {len(paper.CATEGORIES)} categories, computed from its numbers of each'
    )
  lacking = [name for name in paper.TABLE1 if name not in paper.TABLE2]
  text += (
    f', tables 1 and 2; table 2 has no {", no ".join(lacking[:-1])} and no'
    f' {lacking[-1]}.'
  )
  return f'{text} {paper.NOTES[1]}' if is_all else text


def _dagm_note() -> str:
  supervised = [name for name, row in paper.TABLE4.items() if row.is_supervised]
  return (
    'The paper’s table 4: averages over the ten classes of DAGM. Supervised,'
    f' at least weakly, are {", ".join(supervised[:-1])} and {supervised[-1]};'
    f' they learn from labeled defects. {paper.NOTES[4]} The paper does not say'
    ' at which threshold its rates are. These runs’ are at the detectors’, and'
    ' at those of the best F1, which are chosen on the test images themselves.'
  )
