"""The thresholds of a run: above which score or map value is anomalous."""

import dataclasses
import json
import pathlib

from draem_jax.errors import UserError
from draem_jax.workdir import storage

FILE = 'thresholds.json'


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
  """

  image: float
  pixel: float
  source: str
  quantile: float | None
  pixel_quantile: float | None


def write_thresholds(
  workdir: str | pathlib.Path, thresholds: Thresholds
) -> None:
  """Stores thresholds beside the checkpoints of a run."""
  storage.write_json(
    pathlib.Path(workdir) / FILE, dataclasses.asdict(thresholds)
  )


def read_thresholds(workdir: str | pathlib.Path) -> Thresholds | None:
  """The thresholds of a run, or None if it has not chosen them yet."""
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return None
  try:
    return Thresholds(**json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise UserError(
      f'{path} is damaged ({error}): run draem_jax.main in this workdir again'
    ) from error
