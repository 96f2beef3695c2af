"""Preparation of a TFDS data set: once, quietly, without TensorFlow."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator

import absl.logging
import tensorflow_datasets as tfds

from draem_jax.errors import UserError


def prepare(
  make_builder: Callable[..., tfds.core.DatasetBuilder],
  *,
  tfds_dir: str | os.PathLike[str],
  manual_dir: str | os.PathLike[str] | None = None,
) -> tfds.core.DatasetBuilder:
  """Makes a builder and prepares what it reads, unless that has been done.

  TFDS writes into a folder of another name and moves it when it is complete,
  so nothing half-written is ever taken for a data set.

  Args:
    make_builder: called with `data_dir`.
    tfds_dir: where prepared data sets lie.
    manual_dir: where the builder finds files that it does not download.

  Returns:
    A builder whose `as_data_source` can be called.

  Raises:
    UserError: if `tfds_dir` cannot be written, or from the builder itself.
  """
  with _quiet():
    builder = None
    try:
      builder = make_builder(data_dir=tfds_dir)
      if builder.data_path.exists():
        return builder
      builder.download_and_prepare(
        file_format='array_record',
        download_config=tfds.download.DownloadConfig(
          manual_dir=manual_dir, try_download_gcs=False
        ),
      )
    except (OSError, RuntimeError) as error:
      reason = _disk_failure(error)
      if reason is None:
        raise
      # Unless another process has prepared the same in the meantime.
      if builder is None or not builder.data_path.exists():
        raise UserError(
          f'{tfds_dir} cannot be written ({reason}): make room or allow'
          ' writing there, or set config.data.tfds_dir'
        ) from error
    # The builder that lost that race has not read what the other one wrote.
    return make_builder(data_dir=tfds_dir)


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
