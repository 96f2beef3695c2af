"""The processes of one run: how they start, agree, and end with each other.

Whatever is the same in all of them is compared before anything is trained. When
one is gone the others end within `DRAEM_FAULT_TIMEOUT` seconds, with one line
and the status of a `PassingError`.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import signal
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from draem_jax import terminal
from draem_jax.errors import PassingError, UserError

# What decides over the bytes of a run, and over who understands whom.
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy'),
  *('ml-collections', 'pillow', 'scipy', 'scikit-image', 'array_record'),
)
# What JAX writes before it aborts because another process is gone.
_SERVICE = 'JAX distributed service detected fatal errors'
# What it raises, from the libraries that add up over processes.
_COLLECTIVES = re.compile(
  r'gloo|nccl|connection (closed|reset)|coordination ?service|UNAVAILABLE'
  r'|heartbeat|DEADLINE_EXCEEDED',
  re.IGNORECASE,
)
_AGAIN = 'the same commands go on from the last checkpoint'


def start() -> None:
  """Joins the processes of a cluster run; does nothing on a single machine.

  Must run before anything else touches JAX. JAX itself reads what Slurm's
  `srun` and a TPU pod say of the run; elsewhere set `JAX_COORDINATOR_ADDRESS`,
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. `DRAEM_START_TIMEOUT` is how many
  seconds they wait for each other, 300 by default, and `DRAEM_FAULT_TIMEOUT`
  how long one may be silent later, 30 by default.

  Raises:
    UserError: if one of these is missing or no number, or if the process
      cannot be the first, which the others come to.
  """
  environment = os.environ
  where: dict[str, Any] = {}
  if 'JAX_NUM_PROCESSES' in environment:
    try:
      where = {
        'coordinator_address': environment['JAX_COORDINATOR_ADDRESS'],
        'num_processes': int(environment['JAX_NUM_PROCESSES']),
        'process_id': int(environment['JAX_PROCESS_ID']),
      }
    except (KeyError, ValueError) as error:
      raise _incomplete(error) from error
  elif not is_wanted():
    return
  patience = _seconds('DRAEM_START_TIMEOUT', 300)
  silence = _seconds('DRAEM_FAULT_TIMEOUT', 30)
  watch = _Watch(
    f'the processes of the run did not find each other within {patience} s'
    f'{_at(where)}: see that the first one runs and that the others reach it,'
    ' or let them wait longer with DRAEM_START_TIMEOUT'
  )
  if where.get('process_id') == 0:
    _check_port(where)
  try:
    jax.distributed.initialize(
      **where,
      initialization_timeout=patience,
      heartbeat_timeout_seconds=silence,
      shutdown_timeout_seconds=silence,
    )
  except ValueError as error:
    raise _incomplete(error) from error
  except RuntimeError as error:
    raise _deaf(where, error) from error
  watch.started()


def _check_port(where: Mapping[str, Any]) -> None:
  """Raises a `UserError` where the first process cannot listen.

  JAX may end without a word there, by a segmentation fault.
  """
  port = where['coordinator_address'].rpartition(':')[2]
  if not port.isdecimal():
    return  # JAX says what is wrong with the address.
  family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
  try:
    with socket.socket(family) as tried:
      # Connections of an earlier run that are closing do no harm.
      tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      tried.bind(('', int(port)))
      tried.listen()
  except (OSError, OverflowError) as error:
    # Where IPv6 is switched off JAX listens by IPv4.
    absent = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    if getattr(error, 'errno', None) not in absent:
      raise _deaf(where, error) from error


def _deaf(where: Mapping[str, Any], error: Exception) -> UserError:
  words = ' '.join(str(error).split())
  return UserError(
    f'the first process of the run cannot listen{_at(where)} ({words:.200}):'
    ' take another port in JAX_COORDINATOR_ADDRESS'
  )


def is_wanted() -> bool:
  """Whether the environment says that this is one process of several."""
  environment = os.environ
  return (
    'JAX_NUM_PROCESSES' in environment
    or int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1
    or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
  )


def compare(facts: Mapping[str, Any]) -> None:
  """Sees to it that all processes have the same; every process must call it.

  Args:
    facts: values that JSON knows, by the name that an error gives them.

  Raises:
    UserError: in every process, if one has a value that the first has not; the
      message names it.
  """
  if jax.process_count() == 1:
    return
  # As all of them see it, whatever they were before.
  mine = json.loads(json.dumps(dict(facts), default=str))
  everyone = _gather({'host': socket.gethostname(), 'facts': mine})
  first = everyone[0]
  for number, each in enumerate(everyone):
    names = sorted(first['facts'].keys() | each['facts'].keys())
    other = [
      f'{name} {each["facts"].get(name, "-")} (there'
      f' {first["facts"].get(name, "-")})'
      for name in names
      if each['facts'].get(name) != first['facts'].get(name)
    ]
    if other:
      raise UserError(
        f'process {number} on {each["host"]} differs from the first, on'
        f' {first["host"]}: {", ".join(other)}: make them the same on all hosts'
      )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Makes what fails in one process fail in all; every process must enter.

  Raises:
    UserError: where another process failed, with what that one says; a
      `PassingError` if it was one there.
  """
  if jax.process_count() == 1:
    yield
    return
  failure = None
  try:
    yield
  except Exception as error:
    failure = error
  words = '' if failure is None else str(failure) or type(failure).__name__
  passes = isinstance(failure, PassingError)
  everyone = _gather(
    {'host': socket.gethostname(), 'failure': words, 'passes': passes}
  )
  if failure is not None:
    raise failure
  for number, each in enumerate(everyone):
    if each['failure']:
      kind = PassingError if each['passes'] else UserError
      raise kind(f'process {number} on {each["host"]}: {each["failure"]}')


