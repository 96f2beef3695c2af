"""The thresholds of a run: above which score or map value is anomalous."""

import dataclasses
import pathlib
from typing import Any

from draem_jax.errors import UserError
from draem_jax.workdir import storage

FILE = 'thresholds.json'

# The mean of ones may be rounded up.
_MOST = 1 + 1e-6


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """Above which score an image, and which map value a pixel, is anomalous.

  Attributes:
    image: an image is anomalous when its score is greater.
    pixel: in an anomalous image a pixel is anomalous when its map value is
      greater.
    source: the good images they were chosen from, in words.
    quantile: of the scores of these images, at which `image` stands. One minus
      it is the false alarm rate aimed at. None if set by hand.
    pixel_quantile: the same for the map values of their pixels.

  Raises:
    UserError: if a number is not in [0, 1], as NaN is not, nor True.
  """

  image: float
  pixel: float
  source: str
  quantile: float | None
  pixel_quantile: float | None

  def __post_init__(self):
    for name in ('image', 'pixel'):
      value = getattr(self, name)
      if not is_share(value, most=_MOST):
        raise UserError(f'{name} threshold {value!r:.80}: take 0 to 1')
    for name in ('quantile', 'pixel_quantile'):
      value = getattr(self, name)
      if value is not None and not is_share(value):
        raise UserError(f'{name} {value!r:.80}: take 0 to 1')
    if not isinstance(self.source, str):
      raise UserError(f'source {self.source!r:.80}: take text')


def is_share(value: Any, *, most: float = 1) -> bool:
  """Whether a value is a number in [0, most]; NaN and True are none."""
  is_number = isinstance(value, float | int) and not isinstance(value, bool)
  return bool(is_number and 0 <= value <= most)


def write_thresholds(
  workdir: str | pathlib.Path, thresholds: Thresholds
) -> None:
  """Stores thresholds beside the checkpoints of a run."""
  storage.write_json(
    pathlib.Path(workdir) / FILE, dataclasses.asdict(thresholds)
  )


def read_thresholds(workdir: str | pathlib.Path) -> Thresholds | None:
  """The thresholds of a run, or None if it has not chosen them yet.

  Raises:
    UserError: if the file is damaged; the message names the field.
  """
  path = pathlib.Path(workdir) / FILE
  remedy = 'run draem_jax.main in this workdir again, which chooses them anew'
  try:
    found = storage.read_json(path, remedy=remedy)
  except FileNotFoundError:
    return None
  names = [field.name for field in dataclasses.fields(Thresholds)]
  for name in names:
    if name not in found:
      raise UserError(f'{path} is damaged ({name} is missing): {remedy}')
  for name in found:
    if name not in names:
      raise UserError(f'{path} is damaged ({name!r:.80} is no field): {remedy}')
  try:
    return Thresholds(**found)
  except UserError as error:
    why = str(error).partition(':')[0]
    raise UserError(f'{path} is damaged ({why}): {remedy}') from error
