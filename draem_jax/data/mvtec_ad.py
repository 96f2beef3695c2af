"""A category in the layout of MVTec AD: prepared once by TFDS, then loaded."""

import dataclasses
import functools
import hashlib
import logging
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8

from draem_jax.data import images
from draem_jax.data.images import resize_bilinear
from draem_jax.data.layout import (
  GOOD,
  LAYOUT,
  Layout,
  Member,
  PathLike,
  find_category,
  list_categories,
  read_layout,
)
from draem_jax.data.prepare import prepare
from draem_jax.errors import UserError

CATEGORIES = (
  'bottle',
  'cable',
  'capsule',
  'carpet',
  'grid',
  'hazelnut',
  'leather',
  'metal_nut',
  'pill',
  'screw',
  'tile',
  'toothbrush',
  'transistor',
  'wood',
  'zipper',
)

_log = logging.getLogger(__name__)

# Encoded images held in memory while a category is prepared.
_CHUNK = 64

__all__ = [
  'CATEGORIES',
  'Category',
  'MvtecAd',
  'MvtecAdConfig',
  'list_categories',
  'load_category',
  'resize_bilinear',
]


@dataclasses.dataclass
class Category:
  """The images of one category, resized.

  Attributes:
    name: of the category.
    train_images: good images to train on, RGB.
    train_files: their paths in the category's folder, such as
      `'train/good/000.png'`, in the order of the images.
    test_images: good and defective images, RGB; none without a test folder.
    test_masks: the share of each pixel that a defect covers, in [0, 1], zero
      for good images; None if the category has no ground truth.
    test_files: paths of the test images.
    test_defects: their folders' names, `'good'` for the good ones.
  """

  name: str
  train_images: UInt8[np.ndarray, 'n h w 3']
  train_files: list[str]
  test_images: UInt8[np.ndarray, 'm h w 3']
  test_masks: Float[np.ndarray, 'm h w'] | None
  test_files: list[str]
  test_defects: list[str]


def load_category(
  data_dir: PathLike, category: str, *, image_size: int, tfds_dir: PathLike
) -> Category:
  """Loads a category; prepares it first if it is new or its files changed.

  Args:
    data_dir: a folder of categories.
    category: name of one of them, of the 15 or the user's own.
    image_size: height and width of the resized images, in pixels.
    tfds_dir: where prepared data sets lie. A category whose files change is
      prepared anew beside the old state, which may be deleted.

  Returns:
    The images, sorted by path.

  Raises:
    UserError: if the category is missing, does not have the layout, or one of
      its files is broken, or if `tfds_dir` cannot be written.
  """
  folder = find_category(pathlib.Path(data_dir), category)
  builder = _prepare(folder, pathlib.Path(tfds_dir))
  train = _load_split(builder, 'train', image_size)
  test = _load_split(builder, 'test', image_size)
  return Category(
    name=category,
    train_images=train.images,
    train_files=train.files,
    test_images=test.images,
    test_masks=test.masks,
    test_files=test.files,
    test_defects=test.defects,
  )


# Preparation.


@dataclasses.dataclass
class MvtecAdConfig(tfds.core.BuilderConfig):
  """One category.

  Attributes:
    category: name of its folder in `manual_dir`.
  """

  category: str = ''


