"""A workdir in a bucket, which is a local folder while a process works on it.

`gs://…` and `s3://…` are fetched into a scratch folder, where all goes on as in
any workdir, and a thread sends what has changed: a checkpoint as soon as it is
there, the rest every half minute, and all of it in the end. So what trains,
evaluates and reports knows no buckets, and a local workdir nothing of this; no
file is appended to, renamed or locked where that cannot be; training does not
wait for the network; and where the bucket fails, nothing is lost.

A checkpoint counts in the bucket when its `_CHECKPOINT_METADATA` is there,
which is sent last and deleted first, so that whoever is killed in between
leaves it as if it had never been. A table of `predict` is sent behind the
pictures of its rows. Who writes holds a lease (see `lease`).
"""

import concurrent.futures
import contextlib
import functools
import logging
import os
import pathlib
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from draem_jax import cluster, devices, names, terminal
from draem_jax.errors import UserError
from draem_jax.workdir import bucket as bucket_lib
from draem_jax.workdir import lease as lease_lib
from draem_jax.workdir import lock, storage
from draem_jax.workdir.bucket import Bucket

_log = logging.getLogger(__name__)

_SCRATCH, _KEPT = 'draem_jax-mirror-', 'draem_jax-kept-'
# Seconds: how often a new checkpoint is looked for, and all is sent.
_LOOK, _SEND = 1.0, 30.0
# Objects at once. Each takes its size of memory.
_AT_ONCE = 8
# What a run makes anew where it starts: it is not sent.
_LOCAL = ('data', 'tfds')

_STEP = re.compile(r'checkpoints/\d+/')
_MARKER = '_CHECKPOINT_METADATA'
# What is told of a file to know whether it has changed.
_Mark = tuple[int, int, int]
# How often a workdir is read anew whose writer deletes what is being read.
_ATTEMPTS = 5

Path = str | os.PathLike[str]


@contextlib.contextmanager
def written(
  path: Path,
  *,
  wanted: Callable[[str], bool] = lambda name: True,
  alone: bool = True,
  together: bool = False,
) -> Iterator[pathlib.Path]:
  """A folder to work in, whose files are in `path` when the block ends.

  Args:
    path: a folder, which is given back as it is, or a URL.
    wanted: whether an object of this name is needed in the folder; those that
      are not stay as they are in the bucket.
    alone: whether other processes are kept from writing there.
    together: whether all processes of a cluster do this at once. Then each has
      a folder of its own, and the main one's is what is sent.

  Raises:
    UserError: if the bucket cannot be read or written, or if another process
      writes there; a `PassingError` if it cannot be reached. Where a message
      names the folder, it names the URL.
  """
  if not bucket_lib.is_url(path):
    yield pathlib.Path(path)
    return
  agreed = cluster.together if together else contextlib.nullcontext
  sends = not together or devices.is_main_process()
  with contextlib.ExitStack() as stack:
    if together:
      stack.push(_leave_together)
    with agreed():
      bucket = Bucket(path)
      folder = stack.enter_context(_scratch(bucket))
      lease = lease_lib.Lease(bucket) if alone and sends else None
      if lease:
        stack.callback(lease.release)
    # By now nobody else writes there.
    with agreed():
      mirror = _Mirror(bucket, folder, lease)
      mirror.fetch(wanted)
      if sends:
        stack.enter_context(mirror.sending())
    yield folder


def _leave_together(kind: type | None, error: Any, trace: Any) -> None:
  """Waits until all is sent: whoever leaves early takes the others along."""
  del kind, trace
  if error is None or getattr(error, 'is_everywhere', False):
    devices.wait_for_processes('all is sent')


@contextlib.contextmanager
def read(path: Path) -> Iterator[pathlib.Path]:
  """A folder with what a detector is made of, of the run in `path`.

  Args:
    path: a folder, which is given back as it is, or a URL. Of that no more is
      fetched than the newest checkpoint, and of it not what only a training
      needs.
  """
  if not bucket_lib.is_url(path):
    yield pathlib.Path(path)
    return
  bucket = Bucket(path)
  with _scratch(bucket) as folder:
    mirror = _Mirror(bucket, folder, None)
    for _ in range(_ATTEMPTS):
      there = bucket.list()
      step = max(_complete_steps(there), default='', key=_number)
      mirror.fetch(_of_detector(step), there)
      if step in ('', *_complete_steps(bucket.list())):
        break
      # Its writer has deleted it meanwhile, and has a newer one.
      shutil.rmtree(folder / step, ignore_errors=True)
    yield folder


