"""What a folder of categories is taken for, and what is odd or broken in it."""

import collections
import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from draem_jax.data import encoded, images, layouts, masks, truth
from draem_jax.data.layouts.contents import Contents, Member, Saturation
from draem_jax.errors import UserError

# Pixels a side of what is kept of an image to compare it with others.
_THUMB = 32
# Levels by which two of these differ, as a root mean square, where the one
# image is the other saved anew. Two pictures of one thing differ by more.
_ALIKE = 1.0
_ROWS = 1024  # Images that are compared with all others at a time.
_NAMED = 3
SEEN = 256  # Pixels a side that networks see, by default.
# So many times the pixels that networks see are more than the data sets have
# that are resized to them as published.
_LARGE = 16
_SMALL = 10  # Pixels across, of a small defect.


@dataclasses.dataclass
class Findings:
  """What there is to say of a category or a folder of them.

  Attributes:
    lines: for a person.
    odd: what may be meant so, a line each.
    broken: what keeps it from being trained on or tested, a line each.
  """

  lines: list[str] = dataclasses.field(default_factory=list)
  odd: list[str] = dataclasses.field(default_factory=list)
  broken: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Look:
  """What is kept of an image."""

  member: Member
  split: str
  size: tuple[int, int] | None = None  # Width and height.
  mode: str = ''
  checksum: bytes = b''
  thumb: UInt8[np.ndarray, 'k'] | None = None
  bits_in_use: int | None = None  # Of 16.
  meaning: str = ''  # What the masks are taken for.
  has_empty_mask: bool = False
  wrong: str = ''


def find(
  folder: str | os.PathLike[str], *, layout: str
) -> dict[str, layouts.Place | UserError]:
  """The categories in a folder, or the one that it is itself.

  Args:
    folder: of categories, or of one.
    layout: a name in `layouts.LAYOUTS`, or `'auto'`.

  Returns:
    By name, where each is, or why that cannot be said.

  Raises:
    UserError: if there is none.
  """
  # Of '.', too, there is a name.
  folder = pathlib.Path(os.path.abspath(folder))
  try:
    names = layouts.list_categories(folder, layout=layout)
  except UserError:
    try:
      place = layouts.find(folder.parent, folder.name, layout=layout)
    except UserError:
      place = None
    if place is None or not folder.is_dir():
      raise
    return {folder.name: place}
  found = {}
  for name in names:
    try:
      found[name] = layouts.find(folder, name, layout=layout)
    except UserError as error:
      found[name] = error
  return found


def check(name: str, place: layouts.Place) -> Findings:
  """Looks at every file of a category.

  What is kept of an image is a kilobyte.

  Args:
    name: of the category.
    place: where it is.
  """
  findings = Findings([f'{name}: layout {place.layout}, {place.folder}'])
  with _heard(findings.odd):
    try:
      contents = layouts.get(place.layout).read(place.folder)
    except UserError as error:
      findings.broken.append(str(error))
      return findings
  _count(contents, findings)
  root = contents.root or place.folder
  tasks = [
    (root, split, member, contents.saturations)
    for split, members in contents.splits().items()
    for member in members
  ]
  looks = images.map_parallel(_look, tasks, description=f'looking at {name}')
  findings.broken += [look.wrong for look in looks if look.wrong]
  _tell_of_sizes(looks, findings)
  _tell_of_large(looks, findings)
  _tell_of_depth(looks, findings)
  _tell_of_masks(looks, findings)
  _tell_of_twins(looks, findings)
  return findings


def _count(contents: Contents, findings: Findings) -> None:
  """Says how many images there are of which kind, and what lacks."""
  for split, members in contents.splits().items():
    if members or split != 'validation':
      kinds = collections.Counter(member.defect for member in members)
      shown = ', '.join(f'{count} {kind}' for kind, count in kinds.items())
      shown = f': {shown}' if shown else ''
      findings.lines.append(f'  {split}: {len(members)} images{shown}')
  if contents.left_out:
    findings.lines.append(
      f'  left out: {contents.left_out} defective images among those to train'
      ' on'
    )
  findings.lines += [f'  {note}' for note in contents.notes]
  anomalous = [member for member in contents.test if member.is_anomalous]
  masked = sum(1 for member in anomalous if member.masks)
  files = sum(len(member.masks) for member in anomalous)
  shown = f'  masks: {masked} of {len(anomalous)} anomalous images have one'
  if files > masked:
    shown += f', in {files} files'
  if contents.coarse_masks:
    shown += ', which is coarse: no pixel is compared with it'
  if anomalous:
    findings.lines.append(shown)
  if not contents.test:
    findings.odd.append('there are no test images: nothing can be evaluated')
  elif not anomalous:
    findings.odd.append('no test image is anomalous: there will be no AUROC')
  elif len(anomalous) == len(contents.test):
    findings.odd.append('no test image is good: there will be no AUROC')
  elif not masked:
    findings.odd.append('there are no masks: no pixel can be compared')


