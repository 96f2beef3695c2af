"""A category: its images and masks, in memory where they are resized."""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from draem_jax import names, sizes
from draem_jax.data import (
  encoded,
  images,
  layouts,
  masks,
  pictures,
  regions,
  resident,
  resizing,
)
from draem_jax.data import roi as roi_lib
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

_NAMED = 3  # Images of which something is odd that a line names.


@dataclasses.dataclass
class Category:
  """The images of one category, at the size that they are loaded at.

  They are arrays where they were resized to the networks' input. Otherwise they
  are `Pictures`, and masks `Masks`, of any sizes, which are decoded when they
  are looked at. Where it is known where the object is, images have that as a
  fourth channel (`data.roi`).

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
    validation_images: good images that choose the thresholds, RGB; None if the
      data set has none.
    test_regions: the defects of each test image, where they count one by one;
      None otherwise.
    metrics: what the data set is known by, keys of `metrics.EXTRA`.
  """

  name: str
  train_images: UInt8[np.ndarray, 'n h w c'] | pictures.Pictures
  train_files: list[str]
  test_images: UInt8[np.ndarray, 'm h w c'] | pictures.Pictures
  test_masks: Float[np.ndarray, 'm h w'] | pictures.Masks | None
  test_files: list[str]
  test_defects: list[str]
  labels: Bool[np.ndarray, 'm']
  coarse_masks: bool = False
  validation_images: UInt8[np.ndarray, 'k h w c'] | pictures.Pictures | None = (
    None
  )
  test_regions: Sequence[Sequence[regions.Region]] | None = None
  metrics: tuple[str, ...] = ()


def load_category(
  data_dir: str | os.PathLike[str],
  category: str,
  *,
  image_size: sizes.Size,
  tfds_dir: str | os.PathLike[str],
  layout: str = 'mvtec',
  resize: resizing.Way = 'bilinear',
  resolution: sizes.Size | Literal[''] = '',
  roi: roi_lib.Roi | None = None,
) -> Category:
  """Loads a category; prepares it first if it is new or its files changed.

  Args:
    data_dir: a folder of categories.
    category: the name of one of them, the user's own included.
    image_size: of the resized images, in pixels: one number, or height and
      width.
    tfds_dir: where prepared data sets lie. A category whose files change is
      prepared anew beside the old state, which may be deleted.
    layout: how the files lie, a name in `layouts.LAYOUTS`, or `'auto'`.
    resize: how images and masks are resized, of `resizing.WAYS`.
    resolution: what they are resized to if not to `image_size`: one number, or
      height and width, or 0 for the size that each has.
    roi: where the object is, if that shall be told; needs no `resolution`.

  Returns:
    The images, in the order of the layout.

  Raises:
    UserError: if the category is missing, does not have the layout, or one of
      its files is broken, or if `tfds_dir` cannot be written.
  """
  # Here, as TFDS takes a while to import, and few commands load a category.
  from draem_jax.data import builder as builder_lib
  from draem_jax.data.prepare import naming_damage

  place = layouts.find(data_dir, category, layout=layout)
  builder = builder_lib.prepare_category(
    place.folder, layout=place.layout, tfds_dir=tfds_dir
  )
  contents = builder.builder_config.contents
  if resolution == '':
    load = functools.partial(_load_split, size=sizes.pair(image_size), roi=roi)
  else:
    size = sizes.pair(resolution) if resolution else None
    load = functools.partial(_open_split, size=size)
  with naming_damage(builder):
    train, test, validation = (
      load(builder, split, way=resize)
      for split in ('train', 'test', 'validation')
    )
  _tell_of_depth(category, train, test, validation)
  _tell_of_masks(category, test)
  return Category(
    name=category,
    train_images=train.images,
    train_files=train.files,
    test_images=test.images,
    test_masks=test.masks,
    test_files=test.files,
    test_defects=test.defects,
    labels=test.labels,
    coarse_masks=contents.coarse_masks,
    validation_images=validation.images if contents.validation else None,
    test_regions=None if contents.saturations is None else test.regions,
    metrics=contents.metrics,
  )


@dataclasses.dataclass
class _Split:
  images: UInt8[np.ndarray, 'n h w c'] | pictures.Pictures
  masks: Float[np.ndarray, 'n h w'] | pictures.Masks | None
  files: list[str]
  defects: list[str]
  labels: Bool[np.ndarray, 'n']
  regions: list[list[regions.Region]]
  bits_in_use: dict[str, int | None]  # By file.
  meanings: dict[str, str]  # Of the masks, by file.
  without_defect: list[str]  # Anomalous images whose masks say there is none.


def _records(builder: Any, split: str) -> Sequence[dict[str, Any]]:
  """The records of a split, images and masks as encoded files."""
  if split not in builder.info.splits:
    return []
  import tensorflow_datasets as tfds

  skip = tfds.decode.SkipDecoding()
  return builder.as_data_source(split, decoders={'image': skip, 'mask': skip})


