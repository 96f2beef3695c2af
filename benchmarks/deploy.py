"""Latency and throughput of a detector in each runtime that can run it.

    python -m benchmarks.deploy --size=256 --widths 128 64 --batch 1 4

From uint8 images on the host to anomaly maps and scores on the host: the
`Detector`, and what `draem_jax.export` writes in StableHLO, run by JAX, and in
ONNX, run by ONNX Runtime and OpenVINO on the CPU. The weights are random. All
take their turns in alternation, and the best turn of each counts. Prints a
table and one JSON line.
"""

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from benchmarks import contest, inference, record
from draem_jax import command
from draem_jax.detection.detector import Detector
from draem_jax.export import onnx, stablehlo

DETECTOR = 'draem_jax (`Detector`)'
STABLEHLO = 'StableHLO, by JAX'
_PACKAGES = ('onnx', 'onnxruntime', 'openvino')


def load_programs(detector: Detector) -> dict[str, Callable]:
  """What was exported of a detector, by the name of its runtime."""
  options = {'channel_order': 'rgb'}
  traced = stablehlo.trace(detector, **options).serialize()
  serialized = onnx.serialize(detector, category='benchmark', **options)
  programs = {STABLEHLO: jax.jit(jax.export.deserialize(traced).call)}
  for name, load in onnx.RUNTIMES.items():
    programs[name] = load(serialized)
  return programs


def caller(program: Callable, images: np.ndarray) -> Callable[[int], float]:
  """A contender: scores one batch again and again."""
  if hasattr(program, 'lower'):
    # Compiled now, lest the time of the first call be taken for that of each.
    program = program.lower(images).compile()

  def run(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      jax.device_get(program(images))
    return time.perf_counter() - start

  return run


def compare(
  detector: Detector,
  programs: dict[str, Callable],
  batch: int,
  options: argparse.Namespace,
) -> dict[str, Any]:
  """Measures one batch size; the results as plain values."""
  height, width = detector.image_size
  shape = (batch, height, width, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  contenders = {DETECTOR: inference.scorer(detector.with_batch_size(batch))}
  for name, program in programs.items():
    contenders[name] = caller(program, images)
  timings = contest.measure(
    contenders, rounds=options.rounds, seconds=options.seconds
  )
  rows = [
    {
      'name': name,
      'milliseconds': round(1000 * timing.best, 3),
      'median_milliseconds': round(1000 * timing.median, 3),
      'images_per_second': round(batch / timing.best, 3),
      'calls': timing.calls,
    }
    for name, timing in timings.items()
  ]
  return {'batch': batch, 'rows': rows}


def print_table(cases: list[dict[str, Any]]) -> None:
  """A row a runtime, two columns a batch size, in Markdown."""
  titles = [
    f'batch {case["batch"]}: {what}'
    for case in cases
    for what in ('ms a call', 'images/s')
  ]
  print(f'| runtime | {" | ".join(titles)} |')
  print('|---|' + '---:|' * len(titles))
  for rows in zip(*(case['rows'] for case in cases), strict=True):
    cells = [
      cell
      for row in rows
      for cell in (
        f'{row["milliseconds"]:.4g}',
        f'{row["images_per_second"]:.3g}',
      )
    ]
    print(f'| {rows[0]["name"]} | {" | ".join(cells)} |')
  print()


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--widths', type=int, nargs=2, default=[128, 64])
  parser.add_argument('--batch', type=int, nargs='+', default=[1, 4])
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument(
    '--seconds', type=float, default=2.0, help='a turn, at least one call'
  )
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args(arguments)
  command.use_compilation_cache()
  detector = inference.make_detector(
    size=options.size, widths=options.widths, batch=1, dtype='float32'
  )
  programs = load_programs(detector)
  cases = [
    compare(detector, programs, batch, options) for batch in options.batch
  ]
  print_table(cases)
  record.print_record(
    'deploy',
    {'size': options.size, 'widths': options.widths, 'cases': cases},
    arguments=arguments,
    versions={name: importlib.metadata.version(name) for name in _PACKAGES},
  )


if __name__ == '__main__':
  main()
