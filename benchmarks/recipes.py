"""Trains presets beside each other, and says what each finds at which step.

  python -m benchmarks.recipes --folder=/tmp/recipes --data=DATA \
    --textures=DTD --categories=bottle,sawn_timber --seeds=0,1,2

Each run is a preset on a category with a seed, and a folder whose `run.json`
has its metrics on the test split, in percent, and the mean loss, at a few
steps. Those that are finished are not run again; a second process (`taskset -c
1`, the same command) takes what no other is at. At the end `table.md` and
`curves.png` are made of all that is there. A folder takes runs of one setting.

Pixels count as anomalous from half coverage on, whatever the preset says.
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks import machine
from draem_jax import config as config_lib
from draem_jax import evaluate, experiment
from draem_jax.configs import mvtec
from draem_jax.data import category as category_lib
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import lock, storage
from draem_jax.workdir.thresholds import Thresholds

METRICS = {
  'image_auroc': 'image AUROC',
  'pixel_auroc': 'pixel AUROC',
  'pixel_ap': 'pixel AP',
  'loss': 'loss',
}
STEPS = (100, 200, 300, 450, 600, 1000, 1500, 2000, 2500, 3000)


def make_parser() -> argparse.ArgumentParser:
  """The arguments of this benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--textures', default='builtin')
  parser.add_argument('--presets', default='paper,release,best')
  parser.add_argument('--categories', default='bottle')
  parser.add_argument('--seeds', type=_numbers, default='0,1,2')
  parser.add_argument('--size', type=int, default=64)
  parser.add_argument('--widths', type=int, nargs=2, default=[16, 8])
  parser.add_argument(
    '--steps', type=int, help='of every run; without, as many as a preset has'
  )
  parser.add_argument(
    *('--set', '-s'),
    action='append',
    default=[],
    metavar='FIELD=VALUE',
    help='of every run, VALUE as JSON',
  )
  return parser


def _numbers(text: str) -> list[int]:
  """Whole numbers between commas."""
  return [int(number) for number in text.split(',')]


def main() -> None:
  """Runs what is missing, then makes table and curves."""
  parser = make_parser()
  args = parser.parse_args()
  runs = [
    (preset, category, seed)
    for category in args.categories.split(',')
    for seed in args.seeds
    for preset in args.presets.split(',')
  ]
  try:
    for run in runs:
      config_lib.check(make_config(args, *run))
    _keep_setting(args)
    for run in runs:
      _run_if_missing(args, *run)
  except (UserError, ValueError) as error:
    parser.error(str(error))
  found = read(args.folder)
  (args.folder / 'table.md').write_text(table(found))
  draw_curves(args.folder / 'curves.png', found)
  print((args.folder / 'table.md').read_text())


def _keep_setting(args: argparse.Namespace) -> None:
  """Refuses a folder that has runs of another setting."""
  setting = {
    name: getattr(args, name) for name in ('size', 'widths', 'steps', 'set')
  }
  args.folder.mkdir(parents=True, exist_ok=True)
  path = args.folder / 'setting.json'
  if path.exists() and json.loads(path.read_text()) != setting:
    raise UserError(
      f'{path} is of other runs than {json.dumps(setting)}: take another'
      ' --folder'
    )
  storage.write_json(path, setting)


def _run_if_missing(
  args: argparse.Namespace, preset: str, category: str, seed: int
) -> None:
  """Makes a run that is not finished and that no process is at."""
  place = args.folder / f'{preset}-{category}-{seed}'
  place.mkdir(exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock.hold(place))
    except UserError:
      return
    if not (place / 'run.json').exists():
      run = train_and_evaluate(args, preset, category, seed)
      storage.write_json(place / 'run.json', run)


def train_and_evaluate(
  args: argparse.Namespace, preset: str, category: str, seed: int
) -> dict[str, Any]:
  """Trains one run and returns its line."""
  config = make_config(args, preset, category, seed)
  config_lib.check(config)
  config = experiment.decide(config)
  place = args.folder / 'prepared'
  found = experiment.load_category(config, place)
  textures = experiment.load_textures(config, place)
  trainer = trainer_lib.Trainer(
    config,
    images=jax.device_put(found.train_images),
    textures=jax.device_put(textures),
  )
  state = trainer.init_state()
  losses, curve, seconds = [], {}, 0.0
  began = time.perf_counter()
  for step in range(1, trainer.num_steps + 1):
    state, metrics = trainer.step(state, step - 1)
    losses.append(metrics['loss'])
    if step in (*STEPS, trainer.num_steps):
      loss = float(np.mean(jax.device_get(losses)))
      seconds += time.perf_counter() - began
      curve[step] = {'loss': loss, **_test(trainer, state, config, found)}
      said = json.dumps(curve[step])
      print(f'{preset} {category} {seed} step {step}: {said}', flush=True)
      losses, began = [], time.perf_counter()
  return {
    'preset': preset,
    'category': category,
    'seed': seed,
    'curve': curve,
    'ms_a_step': round(1000 * seconds / trainer.num_steps, 1),
    'machine': machine.processor(),
    'date': datetime.date.today().isoformat(),
  }


