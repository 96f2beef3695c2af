"""Gives odd inputs to the commands and says what they make of them.

    python -m tests.fuzz.run --count=2000        a long run, as a table
    python -m tests.fuzz.run --kinds=masks       of one kind only
    python -m tests.fuzz.run --only=masks:17     one input, whose folder stays

Inputs are functions of `--seed`, kind and number. What was found stands in the
log, a line of JSON an input; with the same `--log` a run goes on where it was
stopped. `--table=docs/reliability.md` writes the table between the marks there.
"""

import argparse
import collections
import json
import pathlib
import shlex
import signal
import sys
import tempfile
import zlib

import numpy as np

from . import judge, mutate, of_commands, of_files, of_folders, process
from .judge import IN_ORDER, Case
from .place import Place

# By kind, what samples an input, and its share of all.
KINDS = {
  'images': (of_files.images, 25),
  'large images': (of_files.large_image, 0.5),
  'masks': (of_files.masks, 10),
  'names': (of_files.names, 10),
  'weights': (of_files.weights, 10),
  'workdir': (of_folders.workdir, 14),
  'checkpoint': (of_folders.checkpoint, 6),
  'prepared': (of_folders.prepared, 5),
  'training': (of_folders.training, 3),
  'config': (of_commands.config, 8),
  'config, trained': (of_commands.config_trained, 2),
  'flags': (of_commands.flags, 6),
  'streams': (of_commands.streams, 1),
}
_MARKS = '<!-- fuzz -->', '<!-- /fuzz -->'
# Of a run that is part of the tests: inputs by kind.
SHORT = {
  'images': 16,
  'masks': 2,
  'names': 5,
  'weights': 12,
  'workdir': 6,
  'checkpoint': 2,
  'prepared': 1,
  'config': 8,
  'flags': 8,
}


def main() -> int:
  """Runs what the options name; 1 if there is a fault."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--count', type=int, default=60, help='inputs in all')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default='', help='with / between them')
  parser.add_argument('--only', default='', help='one input, as KIND:NUMBER')
  parser.add_argument('--work', help='a folder for the inputs')
  parser.add_argument('--log', help='a file of results, to go on with')
  parser.add_argument('--table', help='a page to write the table into')
  parser.add_argument(
    '--real_every',
    type=int,
    default=0,
    help='every so many inputs of files start a command as a user does',
  )
  parser.add_argument(
    '--traps', action='store_true', help='first what is wrong'
  )
  parser.add_argument('--short', action='store_true', help='as in the tests')
  parser.add_argument('--keep', action='store_true', help='folders of faults')
  options = parser.parse_args()
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  work = pathlib.Path(options.work or tempfile.mkdtemp(prefix='fuzz'))
  log = pathlib.Path(options.log or work / 'log.jsonl')
  runner = Runner(work, seed=options.seed, keep=options.keep)
  if options.only:
    kind, _, number = options.only.partition(':')
    runner.keep = True
    print(json.dumps(runner.run(kind, int(number)), indent=2))
    return 0
  if options.traps:
    for title in of_commands.TRAPS:
      verdict = runner.judge(of_commands.trap(title))['verdict']
      if verdict != title:
        print(f'the trap {title!r} is found to be {verdict!r}')
        return 1
  kinds = options.kinds.split('/') if options.kinds else list(KINDS)
  shares = {kind: KINDS[kind][1] for kind in kinds}
  counts = SHORT if options.short else share_out(options.count, shares)
  lines = _read(log)
  done = {(line['kind'], line['number']) for line in lines}
  for order, (kind, number) in enumerate(mix(counts)):
    if (kind, number) in done:
      continue
    real = bool(options.real_every) and order % options.real_every == 0
    line = runner.run(kind, number, real=real)
    lines.append(line)
    with log.open('a') as file:
      file.write(json.dumps(line) + '\n')
    if line['verdict'] not in IN_ORDER:
      print(
        f'{kind}:{number} {line["verdict"]}: {line["title"]}: {line["words"]}',
        flush=True,
      )
  lines = [line for line in lines if line['kind'] in counts]
  table = format_table(lines)
  print(table)
  if options.table:
    write_table(pathlib.Path(options.table), table, _MARKS)
  return int(any(line['verdict'] not in IN_ORDER for line in lines))


class Runner:
  """Makes inputs, gives them to the commands and judges."""

  def __init__(self, work: pathlib.Path, *, seed: int, keep: bool):
    """Starts nothing.

    Args:
      work: for the folders of the inputs, and the sound files.
      seed: of all that is sampled.
      keep: whether folders of inputs with a fault stay.
    """
    self.work = work.absolute()
    self.seed = seed
    self.keep = keep
    self.place = Place(self.work / 'sound')
    self.real_place = None

  def run(self, kind: str, number: int, *, real: bool = False) -> dict:
    """A line of the log on an input.

    Args:
      kind: in `KINDS`.
      number: of the input, among those of its kind.
      real: whether the command is started as a user does.
    """
    sample, _ = KINDS[kind]
    folder = self.work / f'{kind}-{number}'.replace(', ', '-').replace(' ', '-')
    mutate.remove(folder)
    folder.mkdir()
    rng = np.random.default_rng([self.seed, zlib.crc32(kind.encode()), number])
    real = real or kind in ('streams', 'large images')
    case = sample(rng, self._real_place() if real else self.place, folder)
    real = real and isinstance(case.command, str) and _can_be_typed(case)
    line = self.judge(case, folder, real=real)
    if not (self.keep and line['verdict'] not in IN_ORDER):
      mutate.remove(folder)
    return {'kind': kind, 'number': number, 'seed': self.seed} | line

  def judge(
    self, case: Case, folder: pathlib.Path | None = None, *, real: bool = False
  ) -> dict:
    """Gives an input to its command; the line on it."""
    if folder is None:
      folder = self.work / 'trap'
      mutate.remove(folder)
      folder.mkdir()
    options = {
      'folder': folder,
      'variables': case.variables,
      'limit': case.limit * (3 if real else 1),
    }
    if real:
      result = process.spawn(
        case.command, case.arguments, prefix=case.prefix, **options
      )
    else:
      action = case.command
      if isinstance(action, str):
        action = process.command(action, case.arguments)
      result = process.fork(action, **options)
    verdict, words = judge.judge(case, result, folder)
    return {
      'verdict': verdict,
      'title': case.title,
      'words': words[:500],
      'command': f'{case.command} {shlex.join(case.arguments)}'[:2000],
      'status': result.status,
      'seconds': round(result.seconds, 2),
      'peak': result.peak,
      'real': real,
      'err': result.err[-1500:] if verdict not in IN_ORDER else '',
    }

  def _real_place(self) -> Place:
    """Sound files of the real networks, which take a minute to make."""
    if self.real_place is None:
      self.real_place = Place(self.work / 'sound-real', is_tiny=False)
    return self.real_place


def share_out(count: int, shares: dict[str, float]) -> dict[str, int]:
  """Inputs of each kind, at least one."""
  total = sum(shares.values())
  return {
    kind: max(1, round(count * share / total)) for kind, share in shares.items()
  }


def mix(counts: dict[str, int]) -> list[tuple[str, int]]:
  """Kind and number of each input, so that any beginning has all kinds."""
  planned = [
    ((number + 0.5) / count, kind, number)
    for kind, count in counts.items()
    for number in range(count)
  ]
  return [(kind, number) for _, kind, number in sorted(planned)]


def format_table(lines: list[dict]) -> str:
  """The verdicts by kind, as Markdown."""
  titles = ['refused by name', 'as the sound input', 'as what it now says']
  rows = [['kind', 'inputs', *titles, 'faults', 's each', 'GB at most']]
  rows.append(['---', *['---:'] * (len(rows[0]) - 1)])
  kinds = list(dict.fromkeys(line['kind'] for line in lines))
  for kind in (*(k for k in KINDS if k in kinds), 'all'):
    some = [line for line in lines if kind in ('all', line['kind'])]
    counts = collections.Counter(line['verdict'] for line in some)
    faults = [f'{counts[v]} {v}' for v in counts if v not in IN_ORDER]
    rows.append(
      [
        kind,
        f'{len(some):,}',
        *(f'{counts[verdict]:,}' for verdict in IN_ORDER),
        ', '.join(faults) or '0',
        f'{np.mean([line["seconds"] for line in some] or [0]):.1f}',
        f'{max((line["peak"] for line in some), default=0) / 2**30:.1f}',
      ]
    )
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def write_table(page: pathlib.Path, table: str, marks: tuple[str, str]) -> None:
  """Puts a table between two marks of a page."""
  text = page.read_text(encoding='utf-8')
  start, end = (text.index(mark) for mark in marks)
  text = f'{text[: start + len(marks[0])]}\n{table}\n{text[end:]}'
  page.write_text(text, encoding='utf-8')


def _read(log: pathlib.Path) -> list[dict]:
  if not log.exists():
    return []
  return [json.loads(line) for line in log.read_text().splitlines()]


def _can_be_typed(case: Case) -> bool:
  """Whether the system takes these arguments; it takes none with a NUL."""
  return not any('\0' in argument for argument in case.arguments)


if __name__ == '__main__':
  sys.exit(main())
