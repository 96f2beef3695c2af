"""The command that scores images with a trained detector.

python -m draem_jax.predict --workdir=runs/bottle --images=photos/ --output=out/
"""

import contextlib
import logging
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags

from draem_jax import command, pipeline
from draem_jax.data import files
from draem_jax.detector import Detector
from draem_jax.errors import UserError
from draem_jax.predictions import MAPS, OVERLAYS, TABLE, Predictions

_log = logging.getLogger('draem_jax.predict')  # Run, it is '__main__'.

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the trained run.')
_IMAGES = flags.DEFINE_string(
  'images', None, 'What to score: an image, a folder of any depth, or a glob.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.')
_THRESHOLD = flags.DEFINE_float(
  'threshold', None, 'An image is anomalous above this score.', 0, 1
)
_PIXEL_THRESHOLD = flags.DEFINE_float(
  'pixel_threshold', None, 'And a pixel above this map value.', 0, 1
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, 'Images at a time; by default as evaluated.', 1
)


class _Interrupted(KeyboardInterrupt):
  """A signal. Not an `Exception`, which libraries would swallow."""

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number


def main(argv: list[str]) -> None:
  """Scores all images that are not in the table yet."""
  if len(argv) > 1:
    raise UserError(
      f'unknown argument {argv[1]!r}: flags begin with --, and a glob wants'
      " quotes, as in '--images=photos/*.png'"
    )
  for flag in (_WORKDIR, _IMAGES, _OUTPUT):
    if not flag.value:
      raise UserError(f'--{flag.name} is missing: see --help')
  workdir, output = (
    pathlib.Path(flag.value).expanduser() for flag in (_WORKDIR, _OUTPUT)
  )
  if workdir.is_dir() and output.is_dir() and workdir.samefile(output):
    raise UserError(
      f'--output={output} is the folder of the run, whose own {TABLE} is'
      ' there: take another'
    )
  try:
    with _stop_on_signals():
      _predict(workdir, output)
  except _Interrupted as stop:
    raise command.Stopped(
      'stopped: the same command goes on from there', 128 + stop.number
    ) from stop


def _predict(workdir: pathlib.Path, output: pathlib.Path) -> None:
  found = files.find_images(
    _IMAGES.value, excluded=(output / OVERLAYS, output / MAPS)
  )
  command.use_compilation_cache()
  detector = Detector.load(workdir, batch_size=_BATCH_SIZE.value)
  if (_THRESHOLD.value, _PIXEL_THRESHOLD.value) != (None, None):
    detector = detector.with_thresholds(
      image=_THRESHOLD.value, pixel=_PIXEL_THRESHOLD.value
    )
  detector.check_thresholds()
  settings = {
    'model': detector.fingerprint(),
    'threshold': detector.thresholds.image,
    'pixel threshold': detector.thresholds.pixel,
    'folder of images': str(found.root),
  }
  with contextlib.closing(Predictions(output, settings)) as predictions:
    broken = pipeline.score_files(detector, found, predictions)
    verdicts = [
      predictions.verdicts[name]
      for name in found.names
      if name in predictions.verdicts
    ]
  print(f'{len(verdicts)} images, {sum(verdicts)} anomalous: {output / TABLE}')
  for folder in found.unreadable:
    _log.warning('%s cannot be looked into: allow reading it', folder)
  broken += len(found.unreadable)
  if broken:
    raise command.Stopped(f'passed over as unreadable: {broken}', 1)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
  """Raises `_Interrupted` on SIGINT or SIGTERM; a second one ends at once."""
  numbers = signal.SIGINT, signal.SIGTERM

  def stop(number: int, frame: Any) -> None:
    del frame
    for each in numbers:
      signal.signal(each, signal.SIG_DFL)
    print('stopping once the batch under way is done', file=sys.stderr)
    raise _Interrupted(number)

  before = {number: signal.signal(number, stop) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def run() -> None:
  """The console entry point."""
  app.run(command.wrap(main), flags_parser=command.parse_flags)


if __name__ == '__main__':
  run()