def _look(
  task: tuple[pathlib.Path, str, Member, Mapping[int, Saturation] | None],
) -> _Look:
  root, split, member, saturations = task
  path = root / member.file
  try:
    with encoded.open_picture(path) as picture:
      look = _look_at(picture, member, split)
  except UserError as error:
    return _Look(member, split, wrong=str(error))
  width, height = look.size
  try:
    found = truth.read(root, member, (height, width), saturations)
  except UserError as error:
    return dataclasses.replace(look, wrong=str(error))
  return dataclasses.replace(
    look,
    meaning=found.meaning,
    has_empty_mask=bool(
      member.is_anomalous and member.masks and not found.coverage.any()
    ),
  )


def _look_at(picture: encoded.Picture, member: Member, split: str) -> _Look:
  height, width = picture.shape
  image = picture.rgb()
  checksum = hashlib.sha256(str(image.shape).encode())
  checksum.update(image)
  small = (
    Image.fromarray(image)
    .convert('L')
    .resize((_THUMB, _THUMB), Image.Resampling.BOX)
  )
  return _Look(
    member,
    split,
    size=(width, height),
    mode=_mode(picture),
    bits_in_use=picture.bits_in_use,
    checksum=checksum.digest(),
    thumb=np.asarray(small).reshape(-1),
  )


def _mode(picture: encoded.Picture) -> str:
  """What the pixels are, in a word or two."""
  if picture.mode.startswith('I'):
    return '16 bits'
  words = {'L': 'gray', '1': 'one bit', 'P': 'palette'}
  mode = words.get(picture.mode, picture.mode)
  return mode if picture.bits_in_use is None else f'{mode} of 16 bits'


def _tell_of_sizes(looks: Sequence[_Look], findings: Findings) -> None:
  """Says which sizes and modes there are, and names the rare ones."""
  total = sum(1 for look in looks if look.size is not None)
  for words, key in (
    ('size', lambda look: '{}x{}'.format(*look.size)),
    ('mode', lambda look: look.mode),
  ):
    files = collections.defaultdict(list)
    for look in looks:
      if look.size is not None:
        files[key(look)].append(look.member.file)
    ranked = sorted(files, key=lambda value: -len(files[value]))
    shown = ', '.join(f'{value} ({len(files[value])})' for value in ranked[:8])
    if len(ranked) > 8:
      shown += f' and {len(ranked) - 8} more'
    if ranked:
      findings.lines.append(f'  {words}: {shown}')
    # What a tenth of the images has is meant so.
    rare = [
      value
      for value in ranked[1:]
      if 10 * len(files[value]) < len(files[ranked[0]])
    ]
    for value in rare[:_NAMED]:
      findings.odd.append(
        f'{len(files[value])} of {total} images have the {words} {value}:'
        f' {_some(files[value])}'
      )


def _tell_of_large(looks: Sequence[_Look], findings: Findings) -> None:
  """Says how to train on images that lose most of what they show."""
  found = [look.size for look in looks if look.size is not None]
  large = [size for size in found if math.prod(size) > _LARGE * SEEN**2]
  if 2 * len(large) <= len(found):
    return
  width, height = max(large, key=math.prod)
  left = _SMALL * SEEN / math.sqrt(width * height)
  findings.lines.append(
    f'  advice: resized to {SEEN}x{SEEN} (config.image_size), what has'
    f' {_SMALL} pixels across in an image of {width}x{height} has {left:.1f};'
    ' --config.data.resolution=0 trains on crops at the size that images have'
  )


def _tell_of_depth(looks: Sequence[_Look], findings: Findings) -> None:
  """Says how many of 16 bits are in use, and what is lost with the rest."""
  used = {
    look.member.file: look.bits_in_use
    for look in looks
    if look.bits_in_use is not None
  }
  if used:
    findings.lines.append(f'  in use: {max(used.values())} of 16 bits')
  # As when they are loaded: all together, or else those of a part.
  for split in (None, *dict.fromkeys(look.split for look in looks)):
    line = images.describe_depth(
      {
        look.member.file: look.bits_in_use
        for look in looks
        if split in (None, look.split)
      }
    )
    if line:
      findings.odd.append(line)
      return


