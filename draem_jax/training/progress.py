"""What a run says of its progress: by time, while the loop is ahead or waits.

The loop hands over steps that the devices have not begun, and waits for them
only where it looks at losses, which on a slow machine is once in an hour. So a
thread looks now and then which steps are done, and waits for none.
"""

import collections
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

_log = logging.getLogger(__name__)

# All in seconds.
_LOOK_EVERY = 0.1
# So long a line is good for, and a step is waited for without a word.
_LINE_EVERY, _PATIENCE = 30, 50
# What is measured is that long, or a single step longer than that.
_MEASURED, _LONG_STEP = 5, 20
# On a CPU, what is longer than this need not be.
_TOO_LONG = 12 * 3600
_RECENT = 50  # Steps that a loss is the mean of, at most.


class Progress:
  """The bar of a terminal, or plain lines; and how long the run will take."""

  def __init__(
    self,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Says nothing yet.

    Args:
      first_step: number of steps that are done already.
      num_steps: number of steps of the whole run.
      batch_size: examples of a step.
      clock: the seconds since whenever.
    """
    self._num_steps, self._batch_size = num_steps, batch_size
    self._clock = clock
    self._lock = threading.RLock()
    self._thread, self._closed = None, threading.Event()
    # While the loop does something else, no time goes by.
    self._away, self._left_at = 0.0, None
    self._handed = collections.deque()  # Steps under way and their losses.
    self._losses = collections.deque(maxlen=_RECENT)
    self._first_step = self._done = first_step
    self._begun_at = self._handed_at = self._done_at = None
    self._first_done = None  # The first step that was done, and when.
    self._shown = None  # The step of the last line or of the start, and when.
    self._spoke_at = None
    self._has_bound = self._has_estimate = self._has_advice = False
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit='step',
      smoothing=0.1,
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
    )

  def start(self) -> None:
    """Begins to look, now and then, on a thread."""
    with self._lock:
      self._begun_at = self._spoke_at = self._now()
    self._thread = threading.Thread(
      target=self._keep_looking, name='progress', daemon=True
    )
    self._thread.start()

  def close(self) -> None:
    """Ends the thread and the bar."""
    self._closed.set()
    if self._thread:
      self._thread.join()
    self._bar.close()

  def hand_over(self, step: int, loss: Any) -> None:
    """Notes a step that the devices were given.

    Args:
      step: its number.
      loss: what it will give, an array that says whether it `is_ready`.
    """
    with self._lock:
      if self._handed_at is None:
        # Behind the compilation, which is in the first call.
        self._handed_at = self._spoke_at = self._now()
        self._shown = self._first_step, self._handed_at
      self._handed.append((step, loss))

  @contextlib.contextmanager
  def away(self) -> Iterator[None]:
    """The loop does something else, whose time is not that of steps."""
    with self._lock:
      self._left_at = self._now()
    try:
      yield
    finally:
      with self._lock:
        left_at, self._left_at = self._left_at, None
        self._away += self._now() - left_at

  def restart(self) -> None:
    """Leaves the time since the last line out of the rate of the next."""
    with self._lock:
      if self._shown:
        self._shown = self._shown[0], self._now()

  def show(self, step: int, loss: float, rate: float) -> None:
    """Shows the progress at a step; `rate` is in images/s."""
    with self._lock:
      self._shown = step, self._now()
      self._spoke_at = self._now()
      if not self._bar.disable:
        self._bar.set_postfix_str(
          f'loss {loss:.4f}, {rate:.1f} images/s', refresh=False
        )
        self._move_bar(step)
        return
      left = (self._num_steps - step) * self._batch_size / rate
      _log.info(
        'step %d/%d: loss %.4f, %.1f images/s, %s left',
        *(step, self._num_steps, loss, rate, tqdm.tqdm.format_interval(left)),
      )

  def look(self) -> None:
    """Sees which steps are done, and says what there is to say by now."""
    with self._lock:
      now = self._now()
      if self._begun_at is None or self._left_at is not None:
        return
      while self._handed and self._handed[0][1].is_ready():
        self._done, loss = self._handed.popleft()
        self._done_at = now
        self._losses.append(loss)
        self._first_done = self._first_done or (self._done, now)
      self._estimate(now)
      self._move_bar(self._done)
      is_news = self._shown and self._done > self._shown[0]
      if is_news and now - self._spoke_at >= _LINE_EVERY:
        self._show_done()
      elif now - self._spoke_at >= _PATIENCE:
        self._explain(now)

  def _now(self) -> float:
    return self._clock() - self._away

  def _keep_looking(self) -> None:
    while not self._closed.wait(_LOOK_EVERY):
      try:
        self.look()
      # A step that failed: the loop meets it, too, and says so.
      except Exception:
        _log.debug('the progress is no longer looked at', exc_info=True)
        return

  def _move_bar(self, step: int) -> None:
    if not self._bar.disable and step > self._bar.n:
      self._bar.update(step - self._bar.n)

  def _show_done(self) -> None:
    """A line on the last step that is done, by the clock."""
    step, at = self._shown
    seconds = max(self._done_at - at, 1e-9)
    rate = (self._done - step) * self._batch_size / seconds
    losses = jax.device_get(list(self._losses)[step - self._done :])
    done_at = self._done_at
    self.show(self._done, float(np.mean(losses)), rate)
    self._shown = self._done, done_at

  def _explain(self, now: float) -> None:
    """A line on what is waited for, where there is nothing else to say."""
    if self._handed_at is None:
      self._say(
        'compiling the step, for %s so far', in_words(now - self._begun_at)
      )
    elif self._handed:
      since = self._handed_at if self._done_at is None else self._done_at
      self._say(
        'step %d/%d: under way for %s',
        *(self._done + 1, self._num_steps, in_words(now - since)),
      )
    self._spoke_at = now

  def _estimate(self, now: float) -> None:
    """Says once how long the run will take, as soon as that is known."""
    if self._has_estimate or self._handed_at is None:
      return
    if self._done == self._num_steps:
      return
    if self._first_done is None:
      waited = now - self._handed_at
      if waited >= _LINE_EVERY and not self._has_bound:
        self._has_bound = True
        seconds = (self._num_steps - self._first_step) * waited
        self._say(
          'the first step is under way for %s: the run will take more than %s',
          *(in_words(waited), in_words(seconds)),
        )
        self._advise(seconds)
        self._spoke_at = now
      return
    step, at = self._first_done
    steps, seconds = self._done - step, self._done_at - at
    if not steps:
      # It alone: without the compilation, but slower than others are.
      steps, seconds = 1, at - self._handed_at
      if seconds < _LONG_STEP:
        return
    elif seconds < _MEASURED:
      return
    self._has_estimate = True
    left = (self._num_steps - self._done) * seconds / steps
    self._say(
      '%s steps to come take about %s, at %.3g s a step',
      *(f'{self._num_steps - self._done:,}', in_words(left), seconds / steps),
    )
    self._advise(left)

  def _advise(self, seconds: float) -> None:
    if self._has_advice or seconds <= _TOO_LONG:
      return
    self._has_advice = True
    if jax.default_backend() == 'cpu':
      self._say(
        'this is long for a CPU: --config=configs/mvtec.py:CATEGORY,light'
        ' trains smaller networks, on images as small, in minutes; or take a'
        ' machine with a GPU'
      )

  def _say(self, message: str, *arguments: Any) -> None:
    """A line that the bar, if there is one, makes room for."""
    with tqdm.tqdm.external_write_mode(sys.stderr):
      _log.info(message, *arguments)


def in_words(seconds: float) -> str:
  """About how long something takes: two digits, and one unit.

  Args:
    seconds: the time.
  """
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= 2 * size:
      count = seconds / size
      return f'{count:.1f} {unit}' if count < 10 else f'{count:.0f} {unit}'
  return f'{seconds:.0f} seconds'
