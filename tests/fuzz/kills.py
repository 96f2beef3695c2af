"""Kills commands at random moments and starts them again until they end.

    python -m tests.fuzz.kills --main=50 --predict=20 --import_torch=10 \
        --export=10 --study=10

Each kill is `kill -9` in a folder of its own, at a moment that is sampled from
the duration of an undisturbed run, then the same command until it ends. What it
leaves must be what the undisturbed run left: the same files with the same
bytes, but for those of `EXCEPTIONS`. `--table=docs/reliability.md` writes the
table between the marks there; with the same `--log` it goes on where it was
stopped.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from small import random_images

from . import process
from .place import Place
from .run import write_table

# What differs between two undisturbed runs, too, by pattern, and why.
EXCEPTIONS = {
  r'(^|/)\.lock$': 'the number of the process',
  r'(^|/)timing\.json$': 'seconds and images/s',
  r'(^|/)tensorboard/': 'times; one file a start',
  r'(^|/)log\.txt$': 'of a study: one start behind the other',
}
# Parts of files that hold times, by the file's name.
_TIMES = {
  'report.html': r'[\d.]+ (s|min|h)[^,<"]*, [^,<"]* images a second',
  'metrics.jsonl': r'"(seconds|images_per_second)": [^,]*',
  'table.html': r'(?!)',
}
_MARKS = '<!-- kills -->', '<!-- /kills -->'
_TRIES = 5  # To kill it before it ends.
_STARTS = 20  # Of one command, until it counts as not ending.
_LIMIT = 900.0  # Seconds of one start.

_SMALL = (
  '--config.image_size=32',
  '--config.model.reconstructive_width=4',
  '--config.model.discriminative_width=2',
  '--config.batch_size=4',
)


@dataclasses.dataclass
class Target:
  """A command that is killed.

  Attributes:
    command: its name.
    arguments: its arguments.
    result: the folder that it writes.
    prepare: makes what it reads, in its working directory.
    since: the moment of a kill is behind the one when this is on stderr.
  """

  command: str
  arguments: Sequence[str]
  result: str
  prepare: Callable[[Place, pathlib.Path], None]
  since: str = ''


def _nothing(place: Place, folder: pathlib.Path) -> None:
  del place, folder


def _photos(place: Place, folder: pathlib.Path) -> None:
  place.copy(folder, 'run')
  (folder / 'photos').mkdir()
  for index, image in enumerate(random_images(200, seed=5)):
    picture = Image.fromarray(image).resize((64 + index, 300))
    picture.save(folder / 'photos' / f'{index:03}.png')


def _run(place: Place, folder: pathlib.Path) -> None:
  place.copy(folder, 'run')


def _category(place: Place, folder: pathlib.Path) -> None:
  place.copy(folder, 'DATA')


_GOLDEN = process.ROOT / 'tests' / 'golden'
TARGETS = {
  'main': Target(
    'main',
    (
      *('--config=configs/mvtec.py:part,release', '--workdir=killed', *_SMALL),
      *('--config.data.dir=DATA', '--config.data.textures=builtin'),
      *('--config.data.num_textures=20', '--config.data.tfds_dir='),
      *('--config.num_steps=20', '--config.checkpoint_every=3'),
      *('--config.log_every=1', '--config.panel_every=10'),
    ),
    'killed',
    _category,
    since='loading ',
  ),
  'predict': Target(
    'predict',
    ('--workdir=run', '--images=photos', '--output=killed'),
    'killed',
    _photos,
    since='scoring ',
  ),
  'import_torch': Target(
    'import_torch',
    (
      f'--reconstructive={_GOLDEN / "DRAEM_golden_part_.pckl"}',
      f'--discriminative={_GOLDEN / "DRAEM_golden_part__seg.pckl"}',
      '--workdir=killed',
    ),
    'killed',
    _nothing,
  ),
  'export': Target(
    'export',
    ('--workdir=run', '--format=onnx', '--output=killed'),
    'killed',
    _run,
  ),
  'study': Target(
    'study',
    (
      *('--config=configs/table3.py:small', '--workdir=killed', *_SMALL),
      *('--categories=part', '--rows=draem,color', '--processes=1'),
      *('--config.data.dir=DATA', '--config.data.textures=builtin'),
      *('--config.data.num_textures=3', '--config.num_steps=8'),
      *('--config.checkpoint_every=3', '--config.log_every=1'),
      '--config.data.tfds_dir=',
    ),
    'killed',
    _category,
    since=' begins',
  ),
}


def main() -> int:
  """Kills what the options name; 1 if a result differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in TARGETS:
    parser.add_argument(f'--{name}', type=int, default=0, help='kills')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--work', help='a folder for all of it')
  parser.add_argument('--log', help='a file of results, to go on with')
  parser.add_argument('--table', help='a page to write the table into')
  options = parser.parse_args()
  work = pathlib.Path(options.work or tempfile.mkdtemp(prefix='kills'))
  log = pathlib.Path(options.log or work / 'log.jsonl')
  place = Place(work / 'sound', is_tiny=False)
  lines = []
  if log.exists():
    lines = [json.loads(line) for line in log.read_text().splitlines()]
  done = {(line['name'], line['number']) for line in lines}
  for name in TARGETS:
    count = getattr(options, name)
    todo = [n for n in range(count) if (name, n) not in done]
    if not todo:
      continue
    killer = Killer(name, place, work.absolute() / name)
    moments = sample_moments(options.seed, name, count)
    for number in todo:
      line = {'number': number} | killer.kill(moments[number])
      lines.append(line)
      with log.open('a') as file:
        file.write(json.dumps(line) + '\n')
      if line['differences']:
        print(f'{name}:{number} {line}', flush=True)
  table = format_table(lines)
  print(table)
  if options.table:
    write_table(pathlib.Path(options.table), table, _MARKS)
  return int(any(line['differences'] for line in lines))


