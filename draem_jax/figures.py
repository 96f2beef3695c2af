"""The command that makes the paper's figures 4, 5, 8 and 10 as sheets.

python -m draem_jax.figures --figure=4 --config=configs/demo.py
python -m draem_jax.figures --figure=8 --workdir=runs/bottle
"""

import contextlib
import functools
import itertools
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Key, UInt8
from ml_collections import config_flags

from draem_jax import command, devices, evaluate, experiment, terminal
from draem_jax import config as config_lib
from draem_jax.data.pictures import Pictures
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.pictures import panels, sheets
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.simulator.simulate import Steps
from draem_jax.training import feeding, sampling
from draem_jax.workdir import claim

_log = logging.getLogger('draem_jax.figures')  # Run, it is '__main__'.

# After so many without enough anomalies among them, the config is to blame.
_MAX_TRIED = 1000

Images = UInt8[np.ndarray, '_ _ _ _'] | Pictures


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_enum('figure', None, list(FIGURES), 'Which figure to make.')
  config_flags.DEFINE_config_file(
    'config', None, 'Whose examples to show (4, 5, 10): configs/demo.py, say.'
  )
  flags.DEFINE_string(
    'workdir', None, 'Folder of a run, or of `:all`; 8 needs one.'
  )
  flags.DEFINE_string(
    'output', None, 'The PNG; figures/figure<N>.png by default.'
  )
  flags.DEFINE_integer(
    'examples', None, 'How many simulated examples to show (4, 5, 10).', 1
  )
  flags.DEFINE_integer(
    'seed', None, "Of the simulated examples; the config's by default.", 0
  )
  flags.DEFINE_integer(
    'count', None, 'How many test images to show (8), of all kinds.', 1
  )
  flags.DEFINE_string(
    'imagenet', None, 'Folder of images for the column of ImageNet (10).'
  )


def main(argv: list[str]) -> None:
  """Makes one figure."""
  command.refuse_arguments(argv)
  command.required('figure')
  given = flags.FLAGS
  name, figure = given.figure, FIGURES[given.figure]
  for flag in _OPTIONAL:
    if given[flag].present and flag not in figure.reads:
      raise UserError(f'--{flag} says nothing of figure {name}: leave it out')
  output = command.expand(given.output or f'figures/figure{name}.png')
  if output.suffix.lower() != '.png':
    raise UserError(f'--output={output} is not the name of a PNG: end in .png')
  devices.find()
  command.use_compilation_cache()
  sheet = figure.make()
  try:
    panels.save_png(output, sheet)
  except OSError as error:
    raise UserError(
      f'--output={output} cannot be written ({error.strerror}): name another'
    ) from error
  terminal.say(f'figure {name}: {output}')


def _make_simulation() -> sheets.Sheet:
  with _source() as (config, folder):
    return simulation_sheet(config, folder, flags.FLAGS.examples or 4)


def _make_augmentations() -> sheets.Sheet:
  with _source() as (config, folder):
    return augmentations_sheet(config, folder, flags.FLAGS.examples or 9)


def _make_qualitative() -> sheets.Sheet:
  command.required('workdir')
  workdir = command.expand_workdir(flags.FLAGS.workdir)
  return qualitative_sheet(workdir, flags.FLAGS.count)


def _make_kinds() -> sheets.Sheet:
  with _source() as (config, folder):
    return kinds_sheet(
      config, folder, flags.FLAGS.examples or 4, imagenet=flags.FLAGS.imagenet
    )


class _Figure(NamedTuple):
  """How a figure is made.

  Attributes:
    make: the function that does.
    reads: the flags that it reads, of those that others do not.
  """

  make: Callable[[], sheets.Sheet]
  reads: tuple[str, ...]


_SIMULATED = ('config', 'examples', 'seed')
FIGURES = {
  '4': _Figure(_make_simulation, reads=_SIMULATED),
  '5': _Figure(_make_augmentations, reads=_SIMULATED),
  '8': _Figure(_make_qualitative, reads=('count',)),
  '10': _Figure(_make_kinds, reads=(*_SIMULATED, 'imagenet')),
}
_OPTIONAL = sorted({flag for one in FIGURES.values() for flag in one.reads})


@contextlib.contextmanager
def _source() -> Iterator[tuple[dict[str, Any], pathlib.Path]]:
  """The config of the examples, and the folder that stands for its run's."""
  given = flags.FLAGS
  if (given.config is None) == (given.workdir is None):
    raise UserError(
      f'--figure={given.figure} shows examples of one config: give --config,'
      ' such as configs/demo.py, or --workdir, the folder of a run'
    )
  with contextlib.ExitStack() as stack:
    if given.workdir is not None:
      folder = command.expand_workdir(given.workdir)
      config = claim.read_config(folder)
    else:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      config = command.read_config().to_dict()
    if given.seed is not None:
      config['seed'] = given.seed
    config_lib.check(config)
    if config['category'] == 'all':
      raise UserError(
        'config.category=all: the examples are of one category, name it'
      )
    yield config, pathlib.Path(folder)


