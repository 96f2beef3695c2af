"""What a ground truth mask means, decided by what is in it.

Nothing but 0, black or transparent is normal. The table of the kinds that are
told apart is in `docs/data.md`.
"""

import collections
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from draem_jax.data import encoded

TWO_VALUES = 'two values'
COVERAGE = 'coverage'
CLASS_NUMBERS = 'class numbers'
LABEL_COLORS = 'label colors'
ALPHA = 'an alpha channel'
LOSSY = 'lossy edges'
NO_NORMAL = 'no normal pixel'
# What needs no word.
_PLAIN = (TWO_VALUES, COVERAGE)

# Nobody shades edges in fewer levels: below are class numbers.
_CLASSES_BELOW = 32
# So many levels of shaded edges would be few, and of classes many.
_MANY_LEVELS = 32
# Pixels or levels of which nothing can be said.
_FEW = 4
# Equal neighbors, of eight: of a line, of an area's rim, and of its inside.
_THIN, _RIM, _INSIDE = 2, 5, 8
# Specks near 0 that tell of a lossy mask.
_SPECKS = 16
# Of a lossy mask: what is around its defects is below this share of them.
_NOISE = 1 / 8
# How far from the inside of a defect its edge is, in pixels, at most.
_REACH = 9

_Levels = UInt8[np.ndarray, 'h w'] | UInt16[np.ndarray, 'h w']


class Mask(NamedTuple):
  """A mask that is understood.

  Attributes:
    coverage: 0 is normal, 255 anomalous, in between a share of the pixel.
    meaning: what the file's values were taken for, one of the words above.
  """

  coverage: UInt8[np.ndarray, 'h w']
  meaning: str


def decode(data: bytes, name: str) -> Mask:
  """Decodes a mask of any kind.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  with encoded.decode(data, name) as picture:
    found, kind = _levels(picture)
    mask = _understand(found, is_lossy=picture.is_lossy)
  if kind and mask.meaning in (*_PLAIN, CLASS_NUMBERS):
    return mask._replace(meaning=kind)
  return mask


def levels(data: bytes, name: str) -> _Levels:
  """Decodes a mask to one value a pixel, whatever the values mean.

  Args:
    data: content of the file.
    name: of the file, for the error.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  with encoded.decode(data, name) as picture:
    return _levels(picture)[0]


def unite(parts: Iterable[Mask], size: tuple[int, int]) -> Mask:
  """One mask of several of a height and width; an empty one of none.

  Its meaning is that of the first one of which there is something to say.

  Args:
    parts: the masks.
    size: their height and width.
  """
  coverage, meanings = np.zeros(size, np.uint8), []
  for part in parts:
    coverage = np.maximum(coverage, part.coverage)
    meanings.append(part.meaning)
  odd = (meaning for meaning in meanings if meaning not in _PLAIN)
  return Mask(coverage, next(odd, meanings[0] if meanings else ''))


def describe(meanings: Iterable[str]) -> str | None:
  """What masks were taken for, where it is not what it looks like.

  Args:
    meanings: one a mask.

  Returns:
    A line without a subject, or None if there is nothing to say.
  """
  counts = collections.Counter(meanings)
  if all(meaning in _PLAIN for meaning in counts):
    return None
  return ', '.join(f'{kind} in {n}' for kind, n in counts.most_common())


def _levels(picture: encoded.Picture) -> tuple[_Levels, str | None]:
  """One value a pixel, and where it is from, if not from brightness."""
  image = picture.upright()
  if image.mode.startswith('I'):
    return np.asarray(image).astype(np.uint16), None
  if image.mode in ('L', '1') and 'transparency' not in image.info:
    return np.asarray(image.convert('L')), None
  colors = np.asarray(image.convert('RGBA'))
  levels, alpha = colors[..., :3].max(axis=2), colors[..., 3]
  # Lossy gray is not quite gray.
  is_colored = levels - colors[..., :3].min(axis=2) > 32
  kind = LABEL_COLORS if is_colored.any() else None
  if image.mode == 'P' and not levels.any():
    # A palette without colors: its numbers are all there is.
    return np.asarray(image), None
  if alpha.min() == alpha.max():
    return levels, kind
  # What is painted on nothing is told by alpha, unless some of it is black.
  black = levels <= (_CLASSES_BELOW if picture.is_lossy else 0)
  painted = alpha > 0
  if (black & painted).any() and (~black & painted).any():
    return np.uint8(levels * (alpha / 255) + 0.5), kind
  return alpha, ALPHA


