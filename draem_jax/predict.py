"""The command that scores images with a trained detector.

python -m draem_jax.predict --workdir=runs/bottle --images=photos/ --output=out/
"""

import contextlib
import logging
import os
import pathlib

from absl import flags

from draem_jax import command, devices, interrupt, terminal
from draem_jax.data import files
from draem_jax.detection import stream
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import (
  MAPS,
  OVERLAYS,
  TABLE,
  Predictions,
  leave_out_own,
)
from draem_jax.errors import UserError
from draem_jax.workdir import bucket, mirror

_log = logging.getLogger('draem_jax.predict')  # Run, it is '__main__'.

# Pixels of the longer side, which are enough to see where to look.
_OVERLAY_SIDE = 2048


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'workdir', None, 'Folder of the trained run, or gs://… or s3://….'
  )
  flags.DEFINE_string(
    'images', None, 'What to score: an image, a folder of any depth, or a glob.'
  )
  flags.DEFINE_string(
    'output', None, 'Folder to write to, or gs://… or s3://….'
  )
  flags.DEFINE_float(
    'threshold', None, 'An image is anomalous above this score.', 0, 1
  )
  flags.DEFINE_float(
    'pixel_threshold', None, 'And a pixel above this map value.', 0, 1
  )
  flags.DEFINE_string(
    'roi',
    None,
    'Where the object is in these pictures: an image that is white there, a'
    ' folder with one per picture, by name, or auto; by default as trained.',
  )
  flags.DEFINE_bool(
    'boxes', False, 'Whether overlays have the boxes of the regions in them.'
  )
  flags.DEFINE_integer(
    'overlay_side',
    None,
    'Pixels of the longer side of overlays, at most; 0: as the image. By'
    f' default 0, and {_OVERLAY_SIDE} where images are scored by tiles.',
    0,
  )
  flags.DEFINE_integer(
    'batch_size', None, 'Images at a time; by default as evaluated.', 1
  )


def main(argv: list[str]) -> None:
  """Scores all images that are not in the table yet."""
  command.refuse_arguments(
    argv, ", and a glob wants quotes, as in '--images=photos/*.png'"
  )
  command.required('workdir', 'images', 'output')
  given = flags.FLAGS
  workdir = command.expand_place(given.workdir, '--workdir')
  output = command.expand_place(given.output, '--output')
  if bucket.is_url(workdir) or bucket.is_url(output):
    is_same = workdir == output
  else:
    is_same = workdir.is_dir() and output.is_dir() and workdir.samefile(output)
  if is_same:
    raise UserError(
      f'--output={output} is the folder of the run, whose own {TABLE} is'
      ' there: take another'
    )
  with interrupt.raised(
    notice='stopping once the batch under way is done',
    message='stopped: the same command goes on from there',
  ):
    _predict(workdir, output)


def _predict(workdir: pathlib.PurePath, output: pathlib.PurePath) -> None:
  given = flags.FLAGS
  found = files.find_images(
    given.images, excluded=(output / OVERLAYS, output / MAPS)
  )
  found = leave_out_own(found)
  devices.find()
  command.use_compilation_cache()
  detector = Detector.load(workdir, batch_size=given.batch_size)
  if given.roi:
    detector = detector.with_roi(os.path.expanduser(given.roi))
  if (given.threshold, given.pixel_threshold) != (None, None):
    detector = detector.with_thresholds(
      image=given.threshold, pixel=given.pixel_threshold
    )
  detector.check_thresholds()
  side = given.overlay_side
  if side is None:
    side = _OVERLAY_SIDE if detector.is_tiled else 0
  settings = {
    'model': detector.fingerprint(),
    'threshold': detector.thresholds.image,
    'pixel threshold': detector.thresholds.pixel,
    'folder of images': str(found.root),
    'choice of boxes': given.boxes,
    'longest side of overlays': side,
  }
  # Room for large pictures.
  detector = detector.for_scoring()
  with (
    mirror.written(output, wanted=_is_no_picture) as folder,
    contextlib.closing(Predictions(folder, settings)) as predictions,
  ):
    broken = stream.score_files(
      detector,
      found,
      predictions,
      with_boxes=given.boxes,
      overlay_side=side,
    )
    predictions.write_regions()
    verdicts = [
      predictions.verdicts[name]
      for name in found.names
      if name in predictions.verdicts
    ]
  terminal.say(
    f'{len(verdicts)} images, {sum(verdicts)} anomalous: {output / TABLE}'
  )
  own = None if bucket.is_url(output) else pathlib.Path(output).resolve()
  line = files.passed_over(
    [
      name
      for name in found.others
      if (found.root / name).parent.resolve() != own
    ]
  )
  if line:
    _log.warning('passed over %s', line)
  for folder in found.unreadable:
    _log.warning('%s cannot be looked into: allow reading it', folder)
  broken += len(found.unreadable)
  if broken:
    raise command.Stopped(f'passed over as unreadable: {broken}', 1)


def _is_no_picture(name: str) -> bool:
  """Whether going on needs an object of this name."""
  return name.split('/', 1)[0] not in (OVERLAYS, MAPS)


def run() -> None:
  """The console entry point `draem-predict`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
