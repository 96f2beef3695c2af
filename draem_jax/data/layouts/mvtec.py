"""The layout of MVTec AD.

It has `<category>/train/good/*`, `<category>/test/<defect>/*` and
`<category>/ground_truth/<defect>/*_mask.*`, where the images of `test/good`
have no masks. Without `test` there is nothing to evaluate, without
`ground_truth` no pixel to compare.
"""

import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from draem_jax.data import images
from draem_jax.data.layouts.contents import (
  Contents,
  list_folders,
  list_good,
  list_images,
  read_kinds,
)
from draem_jax.errors import UserError

EXPECTED = '<category>/train/good/*.png'
GOOD = 'good'

_log = logging.getLogger(__name__)

# What people call the folder of good images, without case, digits and marks.
_LOOKS_GOOD = frozenset(
  ('good', 'goods', 'ok', 'okay', 'normal', 'nominal', 'pass', 'passed')
  + ('anomalyfree', 'defectfree', 'nodefect', 'nodefects', 'nondefective')
  + ('clean', 'healthy', 'intact', 'gut', 'io', 'bueno', 'buono', 'bon')
  + ('良品', '正常', '合格')
)


def is_category(folder: pathlib.Path) -> bool:
  """Whether a folder has good images to train on, or at least their folder."""
  return (folder / 'train' / GOOD).is_dir()


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
  check_names(folder)
  train = list_good(folder, f'train/{GOOD}')
  tested = read_kinds(folder, 'test', 'ground_truth')
  return Contents(train, tested)


def misnamed(folder: pathlib.Path) -> str | None:
  """What keeps a folder with good images from being a category, and a remedy.

  Args:
    folder: that is no category.

  Returns:
    A line, or None if it does not look as if it were to be one.
  """
  wrong = _misnamed_parts(folder, ('train',))
  if 'train' in wrong and any(map(_looks_good, list_folders(wrong['train']))):
    return _rename(wrong['train'], folder / 'train')
  train = folder / 'train'
  wanted = train / GOOD
  for name in list_folders(train):
    if _looks_good(name):
      return f'good images belong in {wanted}: rename {train / name}'
  if _stray_images(train):
    return (
      f'good images belong in {wanted}: move those there that lie in {train}'
    )
  return None


def check_names(
  folder: pathlib.Path,
  *,
  good: Sequence[str] = ('train',),
  tested: str = 'test',
  truth: str = 'ground_truth',
) -> None:
  """Refuses folders that would be taken for what they are not, or for nothing.

  Images that belong to no folder are passed over, with a line.

  Args:
    folder: the category's.
    good: the names of its parts that have good images only.
    tested: that of the part of the test images.
    truth: the path of the part of the masks.

  Raises:
    UserError: for the first such folder.
  """
  parts = *good, tested, truth
  for part, path in _misnamed_parts(folder, parts).items():
    raise UserError(_rename(path, folder / part))
  for part in (*good, tested):
    wanted = folder / part / GOOD
    for name in list_folders(folder / part):
      path = wanted.with_name(name)
      if name == GOOD or not _looks_good(name) or not list_images(path):
        continue
      does = 'would count as defects' if part == tested else 'would be left out'
      remedy = (
        f'move its images to {wanted}'
        if wanted.exists()
        else f'rename it to {wanted}'
      )
      raise UserError(
        f'{path} looks like good images, which {does} there: {remedy}, or give'
        ' it the name of the defect'
      )
  for part in good:
    for name in list_folders(folder / part):
      count = 0 if name == GOOD else len(list_images(folder / part / name))
      if count:
        _log.warning(
          'passed over %d images in %s: only those in %s are %s',
          count,
          folder / part / name,
          folder / part / GOOD,
          'trained on' if part == 'train' else 'read',
        )
  for part in parts:
    stray = _stray_images(folder / part)
    if stray:
      _log.warning(
        'passed over %d images that lie in %s itself, such as %s: they belong'
        ' in folders there, such as %s',
        len(stray),
        folder / part,
        stray[0],
        GOOD,
      )


def _misnamed_parts(
  folder: pathlib.Path, parts: Iterable[str]
) -> dict[str, pathlib.Path]:
  """Folders that stand for a part which is not there under its own name."""
  found = {}
  for name in list_folders(folder):
    for part in parts:
      same = re.sub(r'[\W_]+', '', name).lower() == part.replace('_', '')
      if same and name != part and not (folder / part).exists():
        found[part] = folder / name
  return found


def _rename(path: pathlib.Path, wanted: pathlib.Path) -> str:
  return f'{path} would be passed over: rename it to {wanted}'


def _looks_good(name: str) -> bool:
  return _plain(name) in _LOOKS_GOOD


def _plain(name: str) -> str:
  """A name without case, digits and marks."""
  return re.sub(r'[\W\d_]+', '', name).lower()


def _stray_images(folder: pathlib.Path) -> list[str]:
  """Names of images that lie in a folder itself."""
  if not folder.is_dir():
    return []
  return sorted(
    entry.name
    for entry in os.scandir(folder)
    if images.is_image(entry.name) and not entry.is_dir()
  )
