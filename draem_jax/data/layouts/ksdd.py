"""The layout of the Kolektor surface-defect dataset, KolektorSDD.

It is one category, a folder of folders: `kosNN/PartN.jpg`, and beside each
image `PartN_label.bmp`. An image is defective if a pixel of its label is not 0.

The images of a folder show one and the same item, so that folders are split,
not images: every third one by its number (kos03, kos06, ...) is tested, with
all its images, and the good images of the others are trained on. Their
defective ones are left out, for the networks know the rest of these items.
"""

import pathlib
import re

from draem_jax.data.layouts.contents import (
  Contents,
  list_folders,
  read_labeled,
)
from draem_jax.errors import UserError

EXPECTED = '<category>/kosNN/PartN.jpg and PartN_label.bmp'

_FOLDER = re.compile('kos([0-9]+)', re.IGNORECASE)
_TESTED_EVERY = 3
_LABEL = '_label'


def is_category(folder: pathlib.Path) -> bool:
  """Whether there is a folder `kosNN` of parts."""
  return any(
    any((folder / name).glob('Part*' + _LABEL + '.*'))
    for name in list_folders(folder)
    if _FOLDER.fullmatch(name)
  )


def read(folder: pathlib.Path) -> Contents:
  """Finds out which images are good, and splits them.

  Args:
    folder: the category's.

  Returns:
    The images, by the number of their folders.

  Raises:
    UserError: if there are no good images to train on, or an image or a label
      has no partner.
  """
  numbers = {
    name: int(match[1])
    for name in list_folders(folder)
    if (match := _FOLDER.fullmatch(name))
  }
  train, test, left_out = [], [], 0
  for name in sorted(numbers, key=numbers.get):
    members = read_labeled(folder, name, mark=_LABEL, suffix='.bmp')
    if numbers[name] % _TESTED_EVERY == 0:
      test += members
    else:
      good = [member for member in members if not member.is_anomalous]
      train += good
      left_out += len(members) - len(good)
  if not train:
    raise UserError(
      f'{folder} holds no good images to train on: add folders kosNN whose'
      f' number {_TESTED_EVERY} does not divide'
    )
  return Contents(train, test, left_out=left_out)