def make_config(
  args: argparse.Namespace, preset: str, category: str, seed: int
) -> dict[str, Any]:
  """The config of a run, as `main` would have it."""
  config = mvtec.get_config(f'{category},{preset},small')
  config.image_size = args.size
  config.model.reconstructive_width, config.model.discriminative_width = (
    args.widths
  )
  # As wide a share of the image as the paper's 21 of 256 pixels.
  config.score_window = 21 * args.size // 256 // 2 * 2 + 1
  if args.steps is not None:
    config.num_steps = args.steps
  config.seed = seed
  config.eval.mask_threshold = 0.5
  config.data.dir, config.data.textures = args.data, args.textures
  config.data.layout = 'auto'
  for assignment in args.set:
    name, _, value = assignment.partition('=')
    try:
      config.update_from_flattened_dict({name: json.loads(value)})
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'--set={assignment}: {error}: take FIELD=VALUE, a field of the config'
        ' and a value as JSON'
      ) from error
  return config.to_dict()


def _test(
  trainer: trainer_lib.Trainer,
  state: Any,
  config: Mapping[str, Any],
  category: category_lib.Category,
) -> dict[str, float | None]:
  """The metrics of the test split, in percent."""
  detector = Detector(
    trainer.model,
    jax.device_get(state.evaluated),
    image_size=config['image_size'],
    score_window=config['score_window'],
    thresholds=Thresholds(0.5, 0.5, 'none', None, None),
    batch_size=config['eval']['batch_size'],
  )
  found = evaluate.evaluate(
    detector, category, mask_threshold=config['eval']['mask_threshold']
  ).metrics
  return {
    name: None if found.get(name) is None else round(100 * found[name], 2)
    for name in METRICS
    if name != 'loss'
  }


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The runs of a folder that are finished."""
  paths = sorted(folder.glob('*/run.json'))
  return [json.loads(path.read_text()) for path in paths]


def table(runs: Sequence[Mapping[str, Any]]) -> str:
  """A row a category and preset: the last step's mean, and each seed's."""
  names = [name for name in METRICS if name != 'loss']
  lines = [
    '| category | preset | seeds | '
    + ' | '.join(METRICS[name] for name in names)
    + ' |',
    '|---|---|---|' + '---|' * len(names),
  ]
  for (category, preset), group in _groups(runs).items():
    cells = [_spread([_last(run)[name] for run in group]) for name in names]
    seeds = ', '.join(str(run['seed']) for run in group)
    lines.append(f'| {category} | {preset} | {seeds} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def _spread(values: Iterable[float | None]) -> str:
  """A mean, and what it is the mean of."""
  known = [value for value in values if value is not None]
  if not known:
    return '–'
  each = ', '.join(f'{value:.1f}' for value in known)
  return f'**{statistics.mean(known):.1f}** ({each})'


def draw_curves(path: pathlib.Path, runs: Sequence[Mapping[str, Any]]) -> None:
  """Writes loss and metrics over steps, a row of panes for each category."""
  shown = ('loss', 'image_auroc', 'pixel_ap')
  categories = list(dict.fromkeys(run['category'] for run in runs))
  figure = Figure((13, 3.6 * len(categories)), dpi=110, layout='constrained')
  panes = figure.subplots(len(categories), len(shown), squeeze=False)
  for (category, preset), group in _groups(runs).items():
    steps = list(map(int, group[0]['curve']))
    row = panes[categories.index(category)]
    for axes, name in zip(row, shown, strict=True):
      values = [
        [run['curve'][str(step)][name] for run in group] for step in steps
      ]
      if any(None in each for each in values):
        axes.set_visible(False)
        continue
      (line,) = axes.plot(steps, np.mean(values, axis=1), label=preset)
      axes.fill_between(
        steps,
        np.min(values, axis=1),
        np.max(values, axis=1),
        color=line.get_color(),
        alpha=0.15,
      )
      axes.set(title=f'{category}: {METRICS[name]}', xlabel='step')
      axes.set_ylabel('' if name == 'loss' else 'percent')
      axes.grid(alpha=0.3)
      axes.legend(frameon=False)
  figure.savefig(path)


def _groups(
  runs: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
  """The runs of each category and preset, by seed."""
  groups = {}
  for run in sorted(runs, key=lambda run: (run['category'], run['seed'])):
    groups.setdefault((run['category'], run['preset']), []).append(run)
  return groups


def _last(run: Mapping[str, Any]) -> Mapping[str, float | None]:
  """What was found after the last step."""
  return run['curve'][max(run['curve'], key=int)]


if __name__ == '__main__':
  main()
