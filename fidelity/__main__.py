"""The tables of docs/fidelity.md: how near the numbers come to the release's.

    python -m fidelity
    python -m fidelity --images=/data/mvtec_ad/bottle/train/good \
        --textures=/data/dtd/images --write

The first prints what the golden arrays of `tests/golden` allow. The second adds
the statistics of 6,000 simulated examples and puts all of it into the page,
between its two markers.
"""

import argparse
import datetime
import os
import pathlib
import platform
from collections.abc import Iterable

import jax
import numpy as np

from benchmarks import machine
from fidelity import networks as fidelity_networks
from fidelity import simulator as fidelity_simulator
from fidelity.networks import Case
from fidelity.simulator import Row, markdown

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'fidelity.md'
START, END = '<!-- measured: start -->', '<!-- measured: end -->'
# Below this a gradient is rounding noise about a true zero.
_NO_GRADIENT = 1e-12


def evaluation_table() -> list[Row]:
  """Differences of the networks in evaluation, float32."""
  golden = fidelity_networks.load_golden('network')
  variables = fidelity_networks.load_variables()
  return [
    {
      'evaluation': case.name.replace('_', ' '),
      'largest value': f'{np.abs(case.expected).max():.2f}',
      'largest difference': f'{_absolute(case):.0e}',
    }
    for case in fidelity_networks.evaluation_cases(golden, variables)
  ]


def training_table() -> list[Row]:
  """Differences of three steps of Adam, float64."""
  golden = fidelity_networks.load_golden('network')
  variables = fidelity_networks.load_variables()
  steps = fidelity_networks.train_in_float64(golden, variables)
  outputs = fidelity_networks.training_output_cases(golden, steps)
  gradients = list(fidelity_networks.gradient_cases(golden, steps))
  zero = [c for c in gradients if np.abs(c.expected).max() < _NO_GRADIENT]
  other = [c for c in gradients if np.abs(c.expected).max() >= _NO_GRADIENT]
  losses = fidelity_networks.loss_cases(golden, steps)
  rows = [(f'{case.name}, step 1', [case], 'absolute') for case in outputs]
  rows += [
    ('gradients, step 1', other, "relative to each array's largest value"),
    ('gradients of biases before a batch norm, step 1', zero, 'absolute'),
    (
      'running statistics, step 1',
      fidelity_networks.statistics_cases(golden, steps),
      'absolute',
    ),
  ]
  rows += [
    (f'the four losses, {case.name}', [case], 'relative') for case in losses
  ]
  parameters = fidelity_networks.parameter_cases(golden, steps)
  rows.append(('parameters after step 3', parameters, 'absolute'))
  return [_row('training', *row) for row in rows]


def losses_table() -> list[Row]:
  """Differences of losses, upsampling and image score, float32."""
  golden = fidelity_networks.load_golden('losses')
  rows = [
    (f'{case.name}, case {number}, L = {data_range:g}', [case], 'absolute')
    for number, (data_range, *cases) in enumerate(
      fidelity_networks.ssim_cases(golden), start=1
    )
    for case in cases
  ]
  rows += [
    ('focal loss', [fidelity_networks.focal_case(golden)], 'relative'),
    ('upsampling', [fidelity_networks.upsample_case(golden)], 'absolute'),
    ('21 × 21 score', [fidelity_networks.score_case(golden)], 'absolute'),
  ]
  return [_row('losses and score', *row) for row in rows]


def _absolute(case: Case) -> float:
  return np.abs(case.found - case.expected).max()


_MEASURES = {
  'absolute': _absolute,
  'relative': lambda case: np.abs(case.found / case.expected - 1).max(),
  "relative to each array's largest value": lambda case: (
    _absolute(case) / np.abs(case.expected).max()
  ),
}


def _row(title: str, what: str, cases: Iterable[Case], measure: str) -> Row:
  """The worst of some arrays."""
  difference = max(_MEASURES[measure](case) for case in cases)
  return {
    title: what,
    'largest difference': f'{difference:.0e}' if difference else '0',
    'measured': measure,
  }


def sections(
  images: pathlib.Path | None, textures: pathlib.Path | None, num_draws: int
) -> str:
  """All that can be measured, as Markdown.

  Args:
    images: the training images of the category bottle, or None.
    textures: the textures that the release's statistics are of, or None.
    num_draws: how many examples to simulate for the statistics.
  """
  parts = [
    '### Networks',
    'The golden checkpoint (widths 4 and 2) on two images of 64 × 96, float32.',
    markdown(evaluation_table()),
    'Three steps of Adam at 1e-3 from there, two images a step, float64.\n'
    'Constants that the release rounds to float32 are rounded here, too. A\n'
    'bias before a batch norm has no gradient: here it is 0, in the release\n'
    'rounding noise.',
    markdown(training_table()),
    '### Losses and score',
    'Float32.',
    markdown(losses_table()),
    '### Operations of the simulator',
    'Perlin noise from the same gradients and rotated noise, in units of its\n'
    'range [-1, 1]:',
    markdown(fidelity_simulator.perlin_table()),
    markdown(fidelity_simulator.rotate_table()),
    'At 17° two of 4,096 places lie so near the middle between two multiples\n'
    'of 1/1024 pixel that float32 rounds them to the other side.',
    'Texture operations on two images, in levels of 255:',
    markdown(fidelity_simulator.augment_table()),
  ]
  if images and textures:
    rows = fidelity_simulator.statistics_table(
      images, textures, num_draws=num_draws
    )
    parts += [
      '### The simulator as a whole',
      f'{num_draws:,} draws with preset `release` at 256 × 256 beside 1,500\n'
      'of the release, on the same images and textures. The standard error is\n'
      'that of the difference of two such samples, by bootstrap.',
      markdown(rows),
    ]
  return '\n\n'.join(parts)


def caption() -> str:
  """Where, when and with what the tables were measured."""
  cores = f'{os.cpu_count()} × CPU ({machine.processor()})'
  return (
    f'Measured on {cores}, jax {jax.__version__}, Python'
    f' {platform.python_version()}, on {datetime.date.today()}.'
  )


def replace_between_markers(page: str, text: str) -> str:
  """The page with `text` where its markers enclose the old tables."""
  before, start, rest = page.partition(START)
  _, end, after = rest.partition(END)
  if not (start and end):
    raise ValueError(f'the page lacks {START} or {END} behind it')
  return f'{before}{START}\n\n{text}\n\n{END}{after}'


def main() -> None:
  """Prints the tables, or writes them into the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=pathlib.Path)
  parser.add_argument('--textures', type=pathlib.Path)
  parser.add_argument('--draws', type=int, default=6000)
  parser.add_argument('--write', action='store_true')
  options = parser.parse_args()
  folders = options.images, options.textures
  if (options.write or any(folders)) and not all(folders):
    parser.error('give both --images and --textures; --write needs them')
  text = f'{caption()}\n\n{sections(*folders, options.draws)}'
  print(text)
  if options.write:
    page = PAGE.read_text(encoding='utf-8')
    PAGE.write_text(replace_between_markers(page, text), encoding='utf-8')


if __name__ == '__main__':
  main()
