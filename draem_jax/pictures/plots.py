"""Curves and histograms of a test split, drawn by matplotlib.

Only matplotlib's objects are used, no pyplot: nothing global changes, and
nothing asks for a display.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from draem_jax import metrics
from draem_jax.curves import Curves, thin
from draem_jax.pictures import panels
from draem_jax.pictures.canvas import GRAY, INK, LIGHT

IMAGE_COLOR = '#009E73'
PIXEL_COLOR = '#CC79A7'
# Color and line of a level; images first.
_STYLES = {'images': (IMAGE_COLOR, '-'), 'pixels': (PIXEL_COLOR, '--')}
_DPI = 130
_MAX_POINTS = 1000


def draw_curves(
  path: str | pathlib.Path,
  levels: Mapping[str, Curves | None],
  *,
  rates: metrics.Rates | None = None,
  threshold: float | None = None,
) -> None:
  """Writes the ROC and precision-recall curves of images and pixels.

  Args:
    path: the PNG file.
    levels: the curves of `'images'` and `'pixels'`, one or both; None where
      they are undefined, which the legend says.
    rates: what the threshold does to the images, marked on their curves.
    threshold: to which the rates belong.
  """
  figure = _figure(10, 4.8)
  roc, precision = figure.subplots(1, 2)
  _style(roc, 'ROC', 'False positive rate', 'True positive rate')
  _style(precision, 'Precision and recall', 'Recall', 'Precision')
  for axes in (roc, precision):
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
  roc.plot([0, 1], [0, 1], color=GRAY, linestyle=':', linewidth=1)
  for level, curves in levels.items():
    _plot_curves(roc, precision, level, curves)
  if rates is not None and threshold is not None:
    _mark_threshold(roc, precision, rates, threshold)
  roc.legend(loc='lower right', frameon=False)
  precision.legend(loc='lower left', frameon=False)
  _save(path, figure)


def draw_histogram(
  path: str | pathlib.Path,
  *,
  scores: Shaped[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  threshold: float | None = None,
) -> None:
  """Writes the histogram of the scores, every image a dot beneath it.

  Args:
    path: the PNG file.
    scores: the image scores.
    labels: True for anomalous images.
    threshold: the score at which a line is drawn.
  """
  figure = _figure(8, 4.4)
  bars, dots = figure.subplots(
    2, 1, sharex=True, gridspec_kw={'height_ratios': (5, 1)}
  )
  _style(bars, 'Image scores', '', 'Images')
  _style(dots, '', 'Score', '')
  end = max(float(scores.max(initial=0)), threshold or 0, 1e-6)
  edges = np.linspace(0, end, 41)
  jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(scores))
  kinds = (
    ('good', ~labels, panels.GOOD_COLOR, 1),
    ('anomalous', labels, panels.ANOMALOUS_COLOR, 0),
  )
  for kind, chosen, color, row in kinds:
    label = f'{kind} ({int(chosen.sum())})'
    bars.hist(
      scores[chosen],
      edges,
      label=label,
      **{'color': color, 'alpha': 0.65, 'edgecolor': 'white'},
    )
    dots.scatter(
      *(scores[chosen], row + jitter[chosen]),
      **{'s': 14, 'color': color, 'alpha': 0.6, 'linewidth': 0},
    )
  dots.set(yticks=(1, 0), yticklabels=('good', 'anomalous'), ylim=(-0.6, 1.6))
  bars.yaxis.get_major_locator().set_params(integer=True)
  if threshold is not None:
    for axes in (bars, dots):
      axes.axvline(threshold, color=INK, linewidth=1.2, linestyle='--')
    bars.plot(
      *([], []),
      **{'color': INK, 'linewidth': 1.2, 'linestyle': '--'},
      label=f'threshold {panels.number(threshold)}',
    )
  bars.legend(frameon=False)
  _save(path, figure)


def draw_series(
  path: str | pathlib.Path,
  panes: Mapping[str, Mapping[str, Sequence[tuple[float, float] | None]]],
  *,
  ticks: Sequence[str],
  label: str,
) -> None:
  """Writes values with error bars at a few named places, pane by pane.

  Args:
    path: the PNG file.
    panes: by title, the series by name, of which there may be two: mean and
      deviation at each tick, None where there is none.
    ticks: the names of the places.
    label: what they are.
  """
  figure = _figure(4.4 * len(panes), 4.2)
  for axes, (title, series) in zip(
    figure.subplots(1, len(panes), squeeze=False)[0],
    panes.items(),
    strict=True,
  ):
    _style(axes, title, label, 'Percent')
    styles = zip(series.items(), _STYLES.values(), strict=False)
    for (name, points), (color, line) in styles:
      known = [(x, *each) for x, each in enumerate(points) if each is not None]
      x, means, deviations = zip(*known, strict=True) if known else ((), (), ())
      axes.errorbar(
        *(x, means, deviations),
        **{'color': color, 'linestyle': line, 'marker': 'o', 'capsize': 3},
        label=name,
      )
    axes.set_xticks(range(len(ticks)), ticks)
    axes.legend(frameon=False)
  _save(path, figure)


def _plot_curves(
  roc: Any, precision: Any, level: str, curves: Curves | None
) -> None:
  """Adds both curves of one level; a line of the legend says if undefined."""
  color, line = _STYLES[level]
  style = {'color': color, 'linestyle': line, 'linewidth': 2}
  if curves is None:
    for axes in (roc, precision):
      axes.plot([], [], label=f'{level}: undefined', **style)
    return
  curves = thin(curves, _MAX_POINTS)
  roc.plot(*curves.roc, label=f'{level}, AUROC {curves.auroc:.3f}', **style)
  precision.plot(
    *curves.precision_recall,
    label=f'{level}, AP {curves.average_precision:.3f}',
    drawstyle='steps-pre',
    **style,
  )


def _mark_threshold(
  roc: Any, precision: Any, rates: metrics.Rates, threshold: float
) -> None:
  """Marks where the threshold stands on the curves of images."""
  recall, false_alarms = rates.true_positive_rate, rates.false_positive_rate
  if recall is None or false_alarms is None:
    return
  called = rates.true_positives + rates.false_positives
  points = [(roc, false_alarms, recall)]
  if called:
    points.append((precision, recall, rates.true_positives / called))
  for axes, x, y in points:
    axes.plot(
      *([x], [y]),
      **{'marker': 'o', 'markersize': 8, 'linestyle': '', 'zorder': 3},
      **{'color': IMAGE_COLOR, 'markeredgecolor': 'white'},
      label=f'threshold {panels.number(threshold)}',
      clip_on=False,
    )


def _figure(width: float, height: float) -> Any:
  """An empty figure of this size in inches, with some air at its borders."""
  # Here, as matplotlib takes a while to import, and few commands draw.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=_DPI, layout='constrained')
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
  return figure


def _style(axes: Any, title: str, x: str, y: str) -> None:
  """Title on the left, light grid, no box."""
  axes.set_title(title, loc='left', fontweight='bold', color=INK, fontsize=12)
  axes.set_xlabel(x, color=INK)
  axes.set_ylabel(y, color=INK)
  axes.tick_params(color=LIGHT, labelcolor=INK)
  axes.grid(color=LIGHT, linewidth=0.6)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(LIGHT)


def _save(path: str | pathlib.Path, figure: Any) -> None:
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  panels.save_png(path, np.asarray(canvas.buffer_rgba())[..., :3].copy())
