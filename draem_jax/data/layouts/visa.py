"""The layout of VisA.

It has `split_csv/1cls.csv` in the folder of categories, with the columns
`object`, `split`, `label`, `image` and `mask`:

  candle,train,normal,candle/Data/Images/Normal/0836.JPG,
  candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png

An object is a category. In a mask every value but 0 is a defect.
"""

import functools
import pathlib

from draem_jax.data import files
from draem_jax.data.layouts import table
from draem_jax.data.layouts.contents import Contents
from draem_jax.errors import UserError

EXPECTED = 'split_csv/1cls.csv and <category>/Data/Images'

_TABLE = pathlib.PurePath('split_csv', '1cls.csv')
_OBJECT = 'object'
_COLUMNS = table.Columns(file='image')


def is_category(folder: pathlib.Path) -> bool:
  """Whether the table beside a folder names it."""
  path = folder.parent / _TABLE
  if not folder.is_dir() or not path.is_file():
    return False
  objects = _objects(path, files.stamp(path))
  # Of a table that is wrong it is said when a category is read.
  return folder.name in objects if objects else folder.name != _TABLE.parts[0]


@functools.lru_cache(8)
def _objects(path: pathlib.Path, stamp: str) -> frozenset[str]:
  """The objects that a table names; none if it is wrong."""
  try:
    return frozenset(
      row.fields[_OBJECT] for row in table.read_rows(path, (_OBJECT,))
    )
  except UserError:
    return frozenset()


def read(folder: pathlib.Path) -> Contents:
  """Reads the lines of a category.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path.

  Raises:
    UserError: if the table is wrong, or has no line on the category.
  """
  path = folder.parent / _TABLE
  rows = [
    row
    for row in table.read_rows(path, (_OBJECT, *_COLUMNS))
    if row.fields[_OBJECT] == folder.name
  ]
  if not rows:
    raise UserError(
      f'{path} has no line with the object {folder.name!r}: add its images, or'
      ' remove the folder'
    )
  return table.gather(path, rows, _COLUMNS, root=folder, base=folder.parent)
