"""Where the object is: a fourth channel of prepared pictures, 255 inside.

It goes wherever the pictures go, is rotated as they are, and tells the
simulator where anomalies may be and the detector where maps count.
"""

import functools
import logging
import os
import pathlib
import zlib
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from draem_jax import names
from draem_jax.data import encoded, files, masks, png, resizing
from draem_jax.errors import UserError
from draem_jax.workdir import storage

_log = logging.getLogger(__name__)

AUTO = 'auto'
# In a workdir: the mask of its pictures, if there is one for all.
FILE = 'roi.png'

# Of Otsu's two classes: the share of the variance that lies between them. Where
# there is one class only, a normal distribution, it is 0.64.
_APART = 0.7
# Of a picture: what is next to nothing, and what next to everything.
_LEAST, _MOST = 0.02, 0.95
# Of the largest part of the object: what is a part of it, too, and no speck.
_PART = 0.1
# Shares of the shorter side: what is smoothed away, the frame that is taken for
# background, and by how much more than was found is inside.
_SMOOTH, _FRAME, _AROUND = 1 / 128, 1 / 32, 1 / 64

_Pictures = TypeVar('_Pictures', Array, np.ndarray)


class Roi:
  """The region of interest of any picture.

  Attributes:
    source: `'auto'`, or the path of an image, or of a folder with one for each
      picture.
    mask: 255 where the object is, if that is the same in every picture.
  """

  def __init__(self, source: str, mask: UInt8[np.ndarray, 'h w'] | None = None):
    """Without a mask each picture has its own."""
    self.source, self.mask = source, mask
    self.fixed = functools.lru_cache(4)(self._fixed)
    self._has_told = False

  @property
  def is_by_name(self) -> bool:
    """Whether the region of a picture is found by the picture's name."""
    return self.mask is None and self.source != AUTO

  def add(
    self, prepared: UInt8[np.ndarray, 'h w 3'], name: str
  ) -> UInt8[np.ndarray, 'h w 4']:
    """A prepared picture with its region as a fourth channel.

    Args:
      prepared: RGB.
      name: of its file.

    Raises:
      UserError: if there is no region for it.
    """
    if self.source == AUTO:
      inside = automatic(prepared)
      self._tell_of_whole(inside, name)
    elif self.mask is None:
      inside = _resize(read_mask(self._find(name)), prepared.shape[:2])
    else:
      inside = self.fixed(prepared.shape[:2])
    return np.dstack([prepared, np.where(inside, np.uint8(255), np.uint8(0))])

  def fingerprint(self) -> str:
    """What tells it from another one."""
    if self.mask is None:
      return self.source
    shape = f'{self.mask.shape}'.encode()
    return f'{zlib.crc32(np.ascontiguousarray(self.mask), zlib.crc32(shape))}'

  def _fixed(self, size: tuple[int, int]) -> Bool[np.ndarray, 'h w']:
    """The region of all pictures at a height and width.

    Raises:
      UserError: if each has its own.
    """
    if self.mask is None:
      raise UserError(
        f'config.data.roi={names.shown(self.source)} gives each picture a'
        ' region of its own, and a program for other runtimes holds one for'
        ' all: train with an image that is white where the object is'
      )
    return _resize(self.mask, size)

  @functools.cached_property
  def _files(self) -> dict[str, pathlib.Path]:
    """The masks by their paths in the folder, without suffixes."""
    found = files.list_images(self.source)
    return {
      os.path.splitext(name)[0]: found.root / name for name in found.names
    }

  def _find(self, name: str) -> pathlib.Path:
    """The mask of the picture of a name."""
    if not name:
      raise UserError(
        f'config.data.roi={names.shown(self.source)} has a mask per picture, by'
        ' name, and this picture has none: take Detector.with_roi and the mask'
      )
    path, _ = os.path.splitext(name)
    for key in (path, os.path.basename(path)):
      if key in self._files:
        return self._files[key]
    raise UserError(
      f'{names.shown(name)} has no mask in config.data.roi='
      f'{names.shown(self.source)}: put {names.shown(path)}.png there, white'
      ' where the object is'
    )

  def _tell_of_whole(self, inside: Bool[np.ndarray, 'h w'], name: str) -> None:
    """Warns of the first picture in which no object was found."""
    if self._has_told or not inside.all():
      return
    self._has_told = True
    _log.warning(
      "config.data.roi='auto': no object stands out from the border of %s, and"
      ' maybe of others: the whole picture counts there; see figures/roi.png of'
      ' the run, and name a mask if that is wrong',
      names.shown(name) or 'a picture',
    )