def _of_detector(step: str) -> Callable[[str], bool]:
  """Whether a detector with the networks of this checkpoint needs an object."""

  def is_needed(name: str) -> bool:
    if not _step(name):
      return '/' not in name and name.endswith('.json')
    return _step(name) == step and not name.startswith(f'{step}state/')

  return is_needed


class _Mirror:
  """A folder and the objects that have its files."""

  def __init__(
    self, bucket: Bucket, folder: pathlib.Path, lease: lease_lib.Lease | None
  ):
    self._bucket, self._folder, self._lease = bucket, folder, lease
    # The files as they were sent or fetched; None for what is to be deleted.
    self._sent: dict[str, _Mark | None] = {}
    self._stop = threading.Event()

  def fetch(
    self, wanted: Callable[[str], bool], there: list[str] | None = None
  ) -> None:
    """Fetches objects, but for checkpoints that are not complete."""
    there = self._bucket.list() if there is None else there
    complete = _complete_steps(there)
    chosen = []
    for name in there:
      step = _step(name)
      if name == lock.FILE or not wanted(name) or _is_passed_over(name):
        continue
      if step and step not in complete:
        self._sent[name] = None
      else:
        chosen.append(name)
    if chosen:
      _log.info('fetching %d files of %s', len(chosen), self._bucket.url)
    self._at_once(self._fetch_one, chosen)

  def _fetch_one(self, name: str) -> None:
    content, generation = self._bucket.read(name)
    if generation != bucket_lib.ABSENT:
      path = self._folder / name
      storage.write_bytes(path, content)
      self._sent[name] = _mark(path)

  @contextlib.contextmanager
  def sending(self) -> Iterator[None]:
    """Sends what changes while the block runs, and the rest when it ends."""
    # What a process that was killed left of a checkpoint goes at once.
    self.send()
    thread = threading.Thread(target=self._keep_sending, daemon=True)
    thread.start()
    try:
      yield
    except BaseException:
      self._stop_sending(thread)
      try:
        self.send()
      except UserError as error:
        # The block's own error says why it ended.
        _log.error('%s', self._keep(error))
      raise
    self._stop_sending(thread)
    try:
      self.send()
    except UserError as error:
      raise type(error)(self._keep(error)) from error

  def _stop_sending(self, thread: threading.Thread) -> None:
    self._stop.set()
    thread.join()

  def _keep_sending(self) -> None:
    last, told = time.monotonic(), False
    while not self._stop.wait(_LOOK):
      if time.monotonic() - last < _SEND and not self._has_new_step():
        continue
      try:
        self.send()
        if told:
          _log.info('%s: all is sent again', self._bucket.url)
        told = False
      except UserError as error:
        if not told:
          _log.warning('%s; what is not sent is sent later', error)
        told = True
      last = time.monotonic()

  def _has_new_step(self) -> bool:
    return any(
      path.relative_to(self._folder).as_posix() not in self._sent
      for path in self._folder.glob(f'checkpoints/*/{_MARKER}')
      if path.parent.name.isdecimal()
    )

  def send(self) -> None:
    """Makes the objects what the files are, in an order that may be cut short.

    Raises:
      UserError: if that cannot be; what was not sent is the next time.
    """
    now, sent = self._scan(), self._sent
    send = functools.partial(self._send_one, now)
    # A checkpoint one file of which is gone is being deleted, unless another
    # came in its place.
    leaving = {_step(name) for name in sent if name not in now} - {''}
    leaving = {
      step
      for step in leaving
      if now.get(step + _MARKER) in (None, sent.get(step + _MARKER))
    }
    now = {
      name: mark for name, mark in now.items() if _step(name) not in leaving
    }
    changed = {name for name in now if sent.get(name) != now[name]}
    unnamable = {name for name in changed if names.shown(name) != name}
    changed -= unnamable
    markers = set(filter(_is_marker, changed))
    tables = {name for name in changed if name.endswith('.csv')}
    self._at_once(self._delete_one, markers & sent.keys())
    self._at_once(send, changed - markers - tables)
    self._at_once(send, tables)
    # Unless one lost a file meanwhile.
    self._at_once(send, filter(self._has_all_sent, markers))
    gone = sent.keys() - now.keys()
    self._at_once(self._delete_one, filter(_is_marker, gone))
    self._at_once(self._delete_one, gone & sent.keys())
    if unnamable:
      raise UserError(
        f'{self._bucket.url}: no object can be called'
        f' {names.shown(min(unnamable))}: rename what it is made of'
      )

  def _has_all_sent(self, marker: str) -> bool:
    """Whether all other files of a checkpoint are there, and are objects."""
    folder = self._folder / _step(marker)
    return all(
      path.relative_to(self._folder).as_posix() in self._sent
      for path in folder.rglob('*')
      if path.is_file() and path != self._folder / marker
    )

  def _scan(self) -> dict[str, _Mark]:
    """The files that are to be objects, and what tells of their content."""
    found = {}
    for place, folders, files in os.walk(self._folder):
      where = pathlib.Path(place).relative_to(self._folder)
      folders[:] = [
        name
        for name in folders
        if not _is_passed_over(f'{(where / name).as_posix()}/')
      ]
      for file in files:
        name = (where / file).as_posix()
        if name == lock.FILE or _is_passed_over(name):
          continue
        with contextlib.suppress(FileNotFoundError):
          if mark := _mark(self._folder / name):
            found[name] = mark
    return found

  def _send_one(self, now: dict[str, _Mark], name: str) -> None:
    try:
      content = (self._folder / name).read_bytes()
    except FileNotFoundError:
      return
    if name.endswith('.csv'):
      # Rows that came since the pictures were looked for are sent with theirs.
      content = content[: now[name][0]]
    if self._lease:
      self._lease.check()
    self._bucket.write(name, content)
    self._sent[name] = now[name]

  def _delete_one(self, name: str) -> None:
    if self._lease:
      self._lease.check()
    self._bucket.delete(name)
    del self._sent[name]

  def _at_once(self, do: Callable[[str], None], todo: Iterable[str]) -> None:
    """Does something to several files; the first error ends it."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      running = [pool.submit(do, name) for name in sorted(todo)]
      try:
        for each in running:
          each.result()
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise

  def _keep(self, error: UserError) -> str:
    """Keeps the folder of what could not be sent, and says where."""
    kept = tempfile.mkdtemp(prefix=_KEPT)
    target = shutil.move(self._folder, kept)
    return f'{error}; what was not sent is kept in {target}'


@contextlib.contextmanager
def _scratch(bucket: Bucket) -> Iterator[pathlib.Path]:
  """An empty folder, by the name of the bucket's in all that is said of it."""
  _sweep()
  place = pathlib.Path(tempfile.mkdtemp(prefix=_SCRATCH))
  try:
    with lock.hold(place), terminal.shown_as(place / 'run', bucket.url):
      (place / 'run').mkdir()
      try:
        yield place / 'run'
      except UserError as error:
        said = terminal.renamed(str(error))
        if said == str(error):
          raise
        raise type(error)(said) from error
      except OSError as error:
        if error.filename:
          error.filename = terminal.renamed(os.fsdecode(error.filename))
        raise
  finally:
    shutil.rmtree(place, ignore_errors=True)


