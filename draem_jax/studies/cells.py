"""What the runs of a study say, in numbers.

A number is a mean over the categories and then over the seeds; the standard
deviation behind it is that of the seeds (of a sample, n - 1). Seeds that lack a
category count only where no seed is whole.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Results of the finished runs by row, category and seed.
Results = Mapping[tuple[str, str, int], Mapping[str, Any]]


class Cell(NamedTuple):
  """What the runs say of one metric of one row.

  Attributes:
    mean: in [0, 1]; None if no run says anything.
    deviation: the standard deviation over the seeds; None for one seed.
    seeds: how many seeds the mean is over.
    categories: how many categories it is over.
  """

  mean: float | None
  deviation: float | None
  seeds: int
  categories: int


def cell(
  results: Results, row: str, categories: Sequence[str], key: str
) -> Cell:
  """Averages a metric of a row over categories, then over seeds.

  Args:
    results: of the runs that are finished.
    row: whose runs count.
    categories: those that count.
    key: of the metric.
  """
  by_seed: dict[int, dict[str, float]] = {}
  for (name, category, seed), values in results.items():
    value = values.get(key)
    if name == row and category in categories and value is not None:
      by_seed.setdefault(seed, {})[category] = value
  if not by_seed:
    return Cell(None, None, 0, 0)
  most = max(map(len, by_seed.values()))
  if most == len(categories):
    averages = [
      statistics.fmean(values.values())
      for values in by_seed.values()
      if len(values) == most
    ]
    deviation = statistics.stdev(averages) if len(averages) > 1 else None
    return Cell(statistics.fmean(averages), deviation, len(averages), most)
  found: dict[str, list[float]] = {}
  for values in by_seed.values():
    for category, value in values.items():
      found.setdefault(category, []).append(value)
  mean = statistics.fmean(map(statistics.fmean, found.values()))
  return Cell(mean, None, min(map(len, found.values())), len(found))
