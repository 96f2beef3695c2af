"""What compilers say of the training step on chips that are not here.

    python -m benchmarks.compiled --topology=v5e:2x2 --dtype=bfloat16 --batch=32

Compiles the step that `draem_jax.main` runs, simulator included, for TPUs
(`v5e`, `v5p`, `v6e`, with the shape of the slice behind a colon) or for one
H100 (`h100`), on a machine that has neither: with the extra `tpu` or `cuda`
installed. Prints a table by part and one JSON line.

The milliseconds are the compiler's estimate of its own program, which nothing
ran and nothing measured. Of some operations it gives none (they are counted),
loops and branches would not be in the sum, and neither are collectives: what
these take is added from their bytes and the links' published speed.
"""

import argparse
import collections
import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import cost, record
from draem_jax import devices
from draem_jax.configs import mvtec
from draem_jax.networks import models
from draem_jax.simulator.options import Options
from draem_jax.training import layouts, sampling, trainer
from draem_jax.training import optimizer as optimizer_lib
from draem_jax.training import step as train_step

# Bottle's images and the textures of DTD, which lie on every chip.
_NUM_IMAGES, _NUM_TEXTURES = 209, 5640
_HOP_SECONDS = 1e-6  # From a chip to the next: an assumption.
_RING_PORTS = 2  # A ring sends both ways round.


@dataclasses.dataclass(frozen=True)
class Chip:
  """What is published of a chip.

  Attributes:
    shape: of the smallest slice with four chips, or of a single chip.
    tflops: in bfloat16.
    gigahertz: of the cycles that the compiler estimates; None: it does not.
    port_gigabytes: a second, through one of its ports, one way.
  """

  shape: str
  tflops: float
  gigahertz: float | None = None
  port_gigabytes: float | None = None


CHIPS = {
  'v5e': Chip('2x2', 197.0, 1.5, 50.0),
  'v5p': Chip('2x2x1', 459.0, 1.75, 100.0),
  'v6e': Chip('2x2', 918.0, 1.75, 100.0),
  'h100': Chip('1x1x1', 989.0),
}

