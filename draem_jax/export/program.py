"""A detector as one function of images of any size, preprocessing included.

What the detector does on the host and on the device, in operations that take
height and width as they come when the program runs.
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any, SupportsInt

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num, UInt8

from draem_jax import score, sizes
from draem_jax.detection import tiles
from draem_jax.detection.detector import Detector

INPUT = 'images'
OUTPUTS = ('anomaly_map', 'score')
# Of a level: more than float32 errs by in a mean of levels.
ROUNDING = 2**-13

Images = UInt8[Array, 'b h w 3']
MapAndScore = tuple[Float[Array, 'b h w'], Float[Array, 'b']]
Program = Callable[[Images], MapAndScore]
# The same outside of JAX.
Run = Callable[
  [UInt8[np.ndarray, 'b h w 3']],
  tuple[Float[np.ndarray, 'b h w'], Float[np.ndarray, 'b']],
]
# A number of pixels, or the name that stands for it while tracing.
Size = SupportsInt


def make_program(
  look: Callable[[Float[Array, 'b h2 w2 3']], MapAndScore],
  detector: Detector,
  *,
  channel_order: str,
) -> Program:
  """Puts preprocessing, networks, map and score in a row.

  Args:
    look: networks, map and score, from prepared images in [0, 1].
    detector: which else the program shall do as.
    channel_order: of the images that the program shall expect.

  Returns:
    A function of images, uint8 [b h w 3], that returns the anomaly map
    [b h w] and the score [b], both in [0, 1]. It can be traced with symbolic
    b, h and w.
  """
  size = detector.image_size

  def predict(images: Images) -> MapAndScore:
    _, height, width, _ = images.shape
    if channel_order == 'bgr':
      images = jnp.take(images, np.array([2, 1, 0]), axis=3)
    if detector.resize == 'area':
      images = shrink(images, size)
    prepared = jnp.floor(resize(images, size) + 0.5)
    anomaly_map, score = look(prepared / 255)
    return resize(anomaly_map, (height, width)), score

  return predict


def make_tiled_program(
  look: Callable[
    [Float[Array, 'b2 h2 w2 3']],
    tuple[Float[Array, 'b2 h2 w2'], Float[Array, 'b2'] | None],
  ],
  detector: Detector,
  *,
  channel_order: str,
) -> Program:
  """As `make_program`, for a detector that looks at pictures by tiles.

  A row of tiles is a batch of the networks, and rows take turns.

  Args:
    look: networks and map, and the score where they decide on it, of tiles.
    detector: which else the program shall do as.
    channel_order: of the images that the program shall expect.
  """
  down, across = detector.image_size

  def predict(images: Images) -> MapAndScore:
    count, height, width, _ = images.shape
    if channel_order == 'bgr':
      images = jnp.take(images, np.array([2, 1, 0]), axis=3)
    if detector.resolution:
      size = detector.resolution
      if detector.resize == 'area':
        images = shrink(images, size)
      images = jnp.floor(resize(images, size) + 0.5)
    _, h, w, _ = images.shape
    rows, columns = tile_places(h, down), tile_places(w, across)
    number = columns.shape[0]

    def look_at_row(
      places: Int[Array, 'n'],
    ) -> tuple[Float[Array, 'b n w'], Float[Array, 'b'] | None]:
      strip = jnp.take(images, places, axis=1).astype(jnp.float32) / 255
      strip = jnp.take(strip, columns.reshape(-1), axis=2)
      strip = strip.reshape(count, down, number, across, 3)
      strip = strip.transpose(0, 2, 1, 3, 4)
      maps, decisions = look(strip.reshape(count * number, down, across, 3))
      maps = maps.reshape(count, number, down, across).transpose(0, 2, 1, 3)
      maps = maps.reshape(count, down, number * across)
      if decisions is not None:
        decisions = decisions.reshape(count, number).max(axis=1)
      return blend(maps, w, across, axis=2), decisions

    maps, decisions = lax.map(look_at_row, rows)
    maps = maps.transpose(1, 0, 2, 3).reshape(count, rows.shape[0] * down, w)
    maps = blend(maps, h, down, axis=1)
    means = local_means(maps, detector.score_window)
    if score.MAPS[detector.score_map].is_smoothed:
      maps = means
    scores = means.max(axis=(1, 2))
    if decisions is not None:
      scores = decisions.max(axis=0)
    if detector.resolution:
      maps = resize(maps, (height, width))
    return maps, scores

  return predict


def tile_places(length: Size, tile: int) -> Int[Array, 'n t']:
  """The pixels of an axis that each tile sees, as `tiles.cut` has them.

  Args:
    length: of the picture; may be symbolic.
    tile: the length of a tile.
  """
  count, starts = _starts(length, tile)
  offsets = lax.broadcasted_iota(jnp.int32, (count, tile), 1)
  place = starts[:, None] + offsets
  period = jnp.zeros_like(place) + 2 * length
  place = lax.rem(place, period)
  return jnp.minimum(place, period - 1 - place)


def blend(
  x: Float[Array, 'b m k'], length: Size, tile: int, *, axis: int
) -> Float[Array, 'b m2 k2']:
  """What was made of the tiles of an axis, one behind the other, as one.

  A pixel lies in the tile that begins last before it, or in the one before
  that, or in the very last one. These are looked up, and weighted as
  `tiles.place` has it.

  Args:
    x: of the tiles.
    length: of the picture; may be symbolic.
    tile: the length of a tile.
    axis: where the tiles are.
  """
  count, starts = _starts(length, tile)
  ramp = jnp.asarray(tiles.ramp(tile), jnp.float32)
  pixel = lax.broadcasted_iota(jnp.int32, (length,), 0)
  last = jnp.zeros_like(pixel) + (count - 1)
  step = tile - tiles.overlap(tile)
  first = jnp.minimum(pixel // step, last)
  second = jnp.maximum(first - 1, 0)
  candidates = (
    (first, True),
    (second, first > 0),
    (last, (last != first) & (last != second)),
  )
  total, weights = 0, 0
  for number, is_new in candidates:
    offset = pixel - jnp.take(starts, number)
    is_new = is_new & (offset >= 0) & (offset < tile)
    offset = jnp.clip(offset, 0, tile - 1)
    weight = jnp.where(number > 0, jnp.take(ramp, offset), 1)
    weight *= jnp.where(number < last, jnp.take(ramp, tile - 1 - offset), 1)
    weight = jnp.where(is_new, weight, 0)
    values = jnp.take(x, number * tile + offset, axis=axis)
    total += values * lax.expand_dims(weight, range(1, x.ndim - axis))
    weights += weight
  return total / lax.expand_dims(weights, range(1, x.ndim - axis))


def local_means(
  maps: Float[Array, 'b h w'], window: int
) -> Float[Array, 'b h w']:
  """As `score.local_means`, of maps of any size."""
  half = window // 2
  for axis in (1, 2):
    shape, pads = [1, 1, 1], [(0, 0)] * 3
    shape[axis], pads[axis] = window, (half, half)
    maps = lax.reduce_window(maps, 0.0, lax.add, shape, (1, 1, 1), pads)
  return maps / window**2


def _starts(length: Size, tile: int) -> tuple[Size, Int[Array, 'n']]:
  """The number of the tiles along an axis, and where each begins."""
  step = tile - tiles.overlap(tile)
  count = jax.core.max_dim(1, (length - tiles.overlap(tile) + step - 1) // step)
  starts = lax.broadcasted_iota(jnp.int32, (count,), 0) * step
  last = jnp.zeros_like(starts) + jax.core.max_dim(0, length - tile)
  return count, jnp.minimum(starts, last)


def fixed_region(detector: Detector) -> Float[np.ndarray, '1 h w'] | None:
  """What maps are multiplied by inside of a program; None for nothing.

  Raises:
    UserError: if each picture has a region of its own.
  """
  if detector.roi is None:
    return None
  return np.float32(detector.roi.fixed(detector.image_size))[None]


def symbolic_images() -> jax.ShapeDtypeStruct:
  """What programs are traced with: any number of images of any size."""
  shape = jax.export.symbolic_shape('b, h, w, 3')
  return jax.ShapeDtypeStruct(shape, jnp.uint8)


def resize(
  x: Num[Array, 'b h w *c'], size: tuple[Size, Size]
) -> Float[Array, 'b h2 w2 *c']:
  """Resizes as `images.resize_bilinear` does, but does not round.

  Args:
    x: what to resize; its shape may be symbolic.
    size: height and width of the result; may be symbolic.
  """
  for axis in (2, 1):
    lower, upper, weight = _neighbors(x.shape[axis], size[axis - 1])
    a, b = (
      jnp.take(x, index, axis=axis).astype(jnp.float32)
      for index in (lower, upper)
    )
    weight = lax.expand_dims(weight, range(1, x.ndim - axis))
    x = a + (b - a) * weight
  return x


def shrink(
  x: Num[Array, 'b h w c'], size: tuple[int, int]
) -> Float[Array, 'b h2 w2 c']:
  """The mean of what each new pixel covers, as `resizing.resize` has it.

  Args:
    x: levels; its shape may be symbolic.
    size: height and width of the result, but that no axis becomes longer.

  Returns:
    Levels, rounded.
  """
  for axis, letters in ((2, 'bhwc,nw->bhnc'), (1, 'bhwc,nh->bnwc')):
    old = x.shape[axis]
    overlaps = _overlaps(old, jax.core.min_dim(old, size[axis - 1]))
    # As long as these are sums of levels, they are exact.
    x = jnp.einsum(
      letters, x.astype(jnp.float32), overlaps, precision=lax.Precision.HIGHEST
    )
    x = x / old
  # What lies half-way between two levels goes up, whatever float32 makes of it.
  return jnp.floor(x + (0.5 + ROUNDING))


def _overlaps(old: Size, new: Size) -> Float[Array, 'n m']:
  """How much of each old pixel of a line lies in each new one, of `old`."""
  row = lax.broadcasted_iota(jnp.int32, (new, old), 0)
  column = lax.broadcasted_iota(jnp.int32, (new, old), 1)
  one = jnp.ones_like(row)
  end = jnp.minimum((row + 1) * (one * old), (column + 1) * (one * new))
  start = jnp.maximum(row * (one * old), column * (one * new))
  return jnp.maximum(end - start, 0).astype(jnp.float32)


def _neighbors(
  old: Size, new: Size
) -> tuple[Int[Array, 'n'], Int[Array, 'n'], Float[Array, 'n']]:
  """Indices of the two pixels between which each new pixel lies; its weight."""
  # In integers, counted in parts of a pixel, 2 * new of them in each: float32
  # would round positions, and now and then a prepared image to another level.
  pixel = lax.broadcasted_iota(jnp.int32, (new,), 0)
  parts = jnp.zeros_like(pixel) + 2 * new
  position = (2 * pixel + 1) * old - new
  position = jnp.minimum(jnp.maximum(position, 0), (old - 1) * parts)
  lower = lax.div(position, parts)
  remainder = position - lower * parts
  weight = remainder.astype(jnp.float32) / parts.astype(jnp.float32)
  return lower, jnp.minimum(lower + 1, old - 1), weight


def describe(
  detector: Detector, *, channel_order: str, category: str
) -> dict[str, Any]:
  """What the user of a program must know to decide by it."""
  thresholds = detector.thresholds
  return {
    'category': category,
    'channel_order': channel_order,
    'image_size': sizes.short(detector.image_size),
    'resize': detector.resize,
    'resolution': (
      sizes.short(detector.resolution)
      if detector.resolution
      else detector.resolution
    ),
    'score_map': detector.score_map,
    'score_image': detector.score_image,
    'score_window': detector.score_window,
    'image_threshold': thresholds and thresholds.image,
    'pixel_threshold': thresholds and thresholds.pixel,
    **({} if detector.roi is None else {'roi': 'inside'}),
    'draem_jax_version': importlib.metadata.version('draem_jax'),
  }


def largest_difference(
  detector: Detector,
  run: Run,
  *,
  channel_order: str,
) -> float:
  """Of map and score to the detector's, on two images of random pixels.

  Args:
    detector: what `run` was made of.
    run: takes images, returns maps and scores.
    channel_order: of the images that `run` expects.
  """
  height, width = detector.image_size
  height, width = 3 * height // 2, width + 5
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
  maps, scores = detector.with_batch_size(2).map_and_score(images)
  if channel_order == 'bgr':
    images = np.ascontiguousarray(images[..., ::-1])
  found_maps, found_scores = run(images)
  differences = [
    np.abs(np.asarray(found) - expected).max()
    for found, expected in zip(found_maps, maps, strict=True)
  ]
  return float(max(*differences, np.abs(found_scores - scores).max()))
