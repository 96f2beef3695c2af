"""The layout of DAGM 2007.

It has `<category>/Train/NNNN.PNG` and `<category>/Test/NNNN.PNG`. In each of
these two folders lies `Label`, with `NNNN_label.PNG` for the defective images
only and with `Labels.txt`, which says which they are: `1` on the first line,
then a line an image, its fields separated by tabs,

  0002  1  0002.PNG  0  0002_label.PNG
  0001  0  0001.PNG  0  0

DRÆM is trained on good images, so that the defective ones of `Train` are left
out. The label pictures are ellipses drawn roughly around the defects: they tell
where to look, but no pixel is compared with them. Names may be in upper or in
lower case. Without `Test` there is nothing to evaluate.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from draem_jax.data import encoded, images
from draem_jax.data.layouts.contents import Contents, Member, list_images
from draem_jax.errors import UserError

EXPECTED = '<category>/Train/*.PNG and <category>/Train/Label/Labels.txt'

_TRAIN, _TEST, _LABEL, _TABLE = 'Train', 'Test', 'Label', 'Labels.txt'
_NO_LABEL = '0'
_EXAMPLE = '0002<tab>1<tab>0002.PNG<tab>0<tab>0002_label.PNG'


def is_category(folder: pathlib.Path) -> bool:
  """Whether a folder has images to train on, or at least what labels them."""
  train = _find(folder, _TRAIN)
  return train.is_dir() and (
    _find(train, _LABEL).is_dir() or any(map(images.is_image, train.iterdir()))
  )


def is_surely(folder: pathlib.Path) -> bool:
  """Whether there is what labels images, which no other layout has."""
  return _find(_find(folder, _TRAIN), _LABEL).is_dir()


def read(folder: pathlib.Path) -> Contents:
  """Finds out which images are good, and the label pictures of the others.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path, without the defective ones of `Train`.

  Raises:
    UserError: if there are no good images to train on, or if the images, the
      label pictures and `Labels.txt` do not fit together.
  """
  train, test = _find(folder, _TRAIN), _find(folder, _TEST)
  labeled = _read_part(train)
  good = [member for member in labeled if not member.is_anomalous]
  if not good:
    raise UserError(
      f'{train} holds no good images: put some there and name them in'
      f' {_find(_find(train, _LABEL), _TABLE)}'
    )
  tested = _read_part(test) if test.is_dir() else []
  left_out = len(labeled) - len(good)
  return Contents(good, tested, left_out=left_out, coarse_masks=True)


def _read_part(part: pathlib.Path) -> list[Member]:
  """The images of `Train` or `Test`, good and defective, sorted by path."""
  label = _find(part, _LABEL)
  table = _find(label, _TABLE)
  if not table.exists():
    raise UserError(
      f'{table} is missing: copy it from the data set, as it says which images'
      f' of {part} are defective'
    )
  names = list_images(part)
  is_picture = lambda name: name.startswith(f'{label.name}/')
  pictures = _Names(
    name.removeprefix(f'{label.name}/') for name in names if is_picture(name)
  )
  files = _Names(name for name in names if not is_picture(name))
  members = {}
  for line in _read_table(table):
    file = files.take(line.file)
    if file is None:
      again = files.find(line.file) is not None
      problem = 'has a line already' if again else f'is not in {part}'
      remedy = '' if again else 'add the image, or '
      raise UserError(
        f'{table} names {line.file} on line {line.number}, which {problem}:'
        f' {remedy}remove the line'
      )
    mask = None
    if line.is_defective:
      picture = line.picture and pictures.take(line.picture)
      if not picture:
        expected = line.picture or f'{pathlib.Path(file).stem}_label.PNG'
        raise UserError(
          f'{part / file} is defective, as line {line.number} of {table} says,'
          f' and has no label picture: add {label / expected} and name it'
          ' there, or remove image and line'
        )
      mask = f'{part.name}/{label.name}/{picture}'
    defect = 'defective' if line.is_defective else 'good'
    path = f'{part.name}/{file}'
    members[file] = Member(path, defect, line.is_defective, mask)
  if files.left:
    raise UserError(
      f'{part / files.first} is on no line of {table}: add one that says'
      ' whether it is defective, or remove the image'
    )
  if pictures.left:
    raise UserError(
      f'{label / pictures.first} is a label picture without a defective image:'
      f' name both on a line of {table}, or remove it'
    )
  return [members[name] for name in names if name in members]


class _Line(NamedTuple):
  number: int
  file: str
  is_defective: bool
  picture: str  # Empty if there is none.


def _read_table(table: pathlib.Path) -> Iterator[_Line]:
  """The images that `Labels.txt` names."""
  # What is no text becomes a name that no file has.
  text = encoded.read_bytes(table).decode('utf-8-sig', errors='replace')
  for number, line in enumerate(text.splitlines(), 1):
    fields = [field.strip() for field in line.rstrip().split('\t')]
    if fields == [''] or (number == 1 and len(fields) == 1):
      continue
    well_formed = (
      len(fields) == 5
      and all(fields)
      and fields[1] in ('0', '1')
      # A good image has no label picture.
      and (fields[1] == '1' or fields[4] == _NO_LABEL)
    )
    if not well_formed:
      # As a defect is told by a picture, and a good image by none.
      raise UserError(
        f'{table} cannot be understood on line {number}, {line.rstrip()!r}:'
        f' write it as {_EXAMPLE}, or with 0 instead of 1 and of the label'
        ' picture for a good image'
      )
    picture = '' if fields[4] == _NO_LABEL else fields[4]
    yield _Line(number, fields[2], fields[1] == '1', picture)


class _Names:
  """Names of files, found in any case, each taken once."""

  def __init__(self, names: Iterable[str]):
    self.left = dict.fromkeys(names)
    self._by_any_case = {name.lower(): name for name in self.left}
    self._all = frozenset(self.left)

  @property
  def first(self) -> str:
    """The first that is left."""
    return next(iter(self.left))

  def find(self, name: str) -> str | None:
    """The file that a name means."""
    return name if name in self._all else self._by_any_case.get(name.lower())

  def take(self, name: str) -> str | None:
    """The same, unless it was taken before."""
    found = self.find(name)
    if found not in self.left:
      return None
    del self.left[found]
    return found


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path in a folder of that name, in another case if there is none."""
  path = folder / name
  if path.exists() or not folder.is_dir():
    return path
  same = (one for one in folder.iterdir() if one.name.lower() == name.lower())
  return min(same, default=path)