# Instructions that hand on what is there, or that run beside others.
_FREE = {
  *('parameter', 'constant', 'bitcast', 'tuple', 'get-tuple-element'),
  *('copy-start', 'copy-done', 'slice-start', 'slice-done', 'partition-id'),
}
_COLLECTIVES = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  'collective-permute',
)
_COUNTED = ('while', 'conditional', 'sort', 'scatter', 'gather')
# What an operation of the networks belongs to, by its last word.
_KINDS = {
  'reduce_sum': 'sums of batch norm',
  'dot_general': 'upsampling',
  'gather': 'upsampling',
  'reduce_window_max': 'pooling',
  'reduce_window_sum': 'pooling',
  'reduce_window': 'pooling',
  'max': 'pooling',
  'eq': 'pooling',
  'select_n': 'pooling',
}
_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f64': 8, 's64': 8, 'u64': 8}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a compiled program.

  Attributes:
    operation: what it does, as XLA calls it.
    result: the types of its result.
    name: where it comes from in the source, or nothing.
    cycles: the compiler's estimate; None: there is none.
    channel: of a collective, by number; a start and its end have the same.
  """

  operation: str
  result: str
  name: str
  cycles: int | None
  channel: str | None = None


def read_program(text: str, *, whole: bool = False) -> Iterator[Instruction]:
  """The instructions of a compiled program.

  Args:
    text: the program, as XLA prints it.
    whole: those inside fusions, loops and branches, too, rather than the entry
      alone, which is what is estimated.
  """
  text = text if whole else text[text.index('ENTRY') :]
  for line in text.splitlines():
    found = re.match(
      r'\s+(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([a-z][a-z0-9-]*)\(', line
    )
    if not found:
      continue
    name = re.search(r'op_name="([^"]*)"', line)
    cycles = re.search(r'estimated_cycles":"(\d+)"', line)
    channel = re.search(r'channel_id=(\d+)', line)
    yield Instruction(
      operation=found[2],
      result=found[1],
      name=name[1] if name else '',
      cycles=int(cycles[1]) if cycles else None,
      channel=channel[1] if channel else None,
    )


def count_bytes(result: str) -> int:
  """Bytes of a result, by its types: `(f32[8,128]{1,0}, bf16[2])`, say."""
  total = 0
  for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', result):
    size = _BYTES.get(dtype) or int(re.sub(r'\D', '', dtype)) // 8
    total += size * math.prod(int(n) for n in shape.split(',') if n)
  return total


def part_of(instruction: Instruction) -> str:
  """Which part of the step an instruction belongs to."""
  name, last = instruction.name, instruction.name.rpartition('/')[2]
  way = 'backward' if 'transpose(' in name else 'forward'
  if instruction.operation == 'copy' and not name:
    return 'copies without a name'
  if not name:
    return 'other things without a name'
  if 'conv_general' in name:
    return f'convolutions, {way}'
  if 'Draem' in name:
    kind = 'copies' if instruction.operation == 'copy' else _KINDS.get(last)
    return f'networks, {way}: {kind or "normalization and the rest"}'
  if 'simulat' in name or 'vmap' in name:
    return 'simulator'
  return 'losses' if 'jvp(' in name else 'optimizer and sampling'


def analyze(text: str, chip: Chip) -> dict[str, Any]:
  """What a compiled program tells of itself, as plain values.

  Args:
    text: the program, as XLA prints it.
    chip: what it was compiled for.
  """
  parts, unknown = collections.Counter(), collections.Counter()
  exposed = set()
  for instruction in read_program(text):
    exposed.add(instruction.channel)
    if instruction.operation in _FREE:
      continue
    if instruction.cycles is None:
      unknown[instruction.operation] += 1
    elif chip.gigahertz:
      parts[part_of(instruction)] += instruction.cycles / chip.gigahertz / 1e6
  counts = dict.fromkeys(_COUNTED, 0)
  collectives, seen = {}, set()
  for instruction in read_program(text, whole=True):
    operation = instruction.operation.removesuffix('-start')
    channel = instruction.channel
    if operation in counts:
      counts[operation] += 1
    if operation in _COLLECTIVES and (channel is None or channel not in seen):
      seen.add(channel)
      # A TPU's compiler puts into fusions what goes on beside other work.
      hidden = '' if channel in exposed else 'hidden '
      of_kind = collectives.setdefault(
        hidden + operation, {'count': 0, 'bytes': 0}
      )
      of_kind['count'] += 1
      of_kind['bytes'] += count_bytes(instruction.result)
  convolutions = re.findall(r'custom_call_target="__cudnn\$conv\w*"', text)
  turned = re.findall(
    r'= f32\[\d+,3,3,\d+\]\S* fusion\(|= f32\[3,3,\d+,\d+\]\S* copy\(', text
  )
  return {
    'milliseconds': {name: round(ms, 3) for name, ms in parts.most_common()},
    'total_milliseconds': round(parts.total(), 3) or None,
    'without_an_estimate': dict(unknown.most_common()),
    'counts': counts,
    'collectives': collectives,
    'cudnn_convolutions': len(convolutions),
    'kernels_turned': len(turned),
  }


def collective_milliseconds(
  collectives: dict[str, dict[str, int]], chip: Chip, shape: Sequence[int]
) -> float | None:
  """What all-reduces would take, one after the other.

  Args:
    collectives: numbers and bytes by kind, as of `analyze`; hidden ones take
      no time.
    chip: whose links they go through.
    shape: chips along each axis of the slice.

  Returns:
    Twice the bytes through a ring both ways round, and a hop's time for each
    step along the axes and back; None where no speed is known.
  """
  if not chip.port_gigabytes:
    return None
  chips = math.prod(shape)
  kinds = [
    kind for name, kind in collectives.items() if not name.startswith('hidden')
  ]
  count = sum(kind['count'] for kind in kinds)
  size = sum(kind['bytes'] for kind in kinds)
  rate = _RING_PORTS * chip.port_gigabytes * 1e9
  hops = 2 * sum(n - 1 for n in shape)
  seconds = 2 * size * (chips - 1) / chips / rate + count * hops * _HOP_SECONDS
  return round(1000 * seconds, 3)


def find_devices(topology: str) -> list[Any]:
  """Devices that a program can be compiled for, though they are not here."""
  name, _, shape = topology.partition(':')
  shape = shape or CHIPS[name].shape
  if name == 'h100':
    target = (pathlib.Path(__file__).parent / 'h100.txt').read_text()
    return topologies.get_topology_desc(
      platform='cuda', topology=shape, target_config=target
    ).devices
  return topologies.get_topology_desc(
    platform='tpu', topology_name=f'{name}:{shape}'
  ).devices


def compile_step(
  devices_: Sequence[Any], options: argparse.Namespace
) -> jax.stages.Compiled:
  """The compiled step of the release's recipe, as `trainer.Trainer` has it."""
  config = mvtec.get_config('bottle,release')
  config.update(
    dtype=options.dtype, batch_size=options.batch, image_size=options.size
  )
  config.model.reconstructive_width = options.widths[0]
  config.model.discriminative_width = options.widths[1]
  config = config.to_dict()
  mesh = Mesh(np.array(devices_), ('data',), axis_types=(AxisType.Auto,))
  model = models.make(config)
  num_steps = trainer.count_steps(config, _NUM_IMAGES)
  optimizer = optimizer_lib.make_optimizer(
    optimizer_lib.make_schedule(config, num_steps)
  )
  step = train_step.make_train_step(
    model,
    optimizer,
    trainer.make_recipe(config, num_steps),
    Options(**config['simulator']),
    mesh=mesh,
  )

  def drawing_step(state, images, textures):
    sampled = sampling.sample_batch(
      config['seed'],
      state.step,
      batch_size=config['batch_size'],
      num_images=len(images),
      num_textures=len(textures),
      sampling=config['sampling'],
    )
    return step(
      state,
      images[sampled.images],
      textures[sampled.textures],
      sampled.keys,
    )

  def on_every_device(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      shape.shape, shape.dtype, sharding=devices.replicated(mesh)
    )

  def init(variables):
    return train_step.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=optimizer.init(variables['params']),
    )

  state = jax.eval_shape(init, models.abstract_variables(model))
  images, textures = (
    jax.ShapeDtypeStruct((count, options.size, options.size, 3), jnp.uint8)
    for count in (_NUM_IMAGES, _NUM_TEXTURES)
  )
  arguments = jax.tree.map(on_every_device, (state, images, textures))
  if layouts.are_chosen(mesh):
    jitted = layouts.choosing(drawing_step, mesh)
  else:
    jitted = jax.jit(drawing_step, donate_argnums=0)
  return jitted.lower(*arguments).compile()


