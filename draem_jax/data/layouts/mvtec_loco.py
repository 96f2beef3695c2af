"""The layout of MVTec LOCO AD.

It has `<category>/{train,validation}/good/*`,
`<category>/test/{good,logical_anomalies,structural_anomalies}/*` and, for the
image `test/<type>/NNN.png`, one file a defect,
`<category>/ground_truth/<type>/NNN/*.png`. The value of its pixels is the kind
of the defect, and `<category>/defects_config.json` says of each kind how much
of it is enough to have found it, as the metric sPRO counts:

  [{"defect_name": "missing_pin", "pixel_value": 255,
    "saturation_threshold": 1.0, "relative_saturation": true}, ...]

The images of `validation` choose the thresholds.
"""

import json
import logging
import pathlib

from draem_jax.data import encoded
from draem_jax.data.layouts import mvtec
from draem_jax.data.layouts.contents import (
  Contents,
  Member,
  Saturation,
  list_folders,
  list_good,
  list_good_if_any,
  list_images,
  stem,
)
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

EXPECTED = (
  '<category>/train/good/*.png, and test/logical_anomalies or'
  ' defects_config.json'
)
VALIDATES = True

_GOOD = 'good'
_CONFIG = 'defects_config.json'
_KINDS = ('logical_anomalies', 'structural_anomalies')


def is_category(folder: pathlib.Path) -> bool:
  """Whether there are good images, and what only this data set has."""
  has_own = (folder / _CONFIG).is_file() or any(
    (folder / 'test' / kind).is_dir() for kind in _KINDS
  )
  return has_own and (folder / 'train' / _GOOD).is_dir()


def read(folder: pathlib.Path) -> Contents:
  """Pairs images and the files of their masks.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path. If there are masks at all, every anomalous one
    has its own.

  Raises:
    UserError: if there are no good images to train on, an image or a mask has
      no partner, or the kinds of defects cannot be understood.
  """
  mvtec.check_names(folder, good=('train', 'validation'))
  train = list_good(folder, f'train/{_GOOD}')
  validation = list_good_if_any(folder, f'validation/{_GOOD}')
  truth = folder / 'ground_truth'
  has_masks = any(list_images(truth / kind) for kind in list_folders(truth))
  tested = []
  for kind in list_folders(folder / 'test'):
    names = list_images(folder / 'test' / kind)
    masks = {}
    if has_masks and kind != _GOOD:
      masks = _masks_by_image(folder, kind, names)
    for name in names:
      first, *others = masks.get(name, [None])
      tested.append(
        Member(f'test/{kind}/{name}', kind, kind != _GOOD, first, tuple(others))
      )
  saturations = _read_config(folder / _CONFIG) if has_masks else None
  return Contents(
    train,
    tested,
    validation=validation,
    saturations=saturations,
    metrics=('spro_05',),
  )


def _masks_by_image(
  folder: pathlib.Path, kind: str, names: list[str]
) -> dict[str, list[str]]:
  truth = folder / 'ground_truth' / kind
  by_stem = {}
  for mask in list_images(truth):
    parent = pathlib.PurePosixPath(mask).parent.as_posix()
    by_stem.setdefault(stem(f'{parent}/x').removesuffix('/x'), []).append(
      f'ground_truth/{kind}/{mask}'
    )
  found = {}
  for name in names:
    if stem(name) not in by_stem:
      raise UserError(
        f'{folder / "test" / kind / name} has no mask: add'
        f' {truth / stem(name)}/000.png, or remove the image'
      )
    found[name] = by_stem.pop(stem(name))
  if by_stem:
    key, masks = next(iter(by_stem.items()))
    raise UserError(
      f'{folder / masks[0]} is a mask without an image: add'
      f' {folder / "test" / kind / key}.*, or remove the mask'
    )
  return found


def _read_config(path: pathlib.Path) -> dict[int, Saturation] | None:
  if not path.exists():
    _log.warning(
      '%s is missing, so that there will be no sPRO: copy it from the data set',
      path,
    )
    return None
  remedy = 'copy it from the data set'
  try:
    entries = json.loads(encoded.read_bytes(path))
    found = {}
    for entry in entries:
      value = entry['pixel_value']
      threshold = entry['saturation_threshold']
      is_relative = entry['relative_saturation']
      most = 1 if is_relative is True else float('inf')
      if not (
        isinstance(is_relative, bool)
        and isinstance(value, int)
        and 0 < threshold <= most
      ):
        raise UserError(
          f'{path}: {str(entry)[:80]} cannot be understood: {remedy}'
        )
      found[value] = Saturation(float(threshold), is_relative)
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    what = ' '.join(str(error).split())
    raise UserError(
      f'{path} cannot be understood ({type(error).__name__}: {what}): {remedy}'
    ) from error
  return found
