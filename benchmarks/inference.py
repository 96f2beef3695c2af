"""Images a second of the detector's networks, beside PyTorch's.

    python -m benchmarks.inference --size=256 --widths 128 64 --batch 1 8 \
        --peer=torch

From uint8 images on the host to reconstructions, anomaly maps and scores on the
host, as `Detector.score` has it. PyTorch does the same in the variants of
`torch_peer.Variant`. All take their turns in alternation, and the best turn of
each counts. Prints a table and one JSON line.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contest, cost, record
from draem_jax import command
from draem_jax.detection.detector import Detector
from draem_jax.networks import models

OURS = 'draem_jax'
_SCORE_WINDOW = 21


def make_detector(
  *, size: int, widths: Sequence[int], batch: int, dtype: str
) -> Detector:
  """A detector with random weights that keep the activations alive."""
  model = models.Draem(*widths, dtype=jnp.dtype(dtype))
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False),
    jax.random.key(0),
  )
  rng = np.random.default_rng(0)

  def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      scale = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
      return scale * rng.standard_normal(shape, np.float32)
    fixed = np.ones if name in ('norm_scale', 'var') else np.zeros
    return fixed(shape, np.float32)

  return Detector(
    model,
    jax.tree_util.tree_map_with_path(fill, shapes),
    image_size=size,
    score_window=_SCORE_WINDOW,
    batch_size=batch,
  )


def scorer(detector: Detector) -> Callable[[int], float]:
  """A contender: scores one batch again and again."""
  height, width = detector.image_size
  shape = (detector.batch_size, height, width, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

  def run(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      detector.score_all(images)  # Returns when the results are on the host.
    return time.perf_counter() - start

  run(1)
  return run


def default_variants(platform: str, dtype: str) -> list[str]:
  """What PyTorch is at its best in."""
  low = '+bfloat16' if dtype == 'bfloat16' else ''
  if platform == 'cpu':
    return [
      f'channels_last{low}',
      f'contiguous{low}',
      f'channels_last+folded{low}',
      f'contiguous+folded{low}',
    ]
  return [f'channels_last+folded+compiled{low}', f'channels_last{low}']


def compare(
  batch: int, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
  """Measures one batch size.

  Returns:
    The results as plain values, and the version of PyTorch if it took part.
  """
  size, widths = options.size, options.widths
  platform = jax.devices()[0].platform
  start = time.perf_counter()
  detector = make_detector(
    size=size, widths=widths, batch=batch, dtype=options.dtype
  )
  contenders = {OURS: scorer(detector)}
  first_seconds = time.perf_counter() - start
  peers, failed = {}, []
  if options.peer:
    peers, failed = contest.start_peers(
      options.variants or default_variants(platform, options.dtype),
      **{'task': 'inference', 'size': size, 'widths': widths, 'batch': batch},
    )
  timings = contest.measure(
    contenders | peers, rounds=options.rounds, seconds=options.seconds
  )
  for peer in peers.values():
    peer.close()
  teraflop = cost.flop(size, widths, 'inference') / 1e12
  rows = [
    {
      'name': name,
      'milliseconds': round(1000 * timing.best, 3),
      'images_per_second': round(batch / timing.best, 3),
      'median_images_per_second': round(batch / timing.median, 3),
      'tflops': round(teraflop * batch / timing.best, 4),
      'calls': timing.calls,
    }
    for name, timing in timings.items()
  ]
  results = {
    **{'size': size, 'widths': widths, 'batch': batch, 'dtype': options.dtype},
    'rows': rows,
    'failed': failed,
    'first_seconds': round(first_seconds, 1),
  }
  return results, contest.peer_versions(peers)


def print_table(cases: list[dict[str, Any]]) -> None:
  """The results in Markdown."""
  first = cases[0]
  print(
    f'{first["size"]}×{first["size"]}, widths {first["widths"][0]} and'
    f' {first["widths"][1]}, {first["dtype"]}\n'
  )
  print('| | batch | ms a call | images/s | median | TFLOP/s | draem_jax is |')
  print('|---|' + '---:|' * 6)
  for case in cases:
    ours = case['rows'][0]['images_per_second']
    for row in case['rows']:
      cells = (
        str(case['batch']),
        f'{row["milliseconds"]:.1f}',
        f'{row["images_per_second"]:.4g}',
        f'{row["median_images_per_second"]:.4g}',
        f'{row["tflops"]:.3g}',
        f'{ours / row["images_per_second"]:.2f} ×',
      )
      print(f'| {row["name"]} | {" | ".join(cells)} |')
    for name in case['failed']:
      print(f'| {name} | {case["batch"]} | failed {"| " * 5}|')
  print()


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--widths', type=int, nargs=2, default=[128, 64])
  parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--peer', choices=('torch',), help='what to measure, too')
  parser.add_argument(
    '--variants', nargs='+', help='of the peer: channels_last+folded, say'
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--seconds', type=float, default=2.0, help='a turn, at least one call'
  )
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args(arguments)
  if options.peer:
    # JAX would take most of a GPU's memory before the peer starts.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  command.use_compilation_cache()
  cases, versions = [], {}
  for batch in options.batch:
    results, found = compare(batch, options)
    cases.append(results)
    versions |= found
  print_table(cases)
  record.print_record(
    'inference', cases, arguments=arguments, versions=versions
  )


if __name__ == '__main__':
  main()
