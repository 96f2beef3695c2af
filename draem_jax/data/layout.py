"""The layout of MVTec AD on disk: which images there are, and their masks.

The layout: `<category>/train/good/*`, `<category>/test/<defect>/*` and
`<category>/ground_truth/<defect>/*_mask.*`, where the images of `test/good`
have no masks. Without `test` there is nothing to evaluate, without
`ground_truth` no pixel to compare.
"""

import dataclasses
import logging
import os
import pathlib

from draem_jax.data import images
from draem_jax.errors import UserError

LAYOUT = '<category>/train/good/*.png'
GOOD = 'good'

PathLike = str | os.PathLike[str]

_log = logging.getLogger(__name__)

# What systems and archives leave beside images.
_IGNORED_SILENTLY = ('.txt', '.md', '.db', '.ini')


@dataclasses.dataclass(frozen=True)
class Member:
  """An image file and its mask, as paths in the category's folder."""

  file: str
  defect: str
  mask: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """The images of a category, sorted by path."""

  train: list[Member]
  test: list[Member]
  has_masks: bool


def list_categories(data_dir: PathLike) -> list[str]:
  """Names of the categories in a folder, sorted.

  Raises:
    UserError: if there is no such folder or no category in it.
  """
  data_dir = pathlib.Path(data_dir)
  if not data_dir.is_dir():
    raise UserError(
      f'{data_dir} is not a folder: set config.data.dir to a folder of'
      f' categories ({LAYOUT})'
    )
  if (data_dir / 'train' / GOOD).is_dir():
    parent, name = os.path.split(data_dir.absolute())
    raise UserError(
      f'{data_dir} is itself a category: set config.data.dir to {parent} and'
      f' the category to {name}'
    )
  names = sorted(
    path.name for path in data_dir.iterdir() if (path / 'train' / GOOD).is_dir()
  )
  if not names:
    raise UserError(
      f'{data_dir} holds no category: set config.data.dir to a folder of'
      f' categories ({LAYOUT})'
    )
  return names


def find_category(data_dir: pathlib.Path, category: str) -> pathlib.Path:
  """The folder of a category.

  Raises:
    UserError: if it does not exist or has no `train/good`.
  """
  names = list_categories(data_dir)
  if category in names:
    return data_dir / category
  if category in os.listdir(data_dir):
    raise UserError(
      f'{data_dir / category} has no folder train/{GOOD}: put good images there'
    )
  raise UserError(
    f'{data_dir} has no category {category!r}: there are {", ".join(names)}'
  )


def read_layout(folder: pathlib.Path) -> Layout:
  """Pairs images and masks.

  Args:
    folder: of the category.

  Raises:
    UserError: if there are no good images to train on, or an image or a mask
      has no partner.
  """
  train = _list_images(folder / 'train' / GOOD)
  if not train:
    raise UserError(
      f'{folder / "train" / GOOD} holds no images: put good images there'
      f' ({", ".join(sorted(images.SUFFIXES))})'
    )
  test, masks = (
    {f.name: _list_images(f) for f in _list_folders(folder / part)}
    for part in ('test', 'ground_truth')
  )
  # Good images are normal by their folder's name: masks would be all zero.
  masks.pop(GOOD, None)
  has_masks = any(masks.values())
  relative = lambda path: path.relative_to(folder).as_posix()
  tested = []
  for defect, paths in test.items():
    pairs = dict.fromkeys(paths)
    if has_masks and defect != GOOD:
      pairs = _pair(paths, masks.pop(defect, []), folder, defect)
    tested += [
      Member(relative(path), defect, mask and relative(mask))
      for path, mask in pairs.items()
    ]
  for paths in masks.values():
    if paths:
      raise _lonely_mask(paths[0], folder)
  train = [Member(relative(path), GOOD) for path in train]
  return Layout(train, tested, has_masks)


def _pair(
  paths: list[pathlib.Path],
  masks: list[pathlib.Path],
  folder: pathlib.Path,
  defect: str,
) -> dict[pathlib.Path, pathlib.Path]:
  """Finds each image's mask: `<stem>_mask.*`, or just `<stem>.*`."""
  by_stem = {path.stem: path for path in paths}
  if len(by_stem) < len(paths):
    twin = next(p for p in paths if by_stem[p.stem] != p)
    raise UserError(
      f'{twin} and {by_stem[twin.stem].name} would share a mask: rename one'
    )
  found = {}
  for mask in masks:
    stem = mask.stem.removesuffix('_mask')
    path = by_stem.get(mask.stem) or by_stem.get(stem)
    if path is None:
      raise _lonely_mask(mask, folder)
    if path in found:
      raise UserError(
        f'{path} has two masks, {found[path]} and {mask}: remove one'
      )
    found[path] = mask
  for path in paths:
    if path not in found:
      expected = folder / 'ground_truth' / defect / f'{path.stem}_mask.png'
      raise UserError(
        f'{path} has no mask: add {expected}, or remove the image'
      )
  return {path: found[path] for path in paths}


def _lonely_mask(mask: pathlib.Path, folder: pathlib.Path) -> UserError:
  image = mask.stem.removesuffix('_mask')
  expected = folder / 'test' / mask.parent.name / f'{image}.*'
  return UserError(
    f'{mask} is a mask without an image: add {expected}, or remove the mask'
  )


def _list_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )


def _list_images(folder: pathlib.Path) -> list[pathlib.Path]:
  paths = sorted(folder.iterdir())
  others = [
    path
    for path in paths
    if not images.is_image(path)
    and not path.name.startswith('.')
    and path.suffix.lower() not in _IGNORED_SILENTLY
  ]
  if others:
    _log.warning(
      'passed over %d entries that are no images in %s, such as %s',
      len(others),
      folder,
      others[0].name,
    )
  return [path for path in paths if images.is_image(path)]
