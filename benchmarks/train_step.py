"""Images a second of the compiled training step, beside PyTorch's.

    python -m benchmarks.train_step --size=256 --widths 128 64 --batch=8 \
        --dtype=bfloat16 --peer=torch

Measures the whole step, which draws images and textures that lie on the device,
simulates defects, and trains; the same step on a fixed example, without the
simulator; and PyTorch, on a fixed example on the device, in the variants of
`torch_peer.Variant`. All take their turns in alternation, and the best turn of
each counts. Prints a table and one JSON line.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contest, cost, record
from draem_jax import command, devices
from draem_jax.configs import mvtec
from draem_jax.data import textures as texture_files
from draem_jax.simulator.simulate import Example
from draem_jax.training import step as train_step
from draem_jax.training import trainer as trainer_lib

WHOLE, FIXED = 'draem_jax, whole step', 'draem_jax, without simulator'
# Of one H100 (SXM) in bfloat16, without sparsity.
H100_TFLOPS = 989.0


def make_trainer(
  *, size: int, widths: Sequence[int], batch: int, dtype: str
) -> trainer_lib.Trainer:
  """A run of the release's recipe whose data lie on the first device."""
  config = mvtec.get_config('bottle,release')
  config.image_size, config.batch_size, config.dtype = size, batch, dtype
  config.model.reconstructive_width, config.model.discriminative_width = widths
  config.num_steps = 1_000_000  # So that the learning rate stays.
  mesh = devices.make_mesh(batch, jax.devices()[:1])
  pieces = np.asarray(texture_files.builtin_textures(image_size=size))
  pieces = jax.device_put(pieces, devices.replicated(mesh))
  return trainer_lib.Trainer(
    config.to_dict(), images=pieces, textures=pieces, mesh=mesh
  )


def whole_step(
  trainer: trainer_lib.Trainer, state: train_step.TrainState
) -> Callable[[int], float]:
  """A contender: the step that `draem_jax.main` runs."""
  return _chain(lambda state: trainer.step(state, 0), state)


def step_without_simulator(
  trainer: trainer_lib.Trainer, state: train_step.TrainState
) -> Callable[[int], float]:
  """A contender: networks, losses and optimizer on one fixed example."""
  config = trainer.config
  shape = (config['batch_size'], config['image_size'], config['image_size'])
  rng = np.random.default_rng(0)
  image, augmented = rng.uniform(size=(2, *shape, 3)).astype(np.float32)
  mask = (rng.uniform(size=shape) > 0.9).astype(np.float32)
  example = jax.device_put(
    Example(image=image, augmented=augmented, mask=mask),
    devices.batch_sharded(trainer.mesh),
  )
  update = jax.jit(
    train_step.make_update(
      trainer.model,
      trainer.optimizer,
      trainer_lib.make_recipe(config, trainer.num_steps),
    ),
    donate_argnums=0,
  )
  return _chain(lambda state: update(state, example), state)


