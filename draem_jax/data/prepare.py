"""Preparation of a TFDS data set: once, quietly, without TensorFlow."""

import contextlib
import errno
import io
import logging
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures

import absl.logging
import tensorflow_datasets as tfds

from draem_jax.errors import UserError
from draem_jax.workdir import lock, storage

_log = logging.getLogger(__name__)

_CHECKSUMS = 'checksums.json'


def prepare(
  make_builder: Callable[..., tfds.core.DatasetBuilder],
  *,
  tfds_dir: str | os.PathLike[str],
  manual_dir: str | os.PathLike[str] | None = None,
) -> tfds.core.DatasetBuilder:
  """Makes a builder and prepares what it reads, unless that has been done.

  TFDS writes into a folder of another name and moves it when it is complete,
  so nothing half-written is ever taken for a data set. What is damaged
  afterwards is prepared anew: beside the files lie their checksums, but for
  those of earlier versions.

  Args:
    make_builder: called with `data_dir`.
    tfds_dir: where prepared data sets lie.
    manual_dir: where the builder finds files that it does not download.

  Returns:
    A builder whose `as_data_source` can be called.

  Raises:
    UserError: if `tfds_dir` cannot be read or written, or from the builder
      itself.
  """
  tfds_dir = os.path.expanduser(tfds_dir)
  folder = None
  with _quiet():
    try:
      # One that reads nothing tells where the other does.
      probe = make_builder(data_dir=os.path.join(tfds_dir, '.nothing'))
      folder = pathlib.Path(tfds_dir) / os.path.relpath(
        probe.data_path, probe.data_dir_root
      )
      builder = _open(make_builder, tfds_dir, folder)
      if builder is not None:
        return builder
      folder.parent.mkdir(parents=True, exist_ok=True)
      with lock.wait(folder.parent / lock.FILE):
        # Another process may have prepared it in the meantime.
        builder = _open(make_builder, tfds_dir, folder)
        if builder is not None:
          return builder
        _clear(folder)
        make_builder(data_dir=tfds_dir).download_and_prepare(
          file_format='array_record',
          download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False
          ),
        )
        storage.write_json(folder / _CHECKSUMS, _checksums(folder))
    except (OSError, RuntimeError) as error:
      reason = _disk_failure(error)
      if reason is None:
        raise
      # Where nothing can be locked, another process may have been quicker.
      builder = folder and _open(make_builder, tfds_dir, folder)
      if builder:
        return builder
      raise UserError(
        f'{tfds_dir} cannot be written ({reason}): make room or allow'
        ' writing there, or set config.data.tfds_dir'
      ) from error
    return make_builder(data_dir=tfds_dir)


@contextlib.contextmanager
def naming_damage(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  """Names the folder where records of an earlier version cannot be read.

  Others have checksums, and what goes wrong there is not theirs.
  """
  try:
    yield
  except Exception as error:
    folder = pathlib.Path(builder.data_path)
    ours = isinstance(error, OSError | MemoryError | UserError)
    ours = ours and not isinstance(error, FileNotFoundError)
    if ours or (folder / _CHECKSUMS).exists():
      raise
    raise UserError(
      f'{folder} is damaged ({_one_line(error)}): delete it, and it is prepared'
      ' anew'
    ) from error


def _open(
  make_builder: Callable[..., tfds.core.DatasetBuilder],
  tfds_dir: str,
  folder: pathlib.Path,
) -> tfds.core.DatasetBuilder | None:
  """The builder of what is prepared; None if it is not, or is damaged."""
  if not folder.exists():
    return None
  try:
    _check(folder)
    builder = make_builder(data_dir=tfds_dir)
    if builder.info.splits:
      return builder
    # TFDS is silent where there is no description.
    _log.warning('%s is damaged: it describes no records', folder)
  except OSError:
    raise
  # A damaged description makes TFDS raise whatever comes.
  except Exception as error:
    _log.warning('%s is damaged: %s', folder, _one_line(error))
  return None


def _check(folder: pathlib.Path) -> None:
  """Raises a `ValueError` if files are not as they were prepared."""
  path = folder / _CHECKSUMS
  try:
    expected = storage.read_json(path, remedy='delete it')
  except FileNotFoundError:  # Of an earlier version.
    return
  found = _checksums(folder)
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise ValueError(f'{name} is not as it was written')


def _checksums(folder: pathlib.Path) -> dict[str, int]:
  """The CRC-32 of each file by name."""

  def checksum(path: pathlib.Path) -> int:
    if not path.is_file():
      raise ValueError(f'{path.name} is not a file')
    value = 0
    with path.open('rb') as file:
      while chunk := file.read(1 << 20):
        value = zlib.crc32(chunk, value)
    return value

  paths = sorted(p for p in folder.iterdir() if p.name != _CHECKSUMS)
  with futures.ThreadPoolExecutor() as pool:
    sums = pool.map(checksum, paths)
    return dict(zip((path.name for path in paths), sums, strict=True))


def _clear(folder: pathlib.Path) -> None:
  """Deletes what is damaged, and what preparations that were killed left."""
  if folder.exists():
    _log.info('%s is prepared anew', folder)
    shutil.rmtree(folder)
  for left in folder.parent.glob(f'incomplete.*_{folder.name}'):
    shutil.rmtree(left, ignore_errors=True)


def _one_line(error: Exception) -> str:
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _disk_failure(error: OSError | RuntimeError) -> str | None:
  """What is wrong with the disk; None if it is something else."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # The record writer raises a RuntimeError that quotes the system's words.
  known = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))
  return next((words for words in known if words in str(error)), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS from announcing downloads, warning, and bars in log files."""
  tfds.display_progress_bar(sys.stderr.isatty())
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl.logging.set_verbosity(verbosity)
