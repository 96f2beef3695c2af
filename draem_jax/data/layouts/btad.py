"""The layout of BTAD, beanTech's anomaly detection data set.

It has `<category>/train/ok/*`, `<category>/test/{ok,ko}/*` and
`<category>/ground_truth/ko/*`, where a mask is called as its image, with a
suffix of its own.
"""

import pathlib

from draem_jax.data.layouts.contents import (
  Contents,
  list_folders,
  list_good,
  read_kinds,
)

EXPECTED = '<category>/train/ok/*.bmp'

_GOOD, _BAD = 'ok', 'ko'


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
  return Contents(train, read_kinds(folder, 'test', 'ground_truth', good=_GOOD))
