"""How data sets lie on disk: one module a layout, each a line of `LAYOUTS`.

A layout says what is special about it, by three names:

- `EXPECTED`: the files that make a folder a category, as a message shows them.
- `is_category(folder)`: whether a folder is a category.
- `read(folder)`: the images of a category, as `contents.Contents`.

It may say by a fourth, `misnamed(folder)`, what keeps a folder that is none
from being a category.
"""

import difflib
import os
import pathlib
import re
from typing import Any

from draem_jax.data.layouts import dagm, mvtec
from draem_jax.errors import UserError

_MOST_LISTED = 20  # Names in a message.

LAYOUTS: dict[str, Any] = {
  'mvtec': mvtec,
  'dagm': dagm,
}


def get(layout: str) -> Any:
  """The layout of that name.

  Raises:
    UserError: if there is none.
  """
  if layout not in LAYOUTS:
    raise UserError(
      f'config.data.layout={layout!r}: take one of {", ".join(sorted(LAYOUTS))}'
    )
  return LAYOUTS[layout]


def list_categories(
  data_dir: str | os.PathLike[str], *, layout: str = 'mvtec'
) -> list[str]:
  """Names of the categories in a folder, sorted, numbers in them as numbers.

  Args:
    data_dir: the folder of categories.
    layout: a name in `LAYOUTS`.

  Raises:
    UserError: if there is no such folder or no category in it.
  """
  names = _list(pathlib.Path(data_dir), layout)
  for folder in sorted(pathlib.Path(data_dir).iterdir()):
    if folder.name not in names:
      _check_misnamed(folder, layout)
  return names


def _list(data_dir: pathlib.Path, layout: str) -> list[str]:
  """The same, whatever else is in the folder."""
  is_category, expected = get(layout).is_category, get(layout).EXPECTED
  if not data_dir.is_dir():
    raise UserError(
      f'{data_dir} is not a folder: set config.data.dir to a folder of'
      f' categories ({expected})'
    )
  if is_category(data_dir):
    parent, name = os.path.split(data_dir.absolute())
    raise UserError(
      f'{data_dir} is itself a category: set config.data.dir to {parent} and'
      f' the category to {name}'
    )
  names = sorted(
    (path.name for path in data_dir.iterdir() if is_category(path)), key=_order
  )
  if not names:
    for folder in (data_dir, *sorted(data_dir.iterdir())):
      _check_misnamed(folder, layout)
    raise UserError(
      f'{data_dir} holds no category: set config.data.dir to a folder of'
      f' categories ({expected}), or config.data.layout to how yours lie'
    )
  return names


def find_category(
  data_dir: str | os.PathLike[str], category: str, *, layout: str = 'mvtec'
) -> pathlib.Path:
  """The folder of a category.

  Args:
    data_dir: the folder of categories.
    category: the name of one of them.
    layout: a name in `LAYOUTS`.

  Raises:
    UserError: if there is no such category, or it lies in another layout.
  """
  data_dir = pathlib.Path(data_dir)
  names = _list(data_dir, layout)
  if category in names:
    return data_dir / category
  if category in os.listdir(data_dir):
    _check_misnamed(data_dir / category, layout)
    raise UserError(
      f'{data_dir / category} is not in the layout {layout!r}: put images where'
      f' it expects them ({get(layout).EXPECTED}), or set config.data.layout'
    )
  raise UserError(
    f'{data_dir} has no category {category!r}: {_some_of(names, category)}'
  )


def _some_of(names: list[str], wanted: str) -> str:
  """Which names there are; of many, those that come nearest."""
  if len(names) <= _MOST_LISTED:
    return f'there are {", ".join(names)}'
  near = difflib.get_close_matches(wanted, names, n=_MOST_LISTED // 4)
  hint = f'near it are {", ".join(near)}' if near else f'one is {names[0]}'
  return f'of the {len(names)} that there are, {hint}'


def _check_misnamed(folder: pathlib.Path, layout: str) -> None:
  """Raises what the layout says of a folder that is no category, if it does."""
  say = getattr(get(layout), 'misnamed', None)
  line = say(folder) if say and folder.is_dir() else None
  if line:
    raise UserError(line)


def _order(name: str) -> tuple[list[str | int], str]:
  """What names are sorted by: `Class2` stands before `Class10`."""
  parts = re.split(r'([0-9]+)', name)
  parts[1::2] = map(int, parts[1::2])
  return parts, name