class MvtecAd(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of a category, at the images' original sizes.

  The folder of categories is the `manual_dir` of the download config. For a
  category that is not one of the 15, make an `MvtecAdConfig`.
  """

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'manual_dir must be a folder of categories: ' + LAYOUT
  )
  BUILDER_CONFIGS = [
    MvtecAdConfig(name=name, category=name) for name in CATEGORIES
  ]
  # Nothing is downloaded; looking for checksums needs a package that TFDS
  # does not install.
  url_infos = {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Images and masks of one category in MVTec AD layout.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'mask': tfds.features.Image(shape=(None, None, 1)),
          'has_mask': np.bool_,
          'file': tfds.features.Text(),
          'defect': tfds.features.Text(),
        }
      ),
      homepage='https://www.mvtec.com/company/research/datasets/mvtec-ad',
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    folder = pathlib.Path(dl_manager.manual_dir) / self.builder_config.category
    layout = read_layout(folder)
    splits = {'train': layout.train, 'test': layout.test}
    # TFDS refuses to write an empty split.
    return {
      split: self._generate_examples(folder, members, layout.has_masks)
      for split, members in splits.items()
      if members
    }

  def _generate_examples(
    self, folder: pathlib.Path, members: list[Member], has_masks: bool
  ) -> Iterator[tuple[int, dict]]:
    encode = lambda member: _encode(folder, member, has_masks)
    # Keys are numbers, as the order of the files is to be kept.
    for start in range(0, len(members), _CHUNK):
      chunk = members[start : start + _CHUNK]
      yield from enumerate(images.map_parallel(encode, chunk), start)


def _encode(folder: pathlib.Path, member: Member, has_masks: bool) -> dict:
  """Bytes of an image and its mask, which TFDS cannot make without TF."""
  path = folder / member.file
  data, size = images.to_stored(images.read_bytes(path), str(path))
  mask = np.zeros(size, np.uint8)
  if member.mask:
    mask_path = folder / member.mask
    mask = images.decode_mask(images.read_bytes(mask_path), str(mask_path))
    if mask.shape != size:
      raise UserError(
        f'{mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels and its image'
        f' {path} {size[1]}x{size[0]}: give both the same size'
      )
  return {
    'image': data,
    'mask': images.encode_png(mask),
    'has_mask': has_masks or member.defect == GOOD,
    'file': member.file,
    'defect': member.defect,
  }


def _prepare(folder: pathlib.Path, tfds_dir: pathlib.Path) -> MvtecAd:
  """The builder of exactly the files that are in `folder` now, prepared."""
  fingerprint = _fingerprint(folder, read_layout(folder))
  name = re.sub(r'[^\w.-]+', '_', folder.name)
  config = MvtecAdConfig(name=f'{name}-{fingerprint}', category=folder.name)
  return prepare(
    functools.partial(MvtecAd, config=config),
    tfds_dir=tfds_dir,
    manual_dir=folder.parent,
  )


def _fingerprint(folder: pathlib.Path, layout: Layout) -> str:
  """Twelve digits that change with any file that is added, gone or changed."""
  digest = hashlib.sha256(str(folder.resolve()).encode())
  for member in layout.train + layout.test:
    for name in filter(None, (member.file, member.mask)):
      stat = (folder / name).stat()
      line = f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'
      digest.update(line.encode())
  return digest.hexdigest()[:12]


# Loading.


@dataclasses.dataclass
class _Split:
  images: UInt8[np.ndarray, 'n h w 3']
  masks: Float[np.ndarray, 'n h w'] | None
  files: list[str]
  defects: list[str]


def _load_split(builder: MvtecAd, split: str, size: int) -> _Split:
  """Decodes and resizes; both as the release, which works in uint8."""
  records = []
  if split in builder.info.splits:
    skip = tfds.decode.SkipDecoding()
    records = builder.as_data_source(
      split, decoders={'image': skip, 'mask': skip}
    )
  count = len(records)
  resized = np.empty((count, size, size, 3), np.uint8)
  masks = np.zeros((count, size, size), np.float32)

  def load(index: int) -> tuple[str, str, bool]:
    record = records[index]
    file, defect = record['file'].decode(), record['defect'].decode()
    image = images.decode_image(record['image'], file)
    resized[index] = resize_bilinear(image, (size, size))
    if defect != GOOD:
      mask = images.decode_mask(record['mask'], file)[..., None]
      masks[index] = resize_bilinear(mask, (size, size))[..., 0] / 255
    return file, defect, bool(record['has_mask'])

  loaded = images.map_parallel(
    load, range(count), description=f'loading {split} images'
  )
  return _Split(
    images=resized,
    masks=masks if all(has_mask for *_, has_mask in loaded) else None,
    files=[file for file, *_ in loaded],
    defects=[defect for _, defect, _ in loaded],
  )
