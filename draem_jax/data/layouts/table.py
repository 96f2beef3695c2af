"""A table of one's own, which says of each image what it is.

It is a CSV file: `<category>.csv` in the folder of categories, or in a
category's folder `data.csv` or whatever is the only table there. It has the
columns `file`, `split`, `label` and `mask`:

  file,split,label,mask
  photos/0001.jpg,train,good,
  photos/0002.jpg,validation,good,
  photos/0003.jpg,test,scratch,masks/0003.png

Paths are relative to the table, or absolute. `split` is `train`, `validation`
or `test`, and `validation` chooses the thresholds. `label` is `good` (or `ok`,
`normal`, `0`), or else the kind of the defect; what is no good image of `train`
or `validation` is left out. `mask` may be empty or missing altogether. Commas,
semicolons or tabs divide the columns, whose order does not matter; other
columns are not read.
"""

import csv
import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from draem_jax.data import encoded
from draem_jax.data.layouts.contents import Contents, Member
from draem_jax.errors import UserError

EXPECTED = '<category>.csv or <category>/data.csv, with the columns file, split'
EXPECTED += ', label, mask'
VALIDATES = True

_NAME = 'data.csv'
_GOOD = frozenset(('good', 'ok', 'normal', '0'))
_SPLITS = {
  'train': 'train',
  'test': 'test',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
}
_DELIMITERS = ',;\t'
_HEADER_BYTES = 4096


class Columns(NamedTuple):
  """What the columns of a table are called."""

  file: str = 'file'
  split: str = 'split'
  label: str = 'label'
  mask: str = 'mask'


class Row(NamedTuple):
  """A line of a table: its number, and its fields by column."""

  number: int
  fields: dict[str, str]