def _sweep() -> None:
  """Deletes the folders of processes that were killed."""
  for place in pathlib.Path(tempfile.gettempdir()).glob(f'{_SCRATCH}*'):
    # Of other users, perhaps.
    with contextlib.suppress(OSError):
      is_new = time.time() - place.stat().st_mtime < 60
      if not is_new and not lock.is_held(place):
        shutil.rmtree(place)


def _mark(path: pathlib.Path) -> _Mark | None:
  """What differs when a file has changed; None if it is no file."""
  found = path.stat()
  if not stat.S_ISREG(found.st_mode):
    return None
  return found.st_size, found.st_mtime_ns, found.st_ino


def _step(name: str) -> str:
  """The folder of the checkpoint that an object is a part of, or ''."""
  found = _STEP.match(name)
  return found[0] if found else ''


def _number(step: str) -> int:
  return int(step.split('/')[1])


def _is_marker(name: str) -> bool:
  return name == f'{_step(name)}{_MARKER}' and bool(_step(name))


def _complete_steps(there: Iterable[str]) -> set[str]:
  return {_step(name) for name in there if _is_marker(name)}


def _is_passed_over(name: str) -> bool:
  """Whether a file is of one place, or being written."""
  parts = name.split('/')
  return (len(parts) > 1 and parts[0] in _LOCAL) or any(
    storage.is_partial(part) or '.orbax-checkpoint-tmp' in part
    for part in parts
  )
