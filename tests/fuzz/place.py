"""What inputs are made from: sound files, and what the commands say of them.

The commands themselves have made it all. Nothing here is changed afterwards:
every input has a folder of its own, with copies.
"""

import contextlib
import csv
import functools
import io
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
from PIL import Image
from small import random_images

from . import process

IMAGE_SIZE = 32
SIZE = 48, 40  # Width and height of the pictures.
DEFECTS = ('crack', 'dent')
# Of a run that is evaluated and not trained, as imported weights are.
EVALUATE = (
  '--config=configs/mvtec.py:part,release',
  '--workdir=run',
  f'--config.image_size={IMAGE_SIZE}',
  '--config.model.reconstructive_width=4',
  '--config.model.discriminative_width=2',
  '--config.data.dir=DATA',
  '--config.data.textures=textures',
  '--config.data.tfds_dir=tfds',
  '--config.eval.batch_size=1',
  '--config.eval.mask_threshold=0.5',
  '--config.score_window=5',
  '--config.num_epochs=0',
)
PREDICT = ('--workdir=run', '--images=photos', '--output=out')
TABLE = pathlib.PurePath('out', 'predictions.csv')
PHOTOS = '/photos'  # What `half` has for the folder of images.
STUDIED = 'draem', 'rect'
STUDY = (
  *('--config=configs/table3.py:small', '--workdir=study'),
  *('--categories=part', f'--rows={",".join(STUDIED)}'),
)