def _load_split(
  builder: Any,
  split: str,
  size: tuple[int, int],
  way: resizing.Way,
  roi: roi_lib.Roi | None,
) -> _Split:
  """Decodes and resizes; both in uint8, as the release does."""
  records = _records(builder, split)
  count = len(records)
  memory = resident.host_memory()
  if memory is not None and count * math.prod(size) * (3 + 4) > memory:
    raise UserError(
      f'{count} images of {sizes.shown(size)} pixels take more than the'
      f' {memory / 2**30:.3g} GiB of memory of this machine: lower'
      ' config.image_size'
    )
  resized = np.empty((count, *size, 4 if roi else 3), np.uint8)
  coverage = np.zeros((count, *size), np.float32)

  def take_image(index: int, data: bytes, file: str) -> tuple[int, int]:
    with encoded.decode(data, file) as picture:
      prepared = resizing.resize_picture(picture, size, way)
    resized[index] = roi.add(prepared, file) if roi else prepared
    return size

  def take_mask(index: int, picture: encoded.Picture) -> None:
    mask = resizing.resize_picture(picture, size, way)
    coverage[index] = mask[..., 0] / 255

  found = _read_split(
    records, take_image, take_mask, way, f'loading {split} images'
  )
  return dataclasses.replace(
    found, images=resized, masks=None if found.masks is None else coverage
  )


def _open_split(
  builder: Any,
  split: str,
  size: tuple[int, int] | None,
  way: resizing.Way,
) -> _Split:
  """Leaves images and masks as they are until they are looked at."""
  records = _records(builder, split)
  found_sizes = np.zeros((len(records), 2), int)

  def take_image(index: int, data: bytes, file: str) -> tuple[int, int]:
    found_sizes[index] = size or encoded.read_size(data, file)
    return tuple(found_sizes[index].tolist())

  found = _read_split(
    records, take_image, None, way, f'looking at {split} images'
  )
  open_as = lambda name: pictures.Pictures(
    lambda place: records[place][name], found.files, found_sizes, resize=way
  )
  coverage = None
  if found.masks is not None:
    coverage = pictures.Masks(open_as('mask'), found.labels)
  return dataclasses.replace(found, images=open_as('image'), masks=coverage)


def _read_split(
  records: Sequence[dict[str, Any]],
  take_image: Callable[[int, bytes, str], tuple[int, int]],
  take_mask: Callable[[int, encoded.Picture], None] | None,
  way: resizing.Way,
  description: str,
) -> _Split:
  """Looks at each record once, on a thread per core.

  Args:
    records: of the split.
    take_image: is given the place, the content and the name of each image, and
      returns the height and width at which it is loaded.
    take_mask: is given the place and the mask of each defect, if not None.
    way: how defects that count one by one are resized.
    description: of what is done.

  Returns:
    All but images and masks, which are there to be filled in; the masks are
    None if the ground truth of an image is missing.
  """
  count = len(records)
  labels, has_mask = np.zeros(count, bool), np.zeros(count, bool)
  found = [[] for _ in range(count)]
  bits_in_use, meanings, without_defect = {}, {}, []

  def load(index: int) -> tuple[str, str]:
    record = records[index]
    file = names.from_bytes(record['file'])
    size = take_image(index, record['image'], file)
    labels[index], has_mask[index] = record['is_anomalous'], record['has_mask']
    if labels[index] and has_mask[index]:
      with encoded.decode(record['mask'], file) as picture:
        if take_mask:
          take_mask(index, picture)
        if not picture.upright().getbbox():
          without_defect.append(file)
      shares = [float(share) for share in record['saturations'].split()]
      packed = regions.unpack(record['regions'], len(shares), picture.shape)
      found[index] = regions.resize(packed, shares, size, way)
      meanings[file] = record['mask_meaning'].decode()
    bits_in_use[file] = int(record['bits_in_use']) or None
    return file, names.from_bytes(record['defect'])

  loaded = images.map_parallel(load, range(count), description=description)
  nothing = np.zeros((count, 1, 1, 3), np.uint8)
  return _Split(
    images=nothing,
    masks=np.float32(nothing[..., 0]) if has_mask.all() else None,
    files=[file for file, _ in loaded],
    defects=[defect for _, defect in loaded],
    labels=labels,
    regions=found,
    # Threads are done in any order.
    bits_in_use=dict(sorted(bits_in_use.items())),
    meanings=dict(sorted(meanings.items())),
    without_defect=sorted(without_defect),
  )


def _tell_of_depth(category: str, *splits: _Split) -> None:
  """Warns of images that lose most of their levels, once."""
  every = {}
  for split in splits:
    every |= split.bits_in_use
  for bits_in_use in (every, *(split.bits_in_use for split in splits)):
    line = images.describe_depth(bits_in_use)
    if line:
      _log.warning('%s: %s', category, line)
      return


def _tell_of_masks(category: str, test: _Split) -> None:
  """Says what masks were taken for, and warns of those that cannot be right."""
  line = masks.describe(test.meanings.values())
  if line:
    _log.info('masks of %s: %s', category, line)
  if test.without_defect:
    _log.warning(
      '%s: the masks of %d defect images are empty, so that no pixel of them'
      ' counts as anomalous: %s; draw the defects, or move the images to the'
      ' good ones',
      category,
      len(test.without_defect),
      _name_some(test.without_defect),
    )
  no_normal = [
    file
    for file, meaning in test.meanings.items()
    if meaning == masks.NO_NORMAL
  ]
  if no_normal:
    _log.warning(
      '%s: %d masks hold no 0, which is what means normal, and are taken as'
      ' they are: those of %s; save them with 0 where nothing is wrong',
      category,
      len(no_normal),
      _name_some(no_normal),
    )


def _name_some(names: list[str]) -> str:
  rest = len(names) - _NAMED
  more = f' and {rest} more' if rest > 0 else ''
  return f'{", ".join(names[:_NAMED])}{more}'
