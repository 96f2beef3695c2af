"""The TFDS builder: a category at its original sizes, prepared once."""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from draem_jax import names, paper
from draem_jax.data import (
  encoded,
  files,
  images,
  layouts,
  png,
  regions,
  truth,
)
from draem_jax.data.layouts.contents import Contents, Member, Saturation
from draem_jax.data.prepare import prepare

_log = logging.getLogger(__name__)

# Letters of a category's name in that of its prepared data.
_NAME = 40
# Encoded images held in memory while a category is prepared: at most so many,
# and but for one no more than so many bytes.
_CHUNK, _CHUNK_BYTES = 64, 2**26


@dataclasses.dataclass
class CategoryConfig(tfds.core.BuilderConfig):
  """One category.

  Attributes:
    category: the name of its folder in `manual_dir`.
    layout: how its files lie, a name in `layouts.LAYOUTS`.
    contents: what the layout finds; None to look when it is prepared.
  """

  category: str = ''
  layout: str = 'mvtec'
  contents: Contents | None = None


class CategoryBuilder(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of a category, at the images' original sizes.

  The folder of categories is the `manual_dir` of the download config. For a
  category that is not one of MVTec AD, make a `CategoryConfig`.
  """

  name = 'category'
  # To be raised with every change of the features and of what masks mean: what
  # an older version has prepared stays as it is, and the category is prepared
  # anew beside it.
  VERSION = tfds.core.Version('4.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'manual_dir must be a folder of categories'
  BUILDER_CONFIGS = [
    CategoryConfig(name=name, category=name) for name in paper.CATEGORIES
  ]
  # Nothing is downloaded; looking for checksums needs a package that TFDS
  # does not install.
  url_infos = {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Images and masks of one category.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'mask': tfds.features.Image(shape=(None, None, 1)),
          'has_mask': np.bool_,
          'mask_meaning': tfds.features.Text(),
          'bits_in_use': np.uint8,
          # Of defects that count one by one: packed masks, and for each the
          # share of its pixels that is enough.
          'regions': tfds.features.Text(),
          'saturations': tfds.features.Text(),
          'file': tfds.features.Text(),
          'defect': tfds.features.Text(),
          'is_anomalous': np.bool_,
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    config = self.builder_config
    folder = pathlib.Path(dl_manager.manual_dir) / config.category
    contents = config.contents or layouts.get(config.layout).read(folder)
    root = contents.root or folder
    encode = functools.partial(_encode, root, saturations=contents.saturations)
    # TFDS refuses to write an empty split.
    return {
      split: self._generate_examples(encode, root, members)
      for split, members in contents.splits().items()
      if members
    }

  def _generate_examples(
    self,
    encode: Callable[[Member], dict],
    root: pathlib.Path,
    members: list[Member],
  ) -> Iterator[tuple[int, dict]]:
    # Keys are numbers, as the order of the files is to be kept.
    start = 0
    for chunk in _chunks(root, members):
      yield from enumerate(images.map_parallel(encode, chunk), start)
      start += len(chunk)


def _chunks(
  root: pathlib.Path, members: list[Member]
) -> Iterator[list[Member]]:
  """Images that are encoded before the first of them is written."""
  chunk, total = [], 0
  for member in members:
    size = (root / member.file).stat().st_size
    if chunk and (len(chunk) == _CHUNK or total + size > _CHUNK_BYTES):
      yield chunk
      chunk, total = [], 0
    chunk.append(member)
    total += size
  yield chunk


def _encode(
  root: pathlib.Path,
  member: Member,
  *,
  saturations: Mapping[int, Saturation] | None,
) -> dict:
  """Bytes of an image and its mask, which TFDS cannot make without TF."""
  path = root / member.file
  stored = images.to_stored(encoded.read_bytes(path), str(path))
  found = truth.read(root, member, stored.size, saturations)
  return {
    'image': stored.data,
    'mask': png.encode(found.coverage),
    # What is good has nothing to be covered.
    'has_mask': member.mask is not None or not member.is_anomalous,
    # Empty where there is none.
    'mask_meaning': found.meaning,
    # Of 16; 0 where there were no 16.
    'bits_in_use': stored.bits_in_use or 0,
    'regions': regions.pack([where for where, _ in found.defects]),
    'saturations': ' '.join(repr(share) for _, share in found.defects),
    'file': names.to_bytes(member.file),
    'defect': names.to_bytes(member.defect),
    'is_anomalous': member.is_anomalous,
  }


def prepare_category(
  folder: pathlib.Path, *, layout: str, tfds_dir: str | os.PathLike[str]
) -> CategoryBuilder:
  """The builder of exactly the files that are there now, prepared.

  Args:
    folder: the category's.
    layout: how its files lie, a name in `layouts.LAYOUTS`.
    tfds_dir: where prepared data sets lie.

  Raises:
    UserError: if the category does not have the layout or one of its files is
      broken, or if `tfds_dir` cannot be written.
  """
  contents = layouts.get(layout).read(folder)
  if contents.left_out:
    _log.info(
      'left out %d defective images among those to train on in %s',
      contents.left_out,
      folder,
    )
  for note in contents.notes:
    _log.info('%s', note)
  fingerprint = _fingerprint(folder, layout, contents)
  name = re.sub(r'[^\w.-]+', '_', folder.name)[:_NAME]
  config = CategoryConfig(
    name=f'{name}-{fingerprint}',
    category=folder.name,
    layout=layout,
    contents=contents,
  )
  return prepare(
    functools.partial(CategoryBuilder, config=config),
    tfds_dir=tfds_dir,
    manual_dir=folder.parent,
  )


def _fingerprint(folder: pathlib.Path, layout: str, contents: Contents) -> str:
  """Twelve digits of all that is prepared: they change when any of it does.

  That is any file that is added, gone or changed, and what the layout says of
  it, which it may have from elsewhere. To read the files would take as long as
  to prepare them, so that their stamps speak for them.
  """
  where = names.to_bytes(str(folder.resolve()))
  digest = hashlib.sha256(layout.encode() + b'\0' + where + b'\n')
  root = contents.root or folder
  digest.update(f'{contents.saturations}\n'.encode())
  for split in contents.splits().values():
    digest.update(f'{len(split)}\n'.encode())
    for member in split:
      digest.update(f'{dataclasses.astuple(member)}\n'.encode())
      for name in (member.file, *member.masks):
        try:
          stamp = files.stamp(root / name)
        except OSError as error:
          raise encoded.unreadable(root / name, error) from error
        digest.update(f'{stamp}\n'.encode())
  return digest.hexdigest()[:12]