def sample_moments(seed: int, name: str, count: int) -> list[float]:
  """Shares of the duration: one in each of `count` equal parts of it."""
  rng = np.random.default_rng([seed, *name.encode()])
  return [float(m) for m in (np.arange(count) + rng.random(count)) / count]


class Killer:
  """One command: its undisturbed result, and its kills."""

  def __init__(self, name: str, place: Place, work: pathlib.Path):
    """Runs it undisturbed, twice: the first start compiles.

    Args:
      name: in `TARGETS`.
      place: with what it reads.
      work: a folder for it.
    """
    self.name, self.target, self.place = name, TARGETS[name], place
    # The same for all, for results tell of paths.
    self.folder = work
    for _ in range(2):
      self._begin()
      begun = time.monotonic()
      started = self._start()
      self._wait_for_begin(started)
      waited = time.monotonic()
      if started.wait(timeout=_LIMIT):
        raise RuntimeError(f'undisturbed {name} ends with {self._errors()}')
      self.seconds = time.monotonic() - waited
      print(
        f'{name}: undisturbed in {time.monotonic() - begun:.1f} s', flush=True
      )
    self.whole = contents(self.folder / self.target.result)

  def kill(self, share: float) -> dict:
    """Kills it after a share of its duration; what came of it."""
    killed = False
    for _ in range(_TRIES):
      self._begin()
      started = self._start()
      self._wait_for_begin(started)
      begun = time.monotonic()
      try:
        started.wait(timeout=share * self.seconds)
      except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
        killed = True
        break
      # It was quicker than the undisturbed run: that sets the measure now.
      self.seconds = time.monotonic() - begun
    phase = self._phase()
    starts, status = 0, started.returncode
    while status and starts < _STARTS:
      starts += 1
      status = self._start().wait(timeout=_LIMIT)
      if status > 0:
        break
    found = contents(self.folder / self.target.result)
    different = differences(found, self.whole)
    if status and not self._is_whole_already():
      different.append(f'status {status}: {self._errors()}')
    return {
      'name': self.name,
      'share': round(share, 4),
      'killed': killed,
      'phase': phase,
      'starts': starts,
      'differences': different,
    }

  def _begin(self) -> None:
    shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(parents=True)
    self.target.prepare(self.place, self.folder)

  def _start(self):
    return process.start(
      self.target.command, self.target.arguments, folder=self.folder
    )

  def _wait_for_begin(self, started) -> None:
    while self.target.since not in self._errors(whole=True):
      if started.poll() is not None:
        break
      time.sleep(0.005)

  def _is_whole_already(self) -> bool:
    """Whether an import refuses because it was done when it was killed.

    An import does not begin where a run is. What is there is compared as ever.
    """
    return 'holds a run already' in self._errors()

  def _errors(self, *, whole: bool = False) -> str:
    text = process.streams(self.folder)[1].read_text(errors='replace')
    return text if whole else (text.splitlines() or [''])[-1]

  def _phase(self) -> str:
    """What it was doing, by what it said last."""
    text = self._errors()
    for words, phase in _PHASES.items():
      if words in text:
        return phase
    return 'start' if not text else 'between'


