"""Seconds from the start of the command to its first training step.

    python -m benchmarks.startup

Starts the built-in demo at the small setting, 64×64, widths 16 and 8, batch 8,
with a cache of compiled programs of its own, first empty, then filled, each
time in a new workdir, and stops it after the first step. The best of the starts
with the filled cache counts. Prints a table and one JSON line.
"""

import argparse
import os
import pathlib
import signal
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


def measure(
  folder: pathlib.Path, name: str, flags: Sequence[str]
) -> dict[str, float]:
  """Starts the command once.

  Args:
    folder: of the cache and of the workdirs.
    name: of the workdir, which must not be there yet.
    flags: of the command, besides config and workdir.

  Returns:
    Seconds since the start at the end of each part; the last part ends with the
    first step.

  Raises:
    RuntimeError: if the command ends before its first step.
  """
  environment = os.environ | {'XDG_CACHE_HOME': str(folder / 'cache')}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  start = time.perf_counter()
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'draem_jax.main', '--config=configs/demo.py'),
      *(f'--workdir={folder / name}', '--config.log_every=1', *flags),
    ],
    cwd=_ROOT,
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
    # In order: what is compiled is still being written to the cache.
    process.send_signal(signal.SIGTERM)
    process.wait()
  finally:
    process.kill()
    watcher.join()
  return seconds


def print_table(starts: dict[str, dict[str, float]]) -> None:
  """Seconds of each part, and of all."""
  parts = [*_PARTS, _LAST_PART]
  print(f'| seconds | {" | ".join(parts)} | to the first step |')
  print('|---|' + '---:|' * (len(parts) + 1))
  for name, ends in starts.items():
    before, cells = 0.0, []
    for part in parts:
      cells.append(f'{ends[part] - before:.2f}')
      before = ends[part]
    print(f'| {name} | {" | ".join(cells)} | {before:.2f} |')
  print()


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog='Other flags, such as --config.image_size=32, go to the command.',
  )
  parser.add_argument('--warm_starts', type=int, default=3)
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options, flags = make_parser().parse_known_args(arguments)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    starts = {'cold': measure(folder, 'cold', flags)}
    warm = [
      measure(folder, f'warm{number}', flags)
      for number in range(options.warm_starts)
    ]
  if warm:
    starts['warm'] = min(warm, key=lambda ends: ends[_LAST_PART])
  print_table(starts)
  rounded = {
    name: {part: round(end, 2) for part, end in ends.items()}
    for name, ends in starts.items()
  }
  record.print_record('startup', rounded, arguments=arguments)


if __name__ == '__main__':
  main()