def simulation_sheet(
  config: Mapping[str, Any], folder: pathlib.Path, count: int
) -> sheets.Sheet:
  """Figure 4, of the first examples of a training that have an anomaly.

  Args:
    config: of the training, as nested plain values.
    folder: where the data is prepared that the config names no place for.
    count: number of the examples.
  """
  images, textures = _load(config, folder)
  make = _simulator(config)
  drawn = _draw(config, images, textures)
  return sheets.simulation(
    [steps for (steps,) in _anomalous(count, ((make(*one),) for one in drawn))]
  )


def augmentations_sheet(
  config: Mapping[str, Any], folder: pathlib.Path, count: int
) -> sheets.Sheet:
  """Figure 5, of the first image and the first texture of a training.

  Args:
    config: of the training, as nested plain values.
    folder: where the data is prepared that the config names no place for.
    count: number of the augmented copies.
  """
  images, textures = _load(config, folder)
  make = _simulator(config)
  key, image, texture = next(_draw(config, images, textures))
  keys = (jax.random.fold_in(key, number) for number in itertools.count())
  return sheets.augmentations(
    [
      steps
      for (steps,) in _anomalous(
        count, ((make(key, image, texture),) for key in keys)
      )
    ]
  )


def kinds_sheet(
  config: Mapping[str, Any],
  folder: pathlib.Path,
  count: int,
  *,
  imagenet: str | None = None,
) -> sheets.Sheet:
  """Figure 10, of the first examples of a training that have an anomaly.

  What the kinds do not differ in is the same: the image, the mask, where and
  how the texture is changed.

  Args:
    config: of the training, as nested plain values.
    folder: where the data is prepared that the config names no place for.
    count: number of the examples.
    imagenet: a folder of ImageNet's images, or any others.
  """
  if imagenet is not None and not pathlib.Path(imagenet).is_dir():
    raise UserError(
      f'--imagenet={imagenet} is not a folder: name one of images, of any depth'
    )
  config = _replace(config, simulator={'mask': 'perlin', 'texture': 'images'})
  images, textures = _load(config, folder)
  source = config['data']['textures']
  words = {'dtd': 'of DTD', 'builtin': 'of the package'}
  words = words.get(source, f'in {pathlib.Path(source).name}/')
  rows = {f'Textures\n{words}': (config, textures)}
  if imagenet is None:
    _log.info('without ImageNet: --imagenet=FOLDER adds it')
  else:
    other = _replace(config, data={'textures': imagenet})
    bank = experiment.load_textures(other, folder)
    rows['Textures\nof ImageNet'] = (other, bank)
  rows['Colors\nhomogeneous'] = (
    _replace(config, simulator={'texture': 'color'}),
    textures,
  )
  rows['Rectangles\nand textures'] = (
    _replace(config, simulator={'mask': 'rectangles'}),
    textures,
  )
  makers = [_simulator(one) for one, _ in rows.values()]
  drawn = (_draw(one, images, bank) for one, bank in rows.values())
  candidates = (
    tuple(make(*one) for make, one in zip(makers, row, strict=True))
    for row in zip(*drawn, strict=True)
  )
  by_kind = zip(*_anomalous(count, candidates), strict=True)
  return sheets.kinds(dict(zip(rows, by_kind, strict=True)))


def qualitative_sheet(
  workdir: pathlib.Path, count: int | None = None
) -> sheets.Sheet:
  """Figure 8, of a finished run, or of the runs that a folder holds.

  Args:
    workdir: the folder of a run, or of runs, as `:all` leaves it.
    count: number of the test images, of one run; by default one of each kind,
      and 8 at least. Of several runs that of the runs, one image each.
  """
  runs = [workdir]
  if not (workdir / 'config.json').exists() and workdir.is_dir():
    found = sorted(path.parent for path in workdir.glob('*/config.json'))
    runs = found or runs
  finished = [run for run in runs if (run / 'results.json').exists()]
  if not finished:
    if runs == [workdir]:
      claim.read_config(workdir)  # Says so if the folder is no run's.
    raise UserError(
      f'--workdir={workdir} holds no finished run: train one to the end with'
      ' draem_jax.main'
    )
  for run in sorted(set(runs) - set(finished)):
    _log.info('%s is not finished and left out', run)
  if runs == [workdir]:
    columns = _test_columns(workdir, count)
  else:
    columns = [
      (*column, f'{run.name}\n{kind}')
      for run in finished[:count]
      for *column, kind in _test_columns(run, 1)
    ]
  images, maps, masks, captions = zip(*columns, strict=True)
  return sheets.qualitative(
    images=images, anomaly_maps=maps, masks=masks, captions=captions
  )