def _chain(step: Callable, state: train_step.TrainState):
  """Compiles `step`; the result makes some steps and returns their seconds."""

  def run(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, losses = step(state)
    jax.block_until_ready((state, losses))
    return time.perf_counter() - start

  run(1)
  return run


def default_variants(platform: str, dtype: str) -> list[str]:
  """What PyTorch is at its best in, and on a GPU what the release does."""
  low = '+bfloat16' if dtype == 'bfloat16' else ''
  if platform == 'cpu':
    return [f'channels_last{low}', f'contiguous{low}']
  return [f'channels_last+compiled{low}', f'channels_last{low}', 'release']


def compare(options: argparse.Namespace) -> tuple[dict, dict[str, str]]:
  """Measures what the command's options ask for.

  Returns:
    The results as plain values, and the version of PyTorch if it took part.
  """
  size, widths, batch = options.size, options.widths, options.batch
  platform = jax.devices()[0].platform
  contenders, compile_seconds = {}, {}
  trainer = make_trainer(
    size=size, widths=widths, batch=batch, dtype=options.dtype
  )
  state = trainer.init_state()
  peak_memory = {}
  for name, make in ((WHOLE, whole_step), (FIXED, step_without_simulator)):
    start = time.perf_counter()
    # A copy, for a step takes its state's memory.
    contenders[name] = make(trainer, jax.tree.map(jnp.copy, state))
    compile_seconds[name] = round(time.perf_counter() - start, 1)
    # The peak is that of the process, so only the first row can be told.
    if name == WHOLE:
      peak_memory[name] = _peak_memory()
  peers, failed = {}, []
  if options.peer:
    peers, failed = contest.start_peers(
      options.variants or default_variants(platform, options.dtype),
      **{'task': 'training', 'size': size, 'widths': widths, 'batch': batch},
    )
  timings = contest.measure(
    contenders | peers, rounds=options.rounds, seconds=options.seconds
  )
  for name, peer in peers.items():
    peak_memory[name] = peer.about['peak_memory']
    peer.close()
  teraflop = cost.flop(size, widths, 'training') / 1e12
  rows = [
    {
      'name': name,
      'milliseconds': round(1000 * timing.best, 3),
      'images_per_second': round(batch / timing.best, 3),
      'median_images_per_second': round(batch / timing.median, 3),
      'tflops': round(teraflop * batch / timing.best, 4),
      'peak_memory': peak_memory.get(name),
      'calls': timing.calls,
    }
    for name, timing in timings.items()
  ]
  whole, fixed = timings[WHOLE].best, timings[FIXED].best
  results = {
    **{'size': size, 'widths': widths, 'batch': batch, 'dtype': options.dtype},
    'rows': rows,
    'failed': failed,
    'simulator_share': round(1 - fixed / whole, 4),
    'compile_seconds': compile_seconds,
    'teraflop_per_image': round(teraflop, 6),
    'peak_tflops': options.peak_tflops,
  }
  return results, contest.peer_versions(peers)


def _peak_memory() -> int | None:
  """Bytes that this process has had on the device at most; None on a CPU."""
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def print_table(results: dict) -> None:
  """The results in Markdown."""
  peak = results['peak_tflops']
  print(
    f'{results["size"]}×{results["size"]}, widths'
    f' {results["widths"][0]} and {results["widths"][1]}, batch'
    f' {results["batch"]}, {results["dtype"]}\n'
  )
  print(
    '| | ms a step | images/s | median | TFLOP/s |'
    f' of {peak:g} TFLOP/s | GiB | draem_jax is |'
  )
  print('|---|' + '---:|' * 7)
  ours = results['rows'][0]['images_per_second']
  for row in results['rows']:
    rate, memory = row['images_per_second'], row['peak_memory']
    cells = (
      f'{row["milliseconds"]:.1f}',
      f'{rate:.4g}',
      f'{row["median_images_per_second"]:.4g}',
      f'{row["tflops"]:.3g}',
      f'{row["tflops"] / peak:.2%}',
      f'{memory / 2**30:.2f}' if memory else '',
      f'{ours / rate:.2f} ×',
    )
    print(f'| {row["name"]} | {" | ".join(cells)} |')
  for name in results['failed']:
    print(f'| {name} | failed {"| " * 7}|')
  print(f'\nthe simulator takes {results["simulator_share"]:.1%} of a step\n')


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--widths', type=int, nargs=2, default=[128, 64])
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--peer', choices=('torch',), help='what to measure, too')
  parser.add_argument(
    '--variants', nargs='+', help='of the peer: channels_last+compiled, say'
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--seconds', type=float, default=2.0, help='a turn, at least one step'
  )
  parser.add_argument(
    '--peak_tflops', type=float, default=H100_TFLOPS, help='of the device'
  )
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args(arguments)
  if options.peer:
    # JAX would take most of a GPU's memory before the peer starts.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  command.use_compilation_cache()
  results, versions = compare(options)
  print_table(results)
  record.print_record(
    'train_step', results, arguments=arguments, versions=versions
  )


if __name__ == '__main__':
  main()
