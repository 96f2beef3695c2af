"""The folder that predictions are written to: a table and two pictures each.

`predictions.csv` has a row for each image. `overlays/` and `maps/` have a PNG
for each at the same place as in the folder of images. A row is written after
its pictures, so that whatever ends the run, what is in the table is whole.
"""

import csv
import fcntl
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from draem_jax import names
from draem_jax.data import images
from draem_jax.errors import UserError
from draem_jax.pictures.naming import picture_name
from draem_jax.workdir import storage

TABLE = 'predictions.csv'
OVERLAYS, MAPS = 'overlays', 'maps'
_SETTINGS = 'predict.json'
_HEADER = ['file', 'score', 'is_anomalous', 'area']


class Predictions:
  """The table and the pictures of one folder.

  Attributes:
    verdicts: of the images in the table, by name.
  """

  def __init__(
    self, folder: str | os.PathLike[str], settings: Mapping[str, Any]
  ):
    """Opens the folder, which is made if need be, to begin or to go on.

    Args:
      folder: where all is written.
      settings: what must not change while the folder fills: plain values by a
        name in words.

    Raises:
      UserError: if the folder cannot be made, holds something else, or was
        begun with other settings, or if another process writes to it.
    """
    self.folder = pathlib.Path(folder)
    self.verdicts: dict[str, bool] = {}
    self._claim(settings)
    self._table = (self.folder / TABLE).open('ab+')
    try:
      self._lock()
      self._read()
    except BaseException:
      self.close()
      raise

  def add(
    self,
    name: str,
    *,
    score: float,
    is_anomalous: bool,
    area: float,
  ) -> None:
    """Writes the row of an image whose pictures are written.

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

  def write_pictures(
    self,
    name: str,
    *,
    overlay: UInt8[np.ndarray, 'h w 3'],
    levels: UInt16[np.ndarray, 'h w'],
  ) -> None:
    """Writes the pictures of an image.

    Args:
      name: of the file, relative to the folder of images.
      overlay: the image with its heat map.
      levels: its anomaly map, 65535 for 1.
    """
    for folder, picture in ((OVERLAYS, overlay), (MAPS, levels)):
      path = self.folder / folder / picture_name(name)
      path.parent.mkdir(parents=True, exist_ok=True)
      # The same name each time: what a killed run leaves is written over.
      partial = names.partial(path)
      try:
        partial.write_bytes(images.encode_png(picture))
        os.replace(partial, path)
      except OSError as error:
        error.filename = error.filename or str(partial)
        raise

  def close(self) -> None:
    """Closes the table, and lets other processes write to the folder."""
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
    if not path.exists():
      for name in (TABLE, OVERLAYS, MAPS):
        if (self.folder / name).exists():
          raise UserError(
            f'{self.folder / name} was not written by draem_jax.predict: take'
            ' another --output'
          )
      storage.write_json(path, dict(settings))
      return
    try:
      found = json.loads(path.read_text(encoding='utf-8'))
      changed = [
        f'{name} {value} (there {found[name]})'
        for name, value in settings.items()
        if found[name] != value
      ]
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f'{path} is damaged ({error!r}): take another --output'
      ) from error
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

  def _read(self) -> None:
    """Reads the table; drops a last row that was cut short."""
    self._table.seek(0)
    rows = self._table.read()
    whole = rows[: rows.rfind(b'\n') + 1]
    # A name may hold line breaks, between quotes.
    while whole.count(b'"') % 2:
      whole = whole[: whole.rfind(b'\n', 0, -1) + 1]
    self._table.truncate(len(whole))
    if not whole:
      self._append(_HEADER)
      return
    try:
      header, *rows = csv.reader(
        io.StringIO(names.from_bytes(whole), newline='')
      )
      if header != _HEADER:
        raise ValueError(f'its columns are {", ".join(header)}')
      self.verdicts = {name: word == 'true' for name, _, word, _ in rows}
    except (ValueError, csv.Error) as error:
      raise UserError(
        f'{self.folder / TABLE} is damaged ({error}): take another --output'
      ) from error

  def _append(self, row: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow(row)
    try:
      self._table.write(names.to_bytes(text.getvalue()))
      self._table.flush()
    except OSError as error:
      error.filename = error.filename or str(self.folder / TABLE)
      raise