def _test_columns(run: pathlib.Path, count: int | None) -> list[tuple]:
  """Image, map, ground truth and kind of some test images of a run."""
  config = claim.read_config(run)
  category = experiment.load_category(config, run)
  chosen = choose(category.labels, category.test_defects, count)
  if not chosen:
    raise UserError(f'{run}: {category.name} has no test images to show')
  detector = Detector.load(
    run, batch_size=min(len(chosen), config['eval']['batch_size'])
  )
  masks = [None] * len(chosen)
  if category.test_masks is not None:
    share = config['eval']['mask_threshold']
    masks = [category.test_masks[index] >= share for index in chosen]
  kinds = [category.test_defects[index] for index in chosen]
  images = [category.test_images[index] for index in chosen]
  if detector.is_tiled:
    small = [
      evaluate.shrink_whole(image, detector.score_whole(image), mask)
      for image, mask in zip(images, masks, strict=True)
    ]
    return [
      (one.image, one.anomaly_map, one.mask, kind)
      for one, kind in zip(small, kinds, strict=True)
    ]
  scored = detector.score_all(np.stack(images))
  images = [image[..., :3] for image in images]
  return list(zip(images, scored.anomaly_map, masks, kinds, strict=True))


def choose(
  labels: Bool[np.ndarray, 'n'], defects: Sequence[str], count: int | None
) -> list[int]:
  """Chooses test images by their kinds alone, whatever their scores.

  Args:
    labels: True for anomalous images, which are chosen from if there are any.
    defects: the kind of each image.
    count: number of the images; None for one of each kind, and 8 at least.

  Returns:
    Places of the images, kind by kind: as many of each as the count and their
    numbers allow, evenly spread over those of the kind, and so are the kinds
    where the count is less than theirs.
  """
  places: dict[str, list[int]] = {}
  for index, kind in enumerate(defects):
    if labels[index] or not labels.any():
      places.setdefault(kind, []).append(index)
  kinds = list(places)
  count = max(8, len(kinds)) if count is None else count
  kinds = _spread(kinds, min(count, len(kinds)))
  shares = dict.fromkeys(kinds, 0)
  count = min(count, sum(len(places[kind]) for kind in kinds))
  for kind in itertools.cycle(kinds):
    if sum(shares.values()) == count:
      break
    shares[kind] += shares[kind] < len(places[kind])
  return [
    index for kind in kinds for index in _spread(places[kind], shares[kind])
  ]


def _spread(values: Sequence[Any], count: int) -> list[Any]:
  """So many of the values, evenly, from the middle of each part."""
  return [
    values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)
  ]


def _load(
  config: Mapping[str, Any], folder: pathlib.Path
) -> tuple[Images, Images]:
  """The images that a training sees, and its textures."""
  config = experiment.decide(config)
  images, _ = experiment.split_holdout(
    experiment.load_category(config, folder).train_images,
    share=experiment.holdout_share(config),
    seed=config['seed'],
  )
  images = experiment.for_crops(config, images)
  return images, experiment.load_textures(config, folder)


def _simulator(config: Mapping[str, Any]) -> Callable[..., Steps]:
  """The compiled simulator of a config, with its steps on the host."""
  steps = _compiled(Options(**config['simulator']))
  return lambda *arguments: jax.device_get(steps(*arguments))


@functools.cache
def _compiled(options: Options) -> Callable[..., Steps]:
  return jax.jit(functools.partial(simulate.simulate_steps, options=options))


def _draw(
  config: Mapping[str, Any], images: Images, textures: Images
) -> Iterator[
  tuple[
    Key[Array, ''],
    UInt8[np.ndarray, 'h w c'],
    UInt8[np.ndarray, 'h2 w2 3'],
  ]
]:
  """What the examples of a training are made of, in its order, without end."""
  sample_batch = jax.jit(
    functools.partial(
      sampling.sample_batch,
      config['seed'],
      batch_size=config['batch_size'],
      num_images=len(images),
      num_textures=len(textures),
      sampling=config['sampling'],
    )
  )
  options = Options(**config['simulator'])
  for step in itertools.count():
    sampled = sample_batch(step)
    if isinstance(images, Pictures):
      size = textures.shape[1:3]
      drawn = feeding.take_crops(images, sampled, size, options)
    else:
      drawn = images[np.asarray(sampled.images)]
    for key, image, texture in zip(
      sampled.keys, drawn, np.asarray(sampled.textures), strict=True
    ):
      yield key, image, textures[texture]


def _anomalous(
  count: int, candidates: Iterable[tuple[Steps, ...]]
) -> list[tuple[Steps, ...]]:
  """The first candidates with an anomaly in all of their examples."""
  taken = []
  most = max(_MAX_TRIED, 10 * count)
  for steps in itertools.islice(candidates, most):
    if all(one.mask.any() for one in steps):
      taken.append(steps)
      if len(taken) == count:
        return taken
  raise UserError(
    f'of {most} examples {len(taken)} have an anomaly and {count} are wanted:'
    ' take more of config.simulator.anomaly_probability, or less of'
    ' --examples or config.simulator.threshold'
  )


def _replace(
  config: Mapping[str, Any], **changes: Mapping[str, Any]
) -> dict[str, Any]:
  """The config with other values in some of its sections."""
  return {
    **config,
    **{name: {**config[name], **values} for name, values in changes.items()},
  }


def run() -> None:
  """The console entry point `draem-figures`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
