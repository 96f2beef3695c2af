"""The folder that predictions are written to: a table and two pictures each.

`predictions.csv` has a row for each image. `overlays/` and `maps/` have a PNG
for each at the same place as in the folder of images. `predictions.json` has
the regions of all (`detection.notes`). A row is written after its pictures and
its regions, so that whatever ends the run, what is in the table is whole.

A table that was opened and saved in a spreadsheet comes back with other
separators, line breaks and numbers. What of it can be read in one way only is
read, and written back as it was; any other row is refused by its line.
"""

import csv
import dataclasses
import decimal
import fcntl
import functools
import io
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from draem_jax import names
from draem_jax.data import files, png
from draem_jax.detection import notes
from draem_jax.errors import UserError
from draem_jax.pictures.naming import picture_name
from draem_jax.workdir import storage

_log = logging.getLogger(__name__)

TABLE = 'predictions.csv'
OVERLAYS, MAPS = 'overlays', 'maps'
REGIONS = 'predictions.json'
_SETTINGS = 'predict.json'
# What the settings of a folder say that was begun before there was a choice.
_EARLIER = {'choice of boxes': False, 'longest side of overlays': 0}
_HEADER = ['file', 'score', 'is_anomalous', 'area']
_SEPARATORS = ',', ';', '\t'
# What a spreadsheet that shows two decimals may have taken from a score.
_MOST_ROUNDED = 0.005