def describe(options: argparse.Namespace) -> dict[str, Any]:
  """Compiles and analyzes what the command's options ask for."""
  name, _, shape = options.topology.partition(':')
  chip = CHIPS[name]
  devices_ = find_devices(options.topology)
  start = time.perf_counter()
  compiled = compile_step(devices_, options)
  seconds = time.perf_counter() - start
  text, memory = compiled.as_text(), compiled.memory_analysis()
  if options.program:
    pathlib.Path(options.program).write_text(text, encoding='utf-8')
  results = {
    'topology': f'{name}:{shape or chip.shape}',
    'device_kind': devices_[0].device_kind,
    'chips': len(devices_),
    'size': options.size,
    'widths': options.widths,
    'batch': options.batch,
    'dtype': options.dtype,
    'compile_seconds': round(seconds, 1),
    'argument_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    **analyze(text, chip),
  }
  teraflop = cost.flop(options.size, tuple(options.widths), 'training') / 1e12
  teraflop *= options.batch / len(devices_)
  results['teraflop_per_chip'] = round(teraflop, 4)
  total = results['total_milliseconds']
  if total:
    results['share_of_peak'] = round(teraflop / chip.tflops / total * 1000, 4)
    results['collective_milliseconds'] = collective_milliseconds(
      results['collectives'],
      chip,
      [int(n) for n in (shape or chip.shape).split('x')],
    )
  return results


def print_table(results: dict[str, Any]) -> None:
  """The results in Markdown."""
  print(
    f'{results["topology"]} ({results["device_kind"]}), {results["dtype"]},'
    f' batch {results["batch"]}, {results["size"]}×{results["size"]}, widths'
    f' {results["widths"][0]} and {results["widths"][1]}: compiled and'
    ' estimated by the compiler, not run\n'
  )
  total = results['total_milliseconds']
  if total:
    print('| part | ms | share |\n|---|---:|---:|')
    for name, milliseconds in results['milliseconds'].items():
      print(f'| {name} | {milliseconds:.2f} | {milliseconds / total:.1%} |')
    print(f'| sum | {total:.2f} | {results["share_of_peak"]:.1%} of the peak |')
    print(
      '| collectives that nothing hides |'
      f' {results["collective_milliseconds"]:.2f} | |\n'
    )
  print(
    f'arguments {results["argument_bytes"] / 1e9:.2f} GB, temporaries'
    f' {results["temporary_bytes"] / 1e9:.2f} GB a chip'
  )
  print(f'in the program: {_listed(results["counts"])}')
  for name, kind in results['collectives'].items():
    print(f'{kind["count"]} {name}, {kind["bytes"] / 1e6:.1f} MB')
  if results['cudnn_convolutions']:
    print(
      f'{results["cudnn_convolutions"]} convolutions of cuDNN,'
      f' {results["kernels_turned"]} kernels turned between layouts'
    )
  print(f'without an estimate: {_listed(results["without_an_estimate"])}\n')


def _listed(counts: dict[str, int]) -> str:
  return ', '.join(f'{count} {name}' for name, count in counts.items())


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--topology', default='v5e:2x2', type=_topology, help='v5e:4x4 or h100, say'
  )
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--widths', type=int, nargs=2, default=[128, 64])
  parser.add_argument('--batch', type=int, default=32, help='of all chips')
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='bfloat16'
  )
  parser.add_argument('--program', help='a file to write the program to')
  return parser


def _topology(text: str) -> str:
  if text.partition(':')[0] not in CHIPS:
    raise argparse.ArgumentTypeError(
      f'{text!r} is of no known chip: take one of {", ".join(CHIPS)}'
    )
  return text


def main(arguments: Sequence[str] | None = None) -> None:
  """Compile, print the table, print the JSON line."""
  options = make_parser().parse_args(arguments)
  # Nothing runs here, and no chip is asked for.
  jax.config.update('jax_platforms', 'cpu')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  # Without a GPU there is nothing to choose algorithms by.
  flags = os.environ.get('XLA_FLAGS', '')
  if options.topology.startswith('h100'):
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_autotune_level=0'
  results = describe(options)
  print_table(results)
  record.print_record('compiled', results, arguments=arguments)


if __name__ == '__main__':
  main()
