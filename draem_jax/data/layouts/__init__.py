"""How data sets lie on disk: one module a layout, each a line of `LAYOUTS`.

A layout says what is special about it, by three names:

- `EXPECTED`: the files that make a folder a category, as a message shows them.
- `is_category(folder)`: whether a folder is a category.
- `read(folder)`: the images of a category, as `contents.Contents`.

It may say more:

- `candidates(data_dir)`: the paths that may be categories, where these are not
  just what lies in the folder of categories.
- `is_surely(folder)`: whether a folder is a category of this layout and of no
  other; where it is not there, `is_category` is enough.
- `VALIDATES`: whether there may be good images that choose the thresholds.
- `misnamed(folder)`: what keeps a folder that is none from being a category.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from draem_jax.data.layouts import (
  btad,
  dagm,
  ksdd,
  ksdd2,
  mvtec,
  mvtec_ad_2,
  mvtec_loco,
  real_iad,
  table,
  visa,
)
from draem_jax.errors import UserError

LAYOUTS: dict[str, Any] = {
  'mvtec': mvtec,
  'mpdd': mvtec,
  'mvtec_loco': mvtec_loco,
  'mvtec_ad_2': mvtec_ad_2,
  'visa': visa,
  'btad': btad,
  'dagm': dagm,
  'ksdd': ksdd,
  'ksdd2': ksdd2,
  'real_iad': real_iad,
  'csv': table,
}
AUTO = 'auto'  # Whichever one a category has.

# Where both match, the first is meant: it asks for what the others, on its
# right, do not know.
_BEFORE = {
  'mvtec_loco': ('mvtec',),
  'mvtec_ad_2': ('mvtec',),
}
_MOST_LISTED = 20  # Names in a message.


class Place(NamedTuple):
  """Where a category is.

  Attributes:
    folder: its own.
    layout: how its files lie, a name in `LAYOUTS`.
  """

  folder: pathlib.Path
  layout: str


def get(layout: str) -> Any:
  """The layout of that name.

  Raises:
    UserError: if there is none.
  """
  if layout not in LAYOUTS:
    raise UserError(
      f'config.data.layout={layout!r}: take one of {_all()}, or {AUTO}'
    )
  return LAYOUTS[layout]


def list_categories(
  data_dir: str | os.PathLike[str], *, layout: str = 'mvtec'
) -> list[str]:
  """Names of the categories in a folder, sorted, numbers in them as numbers.

  Args:
    data_dir: the folder of categories.
    layout: a name in `LAYOUTS`, or `'auto'` for any of them.

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
  if not data_dir.is_dir():
    raise UserError(
      f'{data_dir} is not a folder: set config.data.dir to a folder of'
      f' categories ({_expected(layout)})'
    )
  _refuse_itself(data_dir, layout)
  names = {
    path.name
    for module in _modules(layout).values()
    for path in _candidates(data_dir, module)
    if _test(module, layout)(path)
  }
  if not names:
    _refuse_itself(data_dir, layout, also_if_around_others=True)
    for folder in (data_dir, *sorted(data_dir.iterdir())):
      _check_misnamed(folder, layout)
    raise UserError(
      f'{data_dir} holds no category: set config.data.dir to a folder of'
      f' categories ({_expected(layout)}), or config.data.layout to how yours'
      ' lie'
    )
  return sorted(names, key=_order)


