"""What must hold of what a command has written."""

import hashlib
import json
import pathlib
import warnings
from collections.abc import Mapping

from PIL import ExifTags, Image

from .judge import Check, Wrong
from .place import TABLE, Place, read_rows
from .process import Result, fork

# Those that the docs list, as Pillow calls them.
_FORMATS = 'BMP', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP'


def table(
  place: Place,
  pictures: Mapping[str, str],
  *,
  doubtful: str = '',
  original: str = '',
) -> Check:
  """Of `predict`: each image has the row of its picture.

  Args:
    place: which has the pictures.
    pictures: the picture of each sound image, by the image's name.
    doubtful: an image that is damaged. It has the row of its original, or is
      named on stderr; or its pixels are others now.
    original: the picture it was; empty if it never was one.
  """

  def check(result: Result, folder: pathlib.Path) -> str:
    if not (folder / TABLE).exists():
      raise Wrong(f'status {result.status} and no table')
    rows = read_rows(folder / TABLE)
    for name, picture in pictures.items():
      if rows.get(name) != place.rows[picture]:
        raise Wrong(f'{name} has {rows.get(name)}, not {place.rows[picture]}')
    extra = sorted(rows.keys() - pictures.keys() - {doubtful})
    if extra:
      raise Wrong(f'there are rows of {extra[:3]}')
    if not doubtful:
      if result.status:
        raise Wrong(f'all is in the table, with status {result.status}')
      return 'clean'
    if doubtful not in rows:
      if not result.status or not _is_named(doubtful, result.err):
        raise Wrong(f'{doubtful} is in no row, with status {result.status}')
      return 'refused'
    if result.status:
      raise Wrong(f'all is in the table, with status {result.status}')
    if original and rows[doubtful] == place.rows[original]:
      return 'clean'
    found = pixels(folder / 'photos' / doubtful, folder)
    if not found:
      raise Wrong(f'{doubtful}, which Pillow cannot read, has {rows[doubtful]}')
    if original:
      sound = pixels(place.get('pictures') / original, folder)
      if found == sound:
        raise Wrong(
          f'{doubtful}, whose pixels are those of {original}, has'
          f' {rows[doubtful]}, not {place.rows[original]}'
        )
    return 'other'

  return check


def results(place: Place, *, or_other: bool = False) -> Check:
  """Of `main`: `results.json` is that of the sound category.

  Args:
    place: which has it.
    or_other: whether other results can be right, too.
  """

  def check(result: Result, folder: pathlib.Path) -> str:
    path = folder / 'run' / 'results.json'
    found = path.read_text() if path.exists() else 'none'
    if found == place.results:
      return 'clean'
    if or_other:
      return 'other'
    raise Wrong(f'results.json differs: {_differences(found, place.results)}')

  return check


def pixels(path: pathlib.Path, folder: pathlib.Path) -> str:
  """A checksum of what Pillow alone reads of a file; empty if nothing.

  Args:
    path: of the file.
    folder: for what the process writes.
  """
  inner = folder / '.look'
  inner.mkdir(exist_ok=True)
  found = fork(lambda: print(_look(path)), folder=inner, limit=30)
  return found.out.strip() if not found.status else ''


def _look(path: pathlib.Path) -> str:
  warnings.simplefilter('ignore')
  Image.MAX_IMAGE_PIXELS = None
  with Image.open(path, formats=_FORMATS) as image:
    image.load()
    digest = hashlib.sha256(image.tobytes())
    try:
      turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # A broken side chunk turns nothing.
      turned = 1
    digest.update(repr((image.mode, image.size, turned)).encode())
    digest.update(repr(image.getpalette()).encode())
  return digest.hexdigest()


def _is_named(name: str, text: str) -> bool:
  """Whether a name stands in a text, as it is or escaped."""
  if name in text:
    return True
  escaped = name.encode('unicode_escape').decode()
  return escaped in text or longest_plain_part(name) in text


def longest_plain_part(name: str) -> str:
  """The longest part of a name that no output writes in another way."""
  plain = ''.join(
    c if c.isascii() and (c.isalnum() or c in '._') else ' ' for c in name
  )
  return max(plain.split() or [''], key=len)[:40]


def _differences(found: str, sound: str) -> str:
  try:
    one, other = json.loads(found), json.loads(sound)
    names = [key for key in other if one.get(key) != other[key]]
  except (ValueError, AttributeError):
    return found[:80]
  return ', '.join(f'{key} {one.get(key)} for {other[key]}' for key in names)[
    :200
  ]
