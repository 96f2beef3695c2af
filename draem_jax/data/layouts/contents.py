"""What a layout tells of a category: its images, their kinds and masks."""

import dataclasses
import logging
import pathlib

from draem_jax.data import files
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

# What systems and archives leave beside images.
_EXPECTED = ('.txt', '.md', '.db', '.ini')


@dataclasses.dataclass(frozen=True)
class Member:
  """An image of a category.

  Attributes:
    file: its path in the category's folder, with slashes.
    defect: what kind of image it is, as a person reads it.
    is_anomalous: whether it shows a defect.
    mask: the path of its ground truth; None if it has none, as a good image,
      or if it is not known.
  """

  file: str
  defect: str
  is_anomalous: bool
  mask: str | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
  """The images of a category, in the order in which they are loaded.

  Attributes:
    train: good images to train on, at least one.
    test: good and anomalous images.
    left_out: number of anomalous images that lie among those to train on.
    coarse_masks: whether the masks only surround the defects, so that they are
      to be shown, but no pixel is to be compared with them.
  """

  train: list[Member]
  test: list[Member]
  left_out: int = 0
  coarse_masks: bool = False


def list_images(folder: pathlib.Path) -> list[str]:
  """Names of the image files below a part of a category, at any depth, sorted.

  Args:
    folder: the part; of one that does not exist there are none.

  Raises:
    UserError: if it cannot be read.
  """
  if not folder.is_dir():
    return []
  found = files.list_images(folder)
  if found.unreadable:
    raise UserError(
      f'{found.unreadable[0]} cannot be read: allow reading it, or remove it'
    )
  line = files.passed_over(found.others, expected=_EXPECTED)
  if line:
    _log.warning('passed over %s, in %s', line, folder)
  return found.names