def find(
  data_dir: str | os.PathLike[str], category: str, *, layout: str = 'mvtec'
) -> Place:
  """Where a category is, and in which layout.

  Args:
    data_dir: the folder of categories.
    category: the name of one of them.
    layout: a name in `LAYOUTS`, or `'auto'` for the only one that fits.

  Raises:
    UserError: if there is no such category, it lies in another layout, or more
      than one fits.
  """
  data_dir = pathlib.Path(data_dir)
  found = {}
  if data_dir.is_dir():
    for name, module in _modules(layout).items():
      folders = {
        path
        for path in _candidates(data_dir, module, category)
        if _test(module, layout)(path)
      }
      if len(folders) > 1:
        one, other = sorted(folders)[:2]
        raise UserError(
          f'{category} is both {one} and {other}: set config.data.dir to'
          f' {one.parent} or {other.parent}'
        )
      if folders:
        found[name] = folders.pop()
  names = set(found)
  for name in names:
    for other in _BEFORE.get(name, ()):
      found.pop(other, None)
  if len(found) > 1:
    choices = ' or '.join(sorted(found))
    raise UserError(
      f'{data_dir / category} could have the layout {choices}: set'
      ' config.data.layout to the right one'
    )
  if found:
    ((name, folder),) = found.items()
    return Place(folder, name)
  names = _list(data_dir, layout)
  if category in os.listdir(data_dir):
    folder = data_dir / category
    _check_misnamed(folder, layout)
    if layout == AUTO:
      raise UserError(
        f'{folder} is in no layout that is known ({_all()}): put images where'
        f' one expects them ({mvtec.EXPECTED}, say), or name them in a table'
        f' ({table.EXPECTED})'
      )
    raise UserError(
      f'{folder} is not in the layout {layout!r}: put images where it expects'
      f' them ({get(layout).EXPECTED}), or set config.data.layout'
    )
  raise UserError(
    f'{data_dir} has no category {category!r}: {_some_of(names, category)}'
  )


def find_category(
  data_dir: str | os.PathLike[str], category: str, *, layout: str = 'mvtec'
) -> pathlib.Path:
  """The folder of a category; see `find`."""
  return find(data_dir, category, layout=layout).folder


def _some_of(names: list[str], wanted: str) -> str:
  """Which names there are; of many, those that come nearest."""
  if len(names) <= _MOST_LISTED:
    return f'there are {", ".join(names)}'
  near = difflib.get_close_matches(wanted, names, n=_MOST_LISTED // 4)
  hint = f'near it are {", ".join(near)}' if near else f'one is {names[0]}'
  return f'of the {len(names)} that there are, {hint}'


def _modules(layout: str) -> dict[str, Any]:
  """The layouts that a name means, by their own."""
  if layout != AUTO:
    return {layout: get(layout)}
  # Of two names of the same one the first counts.
  first = {}
  for name, module in LAYOUTS.items():
    if module not in first.values():
      first[name] = module
  return first


def _test(module: Any, layout: str) -> Callable[[pathlib.Path], bool]:
  """What says whether a folder is a category of a layout."""
  if layout == AUTO:
    return getattr(module, 'is_surely', module.is_category)
  return module.is_category


def _candidates(
  data_dir: pathlib.Path, module: Any, category: str | None = None
) -> Iterator[pathlib.Path]:
  """Paths that may be categories, or be the one of that name."""
  candidates = getattr(module, 'candidates', pathlib.Path.iterdir)
  if category is not None and candidates is pathlib.Path.iterdir:
    # Anything but a name would lead elsewhere.
    if pathlib.PurePath(category).name == category not in ('', '..'):
      yield data_dir / category
    return
  for path in candidates(data_dir):
    if category in (None, path.name):
      yield path


def _refuse_itself(
  data_dir: pathlib.Path, layout: str, *, also_if_around_others: bool = False
) -> None:
  """Raises a `UserError` for a folder that is a category.

  Of layouts with `candidates` of their own it is one, it may seem, by what is
  there for those in it.
  """
  for module in _modules(layout).values():
    if hasattr(module, 'candidates') and not also_if_around_others:
      continue
    if _test(module, layout)(data_dir):
      parent, name = os.path.split(data_dir.absolute())
      raise UserError(
        f'{data_dir} is itself a category: set config.data.dir to {parent} and'
        f' the category to {name}'
      )


def _check_misnamed(folder: pathlib.Path, layout: str) -> None:
  """Raises what a layout says of a folder that is no category, if one does."""
  if not folder.is_dir():
    return
  for module in _modules(layout).values():
    say = getattr(module, 'misnamed', None)
    line = say(folder) if say else None
    if line:
      raise UserError(line)


def _all() -> str:
  return ', '.join(sorted(LAYOUTS))


def _expected(layout: str) -> str:
  """The files that make a folder a category, as a message shows them."""
  if layout == AUTO:
    return f'{mvtec.EXPECTED}, say, or {table.EXPECTED}'
  return get(layout).EXPECTED


def _order(name: str) -> tuple[list[str | int], str]:
  """What names are sorted by: `Class2` stands before `Class10`."""
  parts = re.split(r'([0-9]+)', name)
  parts[1::2] = map(int, parts[1::2])
  return parts, name
