"""The layout of MVTec AD.

It has `<category>/train/good/*`, `<category>/test/<defect>/*` and
`<category>/ground_truth/<defect>/*_mask.*`, where the images of `test/good`
have no masks. Without `test` there is nothing to evaluate, without
`ground_truth` no pixel to compare.
"""

import pathlib

from draem_jax.data import images
from draem_jax.data.layouts.contents import Contents, Member, list_images
from draem_jax.errors import UserError
from draem_jax.names import canonical

EXPECTED = '<category>/train/good/*.png'
GOOD = 'good'


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
  train = list_images(folder / 'train' / GOOD)
  if not train:
    raise UserError(
      f'{folder / "train" / GOOD} holds no images: put good images there'
      f' ({", ".join(sorted(images.SUFFIXES))})'
    )
  test, masks = (
    {defect: list_images(part / defect) for defect in _list_folders(part)}
    for part in (folder / 'test', folder / 'ground_truth')
  )
  # Good images are normal by their folder's name: masks would be all zero.
  masks.pop(GOOD, None)
  has_masks = any(masks.values())
  tested = []
  for defect, names in test.items():
    is_anomalous = defect != GOOD
    mask_of = {}
    if has_masks and is_anomalous:
      mask_of = _pair(names, masks.pop(defect, []), folder, defect)
    tested += [
      Member(f'test/{defect}/{name}', defect, is_anomalous, mask_of.get(name))
      for name in names
    ]
  for defect, names in masks.items():
    if names:
      raise _lonely_mask(names[0], folder, defect)
  good = [Member(f'train/{GOOD}/{name}', GOOD, False) for name in train]
  return Contents(good, tested)


def _pair(
  names: list[str], masks: list[str], folder: pathlib.Path, defect: str
) -> dict[str, str]:
  """Finds each image's mask: `<stem>_mask.*`, or just `<stem>.*`."""
  tested, truth = folder / 'test' / defect, folder / 'ground_truth' / defect
  by_stem = {_stem(name): name for name in names}
  if len(by_stem) < len(names):
    twin = next(name for name in names if by_stem[_stem(name)] != name)
    raise UserError(
      f'{tested / twin} and {by_stem[_stem(twin)]} would share a mask: rename'
      ' one'
    )
  found = {}
  for mask in masks:
    stem = _stem(mask)
    name = by_stem.get(stem) or by_stem.get(stem.removesuffix('_mask'))
    if name is None:
      raise _lonely_mask(mask, folder, defect)
    if name in found:
      raise UserError(
        f'{tested / name} has two masks, {truth / found[name]} and'
        f' {truth / mask}: remove one'
      )
    found[name] = mask
  for name in names:
    if name not in found:
      raise UserError(
        f'{tested / name} has no mask: add {truth / _stem(name)}_mask.png, or'
        ' remove the image'
      )
  return {name: f'ground_truth/{defect}/{found[name]}' for name in names}


def _lonely_mask(mask: str, folder: pathlib.Path, defect: str) -> UserError:
  path = folder / 'ground_truth' / defect / mask
  expected = folder / 'test' / defect / _stem(mask).removesuffix('_mask')
  return UserError(
    f'{path} is a mask without an image: add {expected}.*, or remove the mask'
  )


def _stem(name: str) -> str:
  """The name, folders included, without its suffix, as names are compared."""
  return canonical(pathlib.PurePosixPath(name).with_suffix('').as_posix())


def _list_folders(folder: pathlib.Path) -> list[str]:
  if not folder.is_dir():
    return []
  return sorted(
    path.name
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )
