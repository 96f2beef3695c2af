"""Seconds from the start of the command to its first training step.

    python -m benchmarks.startup

Starts the built-in demo at the small setting, 64×64, widths 16 and 8, batch 8,
with a cache of compiled programs of its own, first empty, then filled, each
time in a new workdir, and stops it after the first step. The best of the starts
with the filled cache counts; `--median` takes the median of each part, which is
fairer on a machine that does something else as well. There the seconds of CPU
time, of all threads, say more than those of the clock.

With `--before=../main` another checkout of the project is started in turns with
this one. Prints a table and one JSON line.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from benchmarks import record

_ROOT = pathlib.Path(__file__).parents[1]
# A part of the start ends with the first line that holds these words.
_PARTS = {
  'imports, pictures of the demo': 'loading ',
  'images': 'loading the textures',
  'textures': 'good images to train on',
}
_LAST_PART = 'programs, first step'
_CPU = 'CPU time'


def measure(
  folder: pathlib.Path,
  name: str,
  flags: Sequence[str],
  root: pathlib.Path = _ROOT,
) -> dict[str, float]:
  """Starts the command once.

  Args:
    folder: of the cache and of the workdirs.
    name: of the workdir, which must not be there yet.
    flags: of the command, besides config and workdir.
    root: the checkout that it is started from.

  Returns:
    Seconds since the start at the end of each part; the last part ends with the
    first step. Besides, the CPU time until then.

  Raises:
    RuntimeError: if the command ends before its first step.
  """
  environment = os.environ | {
    'XDG_CACHE_HOME': str(folder / 'cache'),
    'PYTHONPATH': str(root),
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  start = time.perf_counter()
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'draem_jax.main', '--config=configs/demo.py'),
      *(f'--workdir={folder / name}', '--config.log_every=1', *flags),
    ],
    cwd=root,
    env=environment,
    text=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  lines, seconds = [], {}

  def watch() -> None:
    for line in process.stderr:
      lines.append(line)
      for part, words in _PARTS.items():
        if words in line:
          seconds.setdefault(part, time.perf_counter() - start)

  watcher = threading.Thread(target=watch)
  watcher.start()
  # The bar on a terminal says nothing of single steps; this file does.
  metrics = folder / name / 'metrics.jsonl'
  try:
    while not (metrics.exists() and metrics.read_text()):
      if process.poll() is not None:
        watcher.join()
        raise RuntimeError(''.join(lines[-20:]))
      time.sleep(0.005)
    seconds[_LAST_PART] = time.perf_counter() - start
    seconds[_CPU] = _cpu_time(process.pid)
    # In order: what is compiled is still being written to the cache.
    process.send_signal(signal.SIGTERM)
    process.wait()
  finally:
    process.kill()
    watcher.join()
  return seconds


def _cpu_time(pid: int) -> float:
  """Seconds of CPU time of a process that runs, in user mode and system."""
  with open(f'/proc/{pid}/stat') as file:
    # Behind the name, which may hold spaces.
    fields = file.read().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def print_table(starts: dict[str, dict[str, float]]) -> None:
  """Seconds of each part, and of all."""
  parts = [*_PARTS, _LAST_PART]
  print(f'| seconds | {" | ".join(parts)} | to the first step | {_CPU} |')
  print('|---|' + '---:|' * (len(parts) + 2))
  for name, ends in starts.items():
    before, cells = 0.0, []
    for part in parts:
      cells.append(f'{ends[part] - before:.2f}')
      before = ends[part]
    cells += [f'{before:.2f}', f'{ends[_CPU]:.2f}']
    print(f'| {name} | {" | ".join(cells)} |')
  print()


def _typical(
  several: Sequence[dict[str, float]], *, median: bool
) -> dict[str, float]:
  """The median of each part of several starts, or the quickest start."""
  if not median:
    return min(several, key=lambda ends: ends[_LAST_PART])
  return {
    part: statistics.median(ends[part] for ends in several)
    for part in several[0]
  }


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Other flags, such as --config.image_size=32, go to the command.',
  )
  parser.add_argument('--warm_starts', type=int, default=3)
  parser.add_argument('--median', action='store_true')
  parser.add_argument(
    '--before', type=pathlib.Path, help='another checkout to start as well'
  )
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options, flags = make_parser().parse_known_args(arguments)
  roots = {'': _ROOT}
  if options.before:
    roots['before, '] = options.before.absolute()
  starts, warm = {}, {label: [] for label in roots}
  with tempfile.TemporaryDirectory() as temporary:
    for number in range(options.warm_starts + 1):
      for label, root in roots.items():
        # Each with a cache of its own.
        folder = pathlib.Path(temporary) / (label or 'this')
        ends = measure(folder, str(number), flags, root)
        if number:
          warm[label].append(ends)
        else:
          starts[f'{label}cold'] = ends
  for label, several in warm.items():
    if several:
      starts[f'{label}warm'] = _typical(several, median=options.median)
  print_table(starts)
  rounded = {
    name: {part: round(end, 2) for part, end in ends.items()}
    for name, ends in starts.items()
  }
  record.print_record('startup', rounded, arguments=arguments)


if __name__ == '__main__':
  main()
