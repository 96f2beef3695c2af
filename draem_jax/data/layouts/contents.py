"""What a layout tells of a category: its images, their kinds and masks."""

import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Iterable, Mapping

from draem_jax.data import encoded, files, images, masks
from draem_jax.errors import UserError
from draem_jax.names import canonical

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
      or if it is not known. That of a good image must be empty.
    more_masks: paths of others, which are united with it.
  """

  file: str
  defect: str
  is_anomalous: bool
  mask: str | None = None
  more_masks: tuple[str, ...] = ()

  @property
  def masks(self) -> tuple[str, ...]:
    """Paths of all files of its ground truth."""
    return () if self.mask is None else (self.mask, *self.more_masks)


@dataclasses.dataclass(frozen=True)
class Saturation:
  """From how many pixels on a defect of some kind counts as wholly found.

  Attributes:
    threshold: number of pixels, or their share.
    is_relative: whether it is a share.
  """

  threshold: float
  is_relative: bool

  def share(self, area: int) -> float:
    """What share of a defect of so many pixels is enough, in (0, 1]."""
    if self.is_relative:
      return max(1, int(self.threshold * area)) / area
    return min(1.0, self.threshold / area)


@dataclasses.dataclass(frozen=True)
class Contents:
  """The images of a category, in the order in which they are loaded.

  Attributes:
    train: good images to train on, at least one.
    test: good and anomalous images.
    left_out: number of anomalous images that lie among those to train on.
    coarse_masks: whether the masks only surround the defects, so that they are
      to be shown, but no pixel is to be compared with them.
    validation: good images that choose the thresholds, if there are any.
    root: the folder that the paths are relative to; None for the category's.
    saturations: by the value of their pixels in the masks, the kinds of
      defects; every file of a mask is a defect of its own then. None where
      masks only tell good and bad.
    metrics: what the data set is known by, keys of `metrics.EXTRA`.
    notes: what was passed over on purpose, a line each.
  """

  train: list[Member]
  test: list[Member]
  left_out: int = 0
  coarse_masks: bool = False
  validation: list[Member] = dataclasses.field(default_factory=list)
  root: pathlib.Path | None = None
  saturations: Mapping[int, Saturation] | None = None
  metrics: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  def splits(self) -> dict[str, list[Member]]:
    """The images by the names that their parts have once prepared."""
    return {
      'train': self.train,
      'test': self.test,
      'validation': self.validation,
    }


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


def list_folders(folder: pathlib.Path) -> list[str]:
  """Names of the folders in a folder, sorted, without hidden ones."""
  if not folder.is_dir():
    return []
  return sorted(
    path.name
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith('.')
  )


def list_good(folder: pathlib.Path, part: str) -> list[Member]:
  """The images of a part that has good ones only, at least one.

  Args:
    folder: the category's.
    part: the path of the part in it, which ends in what good is called there.

  Raises:
    UserError: if there are none.
  """
  found = list_good_if_any(folder, part)
  if not found:
    raise UserError(
      f'{folder / part} holds no images: put good images there'
      f' ({", ".join(sorted(images.SUFFIXES))})'
    )
  return found


def pair(
  folder: pathlib.Path,
  tested: str,
  truth: str,
  names: Iterable[str],
  masks: Iterable[str],
) -> dict[str, str]:
  """Finds the mask of each image: `<stem>_mask.*`, or just `<stem>.*`.

  Args:
    folder: the category's.
    tested: the path of the part of the images in it.
    truth: that of the part of the masks.
    names: paths of images in their part.
    masks: those of masks in theirs.

  Returns:
    The path of the mask in the category's folder, by image.

  Raises:
    UserError: if one has no partner, or not one alone.
  """
  names, found = list(names), {}
  by_stem = {stem(name): name for name in names}
  if len(by_stem) < len(names):
    twin = next(name for name in names if by_stem[stem(name)] != name)
    raise UserError(
      f'{folder / tested / twin} and {by_stem[stem(twin)]} would share a mask:'
      ' rename one'
    )
  for mask in masks:
    own = stem(mask)
    name = by_stem.get(own) or by_stem.get(own.removesuffix('_mask'))
    if name is None:
      raise lonely_mask(folder, tested, truth, mask)
    if name in found:
      raise UserError(
        f'{folder / tested / name} has two masks,'
        f' {folder / truth / found[name]} and {folder / truth / mask}: remove'
        ' one'
      )
    found[name] = mask
  for name in names:
    if name not in found:
      raise UserError(
        f'{folder / tested / name} has no mask: add'
        f' {folder / truth / stem(name)}_mask.png, or remove the image'
      )
  return {name: f'{truth}/{found[name]}' for name in names}


def list_good_if_any(folder: pathlib.Path, part: str) -> list[Member]:
  """As `list_good`, of a part that need not be there."""
  names = list_images(folder / part)
  return [Member(f'{part}/{name}', 'good', False) for name in names]


def read_kinds(
  folder: pathlib.Path, tested: str, truth: str, *, good: str = 'good'
) -> list[Member]:
  """The test images of a category that lie in a folder for each kind.

  Args:
    folder: the category's.
    tested: the path of the part of the images in it.
    truth: that of the part of the masks, in folders called as those of the
      images. It may lie in the other one.
    good: what the kind is called that has no masks.

  Returns:
    The images, sorted by path. If there are masks at all, every anomalous one
    has its own.

  Raises:
    UserError: if an image or a mask has no partner.
  """
  masks = {
    kind: list_images(folder / truth / kind)
    for kind in list_folders(folder / truth)
  }
  # Good images are normal by their folder's name: masks would be all zero.
  masks.pop(good, None)
  has_masks = any(masks.values())
  members = []
  for kind in list_folders(folder / tested):
    part = f'{tested}/{kind}'
    if part == truth:
      continue
    if kind == good:
      members += list_good_if_any(folder, part)
      continue
    names, mask_of = list_images(folder / part), {}
    if has_masks:
      of_kind = masks.pop(kind, [])
      mask_of = pair(folder, part, f'{truth}/{kind}', names, of_kind)
    members += [
      Member(f'{part}/{name}', kind, True, mask_of.get(name)) for name in names
    ]
  for kind, names in masks.items():
    if names:
      where = f'{tested}/{kind}', f'{truth}/{kind}'
      raise lonely_mask(folder, *where, names[0])
  return members


def lonely_mask(
  folder: pathlib.Path, tested: str, truth: str, mask: str
) -> UserError:
  """What is said of a mask without an image; arguments as those of `pair`."""
  expected = folder / tested / stem(mask).removesuffix('_mask')
  return UserError(
    f'{folder / truth / mask} is a mask without an image: add {expected}.*, or'
    ' remove the mask'
  )


def stem(name: str) -> str:
  """The name, folders included, without its suffix, as names are compared."""
  return canonical(pathlib.PurePosixPath(name).with_suffix('').as_posix())


def read_labeled(
  folder: pathlib.Path, part: str, *, mark: str, suffix: str
) -> list[Member]:
  """The images of a folder in which each one has its mask beside it.

  An image is anomalous if a pixel of its mask is.

  Args:
    folder: the category's.
    part: the path of the folder in it.
    mark: what a mask's name has more than its image's.
    suffix: what a mask's name ends in, as a message has it.

  Returns:
    The images, sorted by path.

  Raises:
    UserError: if an image or a mask has no partner, or a mask is broken.
  """
  names = list_images(folder / part)
  # The mark need not stand at the end: a copy may be '007_GT (copy).png'.
  truth = {
    stem(name).replace(mark, '', 1): f'{part}/{name}'
    for name in names
    if mark in stem(name)
  }
  files = [name for name in names if mark not in stem(name)]
  keys = {stem(file) for file in files}
  if len(keys) < len(files):
    twin = next(a for a, b in itertools.pairwise(files) if stem(a) == stem(b))
    raise UserError(
      f'{folder / part / twin} and another image would share a mask: rename one'
    )
  for key in sorted(keys):
    if key not in truth:
      raise UserError(
        f'{folder / part / key} has no mask: add'
        f' {folder / part / key}{mark}{suffix}, black if the image is good, or'
        ' remove the image'
      )
  for key, mask in truth.items():
    if key not in keys:
      raise UserError(
        f'{folder / mask} is a mask without an image: add'
        f' {folder / part / key}.*, or remove the mask'
      )
  paths = [truth[stem(file)] for file in files]
  defective = images.map_parallel(
    _is_defective, [folder / path for path in paths]
  )
  return [
    Member(f'{part}/{file}', 'defective', True, mask)
    if is_defective
    else Member(f'{part}/{file}', 'good', False)
    for file, mask, is_defective in zip(files, paths, defective, strict=True)
  ]


def _is_defective(path: pathlib.Path) -> bool:
  try:
    stamp = files.stamp(path)
  except OSError:
    stamp = None  # To be said when it is read.
  return _has_defect(path, stamp)


# A layout is read more than once before its images are loaded.
@functools.lru_cache(2**17)
def _has_defect(path: pathlib.Path, stamp: str | None) -> bool:
  mask = masks.decode(encoded.read_bytes(path), str(path))
  return bool(mask.coverage.any())
