"""Examples a second of the simulator alone, preset `release`.

    python -m benchmarks.simulator --size 64 256 --batch=8

The images and textures lie on the device, and each call draws new keys, as in
training. The best of several rounds counts. Prints a table and one JSON line.
"""

import argparse
import functools
import time

import jax
import numpy as np

from benchmarks import record
from draem_jax.configs import mvtec
from draem_jax.data import textures as texture_files
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options

# What the release's simulator reaches at 256×256 with both of two cores of an
# AMD EPYC virtual machine, PNG decoding included.
RELEASE_EXAMPLES_PER_SECOND = {256: 63}
ROUNDS = 5


def measure(image_size: int, batch_size: int, seconds: float) -> dict:
  """Times batches of one size.

  Args:
    image_size: height and width.
    batch_size: examples a call.
    seconds: how long to measure, in all rounds together.

  Returns:
    `milliseconds` a batch and `examples_per_second` of the best round, and
    `compile_seconds`.
  """
  options = Options(**mvtec.get_config('bottle,release').simulator)
  step = jax.jit(
    functools.partial(_step, batch_size=batch_size, options=options)
  )
  pieces = texture_files.builtin_textures(image_size=image_size)
  pieces = jax.device_put(np.asarray(pieces))
  start = time.perf_counter()
  jax.block_until_ready(step(0, pieces))
  compile_seconds = time.perf_counter() - start

  start = time.perf_counter()
  jax.block_until_ready([step(number, pieces) for number in range(10)])
  calls = max(10, int(seconds / ROUNDS * 10 / (time.perf_counter() - start)))
  best = float('inf')
  for _ in range(ROUNDS):
    start = time.perf_counter()
    for number in range(calls):
      example = step(number, pieces)
    jax.block_until_ready(example)
    best = min(best, (time.perf_counter() - start) / calls)
  return {
    'image_size': image_size,
    'batch_size': batch_size,
    'milliseconds': round(1000 * best, 3),
    'examples_per_second': round(batch_size / best, 1),
    'compile_seconds': round(compile_seconds, 2),
  }


def _step(number, pieces, *, batch_size, options):
  """Samples and simulates a batch, as a training step does."""
  key, image_key, texture_key = jax.random.split(
    jax.random.fold_in(jax.random.key(0), number), 3
  )
  images, textures = (
    pieces[jax.random.randint(key, (batch_size,), 0, len(pieces))]
    for key in (image_key, texture_key)
  )
  keys = jax.random.split(key, batch_size)
  return simulate.simulate_batch(keys, images, textures, options)


def print_table(results: list[dict]) -> None:
  """The results in Markdown."""
  print('| image | batch | ms a batch | examples/s | of the release |')
  print('|---|---:|---:|---:|---:|')
  for result in results:
    size, rate = result['image_size'], result['examples_per_second']
    theirs = RELEASE_EXAMPLES_PER_SECOND.get(size)
    ratio = f'{rate / theirs:.1f} ×' if theirs else ''
    print(
      f'| {size} × {size} | {result["batch_size"]} |'
      f' {result["milliseconds"]:.2f} | {rate:.0f} | {ratio} |'
    )


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, nargs='+', default=[64, 256])
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--seconds', type=float, default=10.0)
  return parser


def main():
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args()
  results = [
    measure(size, options.batch, options.seconds) for size in options.size
  ]
  print_table(results)
  record.print_record('simulator', results)


if __name__ == '__main__':
  main()