def read(source: str, stored: pathlib.Path | None = None) -> Roi | None:
  """The region that `config.data.roi` says; None for whole pictures.

  Args:
    source: `''`, `'auto'`, or the path of an image or a folder.
    stored: the mask that a run keeps, which serves when the image is gone.

  Raises:
    UserError: if there is no such image or folder.
  """
  if source in ('', AUTO):
    return Roi(source) if source else None
  if os.path.isdir(source):
    return Roi(source)
  for path in (pathlib.Path(source), stored):
    if path is not None and path.exists():
      return Roi(source, read_mask(path))
  raise UserError(
    f'config.data.roi={names.shown(source)} is not there: name an image that is'
    ' white where the object is, or a folder with one per picture, or auto'
  )


def of_run(source: str, workdir: pathlib.Path) -> Roi | None:
  """The region that a run has used, wherever it was from.

  Args:
    source: its `config.data.roi`.
    workdir: its folder.
  """
  stored = workdir / FILE
  if source in ('', AUTO):
    return read(source)
  for path in (stored, pathlib.Path(source)):
    if path.is_file():
      return Roi(source, read_mask(path))
  # A folder may be gone: pictures may come with another.
  return Roi(source)


def store(roi: Roi | None, workdir: pathlib.Path) -> None:
  """Keeps the mask of a run in its folder, or that there is none."""
  path = workdir / FILE
  if roi is None or roi.mask is None:
    path.unlink(missing_ok=True)
  else:
    storage.write_bytes(path, png.encode(roi.mask))


def read_mask(path: pathlib.Path) -> UInt8[np.ndarray, 'h w']:
  """Reads a mask of any kind; 255 is where the object is.

  Raises:
    UserError: if this is no image, or there is nothing white in it.
  """
  mask = masks.decode(encoded.read_bytes(path), str(path)).coverage
  mask = np.where(mask >= 128, np.uint8(255), np.uint8(0))
  if not mask.any():
    raise UserError(
      f'{names.shown(path)} is black, so that nothing would count: paint it'
      ' white where the object is'
    )
  return mask


def _resize(
  mask: UInt8[np.ndarray, 'h w'], size: tuple[int, int]
) -> Bool[np.ndarray, 'h2 w2']:
  """What the object covers half of, of the pixels of another size."""
  return resizing.resize(mask[..., None], size, 'area')[..., 0] >= 128


def split(pictures: _Pictures) -> tuple[_Pictures, _Pictures | None]:
  """Pictures [..., c] without their regions, and these, if they have any."""
  if pictures.shape[-1] == 3:
    return pictures, None
  return pictures[..., :3], region(pictures)


def region(pictures: _Pictures) -> _Pictures | None:
  """Where the object is in pictures [..., c]; None if that is not told."""
  return None if pictures.shape[-1] == 3 else pictures[..., 3] > 127


def automatic(
  picture: UInt8[np.ndarray, 'h w 3'],
) -> Bool[np.ndarray, 'h w']:
  """Where the object is in a picture whose border shows the background.

  By how far colors are from that of the border, cut by Otsu's threshold (Otsu,
  "A threshold selection method from gray-level histograms", 1979). What is
  within the object is a part of it, and a little of what is around.

  Args:
    picture: RGB.

  Returns:
    The region; all of the picture if nothing stands out.
  """
  # Here, as they take a while to import.
  from scipy import ndimage
  from skimage import color, filters

  side = min(picture.shape[:2])
  lab = color.rgb2lab(picture)
  lab = ndimage.gaussian_filter(lab, (side * _SMOOTH, side * _SMOOTH, 0))
  is_frame = np.ones(picture.shape[:2], bool)
  width = max(1, round(side * _FRAME))
  is_frame[width:-width, width:-width] = False
  distance = np.linalg.norm(lab - np.median(lab[is_frame], axis=0), axis=-1)
  inside = distance > filters.threshold_otsu(distance)
  whole = np.ones_like(inside)
  if _separation(distance, inside) < _APART or inside[is_frame].mean() > 0.5:
    return whole
  parts, _ = ndimage.label(inside)
  areas = np.bincount(parts.ravel())
  areas[0] = 0
  inside = ndimage.binary_fill_holes((areas >= _PART * areas.max())[parts])
  away = ndimage.distance_transform_edt(~inside)
  inside = away <= side * _AROUND
  return inside if _LEAST <= inside.mean() <= _MOST else whole


def _separation(
  values: Float[np.ndarray, 'h w'], is_high: Bool[np.ndarray, 'h w']
) -> float:
  """The share of a variance that lies between two classes."""
  share, variance = is_high.mean(), values.var()
  if share in (0, 1) or not variance:
    return 0.0
  step = values[is_high].mean() - values[~is_high].mean()
  return float(share * (1 - share) * step**2 / variance)