def _tell_of_masks(looks: Sequence[_Look], findings: Findings) -> None:
  """Says what masks are taken for, and names those that cannot be right."""
  meanings = collections.Counter(look.meaning for look in looks if look.meaning)
  if meanings:
    shown = ', '.join(f'{kind} in {n}' for kind, n in meanings.most_common())
    findings.lines.append(f'  masks are taken for: {shown}')
  empty = [look.member.file for look in looks if look.has_empty_mask]
  if empty:
    findings.odd.append(
      f'the masks of {len(empty)} anomalous images are empty, so that no pixel'
      f' of them counts as anomalous: {_some(empty)}'
    )
  no_normal = [
    look.member.file for look in looks if look.meaning == masks.NO_NORMAL
  ]
  if no_normal:
    findings.odd.append(
      f'{len(no_normal)} masks hold no 0, which is what means normal, and are'
      f' taken as they are: those of {_some(no_normal)}'
    )


def _tell_of_twins(looks: Sequence[_Look], findings: Findings) -> None:
  """Names test images that the training or the thresholds have seen."""
  sound = [look for look in looks if look.thumb is not None]
  known = [look for look in sound if look.split != 'test']
  tested = [look for look in sound if look.split == 'test']
  by_checksum = {look.checksum: look for look in reversed(known)}
  same = [look for look in tested if look.checksum in by_checksum]
  if same:
    pairs = [
      f'{look.member.file} is {by_checksum[look.checksum].member.file}'
      for look in same
    ]
    findings.odd.append(
      f'{len(same)} test images are among those to train on or to choose'
      f' thresholds with, to the pixel: {_some(pairs, "; ")}'
    )
  rest = [look for look in tested if look.checksum not in by_checksum]
  alike = [
    f'{look.member.file} is like {twin.member.file}'
    for look, twin in _alike(rest, known)
  ]
  if alike:
    findings.odd.append(
      f'{len(alike)} test images look just as some to train on or to choose'
      f' thresholds with: {_some(alike, "; ")}'
    )
  seen = collections.Counter(look.checksum for look in known)
  twice = sum(seen.values()) - len(seen)
  if twice:
    findings.odd.append(
      f'{twice} of the images to train on or to choose thresholds with are'
      ' there twice'
    )


def _alike(
  tested: Sequence[_Look], known: Sequence[_Look]
) -> Iterator[tuple[_Look, _Look]]:
  """Images of the one kind that differ from one of the other by hardly any."""
  if not tested or not known:
    return
  # |a - b|² = |a|² + |b|² - 2ab, of which the last is a product of matrices.
  stack = np.stack([look.thumb for look in tested]).astype(np.float32)
  center = stack.mean(axis=0)
  stack -= center
  norms = np.square(stack).sum(axis=1)
  limit = _THUMB**2 * _ALIKE**2
  found = {}
  for start in range(0, len(known), _ROWS):
    chunk = known[start : start + _ROWS]
    others = (
      np.stack([look.thumb for look in chunk]).astype(np.float32) - center
    )
    distances = (
      norms[:, None] + np.square(others).sum(axis=1) - 2 * stack @ others.T
    )
    for row, column in np.argwhere(distances <= limit).tolist():
      found.setdefault(row, chunk[column])
  for row in sorted(found):
    yield tested[row], found[row]


def _some(names: Sequence[str], divider: str = ', ') -> str:
  more = len(names) - _NAMED
  shown = divider.join(names[:_NAMED])
  return f'{shown} and {more} more' if more > 0 else shown


class _heard(logging.Handler):
  """Keeps what is warned of meanwhile as lines, in the place of the log."""

  def __init__(self, lines: list[str]):
    super().__init__(logging.WARNING)
    self._lines, self._logger = lines, logging.getLogger('draem_jax.data')

  def emit(self, record: logging.LogRecord) -> None:
    self._lines.append(record.getMessage())

  def __enter__(self) -> None:
    self._propagate = self._logger.propagate
    self._logger.addHandler(self)
    self._logger.propagate = False

  def __exit__(self, *error: object) -> None:
    self._logger.removeHandler(self)
    self._logger.propagate = self._propagate
