"""What a run says of itself while it trains: lines, a bar, curves, panels."""

import json
import logging
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tqdm
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from draem_jax.workdir import storage

_log = logging.getLogger(__name__)


class Writer:
  """Writes `metrics.jsonl`, TensorBoard events and the progress of one run.

  Every line of `metrics.jsonl` holds the means since the line before: `step`,
  `seconds` (of training, over all starts), `images_per_second`,
  `learning_rate` and the losses.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
  ):
    """Opens the files; lines behind `first_step` are dropped.

    Such lines are left by a run that was killed behind its last checkpoint.
    """
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    self.lines = [
      line for line in read_metrics(workdir) if line['step'] <= first_step
    ]
    storage.write_text(
      self._path, ''.join(json.dumps(line) + '\n' for line in self.lines)
    )
    self._batch_size = batch_size
    self._num_steps = num_steps
    self._seconds = self.lines[-1]['seconds'] if self.lines else 0.0
    self._step = first_step
    self._time = time.monotonic()
    self._events = SummaryWriter(
      str(pathlib.Path(workdir) / 'tensorboard'), purge_step=first_step + 1
    )
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit='step',
      smoothing=0.1,
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the means of the steps since the last call."""
    now = time.monotonic()
    elapsed = max(now - self._time, 1e-9)
    rate = (step - self._step) * self._batch_size / elapsed
    self._seconds += elapsed
    line = {
      'step': step,
      'seconds': round(self._seconds, 3),
      'images_per_second': round(rate, 2),
      **values,
    }
    self.lines.append(line)
    with self._path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    for name, value in line.items():
      if name not in ('step', 'seconds'):
        self._events.add_scalar(f'train/{name}', value, step)
    self._show(step, values['loss'], rate)
    self._step, self._time = step, now

  def write_panel(self, step: int, panel: UInt8[np.ndarray, 'h w 3']) -> None:
    """Adds a picture to the TensorBoard events."""
    self._events.add_image('train/panel', panel, step, dataformats='HWC')

  def skip_time(self) -> None:
    """Leaves the time since the last line out of the training time."""
    self._time = time.monotonic()

  def close(self) -> None:
    """Flushes and closes everything."""
    self._bar.close()
    self._events.close()

  @property
  def seconds(self) -> float:
    """Seconds of training so far, over all starts of the run."""
    return self._seconds

  def _show(self, step: int, loss: float, rate: float) -> None:
    if not self._bar.disable:
      self._bar.set_postfix_str(
        f'loss {loss:.4f}, {rate:.1f} images/s', refresh=False
      )
      self._bar.update(step - self._bar.n)
      return
    left = (self._num_steps - step) * self._batch_size / rate
    _log.info(
      'step %d/%d: loss %.4f, %.1f images/s, %s left',
      *(step, self._num_steps, loss, rate, tqdm.tqdm.format_interval(left)),
    )


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`; a last line cut short is passed over."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(encoding='utf-8').splitlines():
    try:
      lines.append(json.loads(text))
    except ValueError:
      break
  return lines


def typical_rate(lines: list[dict[str, Any]]) -> float | None:
  """The median images/s; the first line, which holds compilation, aside."""
  rates = [line['images_per_second'] for line in lines[1:] or lines]
  return round(float(np.median(rates)), 2) if rates else None