def candidates(data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
  """What may be categories: folders, and where a table's folder would be."""
  tables = []
  for path in data_dir.iterdir():
    if path.is_dir():
      yield path
    elif path.suffix == '.csv':
      tables.append(path.with_suffix(''))
  # A folder and a table of one name are one category, or an error.
  yield from (path for path in tables if not path.is_dir())


def is_category(folder: pathlib.Path) -> bool:
  """Whether there is a table that says what images are."""
  return bool(_find(folder))


def read(folder: pathlib.Path) -> Contents:
  """Reads a category's table.

  Args:
    folder: the category's; of the table `<category>.csv` the path without its
      suffix.

  Returns:
    The images, sorted by path.

  Raises:
    UserError: for the first line that is wrong.
  """
  table, *others = _find(folder) or [folder / _NAME]
  if others:
    raise UserError(
      f'{table} and {others[0]} both say what {folder.name} is: remove one, or'
      f' call one of them {_NAME}'
    )
  return gather(
    table,
    read_rows(table, Columns()._replace(mask='')),
    Columns(),
    root=table.parent,
  )


def read_rows(table: pathlib.Path, columns: Iterable[str]) -> Iterator[Row]:
  """The lines of a table that are not empty.

  Args:
    table: a CSV file.
    columns: those it must have.

  Raises:
    UserError: if it cannot be read, has no such columns, or a line has too many
      fields or too few.
  """
  data = encoded.read_bytes(table)
  try:
    text = data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    number = data[: error.start].count(b'\n') + 1
    raise UserError(
      f'{table} line {number} is no UTF-8: save the table as CSV in UTF-8'
    ) from error
  delimiter, wanted = _delimiter(text), ','.join(filter(None, columns))
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
  header = None
  try:
    for fields in reader:
      fields = [field.strip() for field in fields]
      if not any(fields):
        continue
      number = reader.line_num
      if header is None:
        header = [field.lower() for field in fields]
        for column in filter(None, columns):
          if header.count(column) != 1:
            raise UserError(
              f'{table} line {number} names {header.count(column)} columns'
              f' {column!r}: begin the table with {wanted}'
            )
        continue
      # Spreadsheets leave out what is empty at the end, or add to it.
      if any(fields[len(header) :]):
        raise UserError(
          f'{table} line {number} has {len(fields)} fields and the first line'
          f' {len(header)}: put what has a {delimiter!r} in it in quotes'
        )
      fields += [''] * (len(header) - len(fields))
      yield Row(number, dict(zip(header, fields, strict=False)))
  except csv.Error as error:
    raise UserError(
      f'{table} line {reader.line_num} cannot be understood ({error}): save the'
      ' table as CSV'
    ) from error
  if header is None:
    raise UserError(f'{table} is empty: begin it with {wanted}')


def gather(
  table: pathlib.Path,
  rows: Iterable[Row],
  columns: Columns,
  *,
  root: pathlib.Path,
  base: pathlib.Path | None = None,
) -> Contents:
  """Makes contents of lines.

  Args:
    table: the file they are from, for errors.
    rows: the lines.
    columns: what its columns are called.
    root: the folder that the members' paths are to be relative to, if all files
      are in it; otherwise it is the one that all are in.
    base: the folder that the table's paths are relative to; by default its own.

  Raises:
    UserError: for the first line that is wrong, or if there are no good images
      to train on.
  """
  base = pathlib.Path(os.path.abspath(base or table.parent))
  line_of: dict[str, int] = {}
  found, left_out, unmasked, masked = [], 0, None, False
  for row in rows:
    entry = _Entry(table, row, columns, base)
    split, label = entry.split(), entry.label()
    file = entry.path(columns.file)
    if file in line_of:
      raise entry.wrong(
        columns.file, f'is that of line {line_of[file]}, too: remove one'
      )
    line_of[file] = row.number
    is_anomalous = label.lower() not in _GOOD
    if is_anomalous and split != 'test':
      left_out += 1
      continue
    mask = None
    if row.fields.get(columns.mask):
      mask = entry.path(columns.mask)
    if split == 'test' and is_anomalous:
      masked = masked or mask is not None
      if mask is None and unmasked is None:
        unmasked = entry
    kind = label if is_anomalous else 'good'
    found.append((split, file, kind, is_anomalous, mask))
  if masked and unmasked:
    raise unmasked.wrong(
      columns.mask,
      'is empty, and other defects have one: name it, or leave all empty',
    )
  if not any(split == 'train' for split, *_ in found):
    raise UserError(
      f'{table} names no good image to train on: give some the'
      f' {columns.split} train and the {columns.label} good'
    )
  paths = [path for _, file, *_, mask in found for path in (file, mask) if path]
  root = _common(os.path.abspath(root), paths)
  relative = lambda path: (
    path and os.path.relpath(path, root).replace(os.sep, '/')
  )
  splits = {'train': [], 'validation': [], 'test': []}
  for split, file, kind, is_anomalous, mask in sorted(
    found, key=lambda entry: entry[1]
  ):
    splits[split].append(
      Member(relative(file), kind, is_anomalous, relative(mask))
    )
  return Contents(**splits, left_out=left_out, root=pathlib.Path(root))


class _Entry:
  """A line, whose fields are asked for one by one."""

  def __init__(
    self,
    table: pathlib.Path,
    row: Row,
    columns: Columns,
    base: pathlib.Path,
  ):
    self._table, self._row, self._columns = table, row, columns
    self._base = base

  def split(self) -> str:
    value = self._row.fields[self._columns.split].lower()
    if value not in _SPLITS:
      raise self.wrong(
        self._columns.split, 'is none of train, validation and test'
      )
    return _SPLITS[value]

  def label(self) -> str:
    value = self._row.fields[self._columns.label]
    if not value:
      raise self.wrong(
        self._columns.label, 'is empty: write good, or the kind of defect'
      )
    return value

  def path(self, column: str) -> str:
    """The absolute path of a file that is there."""
    value = self._row.fields[column]
    if not value:
      raise self.wrong(column, 'is empty: name the image')
    path = os.path.normpath(self._base / value)
    if not os.path.exists(path) and '\\' in value:
      path = os.path.normpath(self._base / value.replace('\\', '/'))
    if '\0' in value or not os.path.isfile(path):
      raise self.wrong(column, f'is no file ({path}): add it, or correct it')
    return path

  def wrong(self, column: str, problem: str) -> UserError:
    value = self._row.fields.get(column, '')
    return UserError(
      f'{self._table} line {self._row.number}, field {column}:'
      f' {value!r} {problem}'
    )


def _find(folder: pathlib.Path) -> list[pathlib.Path]:
  """The tables of a category: more than one if that is not clear."""
  found = []
  beside = folder.parent / f'{folder.name}.csv'
  if folder.name and _is_table(beside):
    found.append(beside)
  if _is_table(folder / _NAME):
    found.append(folder / _NAME)
  elif folder.is_dir():
    found += [path for path in sorted(folder.glob('*.csv')) if _is_table(path)]
  return found


def _is_table(path: pathlib.Path) -> bool:
  """Whether the first line of a file names columns, if not all of them."""
  if not path.is_file():
    return False
  try:
    with open(path, 'rb') as file:
      lines = itertools.islice(file, 1)
      text = b''.join(lines)[:_HEADER_BYTES].decode('utf-8-sig', 'replace')
  except OSError:
    return False
  fields = next(csv.reader([text], delimiter=_delimiter(text)), [])
  names = {field.strip().lower() for field in fields}
  # Of one that lacks a column it is to be said; other tables name files, too.
  return Columns().file in names and len(names.intersection(Columns())) > 1


def _delimiter(text: str) -> str:
  """What divides the fields of the first line."""
  first = text.lstrip().partition('\n')[0]
  return max(_DELIMITERS, key=first.count)


def _common(root: str, paths: list[str]) -> str:
  """A folder that all paths are in: `root`, if it is one."""
  folders = [os.path.dirname(path) for path in paths]
  is_inside = os.path.commonpath([root, *folders]) == root
  return root if is_inside else os.path.commonpath(folders)
