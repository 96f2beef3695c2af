"""Who runs a study: processes, each with its devices and one run at a time."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from draem_jax import cluster, devices, experiment, interrupt
from draem_jax.errors import UserError
from draem_jax.report.numbers import duration
from draem_jax.studies import state
from draem_jax.studies.plan import Run
from draem_jax.studies.state import State
from draem_jax.workdir import lock

_log = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # Seconds.
_SPEAK_EVERY = 60.0
# As shells have it of a command that a signal ended.
_SIGNALED = 128


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one process of a study runs.

  Attributes:
    environment: variables that show it its devices only.
    cores: of the CPU; None for all.
  """

  environment: Mapping[str, str]
  cores: frozenset[int] | None = None


def run_here(run: Run, workdir: pathlib.Path) -> Mapping[str, Any]:
  """Runs one run in this process, the one that trains its networks first.

  Args:
    run: which.
    workdir: of the study.

  Returns:
    The row of the run, as `experiment.train_and_evaluate` does.
  """
  folder = workdir / run.name
  with failure_noted(folder):
    if run.trained_by is not None:
      with cluster.together():
        _take_over(run, workdir)
    return experiment.train_and_evaluate(run.config, folder)


@contextlib.contextmanager
def failure_noted(folder: pathlib.Path) -> Iterator[None]:
  """Keeps in the folder of a run why it fails, for tables and lists.

  Args:
    folder: of the run; made if it is not there.
  """
  if not devices.is_main_process():
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  # Whoever has it writes there, and nobody else.
  if lock.is_held(folder):
    yield
    return
  state.forget_failure(folder)
  try:
    yield
  except Exception as error:
    words = ' '.join(str(error).split()) or type(error).__name__
    state.note_failure(folder, words)
    raise


def _take_over(run: Run, workdir: pathlib.Path) -> None:
  """Begins a run with the networks of another; the main process does."""
  if not devices.is_main_process():
    return
  source, folder = workdir / run.trainer, workdir / run.name
  if state.of(source) is not State.FINISHED:
    raise UserError(
      f'{run.name} takes the networks of {run.trainer}, which is not finished:'
      ' run that first'
    )
  with lock.hold(folder):
    _take_networks(source, folder)


