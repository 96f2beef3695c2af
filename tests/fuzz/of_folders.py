"""Files that the package itself has written, damaged afterwards."""

import csv
import io
import json
import math
import pathlib

import numpy as np

from draem_jax import config as config_lib
from draem_jax.errors import UserError
from draem_jax.metrics import METRICS

from . import checks, mutate
from .judge import Case, Wrong
from .mutate import pick
from .place import PHOTOS, PREDICT, STUDY, TABLE, Place, read_rows
from .process import Result

_PHOTOS = {'a.png': 'rgb.png', 'b.png': 'gray.png', 'z.jpg': 'plain.jpg'}


def workdir(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Files of a run or of predictions, beside the checkpoints."""
  place.copy(folder, 'run')
  _write_photos(place, folder)
  file = pick(rng, _FILES)
  if file.startswith('study'):
    return _study(rng, place, folder, file)
  command, arguments = 'predict', PREDICT
  path = folder / file
  if file.startswith('out'):
    place.copy(folder, 'half')
    out = (folder / 'half').rename(folder / 'out')
    text = (out / 'predict.json').read_text()
    text = text.replace(PHOTOS, str(folder / 'photos'))
    (out / 'predict.json').write_text(text)
  elif file in _READ_BY_MAIN or rng.random() < 0.3:
    command, arguments = 'main', place.evaluate()
    place.copy(folder, 'tfds')
  title = f'{file}: {mutate.damage_file(rng, path)}'
  before = _read(path)
  check = checks.results(place)
  if command == 'predict':
    inner = checks.table(place, _PHOTOS)

    def check(result: Result, folder: pathlib.Path) -> str:
      try:
        return inner(result, folder)
      except Wrong:
        if not _says_something_else(file, before, place, folder):
          raise
        return 'other'

  return Case(
    f'{title}, then {command}',
    command,
    arguments,
    check,
    [path.name, 'config.'],
  )


_READ_BY_MAIN = 'run/results.json', 'run/timing.json', 'run/metrics.jsonl'
_FILES = (
  *('run/config.json', 'run/config.json', 'run/config.json'),
  *('run/thresholds.json', 'run/thresholds.json', 'run/.lock'),
  *('out/predictions.csv', 'out/predictions.csv', 'out/predict.json'),
  'out/regions.jsonl',
  *('study/study.json', 'study/draem/part/seed0/results.json'),
  'study/draem/part/seed0/timing.json',
  *_READ_BY_MAIN,
)


def _study(rng, place: Place, folder: pathlib.Path, file: str) -> Case:
  """The tables of a study whose runs are finished."""
  place.copy(folder, 'study')
  path = folder / file
  title = f'{file}: {mutate.damage_file(rng, path)}, then study'
  before = _read(path)

  def check(result: Result, folder: pathlib.Path) -> str:
    table = folder / 'study' / 'table.csv'
    if table.read_bytes() == (place.get('study') / 'table.csv').read_bytes():
      return 'clean'
    # A run without results is not finished.
    if path.name == 'results.json' and _is_gone(path, before):
      return 'other'
    raise Wrong('table.csv is another')

  arguments = [*STUDY, '--tables']
  return Case(title, 'study', arguments, check, [path.name])


def _is_gone(path: pathlib.Path, text: str) -> bool:
  """Whether there are no results, or such that a run could have."""
  if not path.exists():
    return True
  try:
    found = json.loads(text)
    metrics = [found.get(key, 0) or 0 for key in METRICS]
  except (ValueError, AttributeError, RecursionError):
    return False
  return all(type(v) in (int, float) and 0 <= v <= 1 for v in metrics)


def _says_something_else(
  file: str, text: str, place: Place, folder: pathlib.Path
) -> bool:
  """Whether a damaged file is sound, so that another table is right."""
  try:
    if file == 'run/config.json':
      config = config_lib.complete(json.loads(text)['config'])
      config_lib.check(config)
      sound = json.loads((place.get('run') / 'config.json').read_text())
      sound = sound['config']
      return config != config_lib.complete(sound)
    if file == 'run/thresholds.json':
      found = json.loads(text)
      values = found['image'], found['pixel']
      return all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
    if file == 'out/predictions.csv':
      _, *rows = csv.reader(io.StringIO(text, newline=''))
      found = read_rows(folder / TABLE)
      expected = {name: place.rows[_PHOTOS[name]] for name in _PHOTOS}
      # What was in the table stays; all else is as it should be.
      kept = {name: tuple(cells) for name, *cells in rows if name in found}
      return found == expected | kept and all(map(_is_row, kept.values()))
  except (ValueError, KeyError, TypeError, AttributeError, UserError):
    return False
  except RecursionError:
    pass
  return False


def _is_row(cells: tuple[str, ...]) -> bool:
  score, verdict, area = cells
  numbers = float(score), float(area)
  plain = all(0 <= n <= 1 and math.isfinite(n) for n in numbers)
  return plain and verdict.lower() in ('true', 'false')


def checkpoint(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Files of the only checkpoint of a run."""
  place.copy(folder, 'run')
  path = _any_file(rng, folder / 'run' / 'checkpoints')
  title = f'{path.relative_to(folder)}: {_damage_binary(rng, path)}'
  if rng.random() < 0.8:
    _write_photos(place, folder)
    check = checks.table(place, _PHOTOS)
    return Case(title, 'predict', PREDICT, check, ['checkpoints', 'config.'])
  place.copy(folder, 'tfds')
  return Case(
    f'{title}, then main',
    'main',
    place.evaluate(),
    checks.results(place),
    ['checkpoints', 'config.'],
  )


def prepared(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Files of the prepared data set and of the decoded textures."""
  place.copy(folder, 'tfds', 'bare')
  (folder / 'bare').rename(folder / 'run')
  path = _any_file(rng, folder / 'tfds')
  title = f'{path.relative_to(folder / "tfds")}: {_damage_binary(rng, path)}'
  names = [path.name, 'tfds']
  arguments = place.evaluate()
  return Case(title, 'main', arguments, checks.results(place), names)


def training(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Any file of a run that was stopped, which then goes on."""
  place.copy(folder, 'stopped')
  (folder / 'stopped').rename(folder / 'run')
  part = pick(rng, ('checkpoints', 'checkpoints', '.', 'tfds'))
  path = _any_file(rng, folder / 'run' / part)
  title = f'{path.relative_to(folder / "run")}: {_damage_binary(rng, path)}'

  def check(result: Result, folder: pathlib.Path) -> str:
    for name in ('results.json', 'predictions.csv', 'thresholds.json'):
      sound = place.get('trained') / name
      if (folder / 'run' / name).read_bytes() != sound.read_bytes():
        raise Wrong(f'{name} is not that of the undisturbed run')
    return 'clean'

  names = [path.name, 'checkpoints', 'tfds', 'config.']
  return Case(title, 'main', place.train(), check, names)


def _any_file(rng, folder: pathlib.Path) -> pathlib.Path:
  files = [path for path in folder.rglob('*') if path.is_file()]
  return pick(rng, sorted(files))


def _damage_binary(rng, path: pathlib.Path) -> str:
  """Damage with the flips of single bits before all else."""
  data = path.read_bytes()
  if rng.random() < 0.4 and data:
    place, bit = int(rng.integers(len(data))), int(rng.integers(8))
    path.write_bytes(
      data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    )
    return f'bit {bit} of byte {place}'
  return mutate.damage_file(rng, path)


def _write_photos(place: Place, folder: pathlib.Path) -> None:
  (folder / 'photos').mkdir()
  for name, picture in _PHOTOS.items():
    (folder / 'photos' / name).write_bytes(place.picture(picture))


def _read(path: pathlib.Path) -> str:
  if not path.is_file() or path.is_symlink():
    return ''
  return path.read_bytes().decode('utf-8', 'surrogateescape')
