"""The regions of all images of a folder, noted as they are found.

`regions.jsonl` has a line for each image; in the end `predictions.json`, as
COCO has it, is made of them. Behind the JSON of a line stands its checksum:
other numbers would look just as well.
"""

import io
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from draem_jax.detection.regions import Region
from draem_jax.errors import UserError
from draem_jax.workdir import storage

FILE = 'regions.jsonl'
_FIELDS = {
  'file_name': str,
  'height': int,
  'width': int,
  'score': float,
  'annotations': list,
}
_REGION_FIELDS = ['bbox', 'area', 'peak', 'segmentation']


class Notes:
  """The notes in one folder.

  Attributes:
    path: of their file.
  """

  def __init__(self, folder: pathlib.Path, names: Iterable[str]):
    """Opens the notes of a folder, which are made if need be.

    Args:
      folder: where they are.
      names: of the images that are done; other notes are dropped, for those
        images are scored again.

    Raises:
      UserError: if they are damaged.
    """
    self.path = folder / FILE
    names = set(names)
    if self.path.exists():
      with storage.atomic_file(self.path) as file:
        for line, note in self._read():
          if note['file_name'] in names:
            file.write(line)
    self._file = self.path.open('ab')

  def add(
    self,
    name: str,
    *,
    size: tuple[int, int],
    score: float,
    regions: Sequence[Region],
  ) -> None:
    """Notes the regions of an image, which are none if it is good.

    Args:
      name: of the file, relative to the folder of images.
      size: the image's height and width.
      score: its score.
      regions: of its mask.
    """
    annotations = [region.as_dict() for region in regions]
    values = (name, *size, score, annotations)
    note = json.dumps(dict(zip(_FIELDS, values, strict=True))).encode()
    storage.append(self._file, b'%s\t%08x\n' % (note, zlib.crc32(note)))

  def write_coco(
    self, path: pathlib.Path, info: Mapping[str, Any], verdicts: dict[str, bool]
  ) -> int:
    """Writes them as COCO has regions; returns of how many images.

    Args:
      path: of the file.
      info: what is said of all.
      verdicts: of the images, by name.
    """
    with storage.atomic_file(path) as file:
      file.write(f'{{"info": {json.dumps(info)},\n"images": ['.encode())
      count = _write_entries(file, self._images(verdicts))
      file.write(b'],\n"annotations": [')
      _write_entries(file, self._annotations())
      file.write(b'],\n"categories": [{"id": 1, "name": "anomaly"}]}\n')
    return count

  def close(self) -> None:
    """Closes their file."""
    self._file.close()

  def _read(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines, but for a last one that was cut short, and what they say."""
    with self.path.open('rb') as file:
      for number, line in enumerate(file, 1):
        if not line.endswith(b'\n'):
          return
        try:
          note = _parse(line)
        except ValueError as error:
          raise UserError(
            f'{self.path} is damaged (line {number}: {error}): take another'
            ' --output'
          ) from error
        yield line, note

  def _images(self, verdicts: dict[str, bool]) -> Iterator[dict[str, Any]]:
    for number, (_, note) in enumerate(self._read(), 1):
      note.pop('annotations')
      verdict = verdicts[note['file_name']]
      yield {'id': number, **note, 'is_anomalous': verdict}

  def _annotations(self) -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    for number, (_, note) in enumerate(self._read(), 1):
      for region in note['annotations']:
        own = {'id': next(ids), 'image_id': number, 'category_id': 1}
        yield own | region | {'iscrowd': 0}


def _parse(line: bytes) -> dict[str, Any]:
  """A line's note.

  Raises:
    ValueError: if something of it is not as it was written.
  """
  data, _, checksum = line[:-1].partition(b'\t')
  # Notes of earlier versions have none.
  if checksum and checksum != b'%08x' % zlib.crc32(data):
    raise ValueError('its checksum is another')
  note = storage.parse_json(data)
  if list(note) != list(_FIELDS):
    raise ValueError(f'it has the fields {", ".join(note):.200}')
  for name, kind in _FIELDS.items():
    if type(note[name]) is not kind:
      raise ValueError(f'{name} is {note[name]!r:.80}')
  for region in note['annotations']:
    if not isinstance(region, dict) or list(region) != _REGION_FIELDS:
      raise ValueError(f'a region is {region!r:.80}')
  return note


def _write_entries(
  file: io.BufferedIOBase, entries: Iterable[dict[str, Any]]
) -> int:
  """Writes the elements of a list of JSON, a line each; returns how many."""
  count = 0
  for entry in entries:
    file.write((',\n' if count else '\n').encode() + json.dumps(entry).encode())
    count += 1
  return count
