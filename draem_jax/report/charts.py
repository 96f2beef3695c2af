"""Charts as inline SVG: ROC, precision and recall, histogram of the scores.

A chart stretches to the width it is given; its lines keep their thickness, and
all text is HTML, so that it stays readable on a phone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from draem_jax import curves as curves_lib
from draem_jax.report.document import escape
from draem_jax.report.numbers import percent

_BINS = 40
_MAX_POINTS = 1000
# False positive rates and recalls at which the curves are put into numbers.
_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_RECALLS = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)

# By the level: its class in the style sheet and its name in text. None where a
# split does not define them.
_Levels = Mapping[str, curves_lib.Curves | None]


def thin(curves: _Levels) -> _Levels:
  """The same curves with as many points as a screen shows."""
  return {
    level: curve and curves_lib.thin(curve, _MAX_POINTS)
    for level, curve in curves.items()
  }


def roc(curves: _Levels) -> str:
  """The chart of the ROC curves, with a mark that the script moves."""
  shapes = '<path class="chance" d="M0 100L100 0"/>'
  for level, curve in curves.items():
    if curve is not None:
      x, y = curve.roc
      points = ' '.join(map(_point, x, y))
      shapes += f'<path class="curve {level}" d="M{points}"/>'
  legend = {
    level: 'undefined' if curve is None else f'AUROC {percent(curve.auroc)}'
    for level, curve in curves.items()
  }
  return _curve_chart(
    'roc', 'ROC', 'False positive rate', 'True positive rate', shapes, legend
  )


def precision_recall(curves: _Levels) -> str:
  """The chart of the precision-recall curves, with a mark as `roc`."""
  shapes = ''
  for level, curve in curves.items():
    if curve is not None:
      recall, precision = curve.precision_recall
      start = _point(recall[0], precision[0])
      steps = ''.join(
        f'V{100 * (1 - y):.2f}H{100 * x:.2f}'
        for x, y in zip(recall[1:], precision[1:], strict=True)
      )
      shapes += f'<path class="curve {level}" d="M{start}{steps}"/>'
  legend = {
    level: 'undefined'
    if curve is None
    else f'AP {percent(curve.average_precision)}'
    for level, curve in curves.items()
  }
  return _curve_chart(
    'precision-recall',
    'Precision and recall',
    'Recall',
    'Precision',
    shapes,
    legend,
  )


def curve_tables(curves: _Levels) -> str:
  """The curves in numbers, as two HTML tables."""
  known = {level: curve for level, curve in curves.items() if curve is not None}
  rates = [
    (rate, *(_height(*curve.roc, rate) for curve in known.values()))
    for rate in _RATES
  ]
  recalls = [
    (recall, *(_precision(curve, recall) for curve in known.values()))
    for recall in _RECALLS
  ]
  return (
    _number_table('True positive rate', 'false positive rate', known, rates)
    + '\n'
    + _number_table('Precision', 'recall', known, recalls)
  )


def axis_end(scores: Shaped[np.ndarray, 'n'], threshold: float) -> float:
  """Where the axis of scores, which begins at 0, ends."""
  return max(float(np.max(scores, initial=0)), threshold, 1e-6)


def histogram(
  scores: Shaped[np.ndarray, 'n'], labels: Bool[np.ndarray, 'n'], end: float
) -> str:
  """The plot of a histogram: anomalous images upwards, good ones downwards.

  With a line at the threshold its four quarters are the confusion matrix.

  Args:
    scores: the image scores.
    labels: True for anomalous images.
    end: of the axis of scores.
  """
  edges = np.linspace(0, end, _BINS + 1)
  up, _ = np.histogram(scores[labels], edges)
  down, _ = np.histogram(scores[~labels], edges)
  top = max(int(up.max()), int(down.max()), 1)
  step = max(int(_nice(top / 2)), 1)
  width = 100 / _BINS
  bars = {'anomalous': (up, -1), 'good': (down, 1)}
  shapes = ''.join(
    f'<path class="{kind}" d="'
    + ''.join(
      f'M{number * width:.4g} 50v{sign * 50 * count / top:.4g}h{width:.4g}'
      f'v{-sign * 50 * count / top:.4g}z'
      for number, count in enumerate(counts)
      if count
    )
    + '"/>'
    for kind, (counts, sign) in bars.items()
  )
  counts = range(0, top + 1, step)
  y_ticks = {50 + 50 * count / top: f'{count}' for count in counts}
  y_ticks |= {50 - 50 * count / top: f'{count}' for count in counts}
  x_step = _nice(end / 5)
  x_ticks = {
    100 * number * x_step / end: f'{number * x_step:.6g}'
    for number in range(math.floor(end / x_step + 1e-9) + 1)
  }
  label = (
    f'Histogram of the scores of {int(np.sum(labels))} anomalous and '
    f'{int(np.sum(~labels))} good images'
  )
  return _plot(shapes, label, x_ticks, y_ticks)


def while_training(
  lines: Sequence[Mapping[str, float]],
  title: str,
  curves: Mapping[str, tuple[str, str]],
  *,
  end: float | None = None,
) -> str:
  """The chart of some values over the steps of a training.

  Args:
    lines: of `metrics.jsonl`, one at least, each with these values.
    title: of the chart.
    curves: the key and the name of each value, by its class in the style sheet.
    end: of the axis of values, which begins at 0; by default the largest one.
  """
  last = lines[-1]['step']
  keys = [key for key, _ in curves.values()]
  end = end or max([line[key] for line in lines for key in keys] + [1e-6])
  shapes, entries = '', []
  for kind, (key, name) in curves.items():
    points = ' '.join(
      _point(line['step'] / last, line[key] / end) for line in lines
    )
    shapes += f'<path class="curve {kind}" d="M{points}"/>'
    entries.append((kind, f'{name}, {lines[-1][key]:.3g} at the end'))
  x_step = max(_nice(last / 4), 1)
  x_ticks = {
    100 * number * x_step / last: f'{number * x_step:.6g}'
    for number in range(math.floor(last / x_step + 1e-9) + 1)
  }
  y_step = _nice(end / 5)
  y_ticks = {
    100 - 100 * number * y_step / end: f'{number * y_step:.3g}'
    for number in range(math.floor(end / y_step + 1e-9) + 1)
  }
  label = f'{title}: {", ".join(text for _, text in entries)}'
  legend = ''.join(
    f'<li class="{kind}">{escape(text)}</li>' for kind, text in entries
  )
  return (
    f'<figure class="chart">\n<figcaption>{title}</figcaption>\n'
    f'{_plot(shapes, label, x_ticks, y_ticks)}\n<p class="axis end">Step</p>\n'
    f'<ul class="legend">{legend}</ul>\n</figure>'
  )


def _curve_chart(
  name: str, title: str, x: str, y: str, shapes: str, legend: dict[str, str]
) -> str:
  ticks = {20 * number: f'{number / 5:.1f}' for number in range(6)}
  # Ticks of y are counted from the top.
  heights = {100 - place: text for place, text in ticks.items()}
  text = ', '.join(f'{level} {value}' for level, value in legend.items())
  entries = ''.join(
    f'<li class="{level}">{level}, {escape(value)}</li>'
    for level, value in legend.items()
  )
  mark = '<i class="mark" hidden></i>'
  plot = _plot(shapes, f'{title}: {text}', ticks, heights, mark)
  return (
    f'<figure class="chart" id="{name}">\n<figcaption>{title}</figcaption>\n'
    f'<p class="axis">{y}</p>\n{plot}\n<p class="axis end">{x}</p>\n'
    f'<ul class="legend">{entries}</ul>\n</figure>'
  )


def _plot(
  shapes: str,
  label: str,
  x_ticks: dict[float, str],
  y_ticks: dict[float, str],
  mark: str = '',
) -> str:
  """Shapes on a square of 100, y downwards, with ticks at these places."""
  grid = ''.join(f'M{place:.4g} 0V100' for place in x_ticks)
  grid += ''.join(f'M0 {place:.4g}H100' for place in y_ticks)
  ticks = ''.join(
    f'<span class="x tick" style="left:{place:.4g}%">{text}</span>'
    for place, text in x_ticks.items()
  )
  ticks += ''.join(
    f'<span class="y tick" style="top:{place:.4g}%">{text}</span>'
    for place, text in y_ticks.items()
  )
  return (
    f'<div class="plot" role="img" aria-label="{escape(label)}">'
    '<svg viewBox="0 0 100 100" preserveAspectRatio="none"'
    ' aria-hidden="true">'
    f'<path class="grid" d="{grid}"/>{shapes}</svg>{ticks}{mark}</div>'
  )


def _number_table(
  title: str, place: str, known: Iterable[str], rows: Sequence[Sequence[float]]
) -> str:
  head = ''.join(
    f'<th scope="col" class="number">{level}</th>' for level in known
  )
  body = ''.join(
    f'<tr><th scope="row">{100 * at:g}</th>'
    + ''.join(f'<td class="number">{percent(value)}</td>' for value in values)
    + '</tr>\n'
    for at, *values in rows
  )
  return (
    f'<table><caption>{title}, in percent</caption>\n<thead><tr>'
    f'<th scope="col">at {place}</th>{head}</tr></thead>\n'
    f'<tbody>{body}</tbody></table>'
  )


def _height(
  x: Float[np.ndarray, 'k'], y: Float[np.ndarray, 'k'], place: float
) -> float:
  """Height of a polyline, x ascending; of a vertical piece its upper end."""
  after = int(np.searchsorted(x, place, 'right'))
  if after == len(x) or x[after - 1] == place:
    return float(y[after - 1])
  return float(np.interp(place, x[after - 1 : after + 1], y[after - 1 :][:2]))


def _precision(curve: curves_lib.Curves, recall: float) -> float:
  """Precision of the step that holds up to the first recall so high."""
  points = curve.precision_recall
  first = int(np.searchsorted(points.recall, recall, 'left'))
  return float(points.precision[min(first, len(points.recall) - 1)])


def _point(x: float, y: float) -> str:
  return f'{100 * x:.2f},{100 * (1 - y):.2f}'


def _nice(step: float) -> float:
  """The next larger of 1, 2, 5, 10, ... at any power of ten."""
  power = 10.0 ** math.floor(math.log10(step))
  return next(
    factor * power
    for factor in (1, 2, 5, 10)
    if factor * power >= step * (1 - 1e-9)
  )
