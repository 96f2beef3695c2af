"""The paper's figures as sheets of examples: 4, 5, 8 and 10.

Tiles show what the networks see, and symbols are the paper's.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from draem_jax.pictures import panels
from draem_jax.simulator.simulate import Steps

# Pixels of a tile: those of the networks' images, within these limits.
_MIN_TILE, _MAX_TILE = 128, 256
_MAX_COLUMNS = 8
# What the noise hardly ever leaves: black and white in its picture.
_NOISE_RANGE = (-1.0, 1.0)

Sheet = UInt8[np.ndarray, 'H W 3']


def simulation(steps: Sequence[Steps]) -> Sheet:
  """Figure 4: the way from noise and a texture to an example, one a row.

  Args:
    steps: what each example was made of. There is no column of noise where the
      masks are not made of it.
  """
  tile = _tile_size(steps[0].image)
  columns = [
    ('Mₐ\nmask', [_mask(one.mask, tile) for one in steps]),
    ('A\ntexture', [panels.fit(one.texture, tile) for one in steps]),
    ('A\naugmented', [panels.fit(one.anomaly, tile) for one in steps]),
    ('I\nanomaly-free', [panels.fit(one.image, tile) for one in steps]),
    (
      'Iₐ\nwith the anomaly',
      [panels.fit(one.augmented, tile) for one in steps],
    ),
  ]
  if all(one.noise is not None for one in steps):
    noises = [_noise(one.noise, tile) for one in steps]
    columns.insert(0, ('P\nPerlin noise', noises))
  return panels.grid(columns, tile=tile)


def augmentations(steps: Sequence[Steps]) -> Sheet:
  """Figure 5: a texture, its augmented copies and the anomalies made of them.

  Copies and anomalies fill a square each, in the same order.

  Args:
    steps: what examples were made of that share one texture.
  """
  tile = _tile_size(steps[0].image)
  columns = [('A\ntexture', [panels.fit(steps[0].texture, tile)])]
  side = math.ceil(math.sqrt(len(steps)))
  for caption, pictures in (
    ('A\naugmented', [one.anomaly for one in steps]),
    ('Iₐ\nwith the anomaly', [one.augmented for one in steps]),
  ):
    for column in range(min(side, len(steps))):
      tiles = [panels.fit(one, tile) for one in pictures[column::side]]
      columns.append((caption if column == 0 else '\n', tiles))
  return panels.grid(columns, tile=tile)


def qualitative(
  *,
  images: Sequence[UInt8[np.ndarray, '_ _ 3']],
  anomaly_maps: Sequence[Float[np.ndarray, '_ _']],
  masks: Sequence[Bool[np.ndarray, '_ _'] | None],
  captions: Sequence[str],
) -> Sheet:
  """Figure 8: test images, their maps and the ground truth, one a column.

  Args:
    images: the test images.
    anomaly_maps: their maps.
    masks: their ground truth; None where it is unknown, and left free then.
    captions: what stands above each column, all in one line or all in two.
  """
  tile = max(map(_tile_size, images))
  columns = []
  for image, anomaly_map, mask, caption in zip(
    images, anomaly_maps, masks, captions, strict=True
  ):
    image = panels.fit(image, tile)
    anomaly_map = panels.fit_map(anomaly_map, tile)
    tiles = [
      image,
      panels.heat_map_overlay(image, anomaly_map),
      panels.colorize(anomaly_map),
      None if mask is None else _mask(mask, tile),
    ]
    columns.append((caption, tiles))
  names = ('Image', 'Overlay', 'Anomaly map', 'Ground truth')
  bands = [
    panels.grid(
      columns[start : start + _MAX_COLUMNS], tile=tile, row_names=names
    )
    for start in range(0, len(columns), _MAX_COLUMNS)
  ]
  return _stack(bands)


def kinds(steps: Mapping[str, Sequence[Steps]]) -> Sheet:
  """Figure 10: kinds of anomalies side by side, on the same images.

  Args:
    steps: by the caption of a kind, in two lines, what its examples were made
      of, one a row. The images are the same for all kinds.
  """
  first = next(iter(steps.values()))
  tile = _tile_size(first[0].image)
  columns = [
    ('I\nanomaly-free', [panels.fit(one.image, tile) for one in first])
  ]
  for caption, examples in steps.items():
    tiles = [panels.fit(one.augmented, tile) for one in examples]
    columns.append((caption, tiles))
  return panels.grid(columns, tile=tile)


def _tile_size(
  image: UInt8[np.ndarray, 'h w 3'] | Float[np.ndarray, 'h w 3'],
) -> int:
  return min(max(*image.shape[:2], _MIN_TILE), _MAX_TILE)


def _mask(
  mask: Bool[np.ndarray, 'h w'] | Float[np.ndarray, 'h w'], tile: int
) -> UInt8[np.ndarray, 'h2 w2 3']:
  return panels.as_gray(panels.fit_map(mask, tile) >= 0.5)


def _noise(
  noise: Float[np.ndarray, 'h w'], tile: int
) -> UInt8[np.ndarray, 'h2 w2 3']:
  low, high = _NOISE_RANGE
  return panels.as_gray(panels.fit_map((noise - low) / (high - low), tile))


def _stack(sheets: Sequence[UInt8[np.ndarray, '_ _ 3']]) -> Sheet:
  """One below the other, the narrower ones with white on the right."""
  width = max(sheet.shape[1] for sheet in sheets)
  return np.concatenate(
    [
      np.pad(
        sheet,
        ((0, 0), (0, width - sheet.shape[1]), (0, 0)),
        constant_values=255,
      )
      for sheet in sheets
    ]
  )