def versions() -> dict[str, str]:
  """The versions of what a run is made by, this package's by its source."""
  found = {'Python': platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  checksum = 0
  root = pathlib.Path(__file__).parent
  for path in sorted(root.rglob('*.py')):
    checksum = zlib.crc32(path.relative_to(root).as_posix().encode(), checksum)
    checksum = zlib.crc32(path.read_bytes(), checksum)
  return found | {'draem_jax': f'source {checksum:08x}'}


def end_if_gone(error: Exception) -> None:
  """Ends the process if an error says that another process is gone."""
  if not _is_running() or not isinstance(
    error, (ValueError, RuntimeError, OSError)
  ):
    return
  words = ' '.join(str(error).split())
  if _COLLECTIVES.search(words):
    _end(f'another process of the run is gone ({words:.200}): {_AGAIN}')


def _is_running() -> bool:
  try:
    return jax.distributed.is_initialized() and jax.process_count() > 1
  except RuntimeError:
    return False


def _gather(value: Any) -> list[Any]:
  """What each process calls this with, by its number."""
  mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(mine)))
  padded = np.zeros(int(np.max(sizes)), np.uint8)
  padded[: len(mine)] = mine
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(np.asarray(rows), np.asarray(sizes), strict=True)
  ]


def _incomplete(error: Exception) -> UserError:
  return UserError(
    f'{error}: set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and'
    ' JAX_PROCESS_ID together, or none of them'
  )


def _seconds(name: str, default: int) -> int:
  text = os.environ.get(name, str(default))
  if not text.isdecimal() or not 0 < int(text) < 1_000_000:
    raise UserError(f'{name}={text}: take a whole number of seconds, above 0')
  return int(text)


def _at(where: Mapping[str, Any]) -> str:
  address = where.get('coordinator_address')
  return f' at {address}' if address else ''


class _Watch:
  """Makes a line of the abort by which JAX ends a process of a run.

  JAX's service has no other way to tell: it logs a stack to file descriptor 2
  and aborts. So from here on what is not Python writes to a file that nobody
  sees, unless the abort was for another reason.
  """

  def __init__(self, start_failure: str):
    """Begins to watch.

    Args:
      start_failure: the line to end with until `started`.
    """
    self._start_failure = start_failure
    self._native: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    self._stderr = os.dup(2)
    stream = open(  # noqa: SIM115
      self._stderr, 'w', buffering=1, errors='backslashreplace'
    )
    old, sys.stderr = sys.stderr, stream
    for handler in logging.getLogger('draem_jax').handlers:
      if getattr(handler, 'stream', None) is old:
        handler.setStream(stream)
    os.dup2(self._native.fileno(), 2)
    # Of C, since Python's own handlers never run once `abort` is called.
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    self._handler = kind(self._on_abort)
    self._libc = ctypes.CDLL(None)
    self._libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    self._libc.signal.restype = ctypes.c_void_p
    self._libc.signal(
      signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p)
    )
    # It has to outlive everything that may abort.
    _watches.append(self)

  def started(self) -> None:
    """Notes that all processes have found each other."""
    self._start_failure = ''

  def _on_abort(self, number: int) -> None:
    size = os.fstat(self._native.fileno()).st_size
    native = os.pread(self._native.fileno(), size, 0)
    text = native.decode('utf-8', 'replace')
    if _SERVICE in text:
      _end(self._start_failure or f'{_who(text)}: {_AGAIN}')
    os.write(self._stderr, native)
    self._libc.signal(number, None)  # The default: `abort` goes on.


_watches: list[_Watch] = []


def _who(text: str) -> str:
  """Which process is gone, by what JAX's service logged."""
  found = re.search(r'stopped sending heartbeats\):\s*((?:\d+\s*,?\s*)+)', text)
  if found:
    return f'process {", ".join(found[1].split())} of the run no longer answers'
  if 'Socket closed' in text or 'Connection refused' in text:
    return 'the first process of the run is gone'
  return 'another process of the run is gone, or the network between them'


def _end(line: str) -> NoReturn:
  """Ends at once: nothing of JAX's shutdown works without the others."""
  terminal.complain(f'error: {line}')
  sys.stdout.flush()
  os._exit(PassingError.status)
