"""The layout of MVTec AD 2.

It has `<category>/{train,validation}/good/*`,
`<category>/test_public/{good,bad}/*` and
`<category>/test_public/ground_truth/bad/*_mask.png`. What lies in
`test_private` and `test_private_mixed` has no labels and is passed over.

The images of `validation` choose the thresholds.
"""

import pathlib

from draem_jax.data.layouts import mvtec
from draem_jax.data.layouts.contents import (
  Contents,
  list_good,
  list_good_if_any,
  list_images,
  read_kinds,
)

EXPECTED = '<category>/train/good/*.png and <category>/test_public'
VALIDATES = True

_GOOD = 'good'
_TEST, _TRUTH = 'test_public', 'ground_truth'
_PRIVATE = ('test_private', 'test_private_mixed')


def is_category(folder: pathlib.Path) -> bool:
  """Whether there are good images, and a test split that is public."""
  return (folder / _TEST).is_dir() and (folder / 'train' / _GOOD).is_dir()


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
  mvtec.check_names(
    folder,
    good=('train', 'validation'),
    tested=_TEST,
    truth=f'{_TEST}/{_TRUTH}',
  )
  train = list_good(folder, f'train/{_GOOD}')
  validation = list_good_if_any(folder, f'validation/{_GOOD}')
  tested = read_kinds(folder, _TEST, f'{_TEST}/{_TRUTH}')
  counts = {part: len(list_images(folder / part)) for part in _PRIVATE}
  notes = tuple(
    f'passed over {count} images in {folder / part}, which have no labels'
    for part, count in counts.items()
    if count
  )
  return Contents(
    train,
    tested,
    validation=validation,
    metrics=('aupro_05', 'seg_f1'),
    notes=notes,
  )