class Place:
  """The folder of sound files; each is made when it is first asked for.

  Attributes:
    folder: where they lie.
  """

  def __init__(self, folder: str | pathlib.Path, *, is_tiny: bool = True):
    """Makes nothing yet.

    Args:
      folder: where.
      is_tiny: whether the networks are those of `tiny`.
    """
    self.folder = pathlib.Path(folder).absolute()
    self.folder.mkdir(parents=True, exist_ok=True)
    process.set_up(self.folder / 'cache')
    self.is_tiny = is_tiny
    if is_tiny:
      from . import tiny

      tiny.take_the_place_of_draem()

  def get(self, name: str) -> pathlib.Path:
    """The path of a part; see `_PARTS`."""
    path = self.folder / name
    if not path.exists():
      # In a folder of its own, so that a part that fails is not there.
      work = self.folder / f'.{name}'
      shutil.rmtree(work, ignore_errors=True)
      work.mkdir()
      with self._networks():
        _PARTS[name](self, work)
      (work / name).rename(path)
      shutil.rmtree(work)
    return path

  @contextlib.contextmanager
  def _networks(self) -> Iterator[None]:
    """Those of this place, also where the tiny ones have taken theirs."""
    from draem_jax.networks import models

    before = models.MODELS['draem']
    if not self.is_tiny:
      models.MODELS['draem'] = models.Draem
    try:
      yield
    finally:
      models.MODELS['draem'] = before

  def copy(self, folder: pathlib.Path, *names: str) -> None:
    """Copies parts into another folder, where they may be changed."""
    for name in names:
      shutil.copytree(self.get(name), folder / name, symlinks=True)

  def picture(self, name: str) -> bytes:
    """The bytes of a sound picture."""
    return (self.get('pictures') / name).read_bytes()

  @functools.cached_property
  def rows(self) -> dict[str, tuple[str, ...]]:
    """What `predict` says of each picture: score, verdict and area."""
    return read_rows(self.get('out') / TABLE.name)

  @functools.cached_property
  def results(self) -> str:
    """What `main` says of the category, as `results.json` has it."""
    return (self.get('run') / 'results.json').read_text()

  @functools.cached_property
  def imported(self) -> str:
    """A checksum of the golden weights."""
    return (self.get('imported') / 'digest').read_text()

  def evaluate(self) -> tuple[str, ...]:
    """Arguments that evaluate the category where it lies, uncopied."""
    return (*EVALUATE, f'--config.data.dir={self.get("DATA")}', self._textures)

  def train(self) -> tuple[str, ...]:
    """The same for a run that trains some steps."""
    return (
      *self.evaluate(),
      *('--config.num_steps=6', '--config.checkpoint_every=2'),
      *('--config.batch_size=4', '--config.log_every=1'),
      '--config.data.tfds_dir=',
    )

  @property
  def _textures(self) -> str:
    return f'--config.data.textures={self.get("textures")}'

  def _run(self, action, folder: pathlib.Path) -> process.Result:
    result = process.fork(action, folder=folder, limit=300)
    if result.status:
      raise RuntimeError(f'a sound input ends with {result}')
    return result

  def _make_pictures(self, work: pathlib.Path) -> None:
    _write_pictures(work / 'pictures')

  def _make_category(self, work: pathlib.Path) -> None:
    _write_category(work / 'DATA' / 'part')

  def _make_textures(self, work: pathlib.Path) -> None:
    (work / 'textures').mkdir()
    for index, image in enumerate(random_images(3, seed=7)):
      Image.fromarray(image).save(work / 'textures' / f'{index}.png')

  def _make_bare(self, work: pathlib.Path) -> None:
    self._run(lambda: _write_workdir(work / 'bare'), work)

  def _make_run(self, work: pathlib.Path) -> None:
    shutil.copytree(self.get('bare'), work / 'run')
    self._run(process.command('main', self.evaluate()), work)

  def _make_tfds(self, work: pathlib.Path) -> None:
    shutil.copytree(self.get('bare'), work / 'run')
    self._run(process.command('main', self.evaluate()), work)

  def _make_predictions(self, work: pathlib.Path) -> None:
    self.copy(work, 'run')
    images = f'--images={self.get("pictures")}'
    arguments = PREDICT[0], images, PREDICT[2]
    self._run(process.command('predict', arguments), work)

  def _make_half(self, work: pathlib.Path) -> None:
    self.copy(work, 'run')
    (work / 'photos').mkdir()
    (work / 'photos' / 'a.png').write_bytes(self.picture('rgb.png'))
    self._run(process.command('predict', PREDICT), work)
    path = work / 'out' / 'predict.json'
    text = path.read_text().replace(str(work / 'photos'), PHOTOS)
    path.write_text(text)
    (work / 'out').rename(work / 'half')

  def _make_imported(self, work: pathlib.Path) -> None:
    golden = process.ROOT / 'tests' / 'golden'
    arguments = (
      f'--reconstructive={golden / "DRAEM_golden_part_.pckl"}',
      f'--discriminative={golden / "DRAEM_golden_part__seg.pckl"}',
      '--workdir=imported',
    )
    self._run(process.command('import_torch', arguments), work)
    inner = work / 'imported'
    found = self._run(lambda: print(digest(inner, of_draem=True)), work)
    (inner / 'digest').write_text(found.out.strip())

  def _make_trained(self, work: pathlib.Path) -> None:
    self._run(process.command('main', self.train()), work)
    (work / 'run').rename(work / 'trained')

  def _make_stopped(self, work: pathlib.Path) -> None:
    self.copy(work, 'trained')
    run = (work / 'trained').rename(work / 'stopped')
    steps = sorted((run / 'checkpoints').iterdir())
    shutil.rmtree(steps[-1])
    for name in ('results.json', 'timing.json', 'predictions.csv'):
      (run / name).unlink()
    for name in ('thresholds.json', 'report.html'):
      (run / name).unlink()
    shutil.rmtree(run / 'figures')

  def _make_study(self, work: pathlib.Path) -> None:
    for row in STUDIED:
      self.copy(work, 'run')
      (work / 'study' / row / 'part').mkdir(parents=True)
      (work / 'run').rename(work / 'study' / row / 'part' / 'seed0')
    (work / 'study' / 'study.json').write_text('{"study": "table3"}\n')
    self._run(process.command('study', (*STUDY, '--tables')), work)