def _understand(levels: _Levels, *, is_lossy: bool) -> Mask:
  full = np.iinfo(levels.dtype).max
  top = int(levels.max())
  if is_lossy:
    return _understand_lossy(levels, top, full)
  counts = np.bincount(levels.ravel())
  values = np.flatnonzero(counts)
  positive = values[values > 0]
  if len(positive) <= 1:
    return Mask(_all_of(levels > 0), TWO_VALUES)
  if not counts[0]:
    return Mask(_scale(levels, full), NO_NORMAL)
  if top < _CLASSES_BELOW:
    return Mask(_all_of(levels > 0), CLASS_NUMBERS)
  around = _look_around(levels)
  if _is_noisy(levels, top, around):
    return _understand_lossy(levels, top, full)
  is_gray = (levels > 0) & (levels < top)
  is_flat = around.is_highest & (around.equal >= _THIN)
  is_short = len(positive) <= _MANY_LEVELS
  if is_short and _is_unshaded(levels, top) and _most(is_flat[is_gray]):
    return Mask(_all_of(levels > 0), CLASS_NUMBERS)
  is_solid = around.equal == _INSIDE
  solid = np.bincount(levels[is_solid], minlength=top + 1) >= _FEW
  solid[0] = False
  if len(positive) > _FEW:
    solid[: int(top * _NOISE)] = False
  if solid.any():
    whole = int(np.flatnonzero(solid)[0])
    meaning = COVERAGE if whole == full else CLASS_NUMBERS
    return Mask(_scale(levels, whole), meaning)
  if top > full // 2:
    return Mask(_scale(levels, full), COVERAGE)
  if is_short:
    return Mask(_all_of(levels > 0), CLASS_NUMBERS)
  return Mask(_scale(levels, top), CLASS_NUMBERS)


def _is_unshaded(levels: _Levels, top: int) -> bool:
  """Whether most of the rim of what is highest stands beside 0 at once."""
  # Here, as it takes a while to import, and prepared masks are not looked at.
  from scipy import ndimage

  cross = ndimage.generate_binary_structure(2, 1)
  is_top = levels == top
  rim = is_top & ndimage.binary_dilation(~is_top, cross)
  return _most(ndimage.minimum_filter(levels, footprint=cross)[rim] == 0)


def _most(holds: Bool[np.ndarray, 'n']) -> bool:
  return 2 * int(holds.sum()) > holds.size


def _understand_lossy(levels: _Levels, top: int, full: int) -> Mask:
  """Cuts each defect at half of what it is inside."""
  from scipy import ndimage

  floor = top * _NOISE if top >= _CLASSES_BELOW else 0
  if levels.min() > floor and top < _CLASSES_BELOW:
    return Mask(np.zeros(levels.shape, np.uint8), LOSSY)
  # Where even the darkest pixel around is no noise.
  is_inside = ndimage.minimum_filter(levels, 5) > floor
  inside = ndimage.maximum_filter(np.where(is_inside, levels, 0), _REACH)
  is_white = inside >= 0.75 * full
  # What is too small for an inside is cut at half of white, or of what there
  # is; and noise is not cut at all.
  small = full // 2 if top > full // 2 else max(top / 2, _CLASSES_BELOW / 2)
  cut = np.where(inside > 0, inside / 2, small)
  cut[is_white] = full // 2
  is_anomalous = levels > cut
  if top < _CLASSES_BELOW:  # A step is as large as its noise.
    is_anomalous |= ndimage.uniform_filter(levels.astype(np.float32), 3) > cut
  is_class = ((inside > 0) & ~is_white).any()
  return Mask(_all_of(is_anomalous), CLASS_NUMBERS if is_class else LOSSY)


class _Around(NamedTuple):
  """What the eight neighbors of each pixel are.

  Attributes:
    equal: how many have its level.
    is_highest: whether none has a higher one.
    is_lowest: whether none has a lower one.
  """

  equal: UInt8[np.ndarray, 'h w']
  is_highest: Bool[np.ndarray, 'h w']
  is_lowest: Bool[np.ndarray, 'h w']


def _look_around(levels: _Levels) -> _Around:
  height, width = levels.shape
  padded = np.pad(levels, 1, mode='edge')
  equal = np.zeros(levels.shape, np.uint8)
  is_highest, is_lowest = np.ones((2, *levels.shape), bool)
  for y, x in itertools.product(range(3), range(3)):
    if (y, x) != (1, 1):
      other = padded[y : y + height, x : x + width]
      equal += other == levels
      is_highest &= other <= levels
      is_lowest &= other >= levels
  return _Around(equal, is_highest, is_lowest)


def _is_noisy(levels: _Levels, top: int, around: _Around) -> bool:
  """Whether a lossy mask was saved anew: specks that no edge explains.

  They are near 0 and near the top, away from what they could be an edge of,
  and more than there are of edges.
  """
  from scipy import ndimage

  far = 7
  is_speck = around.equal < _RIM
  low = (levels > 0) & (levels <= top * _NOISE)
  low &= ndimage.maximum_filter(levels, far) < top / 2
  low &= around.is_highest & is_speck
  high = (levels < top) & (levels >= top * (1 - _NOISE))
  high &= ndimage.minimum_filter(levels, far) > top / 2
  high &= around.is_lowest & is_speck
  between = (levels > top * _NOISE) & (levels < top * (1 - _NOISE))
  num_low, num_high = int(low.sum()), int(high.sum())
  return (
    num_low >= _SPECKS
    and num_high >= _FEW
    and num_low + num_high >= int(between.sum())
  )


def _all_of(is_anomalous: Bool[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w']:
  return np.where(is_anomalous, np.uint8(255), np.uint8(0))


def _scale(levels: _Levels, whole: int) -> UInt8[np.ndarray, 'h w']:
  """Levels as coverage, of which `whole` and more is all of a pixel."""
  if whole == 255 and levels.dtype == np.uint8:
    return levels
  return np.minimum(levels * (255 / whole) + 0.5, 255).astype(np.uint8)
