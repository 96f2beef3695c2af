"""What a run says of itself while it trains: lines, a bar, curves, panels."""

import contextlib
import json
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from draem_jax.training.progress import Progress
from draem_jax.workdir import storage

_log = logging.getLogger(__name__)


class Writer:
  """Writes `metrics.jsonl`, TensorBoard events and the progress of one run.

  Every line of `metrics.jsonl` holds the means since the line before: `step`,
  `seconds` (of training, over all starts), `images_per_second`,
  `learning_rate` and the losses. A line of a step that was evaluated on
  simulated anomalies has what was found, too, by names that begin with `eval_`.

  Attributes:
    lines: those of the file.
    progress: what is shown of the run.
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
    text = ''.join(json.dumps(line) + '\n' for line in self.lines)
    storage.write_text(self._path, text)
    self._batch_size = batch_size
    self._seconds = self.lines[-1]['seconds'] if self.lines else 0.0
    self._step = first_step
    self._time = time.monotonic()
    # They are written by a thread, which ends where it cannot. Whatever comes
    # behind would wait for it, were there no room.
    self._lost_events = False
    self._hook, threading.excepthook = threading.excepthook, self._note_failure
    self._events = _summary_writer(
      str(pathlib.Path(workdir) / 'tensorboard'),
      purge_step=first_step + 1,
      max_queue=1000,
    )
    self.progress = Progress(
      first_step=first_step, num_steps=num_steps, batch_size=batch_size
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
    try:
      with self._path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')
    except OSError as error:
      error.filename = error.filename or str(self._path)
      raise
    if not self._lost_events:
      for name, value in line.items():
        if name not in ('step', 'seconds'):
          self._events.add_scalar(_tag(name), value, step)
    self.progress.show(step, values['loss'], rate)
    self._step, self._time = step, now

  def write_panel(self, step: int, panel: UInt8[np.ndarray, 'h w 3']) -> None:
    """Adds a picture to the TensorBoard events."""
    if not self._lost_events:
      self._events.add_image('train/panel', panel, step, dataformats='HWC')

  def skip_time(self) -> None:
    """Leaves the time since the last line out of the training time."""
    self._time = time.monotonic()
    self.progress.restart()

  @contextlib.contextmanager
  def away(self) -> Iterator[None]:
    """Leaves the time within out of the training time."""
    left_at = time.monotonic()
    with self.progress.away():
      yield
    self._time += time.monotonic() - left_at

  def close(self) -> None:
    """Flushes and closes everything."""
    self.progress.close()
    threading.excepthook = self._hook
    if not self._lost_events:
      try:
        self._events.close()
      except OSError as error:
        self._lose_events(error)

  def _note_failure(self, failed: threading.ExceptHookArgs) -> None:
    is_ours = type(failed.thread).__module__.startswith('tensorboardX')
    if is_ours and isinstance(failed.exc_value, OSError):
      self._lose_events(failed.exc_value)
    else:
      self._hook(failed)

  def _lose_events(self, error: OSError) -> None:
    self._lost_events = True
    _log.warning(
      '%s cannot be written (%s): the run goes on without',
      *(self._path.with_name('tensorboard'), error.strerror),
    )

  @property
  def seconds(self) -> float:
    """Seconds of training so far, over all starts of the run."""
    return self._seconds


def _summary_writer(*arguments: Any, **options: Any) -> Any:
  """A `tensorboardX.SummaryWriter`."""
  # It imports PyTorch wherever that is installed, for arrays that are none of
  # ours, which takes longer than all the rest: not to be found, it is left out.
  with _hidden('torch'):
    from tensorboardX import SummaryWriter

  return SummaryWriter(*arguments, **options)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
  """Keeps a module that is not imported yet from being found."""
  if module in sys.modules:
    yield
    return
  sys.modules[module] = None
  try:
    yield
  finally:
    del sys.modules[module]


def _tag(name: str) -> str:
  """What TensorBoard calls a value of a line."""
  if name.startswith('eval_'):
    return name.replace('_', '/', 1)
  return f'train/{name}'


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`, as far as they are sound.

  A last line cut short is passed over. Nothing that is trained or evaluated
  depends on the file, so that one that is damaged or gone stops nothing.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  remedy = 'move it away, and the run goes on without it'
  lines: list[dict[str, Any]] = []
  try:
    texts = storage.read_bytes(path, remedy=remedy).split(b'\n')
  except FileNotFoundError:
    return lines
  for number, text in enumerate(texts, start=1):
    if not text.strip():
      continue
    try:
      line = storage.parse_json(text)
      _check_line(line, lines[-1]['step'] if lines else 0)
    except ValueError as error:
      if number < len(texts):
        _log.warning(
          '%s is damaged in line %d (%s): what follows there is left out',
          *(path, number, error),
        )
      break
    lines.append(line)
  return lines


def _check_line(line: dict[str, Any], before: int) -> None:
  """Raises a `ValueError` if there is no going on from a line."""
  for name, value in line.items():
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < float('inf'):
      raise ValueError(f'{name!r:.80} is no number')
  for name in ('step', 'seconds', 'images_per_second', 'loss'):
    if name not in line:
      raise ValueError(f'{name} is missing')
  if not before < line['step'] or line['step'] != int(line['step']):
    raise ValueError(f'step {line["step"]} after {before}')


def typical_rate(lines: list[dict[str, Any]]) -> float | None:
  """The median images/s; the first line, which holds compilation, aside."""
  rates = [line['images_per_second'] for line in lines[1:] or lines]
  return round(float(np.median(rates)), 2) if rates else None
