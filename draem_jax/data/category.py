"""A category in memory: its images and masks, resized."""

import dataclasses
import os

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, UInt8

from draem_jax import names
from draem_jax.data import builder as builder_lib
from draem_jax.data import images, layouts, resident
from draem_jax.data.prepare import naming_damage
from draem_jax.errors import UserError


@dataclasses.dataclass
class Category:
  """The images of one category, resized.

  Attributes:
    name: of the category.
    train_images: good images to train on, RGB.
    train_files: their paths in the category's folder, such as
      `'train/good/000.png'`, in the order of the images.
    test_images: good and anomalous images, RGB; there may be none.
    test_masks: the share of each pixel that a defect covers, in [0, 1], zero
      for good images; None if the ground truth of an anomalous one is missing.
    test_files: paths of the test images.
    test_defects: what kind each of them is, as a person reads it.
    labels: whether each of them is anomalous.
    coarse_masks: whether the masks only surround the defects, so that they are
      to be shown, but no pixel is to be compared with them.
  """

  name: str
  train_images: UInt8[np.ndarray, 'n h w 3']
  train_files: list[str]
  test_images: UInt8[np.ndarray, 'm h w 3']
  test_masks: Float[np.ndarray, 'm h w'] | None
  test_files: list[str]
  test_defects: list[str]
  labels: Bool[np.ndarray, 'm']
  coarse_masks: bool = False


def load_category(
  data_dir: str | os.PathLike[str],
  category: str,
  *,
  image_size: int,
  tfds_dir: str | os.PathLike[str],
  layout: str = 'mvtec',
) -> Category:
  """Loads a category; prepares it first if it is new or its files changed.

  Args:
    data_dir: a folder of categories.
    category: the name of one of them, the user's own included.
    image_size: height and width of the resized images, in pixels.
    tfds_dir: where prepared data sets lie. A category whose files change is
      prepared anew beside the old state, which may be deleted.
    layout: how the files lie, a name in `layouts.LAYOUTS`.

  Returns:
    The images, in the order of the layout.

  Raises:
    UserError: if the category is missing, does not have the layout, or one of
      its files is broken, or if `tfds_dir` cannot be written.
  """
  folder = layouts.find_category(data_dir, category, layout=layout)
  builder = builder_lib.prepare_category(
    folder, layout=layout, tfds_dir=tfds_dir
  )
  with naming_damage(builder):
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
    labels=test.labels,
    coarse_masks=builder.builder_config.coarse_masks,
  )


@dataclasses.dataclass
class _Split:
  images: UInt8[np.ndarray, 'n h w 3']
  masks: Float[np.ndarray, 'n h w'] | None
  files: list[str]
  defects: list[str]
  labels: Bool[np.ndarray, 'n']


def _load_split(
  builder: builder_lib.CategoryBuilder, split: str, size: int
) -> _Split:
  """Decodes and resizes; both as the release, which works in uint8."""
  records = []
  if split in builder.info.splits:
    skip = tfds.decode.SkipDecoding()
    records = builder.as_data_source(
      split, decoders={'image': skip, 'mask': skip}
    )
  count = len(records)
  memory = resident.host_memory()
  if memory is not None and count * size * size * (3 + 4) > memory:
    raise UserError(
      f'{count} images of {size}x{size} pixels take more than the'
      f' {memory / 2**30:.3g} GiB of memory of this machine: lower'
      ' config.image_size'
    )
  resized = np.empty((count, size, size, 3), np.uint8)
  masks = np.zeros((count, size, size), np.float32)
  labels, has_mask = np.zeros(count, bool), np.zeros(count, bool)

  def load(index: int) -> tuple[str, str]:
    record = records[index]
    file = names.from_bytes(record['file'])
    image = images.decode_image(record['image'], file)
    resized[index] = images.resize_bilinear(image, (size, size))
    labels[index], has_mask[index] = record['is_anomalous'], record['has_mask']
    if labels[index]:
      mask = images.decode_mask(record['mask'], file)[..., None]
      mask = images.resize_bilinear(mask, (size, size))
      masks[index] = mask[..., 0] / 255
    return file, names.from_bytes(record['defect'])

  loaded = images.map_parallel(
    load, range(count), description=f'loading {split} images'
  )
  return _Split(
    images=resized,
    masks=masks if has_mask.all() else None,
    files=[file for file, _ in loaded],
    defects=[defect for _, defect in loaded],
    labels=labels,
  )
