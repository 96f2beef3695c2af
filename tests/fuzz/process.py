"""A command in a process of its own, watched from outside.

Most are forked from this process, which has imported the package and started
nothing: a command begins in no time and cannot harm the next one. Some are
started as a user does.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from PIL import Image

COMMANDS = {
  'main': 'draem_jax.main',
  'predict': 'draem_jax.predict',
  'import_torch': 'draem_jax.import_torch',
  'export': 'draem_jax.export.__main__',
  'study': 'draem_jax.study',
}
ROOT = pathlib.Path(__file__).parents[2]

# What commands import when they need it.
_LATER = (
  *('draem_jax.workdir.checkpoint', 'draem_jax.data.dtd', 'skimage.morphology'),
  *('array_record.python.array_record_module', 'scipy.ndimage', 'tree'),
  *('multiprocessing.queues', 'termcolor'),
)

_KILL_ABOVE = 3 << 30  # Bytes: more than is allowed, less than the machine has.
_FILES_UP_TO = 1 << 30  # Bytes of one file, which would fill the disk.
_LOOK_EVERY = 0.005  # Seconds.


class Result(NamedTuple):
  """How a process ended.

  Attributes:
    status: its exit status; minus the signal's number if one ended it.
    out: what it printed.
    err: the same on stderr.
    hung: whether it was killed because it took too long.
    peak: bytes of memory at most, as resident.
    seconds: how long it took.
  """

  status: int
  out: str
  err: str
  hung: bool
  peak: int
  seconds: float


def set_up(cache: str | os.PathLike[str]) -> None:
  """Imports what the commands need, once, and starts no thread.

  Args:
    cache: where compiled programs are kept.
  """
  os.environ |= environment(cache)
  # JAX has been imported, and has read its variables.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', str(cache))
  for module in (*COMMANDS.values(), *_LATER):
    importlib.import_module(module)
  Image.preinit()
  Image.init()
  _draw_something()
  # Else each process looks through, and so copies, all that is here.
  gc.freeze()
  if len(os.listdir('/proc/self/task')) > 1:
    raise RuntimeError('an import has started a thread, which no fork has')


def _draw_something() -> None:
  """Has matplotlib look for its fonts once."""
  from matplotlib import figure

  plot = figure.Figure()
  plot.subplots().set_title('x')
  plot.savefig(io.BytesIO())


def environment(cache: str | os.PathLike[str]) -> dict[str, str]:
  """Variables of every process."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'OPENBLAS_NUM_THREADS': '1',
  }


def command(name: str, arguments: Sequence[str]) -> Callable[[], None]:
  """What runs a command as its entry point does."""

  def run() -> None:
    module = importlib.import_module(COMMANDS[name])
    sys.argv = [f'draem-{name}', *arguments]
    module.run()

  return run


def fork(
  action: Callable[[], None],
  *,
  folder: pathlib.Path,
  variables: Mapping[str, str] | None = None,
  limit: float = 60.0,
) -> Result:
  """Runs a function in a copy of this process.

  Args:
    action: the function; what it raises is told as Python does.
    folder: its working directory.
    variables: of its environment.
    limit: seconds after which it is killed.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  out, err = streams(folder)
  begun = time.monotonic()
  pid = os.fork()
  if not pid:
    _be_the_child(action, folder, variables or {}, out, err)
  return _watch(pid, out, err, start=begun, limit=limit)


def spawn(
  name: str,
  arguments: Sequence[str],
  *,
  folder: pathlib.Path,
  variables: Mapping[str, str | None] | None = None,
  limit: float = 60.0,
  prefix: Sequence[str] = (),
) -> Result:
  """Runs a command as a user does, by the name of its module.

  Args:
    name: of the command.
    arguments: its arguments.
    folder: its working directory.
    variables: of its environment; None for one that is not set.
    limit: seconds after which it is killed.
    prefix: the program that starts it, with its arguments.
  """
  start_time = time.monotonic()
  process = start(
    name, arguments, folder=folder, variables=variables, prefix=prefix
  )
  out, err = streams(folder)
  result = _watch(process.pid, out, err, start=start_time, limit=limit)
  process.returncode = result.status  # It has been waited for.
  return result


def start(
  name: str,
  arguments: Sequence[str],
  *,
  folder: pathlib.Path,
  variables: Mapping[str, str | None] | None = None,
  prefix: Sequence[str] = (),
) -> subprocess.Popen:
  """Starts a command; arguments as of `spawn`."""
  out, err = streams(folder)
  given = os.environ | {'PYTHONPATH': str(ROOT)} | dict(variables or {})
  with out.open('wb') as stdout, err.open('wb') as stderr:
    return subprocess.Popen(
      [
        *(*prefix, sys.executable, '-m'),
        *(COMMANDS[name].removesuffix('.__main__'), *arguments),
      ],
      cwd=folder,
      env={key: value for key, value in given.items() if value is not None},
      stdin=subprocess.DEVNULL,
      stdout=stdout,
      stderr=stderr,
      start_new_session=True,
    )


def streams(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """The files that stdout and stderr of a process in a folder go to."""
  return folder / '.stdout', folder / '.stderr'


def _be_the_child(
  action: Callable[[], None],
  folder: pathlib.Path,
  variables: Mapping[str, str],
  out: pathlib.Path,
  err: pathlib.Path,
) -> None:
  """Runs and ends as a process of Python does."""
  os.setsid()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (_FILES_UP_TO, _FILES_UP_TO))
  for number, path in enumerate((os.devnull, out, err)):
    flags = (
      os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(os.open(path, flags), number)
  faulthandler.enable()
  os.chdir(folder)
  os.environ |= variables
  status = 1
  try:
    action()
    status = 0
  except SystemExit as stop:
    status = stop.code
    if isinstance(status, str):
      print(status, file=sys.stderr)
      status = 1
  except BaseException:
    traceback.print_exc()
  try:
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
  except BaseException:
    traceback.print_exc()
    status = 120
  os._exit(int(status or 0))


def _watch(
  pid: int,
  out: pathlib.Path,
  err: pathlib.Path,
  *,
  start: float,
  limit: float,
) -> Result:
  """Waits for a process; ends it if it takes too long or too much."""
  hung, peak = False, 0
  try:
    while True:
      ended, status, usage = os.wait4(pid, os.WNOHANG)
      if ended:
        break
      peak = max(peak, _resident(pid))
      late = time.monotonic() - start - limit
      if late > 0 and not hung:
        hung = True
        os.kill(pid, signal.SIGABRT)  # It says where it stands.
      if late > 3 or peak > _KILL_ABOVE:
        _kill_all(pid)
      time.sleep(_LOOK_EVERY)
  finally:  # Nor does anything stay if this process is to end.
    _kill_all(pid)
  return Result(
    status=os.waitstatus_to_exitcode(status),
    out=_read(out),
    err=_read(err),
    hung=hung,
    peak=max(peak, usage.ru_maxrss << 10),
    seconds=time.monotonic() - start,
  )


def _kill_all(pid: int) -> None:
  """Kills a process and those that it has started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(pid, signal.SIGKILL)


def _resident(pid: int) -> int:
  try:
    pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  except (OSError, IndexError):
    return 0
  return pages * resource.getpagesize()


def _read(path: pathlib.Path) -> str:
  if not path.exists():
    return ''
  return path.read_bytes()[: 1 << 20].decode('utf-8', 'surrogateescape')