def _take_networks(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Makes a workdir with the networks of another run, all or nothing.

  `config.json` comes last: without it the folder holds no run.
  """
  if (folder / 'config.json').exists():
    return
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  shutil.copytree(source / 'checkpoints', folder / 'checkpoints')
  for name in ('metrics.jsonl', 'config.json'):
    if (source / name).exists():
      shutil.copyfile(source / name, folder / f'.{name}')
      os.replace(folder / f'.{name}', folder / name)


def find_places(processes: int | None) -> list[Place]:
  """The devices of this machine, divided among processes.

  Args:
    processes: how many; None for one a device, on a CPU one.

  Raises:
    UserError: if they cannot be divided so.
  """
  if processes == 1:
    return [Place({})]
  platform, count = _ask_jax()
  if platform == 'cpu':
    return _divide_cores(processes or 1)
  processes = processes or count
  if count % processes or (platform == 'tpu' and processes != count):
    raise UserError(
      f'--processes={processes}: {count} devices cannot be divided so: take'
      f' 1 or {count}'
    )
  if processes == 1:
    return [Place({})]
  share = count // processes
  return [
    Place(_show_devices(platform, range(first, first + share)))
    for first in range(0, count, share)
  ]


def _ask_jax() -> tuple[str, int]:
  """Kind and number of the devices, by a process that lets go of them."""
  code = """
import json, sys
import jax
from draem_jax import devices, errors
try:
  devices.find()
except errors.UserError as error:
  sys.exit(str(error))
found = jax.local_devices()
print(json.dumps([found[0].platform, len(found)]))
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  try:
    platform, count = json.loads(done.stdout.splitlines()[-1])
  except (IndexError, ValueError) as error:
    raise UserError(_last_line(done.stderr)) from error
  return platform, count


def _divide_cores(processes: int) -> list[Place]:
  if processes == 1:
    return [Place({})]
  if not hasattr(os, 'sched_getaffinity'):
    return [Place({})] * processes
  cores = sorted(os.sched_getaffinity(0))
  if processes > len(cores):
    raise UserError(
      f'--processes={processes}: there are {len(cores)} cores: take fewer'
    )
  # Each its own: two programs that both think all cores theirs wait for each
  # other.
  return [
    Place({}, frozenset(cores[number::processes]))
    for number in range(processes)
  ]


def _show_devices(platform: str, devices: Sequence[int]) -> dict[str, str]:
  if platform == 'tpu':
    return {
      'TPU_VISIBLE_CHIPS': str(devices[0]),
      'TPU_PROCESS_BOUNDS': '1,1,1',
      'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
    }
  known = os.environ.get('CUDA_VISIBLE_DEVICES')
  names = known.split(',') if known else None
  chosen = [names[each] if names else str(each) for each in devices]
  return {'CUDA_VISIBLE_DEVICES': ','.join(chosen)}


class Crew:
  """The processes of a study, and what they have done."""

  def __init__(
    self,
    runs: Sequence[Run],
    workdir: pathlib.Path,
    *,
    command: Sequence[str],
    places: Sequence[Place],
  ):
    """Starts nothing yet.

    Args:
      runs: of the study.
      workdir: of the study.
      command: the command that runs run number K, counted from 1, if
        `--only=K` is added.
      places: one of each process.
    """
    self.runs = runs
    self.workdir = workdir
    self.command = command
    self._idle = list(places)
    self._count = len(places)
    self._working: dict[int, _Work] = {}
    self._failed: dict[int, str] = {}
    self._seconds: list[float] = []
    self._spoken = ('', 0.0)

  def work(self) -> dict[str, str]:
    """Runs what is not finished.

    Runs that fail do not stop the others; runs that another process has are
    waited for.

    Returns:
      Why runs failed, in one line each, by the name of the run.

    Raises:
      interrupt.Interrupted: on SIGTERM or SIGINT, once all runs are saved.
    """
    with interrupt.SignalWatch() as watch:
      while not watch.caught:
        self._reap()
        states = self._states()
        self._start(states)
        self._speak(states)
        # A run that waits for its networks can come to wait in vain.
        under_way = self._working or State.RUNNING in states
        if not under_way and not self._startable(states):
          break
        time.sleep(_LOOK_EVERY)
      if watch.caught:
        self._stop(watch.caught)
        raise interrupt.Interrupted(
          watch.caught, 'stopped: the same command goes on from there'
        )
    return {self.runs[number].name: why for number, why in self._failed.items()}

  def _states(self) -> list[State]:
    found = []
    for number, run in enumerate(self.runs):
      if number in self._working:
        found.append(State.RUNNING)
      elif number in self._failed:
        found.append(State.FAILED)
      else:
        found.append(state.of(self.workdir / run.name))
    return found

  def _startable(self, states: Sequence[State]) -> list[int]:
    """Runs that may begin now: those whose networks are there."""
    finished = {
      run.name
      for run, where in zip(self.runs, states, strict=True)
      if where is State.FINISHED
    }
    return [
      number
      for number, (run, where) in enumerate(zip(self.runs, states, strict=True))
      if where not in (State.FINISHED, State.RUNNING)
      and number not in self._failed
      and (run.trained_by is None or run.trainer in finished)
    ]

  def _start(self, states: list[State]) -> None:
    for number in self._startable(states):
      if not self._idle:
        return
      run, place = self.runs[number], self._idle.pop(0)
      folder = self.workdir / run.name
      folder.mkdir(parents=True, exist_ok=True)
      state.forget_failure(folder)
      with open(folder / state.LOG, 'ab') as log, _only(place.cores):
        process = subprocess.Popen(
          [*self.command, f'--only={number + 1}'],
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
          env={**os.environ, **place.environment},
          # A Ctrl-C at the terminal comes to the study, which tells the runs.
          start_new_session=True,
        )
      _log.info('%s begins: %s', run.name, folder / state.LOG)
      self._working[number] = _Work(process, place, time.monotonic())
      states[number] = State.RUNNING

  def _reap(self) -> None:
    for number, work in list(self._working.items()):
      status = work.process.poll()
      if status is None:
        continue
      del self._working[number]
      self._idle.append(work.place)
      run, seconds = self.runs[number], time.monotonic() - work.begun
      folder = self.workdir / run.name
      if status == 0:
        self._seconds.append(seconds)
        _log.info('%s is finished, after %s', run.name, duration(seconds))
      # Another study may have been quicker to take it.
      elif state.of(folder) not in (State.RUNNING, State.FINISHED):
        why = _why(status, folder / state.LOG)
        state.note_failure(folder, why)
        self._failed[number] = why
        _log.warning('%s failed: %s', run.name, why)

  def _speak(self, states: Sequence[State]) -> None:
    """Says where the study stands, when it moves and once a minute."""
    counts = {each: states.count(each) for each in State}
    left = counts[State.WAITING] + counts[State.STOPPED]
    line = (
      f'runs: {counts[State.FINISHED]} done, {counts[State.RUNNING]} running,'
      f' {counts[State.FAILED]} failed, {left} waiting'
    )
    said, when = self._spoken
    now = time.monotonic()
    if line == said and now - when < _SPEAK_EVERY:
      return
    self._spoken = line, now
    if self._seconds and (left or self._working):
      each = statistics.fmean(self._seconds)
      done = sum(min(now - work.begun, each) for work in self._working.values())
      left = (left + counts[State.RUNNING]) * each - done
      line += f', about {duration(left / self._count)} left'
    _log.info('%s', line)

  def _stop(self, number: int) -> None:
    """Tells all runs to stop, and waits until they are saved."""
    _log.info('stopping %d runs, which save first', len(self._working))
    for work in self._working.values():
      with contextlib.suppress(ProcessLookupError):
        work.process.send_signal(number)
    for work in self._working.values():
      work.process.wait()


@dataclasses.dataclass(frozen=True)
class _Work:
  """A run under way."""

  process: subprocess.Popen
  place: Place
  begun: float


@contextlib.contextmanager
def _only(cores: frozenset[int] | None) -> Iterator[None]:
  """Lets what is started in the block have these cores only."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _why(status: int, log: pathlib.Path) -> str:
  """Why a process failed, in one line."""
  if status < 0 or status > _SIGNALED:
    number = -status if status < 0 else status - _SIGNALED
    with contextlib.suppress(ValueError):
      return f'ended by {signal.Signals(number).name}'
  try:
    text = log.read_text(encoding='utf-8', errors='replace')
  except OSError as error:
    return f'exit status {status}, and its log cannot be read ({error})'
  return _last_line(text)


def _last_line(text: str) -> str:
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1].removeprefix('error: ') if lines else 'without a word'
