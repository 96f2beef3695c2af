"""The layout of BTAD, beanTech's anomaly detection data set.

It has `<category>/train/ok/*`, `<category>/test/{ok,ko}/*` and
`<category>/ground_truth/ko/*`, where a mask is called as its image, with a
suffix of its own.
"""

import pathlib

from draem_jax.data.layouts.contents import (
  Contents,
  Member,
  list_folders,
  list_good,
  list_images,
  lonely_mask,
  pair,
)

EXPECTED = '<category>/train/ok/*.bmp'

_GOOD, _BAD = 'ok', 'ko'
_TESTED, _TRUTH = f'test/{_BAD}', f'ground_truth/{_BAD}'


def is_category(folder: pathlib.Path) -> bool:
  """Whether good images lie in `train/ok`, and others where BTAD has them."""
  is_named = (folder / 'train' / _GOOD).is_dir()
  # Any other name is somebody's own idea of the layout of MVTec AD.
  return is_named and {_GOOD, _BAD}.issuperset(list_folders(folder / 'test'))


def read(folder: pathlib.Path) -> Contents:
  """Pairs images and masks.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path. If there are masks at all, every anomalous one
    has its own.

  Raises:
    UserError: if there are no good images to train on, or an image or a mask
      has no partner.
  """
  train = list_good(folder, f'train/{_GOOD}')
  bad, masks = list_images(folder / _TESTED), list_images(folder / _TRUTH)
  if masks and not bad:
    raise lonely_mask(folder, _TESTED, _TRUTH, masks[0])
  mask_of = pair(folder, _TESTED, _TRUTH, bad, masks) if masks else {}
  tested = [
    Member(f'{_TESTED}/{name}', _BAD, True, mask_of.get(name)) for name in bad
  ]
  tested += [
    Member(f'test/{_GOOD}/{name}', 'good', False)
    for name in list_images(folder / 'test' / _GOOD)
  ]
  return Contents(train, tested)
