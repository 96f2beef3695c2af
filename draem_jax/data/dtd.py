"""The Describable Textures Dataset by TFDS, downloaded without TensorFlow."""

import os
import pathlib
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import dtd as tfds_dtd

from draem_jax.data.prepare import prepare
from draem_jax.errors import UserError

URL = 'https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz'
_LISTS = {'train': 'train1', 'validation': 'val1', 'test': 'test1'}


class Dtd(tfds_dtd.Dtd, skip_registration=True):
  """TFDS's builder, but for what it leaves to TensorFlow: reading files."""

  # As TFDS has them; looking them up needs a package it does not install.
  url_infos = {
    URL: tfds.core.download.checksums.UrlInfo(
      size=625239812,
      checksum=(
        'e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205'
      ),
      filename='dtd-r1.0.1.tar.gz',
    )
  }

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    manual_dir = pathlib.Path(self.data_dir_root) / 'downloads' / 'manual'
    try:
      if not (manual_dir / pathlib.PurePath(URL).name).exists():
        _check_connection()
      archive = dl_manager.download(URL)
    # No connection, a proxy that forbids, a file that is another one, ...
    except Exception as error:
      raise UserError(
        f'DTD cannot be downloaded ({error}): put {URL} into {manual_dir}, or'
        " set config.data.textures to a folder of images or to 'builtin'"
      ) from error
    return {
      split: self._generate_examples(archive, name)
      for split, name in _LISTS.items()
    }

  def _generate_examples(
    self, archive: os.PathLike[str], name: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    with tarfile.open(archive) as tar:
      read = lambda member: tar.extractfile(f'dtd/{member}').read()
      for file in read(f'labels/{name}.txt').decode().split():
        yield (
          file,
          {
            'file_name': file,
            'image': read(f'images/{file}'),
            'label': file.split('/')[0],
          },
        )


def _check_connection() -> None:
  """Raises OSError at once, where TFDS tries again for half an hour."""
  request = urllib.request.Request(URL, method='HEAD')
  with urllib.request.urlopen(request, timeout=20):
    pass


def open_source(tfds_dir: str | os.PathLike[str]) -> Sequence[dict[str, Any]]:
  """The 5,640 records of DTD, downloaded and prepared first if need be.

  Args:
    tfds_dir: where prepared data sets lie.

  Returns:
    Records with `image` (the bytes of a JPEG file) and `file_name` (bytes), in
    TFDS's order, which is the same everywhere.

  Raises:
    UserError: if it cannot be downloaded or written, or was prepared as
      TFRecord.
  """
  builder = prepare(Dtd, tfds_dir=tfds_dir)
  try:
    return builder.as_data_source(
      '+'.join(_LISTS), decoders={'image': tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as error:
    raise UserError(
      f'{builder.data_path} is not in array_record format: remove it, or set'
      ' config.data.tfds_dir'
    ) from error