_PHASES = {
  'loading': 'loading',
  'textures': 'loading',
  'images to train': 'compiling',
  'lie on the devices': 'compiling',
  'going on': 'compiling',
  'step ': 'training',
  'left out': 'loading',
  'drawing': 'drawing and report',
  'scoring': 'scoring',
  'begins': 'a run',
  'finished': 'between runs',
}


def contents(folder: pathlib.Path) -> dict[str, str]:
  """A checksum of each thing in a folder, by name.

  A checkpoint is one thing, and counts by its arrays. Of prepared data sets
  only the names count, for they hold the times of the files they are made of.
  """
  found = {}
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(folder).as_posix()
    if path.is_dir() and not re.fullmatch(r'(.*/)?checkpoints/[^/]*', name):
      continue
    if re.search(r'(^|/)checkpoints/[^/]*/', name):
      continue
    if any(re.search(pattern, name) for pattern in EXCEPTIONS):
      continue
    if path.is_dir():
      found[name] = _arrays(path)
    elif '/tfds/' in f'/{name}':
      found[re.sub(r'-[0-9a-f]{12}(?=[/-])', '', name)] = ''
    else:
      data = path.read_bytes()
      pattern = _TIMES.get(path.name)
      if pattern:
        data = re.sub(pattern.encode(), b'', data)
      found[name] = hashlib.sha256(data).hexdigest()
  return found


def differences(found: dict[str, str], whole: dict[str, str]) -> list[str]:
  """What is left over, is missing or has other bytes, in words."""
  return [
    *(f'left over: {name}' for name in sorted(found.keys() - whole.keys())),
    *(f'missing: {name}' for name in sorted(whole.keys() - found.keys())),
    *(
      f'other bytes: {name}'
      for name in sorted(found.keys() & whole.keys())
      if found[name] != whole[name]
    ),
  ]


def _arrays(checkpoint: pathlib.Path) -> str:
  """A checksum of all arrays of a checkpoint; empty if it has none."""
  with tempfile.TemporaryDirectory() as folder:
    done = process.fork(
      functools.partial(_print_arrays, checkpoint), folder=pathlib.Path(folder)
    )
  return done.out.strip() if not done.status else done.err[-200:]


def _print_arrays(checkpoint: pathlib.Path) -> None:
  import jax
  import orbax.checkpoint as ocp

  digest = hashlib.sha256()
  for item in sorted(
    p for p in checkpoint.iterdir() if (p / '_METADATA').exists()
  ):
    tree = ocp.PyTreeCheckpointHandler().restore(item)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
  print(digest.hexdigest())


def format_table(lines: list[dict]) -> str:
  """The kills by command, as Markdown."""
  rows = [
    ['command', 'kills', 'while', 'same bytes', 'differ', 'starts at most']
  ]
  rows.append(['---', '---:', '---', '---:', '---:', '---:'])
  for name in dict.fromkeys(line['name'] for line in lines):
    some = [line for line in lines if line['name'] == name]
    killed = [line for line in some if line['killed']]
    phases = collections.Counter(line['phase'] for line in killed)
    differ = sum(bool(line['differences']) for line in killed)
    rows.append(
      [
        f'`{name}`',
        str(len(killed)),
        ', '.join(f'{phase} {n}' for phase, n in phases.most_common()),
        str(len(killed) - differ),
        str(differ),
        str(1 + max((line['starts'] for line in killed), default=0)),
      ]
    )
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


if __name__ == '__main__':
  sys.exit(main())
