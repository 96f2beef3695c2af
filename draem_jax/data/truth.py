"""The ground truth of an image, from all files that it lies in."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from draem_jax.data import encoded, masks, regions
from draem_jax.data.layouts.contents import Member, Saturation
from draem_jax.errors import UserError


class Truth(NamedTuple):
  """Where an image is anomalous.

  Attributes:
    coverage: 0 is normal, 255 anomalous, in between a share of the pixel.
    meaning: what the masks' values were taken for, a word of `masks`; empty if
      there are none.
    defects: those that count one by one, as `regions.split` has them.
  """

  coverage: UInt8[np.ndarray, 'h w']
  meaning: str
  defects: list[tuple[Bool[np.ndarray, 'h w'], float]]


def read(
  root: pathlib.Path,
  member: Member,
  size: tuple[int, int],
  saturations: Mapping[int, Saturation] | None,
) -> Truth:
  """Reads the masks of an image; without one nothing is covered.

  Args:
    root: the folder that the member's paths are relative to.
    member: the image.
    size: its height and width.
    saturations: as `Contents` have them.

  Raises:
    UserError: if a mask is broken, of another size, or not empty though the
      image is good; or if a value of its pixels is no kind of defect.
  """
  parts, defects = [], []
  for name in member.masks:
    path = root / name
    data = encoded.read_bytes(path)
    if saturations is None:
      part = masks.decode(data, str(path))
    else:
      levels = masks.levels(data, str(path))
      covered = np.where(levels > 0, np.uint8(255), np.uint8(0))
      part = masks.Mask(covered, masks.CLASS_NUMBERS)
    height, width = part.coverage.shape
    if (height, width) != size:
      raise UserError(
        f'{path} is {width}x{height} pixels and its image {root / member.file}'
        f' {size[1]}x{size[0]}: give both the same size'
      )
    if saturations is not None:
      defects += regions.split(levels, saturations, str(path))
    parts.append(part)
  coverage, meaning = masks.unite(parts, size)
  if not member.is_anomalous and coverage.any():
    raise UserError(
      f'{root / member.file} is said to be good, and its mask'
      f' {root / member.masks[0]} is not empty: correct one of the two'
    )
  return Truth(coverage, meaning, defects)
