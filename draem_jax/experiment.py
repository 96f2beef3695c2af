"""One category from its files to its results: load, train, evaluate."""

import contextlib
import logging
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from draem_jax import cluster, devices, evaluate, names, paper, report, sizes
from draem_jax import config as config_lib
from draem_jax.data import category as category_lib
from draem_jax.data import layouts, resident, roi, textures
from draem_jax.data.on_demand import OnDemand
from draem_jax.data.pictures import Pictures
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.report import drawings, results
from draem_jax.simulator.textures import TEXTURES
from draem_jax.training import train, writer
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import bucket, claim, lock, mirror, storage
from draem_jax.workdir.thresholds import write_thresholds

_log = logging.getLogger(__name__)

BUILTIN = 'builtin'  # config.data.dir: the category that the package draws.
# By layout, what the paper trained on, of which it held nothing out.
_PUBLISHED = {
  'mvtec': paper.CATEGORIES,
  layouts.AUTO: paper.CATEGORIES,
  'dagm': paper.DAGM_CLASSES,
}


def train_and_evaluate(
  config: Mapping[str, Any], workdir: str | pathlib.PurePath
) -> dict[str, Any]:
  """Trains what is not trained yet in `workdir`, then evaluates.

  Args:
    config: the run's config as nested plain values.
    workdir: the folder of the run, or the URL of one in a bucket.

  Returns:
    The row of the run, as `results` describes it; empty in the processes of a
    cluster that do not write. It has a `failure`, in words, if the training
    came to nothing; all is written nevertheless.

  Raises:
    UserError: for what the user can mend, such as another process that writes
      in `workdir`.
    interrupt.Interrupted: if a signal stopped the training.
  """
  with contextlib.ExitStack() as stack:
    with cluster.together():
      config_lib.check(config)
    folder = stack.enter_context(mirror.written(workdir, together=True))
    with cluster.together():
      config = decide(config, folder)
      try:
        folder.mkdir(parents=True, exist_ok=True)
      except OSError as error:
        raise UserError(
          f'--workdir={folder} cannot be made ({error.strerror}): name another'
        ) from error
      if devices.is_main_process():
        stack.enter_context(lock.hold(folder))
        storage.clear_partial(folder, deep=True)
    cluster.compare(cluster.versions() | _comparable(config))
    return _run(config, folder, is_shared=not bucket.is_url(workdir))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that every process of a run must have the same.

  Where files lie may differ from host to host: what lies there may not.
  """
  return {
    f'config.{name}': value
    for name, value in config_lib.flatten(config).items()
    if name not in ('data.dir', 'data.tfds_dir', 'data.textures', 'data.roi')
  }


def _run(
  config: Mapping[str, Any], workdir: pathlib.Path, *, is_shared: bool
) -> dict[str, Any]:
  """Does what `train_and_evaluate` says, alone in `workdir`."""
  mesh = devices.make_mesh(config['batch_size'])
  memory = resident.device_memory(devices.replicated(mesh))
  if memory is not None:
    trainer_lib.check_memory(config, memory, mesh.size)
  with cluster.together():
    category, texture_images = _load(config, workdir)
    kept, held_out = split_holdout(
      category.train_images,
      share=config['eval']['holdout'],
      seed=config['seed'],
    )
    fingerprint = _fingerprint(config, kept, texture_images)
  cluster.compare(fingerprint)
  with cluster.together():
    if devices.is_main_process():
      claim.claim(workdir, config, fingerprint)
      roi.store(_roi(config, workdir), workdir)
      drawings.draw_regions(workdir / 'figures', category)
  placed = resident.put(
    {'training images': for_crops(config, kept), 'textures': texture_images},
    devices.replicated(mesh),
    max_device_share=config['data']['max_device_share'],
    max_host_bytes=resident.host_room(config['data']['max_host_share']),
  )
  _tell_of_small(config, kept)
  good = _threshold_images(category, kept, held_out)
  trainer = trainer_lib.Trainer(
    config,
    images=placed['training images'],
    textures=placed['textures'],
    mesh=mesh,
    eval_images=for_crops(config, good['good_images']),
  )
  _tell_of_evaluations(config, good['source'])
  state, lines = train.train(trainer, workdir, is_shared=is_shared)
  row = {}
  if devices.is_main_process():
    row = _evaluate(
      config,
      workdir,
      category,
      trainer=trainer,
      variables=jax.device_get(state.evaluated),
      **good,
      steps=int(state.step),
      best_step=None if state.record is None else int(state.record['step']),
      lines=lines,
    )
  # Whoever leaves a cluster early takes the others along.
  category_name = names.shown(config['category'])
  devices.wait_for_processes(f'evaluated {category_name}')
  return row


def decide(
  config: Mapping[str, Any], workdir: pathlib.Path | None = None
) -> dict[str, Any]:
  """The config with what it leaves to the category decided.

  That is what is written down, and what a continuation compares.

  Args:
    config: of the run.
    workdir: the folder of the run, where it may have been decided before.
  """
  config = {**config, 'data': {**config['data'], 'layout': _layout(config)}}
  config['data']['resize'] = _resize(config, workdir)
  share = holdout_share(config)
  if share and _validates(config):
    if config['eval']['holdout'] != -1:
      raise UserError(
        f'config.eval.holdout={share:g}: {config["category"]} has validation'
        ' images, which choose the thresholds: take 0, or -1 to let the'
        ' category decide'
      )
    share = 0.0
  return {**config, 'eval': {**config['eval'], 'holdout': share}}


def _resize(config: Mapping[str, Any], workdir: pathlib.Path | None) -> str:
  """How images are resized, whatever the config leaves open."""
  way = config['data']['resize']
  if way != layouts.AUTO:
    return way
  # Runs of earlier versions knew one way only.
  if workdir is not None and (workdir / 'config.json').exists():
    return claim.read_config(workdir, check=False)['data']['resize']
  return 'bilinear' if _is_published(config) else 'area'


def _is_published(config: Mapping[str, Any]) -> bool:
  """Whether the paper was trained on the category."""
  return config['category'] in _PUBLISHED.get(config['data']['layout'], ())


def _layout(config: Mapping[str, Any]) -> str:
  """How the files of a category lie, whatever the config leaves open."""
  data = config['data']
  if data['dir'] == BUILTIN:
    return 'mvtec'
  if data['layout'] != layouts.AUTO:
    return data['layout']
  place = layouts.find(data['dir'], config['category'], layout=data['layout'])
  return place.layout


def _validates(config: Mapping[str, Any]) -> bool:
  """Whether a category has good images that choose the thresholds."""
  data = config['data']
  layout = layouts.get(data['layout'])
  if not getattr(layout, 'VALIDATES', False):
    return False
  place = layouts.find(data['dir'], config['category'], layout=data['layout'])
  return bool(layout.read(place.folder).validation)


def list_categories(config: Mapping[str, Any]) -> list[str]:
  """What `config.category` names, `'all'` being every one of the folder.

  Raises:
    UserError: if one of the folder does not have the layout, which would show
      only after the training of those before it.
  """
  if config['category'] != 'all':
    return [config['category']]
  data = config['data']
  names = layouts.list_categories(data['dir'], layout=data['layout'])
  for name in names:
    place = layouts.find(data['dir'], name, layout=data['layout'])
    layouts.get(place.layout).read(place.folder)
  return names


def holdout_share(config: Mapping[str, Any]) -> float:
  """The share of good images to hold out of the training of a category.

  Args:
    config: the run's config. Where its `eval.holdout` is -1, the category
      decides: those of the paper are trained on every good image, as
      published; of any other a tenth is held out, unless it has validation
      images (see `decide`).
  """
  share = config['eval']['holdout']
  if share != -1:
    return share
  return 0.0 if _is_published(config) else 0.1


def for_crops(
  config: Mapping[str, Any], images: UInt8[np.ndarray, 'n h w c'] | Pictures
) -> UInt8[np.ndarray, 'n h w c'] | Pictures:
  """Images as the training takes them: each as large as a crop, or larger."""
  if isinstance(images, Pictures):
    return images.at_least(config['image_size'])
  return images


def _tell_of_small(
  config: Mapping[str, Any], images: UInt8[np.ndarray, 'n h w c'] | Pictures
) -> None:
  """Warns of images that are smaller than a crop."""
  if not isinstance(images, Pictures):
    return
  crop = sizes.pair(config['image_size'])
  small = np.flatnonzero((images.sizes < crop).any(axis=1))
  if len(small):
    _log.warning(
      '%d of %d training images are smaller than config.image_size=%s in a'
      ' side, such as %s (%s), and go on mirrored beyond their edge: take a'
      ' smaller config.image_size, or images of more pixels',
      len(small),
      len(images),
      sizes.shown(crop),
      names.shown(images.names[small[0]]),
      sizes.shown(images.sizes[small[0]].tolist()),
    )


def split_holdout(
  images: UInt8[np.ndarray, 'n h w c'] | Pictures, *, share: float, seed: int
) -> tuple[
  UInt8[np.ndarray, 'm h w c'] | Pictures,
  UInt8[np.ndarray, 'k h w c'] | Pictures,
]:
  """Splits good images into those to train on and those held out.

  Args:
    images: the good training images.
    share: of them to hold out, in [0, 1); at least one image if not 0.
    seed: of the choice.

  Raises:
    UserError: if nothing would be left to train on.
  """
  if not share:
    return images, images[:0]
  count = max(1, round(share * len(images)))
  if count >= len(images):
    raise UserError(
      f'config.eval.holdout={share} leaves none of {len(images)} images to'
      ' train on: take less, or 0'
    )
  order = np.random.default_rng(seed).permutation(len(images))
  return images[np.sort(order[count:])], images[np.sort(order[:count])]


def _threshold_images(
  category: category_lib.Category,
  kept: UInt8[np.ndarray, 'n h w c'] | Pictures,
  held_out: UInt8[np.ndarray, 'k h w c'] | Pictures,
) -> dict[str, Any]:
  """The good images that choose the thresholds, and what they are."""
  if category.validation_images is not None:
    chosen = category.validation_images
    source = f'the {len(chosen)} validation images of the data set'
  elif len(held_out):
    chosen = held_out
    source = f'{len(chosen)} good images held out of the training'
  else:
    chosen = kept
    source = f'the {len(chosen)} good images of the training'
  return {'good_images': chosen, 'source': source}


def _tell_of_evaluations(config: Mapping[str, Any], source: str) -> None:
  """Says what a run is evaluated on while it trains, if it is."""
  if not config['eval']['every']:
    return
  is_trained_on = source.endswith('of the training')
  _log.info(
    'every %d steps: evaluated on %s, with simulated anomalies%s',
    config['eval']['every'],
    source,
    is_trained_on * ' (config.eval.holdout keeps some out of it)',
  )


def _evaluate(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  category: category_lib.Category,
  *,
  trainer: trainer_lib.Trainer,
  variables: Mapping[str, Any],
  good_images: UInt8[np.ndarray, 'n h w c'] | Pictures,
  source: str,
  steps: int,
  best_step: int | None,
  lines: writer.Writer,
) -> dict[str, Any]:
  """Chooses the thresholds, evaluates and writes; returns the row."""
  detector = Detector(
    trainer.model,
    variables,
    image_size=config['image_size'],
    score_map=config['score']['map'],
    score_image=config['score']['image'],
    score_window=config['score_window'],
    resize=config['data']['resize'],
    resolution=config['data']['resolution'],
    roi=_roi(config, workdir),
    batch_size=config['eval']['batch_size'],
  )
  thresholds = detector.choose_thresholds(
    good_images,
    source=source,
    quantile=config['eval']['threshold_quantile'],
    pixel_quantile=config['eval']['pixel_quantile'],
  )
  write_thresholds(workdir, thresholds)
  evaluation = evaluate.evaluate(
    detector, category, mask_threshold=config['eval']['mask_threshold']
  )
  failure = train.find_divergence(config, lines.lines)
  failure = failure or evaluate.find_blindness(evaluation, steps=steps)
  row = results.write(
    workdir,
    evaluation,
    networks=config['model']['name'],
    steps=steps,
    best_step=best_step,
    failure=failure,
    timing={
      'train_seconds': round(lines.seconds, 1),
      'images_per_second': writer.typical_rate(lines.lines),
      'device': devices.device_name(),
    },
  )
  drawings.draw(workdir / 'figures', evaluation)
  report.write_report(workdir, evaluation, row, lines=lines.lines)
  return row


def load_category(
  config: Mapping[str, Any], workdir: str | pathlib.Path
) -> category_lib.Category:
  """Loads the category of a config.

  Args:
    config: as nested plain values.
    workdir: the folder of the run, where the built-in category is drawn, and
      data sets are prepared if the config names no other place.
  """
  data, workdir = config['data'], pathlib.Path(workdir)
  data_dir, layout = data['dir'], data['layout']
  if data_dir == BUILTIN:
    # Here, as what it draws with takes a while to import.
    from draem_jax.data import demo

    data_dir, layout = workdir / 'data', 'mvtec'
    demo.write_demo_category(data_dir)
  _log.info('loading %s', pathlib.Path(data_dir) / config['category'])
  return category_lib.load_category(
    data_dir,
    config['category'],
    image_size=config['image_size'],
    tfds_dir=data['tfds_dir'] or workdir / 'tfds',
    layout=layout,
    resize=data['resize'],
    resolution=data['resolution'],
    roi=_roi(config, workdir),
  )


def _roi(config: Mapping[str, Any], workdir: pathlib.Path) -> roi.Roi | None:
  """Where the object is, as a config says it."""
  return roi.read(config['data']['roi'], stored=workdir / roi.FILE)


def load_textures(
  config: Mapping[str, Any], workdir: str | pathlib.Path
) -> UInt8[np.ndarray | OnDemand, 't h w 3']:
  """Loads the anomaly textures of a config; one black one if none is read.

  Args:
    config: as nested plain values.
    workdir: the folder of the run, where textures are prepared if the config
      names no other place.
  """
  data, size = config['data'], config['image_size']
  if not reads_textures(config):
    return np.zeros((1, *sizes.pair(size), 3), np.uint8)
  exclude = ()
  if data['dir'] == BUILTIN:
    from draem_jax.data import demo

    exclude = (demo.SURFACE,)
  _log.info('loading the textures: %s', data['textures'])
  return textures.load_textures(
    data['textures'],
    image_size=size,
    tfds_dir=data['tfds_dir'] or pathlib.Path(workdir) / 'tfds',
    exclude=exclude,
    num_textures=data['num_textures'],
    seed=config['seed'],
    max_bytes=resident.host_room(data['max_host_share']),
    resize=data['resize'],
  )


def _load(
  config: Mapping[str, Any], workdir: pathlib.Path
) -> tuple[category_lib.Category, UInt8[np.ndarray | OnDemand, 't h w 3']]:
  category = load_category(config, workdir)
  texture_images = load_textures(config, workdir)
  _log.info(
    '%d good images to train on, %d to test, %d textures, on %s',
    len(category.train_images),
    len(category.test_images),
    len(texture_images),
    devices.device_name(),
  )
  return category, texture_images


def reads_textures(config: Mapping[str, Any]) -> bool:
  """Whether the simulator looks at images of textures at all."""
  simulator = config['simulator']
  return bool(
    (simulator['anomaly_probability'] or config['eval']['every'])
    and TEXTURES[simulator['texture']].reads_images
  )


def _fingerprint(
  config: Mapping[str, Any],
  images: UInt8[np.ndarray, 'n h w c'] | Pictures,
  texture_images: UInt8[np.ndarray | OnDemand, 't h2 w2 3'],
) -> dict[str, str]:
  """A checksum of each thing that the training reads, by name."""
  is_open = isinstance(images, Pictures)
  checksum = images.checksum() if is_open else _checksum(images)
  fingerprint = {'training images': checksum}
  if not reads_textures(config):
    return fingerprint
  # By another name, so that a machine with more memory may go on.
  if isinstance(texture_images, OnDemand):
    return fingerprint | {'texture files': texture_images.checksum()}
  return fingerprint | {'textures': _checksum(texture_images)}


def _checksum(images: UInt8[np.ndarray, 'n h w c']) -> str:
  return f'{zlib.crc32(np.ascontiguousarray(images)):08x}'