class Predictions:
  """The table and the pictures of one folder.

  Attributes:
    verdicts: of the images in the table, by name.
    notes: of the regions of each image, written before its row.
  """

  def __init__(
    self, folder: str | os.PathLike[str], settings: Mapping[str, Any]
  ):
    """Opens the folder, which is made if need be, to begin or to go on.

    Args:
      folder: where all is written.
      settings: what must not change while the folder fills: plain values by a
        name in words, among them the `threshold` of the scores.

    Raises:
      UserError: if the folder cannot be made, holds something else, or was
        begun with other settings, or if another process writes to it.
    """
    self.folder = pathlib.Path(folder)
    self.verdicts: dict[str, bool] = {}
    self._settings = dict(settings)
    self._claim(settings)
    for path in (self.folder / TABLE, self.folder / notes.FILE):
      if path.exists() and not path.is_file():
        raise UserError(f'{path} is not a file: take another --output')
    self._table = (self.folder / TABLE).open('ab+')
    try:
      self._lock()
      storage.clear_partial(self.folder, deep=True)
      self._read(settings.get('threshold'))
      self.notes = notes.Notes(self.folder, self.verdicts)
    except BaseException:
      self._table.close()
      raise

  def add(
    self,
    name: str,
    *,
    score: float,
    is_anomalous: bool,
    area: float,
  ) -> None:
    """Writes the row of an image whose pictures and regions are written.

    Args:
      name: of the file, relative to the folder of images.
      score: its score.
      is_anomalous: its verdict.
      area: share of its pixels that are anomalous.
    """
    # Nine digits name a float32 exactly.
    verdict = str(is_anomalous).lower()
    self._append([name, f'{score:.9g}', verdict, f'{area:.6g}'])
    self.verdicts[name] = is_anomalous

  def write_regions(self) -> None:
    """Writes those of all images in the table to `predictions.json`."""
    path = self.folder / REGIONS
    count = self.notes.write_coco(path, self._settings, self.verdicts)
    if lacking := len(self.verdicts) - count:
      _log.warning(
        '%s lacks %d of %d images, whose regions were not noted when they were'
        ' scored: take another --output for all of them',
        *(path, lacking, len(self.verdicts)),
      )

  def write_pictures(
    self,
    name: str,
    *,
    overlay: Iterable[UInt8[np.ndarray, '_ w 3']],
    levels: Iterable[UInt16[np.ndarray, '_ w']],
  ) -> None:
    """Writes the pictures of an image.

    Args:
      name: of the file, relative to the folder of images.
      overlay: strips of the image with its heat map.
      levels: strips of its anomaly map, 65535 for 1.
    """
    for folder, strips in ((OVERLAYS, overlay), (MAPS, levels)):
      path = self.folder / folder / picture_name(name)
      with storage.atomic_file(path) as file:
        png.write(file, strips)

  def close(self) -> None:
    """Closes the table, and lets other processes write to the folder."""
    self.notes.close()
    self._table.close()

  def _claim(self, settings: Mapping[str, Any]) -> None:
    """Writes the settings, or checks those there against these."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'--output={self.folder} cannot be made ({error.strerror}): name'
        ' another folder'
      ) from error
    path = self.folder / _SETTINGS
    # A link that leads nowhere is there, too.
    if not os.path.lexists(path):
      for name in (TABLE, OVERLAYS, MAPS, REGIONS, notes.FILE):
        if (self.folder / name).exists():
          raise UserError(
            f'{self.folder / name} was not written by draem_jax.predict: take'
            ' another --output'
          )
      storage.write_json(path, dict(settings))
      return
    remedy = 'take another --output'
    try:
      found = _EARLIER | storage.read_json(path, remedy=remedy)
    except FileNotFoundError as error:
      raise UserError(f'{path} is a link to no file: {remedy}') from error
    for name, value in settings.items():
      if type(found.get(name)) is not type(value):
        raise UserError(
          f'{path} is damaged ({name} is {found.get(name)!r:.80}): {remedy}'
        )
    changed = [
      f'{name} {value} (there {found[name]})'
      for name, value in settings.items()
      if found[name] != value
    ]
    if changed:
      raise UserError(
        f'{self.folder} holds predictions with another {", ".join(changed)}:'
        ' take another --output'
      )

  def _lock(self) -> None:
    try:
      fcntl.flock(self._table, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f'another process is writing to {self.folder}: wait for it, or take'
        ' another --output'
      ) from error
    except OSError:
      pass  # Not every file system has locks.

  def _read(self, threshold: float | None) -> None:
    """Reads the table; drops a last row that was cut short."""
    self._table.seek(0)
    found = self._table.read()
    whole = found[: found.rfind(b'\n') + 1]
    # A name may hold line breaks, between quotes.
    while whole.count(b'"') % 2:
      whole = whole[: whole.rfind(b'\n', 0, -1) + 1]
    header = _as_text(_HEADER).encode()
    try:
      if not whole and not header.startswith(found):
        raise ValueError('it does not begin with the names of its columns')
      rows = _parse(whole, threshold) if whole else {}
    except (ValueError, csv.Error) as error:
      raise UserError(
        f'{self.folder / TABLE} is damaged ({error}): mend or delete that line,'
        ' or take another --output'
      ) from error
    self.verdicts = {name: row.is_anomalous for name, row in rows.items()}
    ours = header + b''.join(
      names.to_bytes(_as_text(row.cells())) for row in rows.values()
    )
    if whole == ours:
      self._table.truncate(len(whole))
      return
    if rows:
      _log.info(
        '%s was saved by another program: its %d rows are kept, as they are',
        *(self.folder / TABLE, len(rows)),
      )
    # By one who is killed in between, rows are lost and scored again.
    self._table.truncate(0)
    storage.append(self._table, ours)

  def _append(self, row: list[str]) -> None:
    storage.append(self._table, names.to_bytes(_as_text(row)))


class _Row(NamedTuple):
  """A row of the table, its numbers as they stand there."""

  name: str
  score: str
  is_anomalous: bool
  area: str

  def cells(self) -> list[str]:
    """The row as it is written."""
    verdict = str(self.is_anomalous).lower()
    return [self.name, self.score, verdict, self.area]


def _parse(data: bytes, threshold: float | None) -> dict[str, _Row]:
  """The rows of a table by name, as we or a spreadsheet wrote them.

  Raises:
    ValueError: if something of it may mean anything else; it names the line.
  """
  if data.startswith((b'\xff\xfe', b'\xfe\xff')):
    raise ValueError('it is UTF-16: save it as CSV in UTF-8')
  text = names.from_bytes(data.removeprefix(b'\xef\xbb\xbf'))
  first, line_break, rest = text.partition('\n')
  before = 0
  if first.startswith('sep='):
    text, before = rest, 1
    first = text.partition('\n')[0]
  separator = max(_SEPARATORS, key=first.count)
  reader = csv.reader(
    io.StringIO(text, newline=''), delimiter=separator, strict=True
  )
  columns = [cell.strip() for cell in next(reader)]
  while columns and not columns[-1]:
    columns.pop()
  if sorted(columns) != sorted(_HEADER):
    raise ValueError(f'its columns are {", ".join(columns):.200}')
  places = [columns.index(name) for name in _HEADER]
  rows: dict[str, _Row] = {}
  line = before + reader.line_num
  for cells in reader:
    line, begins = before + reader.line_num, line + 1
    if not any(cells):
      continue
    where = f'line {begins}'
    if len(cells) < len(columns) or any(cells[len(columns) :]):
      raise ValueError(f'{where} has {len(cells)} cells')
    name, score, word, area = (cells[place] for place in places)
    if not name:
      raise ValueError(f'{where} names no file')
    verdicts = {'true': True, 'false': False}
    verdict = verdicts.get(word.strip().lower())
    if verdict is None:
      raise ValueError(f'{where}: {word!r:.80} is not true or false')
    row = _Row(
      name,
      _number(score, f'{where}: the score'),
      verdict,
      _number(area, f'{where}: the area'),
    )
    if threshold is not None and _contradicts(row, threshold):
      raise ValueError(
        f'{where}: {word} contradicts the score {row.score}, for the threshold'
        f' is {threshold:.9g}'
      )
    if rows.setdefault(name, row) != row:
      raise ValueError(f'{where} differs from another of {name!r:.80}')
  return rows


def _number(text: str, what: str) -> str:
  """A number in [0, 1] as we write it: some write a comma for the point."""
  number = text.strip()
  if number.count(',') == 1 and '.' not in number:
    number = number.replace(',', '.')
  try:
    # A mean of ones may be rounded up.
    is_share = 0 <= float(number) <= 1 + 1e-6 and '_' not in number
  except ValueError:
    is_share = False
  if not is_share:
    raise ValueError(f'{what} is {text!r:.80}, which is not 0 to 1')
  return number


def _contradicts(row: _Row, threshold: float) -> bool:
  """Whether a row's verdict cannot come of its score, as far as it is known."""
  # As the score was before it was written.
  score = float(np.float32(row.score))
  if (score > threshold) == row.is_anomalous:
    return False
  last = decimal.Decimal(row.score).as_tuple().exponent
  rounded = min(10.0**last / 2, _MOST_ROUNDED)
  return not math.isclose(score, threshold, rel_tol=0, abs_tol=rounded)


