"""A trace of some training steps, for XProf, TensorBoard or Perfetto."""

import contextlib
import logging
import pathlib
from typing import Any

import jax

_log = logging.getLogger(__name__)

# Steps before the first traced one: they compile, or read compiled programs.
_WARM_UP = 10


class Profiler:
  """Traces some steps of one start of a run; changes nothing else."""

  def __init__(
    self, folder: pathlib.Path, *, steps: int, first: int, last: int
  ):
    """Traces nothing yet.

    Args:
      folder: where the trace goes.
      steps: how many to trace; none if 0.
      first: the first step of this start of the run.
      last: the last one. A run too short for the warm-up is traced at its end.
    """
    self._folder = folder
    self._start = max(first, min(first + _WARM_UP, last - steps + 1))
    self._stop = min(self._start + steps, last + 1)
    self._tracing = False

  def before(self, step: int) -> contextlib.AbstractContextManager:
    """Begins the trace if it is time; the step belongs into the result."""
    if step == self._start < self._stop:
      jax.profiler.start_trace(str(self._folder))
      self._tracing = True
    if not self._tracing:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def after(self, step: int, results: Any) -> None:
    """Ends the trace if it is time.

    Args:
      step: the step that was done.
      results: of it, which are waited for, so that the trace is whole.
    """
    if self._tracing and step + 1 >= self._stop:
      jax.block_until_ready(results)
      self.close()
      _log.info('trace of steps %d to %d: %s', self._start, step, self._folder)

  def close(self) -> None:
    """Ends the trace, whatever of it there is."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
