"""The layout of Real-IAD.

Beside the folder of categories, `realiad_1024` say, lies `realiad_jsons` with a
`<category>.json`, which says of each image what it is:

  {"meta": {"normal_class": "OK", "prefix": "audiojack/"},
   "train": [{"category": "audiojack", "anomaly_class": "OK",
              "image_path": "OK/S0001/audiojack_0001_OK_C1_2023.jpg",
              "mask_path": null}, ...],
   "test": [...]}

The paths are relative to the category's folder. An image whose class is not the
normal one is defective: it is left out of `train`.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from draem_jax.data import encoded
from draem_jax.data.layouts.contents import Contents, Member
from draem_jax.errors import UserError

EXPECTED = 'realiad_jsons/<category>.json and realiad_*/<category>'

_JSONS = 'realiad_jsons'
_FOLDERS = 'realiad_*'


def candidates(data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
  """What may be categories: folders here, and in those of the images."""
  yield from data_dir.iterdir()
  for folder in data_dir.glob(_FOLDERS):
    if folder.is_dir() and not folder.name.startswith(_JSONS):
      yield from folder.iterdir()


def is_category(folder: pathlib.Path) -> bool:
  """Whether there is a file that says what a folder's images are."""
  return folder.is_dir() and _find(folder) is not None


def read(folder: pathlib.Path) -> Contents:
  """Reads what the JSON file says.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path.

  Raises:
    UserError: if the file cannot be understood, names an image or a mask that
      is not there, or there are no good images to train on.
  """
  path = _find(folder) or folder.parent / _JSONS / f'{folder.name}.json'
  try:
    content = json.loads(encoded.read_bytes(path))
    normal = content.get('meta', {}).get('normal_class', 'OK')
    splits = {split: content.get(split, []) for split in ('train', 'test')}
    members = {
      split: [_member(folder, entry, normal, path) for entry in entries]
      for split, entries in splits.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
    what = ' '.join(str(e).split())
    raise UserError(
      f'{path} cannot be understood ({type(e).__name__}: {what}): copy it from'
      ' the data set'
    ) from e
  good = [member for member in members['train'] if not member.is_anomalous]
  if not good:
    raise UserError(
      f'{path} names no image of the class {normal!r} to train on: copy it from'
      ' the data set'
    )
  test = members['test']
  masked = [one for one in test if one.is_anomalous and one.mask is not None]
  for member in test if masked else ():
    if member.is_anomalous and member.mask is None:
      raise UserError(
        f'{path} names no mask of {member.file}, as of other defects: add its'
        ' mask_path'
      )
  by_file = lambda member: member.file
  return Contents(
    sorted(good, key=by_file),
    sorted(test, key=by_file),
    left_out=len(members['train']) - len(good),
  )


def _member(
  folder: pathlib.Path,
  entry: Mapping[str, Any],
  normal: str,
  path: pathlib.Path,
) -> Member:
  kind = str(entry['anomaly_class'])
  file, mask = entry['image_path'], entry.get('mask_path') or None
  is_anomalous = kind != normal
  if not is_anomalous:
    mask = None
  for name in filter(None, (file, mask)):
    if '..' in pathlib.PurePosixPath(name).parts or name.startswith('/'):
      raise UserError(
        f'{path} names {name}, which is not in the folder {folder}: copy it'
        ' from the data set'
      )
    if '\0' in name or not (folder / name).is_file():
      raise UserError(
        f'{path} names {name}, which is not in {folder}: add it, or remove the'
        ' entry'
      )
  return Member(file, kind if is_anomalous else 'good', is_anomalous, mask)


def _find(folder: pathlib.Path) -> pathlib.Path | None:
  """The file that says what a category's images are."""
  for parent in (folder.parent, folder.parent.parent):
    for jsons in (parent / _JSONS, parent / _JSONS / _JSONS):
      path = jsons / f'{folder.name}.json'
      if path.is_file():
        return path
  return None