_PARTS = {
  'pictures': Place._make_pictures,  # One of each format.
  'DATA': Place._make_category,  # Holds the category `part`.
  'textures': Place._make_textures,
  'bare': Place._make_bare,  # A workdir that is to be evaluated,
  'run': Place._make_run,  # and afterwards;
  'tfds': Place._make_tfds,  # what was prepared for that.
  'out': Place._make_predictions,  # Of all pictures;
  'half': Place._make_half,  # of one of several.
  'imported': Place._make_imported,
  'trained': Place._make_trained,  # A workdir of a run that trains,
  'stopped': Place._make_stopped,  # and of one that was stopped.
  'study': Place._make_study,  # Two rows whose runs are finished.
}


def read_rows(table: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """What a table of `predict` says, by image."""
  text = table.read_bytes().decode('utf-8', 'surrogateescape')
  _, *rows = csv.reader(io.StringIO(text, newline=''))
  return {name: tuple(cells) for name, *cells in rows}


def digest(workdir: str | pathlib.Path, *, of_draem: bool = False) -> str:
  """A checksum of the networks of a workdir. Starts JAX: fork for it.

  Args:
    workdir: of the networks.
    of_draem: whether they are those of `model.name=draem` after all.
  """
  from draem_jax.detection.detector import Detector
  from draem_jax.networks import models

  if of_draem:
    models.MODELS['draem'] = models.Draem
  return Detector.load(workdir).fingerprint()


def _write_workdir(folder: pathlib.Path) -> None:
  from untrained import random_variables

  from draem_jax.training import train
  from draem_jax.workdir import thresholds

  widths = {'reconstructive_width': 4, 'discriminative_width': 2}
  config = {
    'category': 'part',
    'image_size': IMAGE_SIZE,
    'score_window': 5,
    'dtype': 'float32',
    'model': widths,
    'eval': {'batch_size': 1},
  }
  train.save_imported(folder, random_variables(widths, seed=0), config)
  thresholds.write_thresholds(
    folder, thresholds.Thresholds(0.5, 0.5, '8 good images', 0.99, 0.9999)
  )


def _write_pictures(folder: pathlib.Path) -> None:
  """One picture of each format that the docs list, and each of its modes."""
  folder.mkdir(parents=True)
  images = random_images(16, size=64, seed=3)
  pictures = iter([Image.fromarray(image).resize(SIZE) for image in images])

  def save(name: str, mode: str = 'RGB', **options) -> None:
    next(pictures).convert(mode).save(folder / name, **options)

  save('rgb.png')
  save('gray.png', 'L')
  save('palette.png', 'P')
  save('alpha.png', 'RGBA')
  deep = np.asarray(next(pictures).convert('L')).astype(np.uint16) * 257
  Image.fromarray(deep).save(folder / 'deep.png')
  save('plain.jpg', quality=90)
  save('progressive.jpg', progressive=True)
  save('gray.jpg', 'L')
  save('plain.tif')
  save('lzw.tif', compression='tiff_lzw')
  save('jpeg.tif', compression='jpeg')
  save('plain.bmp')
  save('lossy.webp')
  save('lossless.webp', lossless=True)
  save('gray.pgm', 'L')
  save('color.ppm')


def _write_category(folder: pathlib.Path) -> None:
  """Six good images to train on, and of each kind two to test with."""
  names = [f'train/good/{index:03}' for index in range(6)]
  names += [f'test/good/{index:03}' for index in range(2)]
  names += [f'test/{defect}/{i:03}' for defect in DEFECTS for i in range(2)]
  pictures = random_images(len(names), size=64, seed=11)
  for name, picture in zip(names, pictures, strict=True):
    path = folder / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).resize(SIZE).save(path)
    part, defect, stem = name.split('/')
    if part == 'test' and defect != 'good':
      mask = folder / 'ground_truth' / defect / f'{stem}_mask.png'
      mask.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.uint8(255) * truth(defect, int(stem))).save(mask)


def truth(defect: str, index: int) -> np.ndarray:
  """Where an image of the category is defective: 1 there, uint8 [h w]."""
  found = np.zeros(SIZE[::-1], np.uint8)
  top, left = 4 + 6 * index, 6 + 10 * DEFECTS.index(defect)
  found[top : top + 16, left : left + 18] = 1
  return found