def _as_text(row: list[str]) -> str:
  text = io.StringIO()
  # Only what ends lines is quoted, and a name may hold either character.
  csv.writer(text, lineterminator='\r\n').writerow(row)
  return text.getvalue().removesuffix('\r\n') + '\n'


def leave_out_own(found: files.Found) -> files.Found:
  """What was found, without the pictures that this package wrote among it.

  These are the overlays and maps of other predictions, and whatever lies in the
  folder of a run; in that of the run itself its figures.

  Raises:
    UserError: if nothing else was found.
  """

  @functools.cache
  def is_run(folder: str) -> bool:
    path = found.root / folder
    return (path / 'config.json').is_file() and (path / 'checkpoints').is_dir()

  @functools.cache
  def is_own(folder: str) -> bool:
    outer, _, name = folder.rpartition('/')
    return (
      is_run(folder)
      or (name == 'figures' and is_run(outer))
      or (
        name in (OVERLAYS, MAPS) and (found.root / outer / _SETTINGS).is_file()
      )
    )

  @functools.cache
  def is_inside(folder: str) -> bool:
    parts = folder.split('/') if folder else []
    return any(is_own('/'.join(parts[: n + 1])) for n in range(len(parts)))

  kept, own = [], []
  for name in found.names:
    (own if is_inside(name.rpartition('/')[0]) else kept).append(name)
  if not own:
    return found
  if not kept:
    raise UserError(
      f'{found.root} holds no image but {len(own)} that draem_jax wrote, such'
      f' as {own[0]!r:.200}: name the folder of the photos'
    )
  _log.info(
    'left out %d pictures in %s that draem_jax wrote, such as %.200r',
    *(len(own), found.root, own[0]),
  )
  return dataclasses.replace(found, names=kept)
