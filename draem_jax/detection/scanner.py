"""Scores pictures larger than what the networks see, tile by tile.

`detection.tiles` says where the tiles lie and how their maps become one; here
are the networks that look at them.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from draem_jax.detection import tiles
from draem_jax.detection.parts import compiled
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.score import IMAGE_SCORES, MAPS

# Is given what belongs to the next rows of a picture, from top to bottom.
Take = Callable[[np.ndarray], Any]


class Scanner:
  """Networks that look at a picture of any size by overlapping tiles."""

  def __init__(
    self,
    model: models.Networks,
    variables: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    score_map: str,
    score_image: str,
    score_window: int,
  ):
    """Takes trained networks.

    Args:
      model: the networks.
      variables: their `params` and `batch_stats`, on the device.
      image_size: height and width of a tile.
      score_map: how maps are made, a key of `score.MAPS`.
      score_image: how pictures are scored, a key of `score.IMAGE_SCORES`.
      score_window: pixels a side of the mean filter of the score.
    """
    self._variables, self._image_size = variables, image_size
    self._window = score_window
    self._is_smoothed = MAPS[score_map].is_smoothed

    def look(
      variables: Mapping[str, Any], images: UInt8[Array, 'b h w 3']
    ) -> tuple[
      Float[Array, 'b h w 3'] | None,
      Float[Array, 'b h w'],
      Float[Array, 'b'] | None,
    ]:
      images = images.astype(jnp.float32) / 255
      output = model.apply(variables, images, train=False)
      # Smoothed, if they are, once they are blended.
      maps = MAPS[score_map].compute(output, images)
      decide = IMAGE_SCORES[score_image].compute
      return output.reconstruction, maps, decide and decide(output)

    self._look = compiled(look)

  def scan(
    self,
    rows: tiles.Rows,
    shape: tuple[int, int],
    take: Take,
    *,
    see: Take | None,
    batch_size: int,
  ) -> float:
    """Scores a picture that need never be whole in memory.

    Args:
      rows: gives rows of the prepared picture from one to before another.
      shape: its height and width.
      take: is given its map, float32 [_, w].
      see: is given its reconstruction, uint8 [_, w, 3], if there is one.
      batch_size: tiles a call of the networks; of a picture with fewer of them
        the power of two that they fit in.

    Returns:
      The score: of the whole map; or, of networks that decide, the highest of
      any tile.

    Raises:
      UserError: if the networks give no numbers.
    """
    tiling = tiles.cover(shape, self._image_size)
    decisions = []
    looked = self._look_at(
      tiles.cut(rows, tiling),
      min(batch_size, 1 << (tiling.count - 1).bit_length()),
      decisions.append,
      with_reconstruction=see is not None,
    )
    maps = _maps(tiles.blend(tiling, looked), see)
    if self._is_smoothed:
      averaged = tiles.local_means(maps, window=self._window)
      averaged = _given(averaged, take)
    else:
      averaged = tiles.local_means(_given(maps, take), window=self._window)
    # All of them, whatever the score is read of.
    score = max(float(means.max()) for means in averaged)
    return max(decisions) if decisions else score

  def compile(self, batch_size: int) -> None:
    """Compiles the programs for pictures of whatever size.

    Args:
      batch_size: as of `scan`.
    """
    powers = itertools.takewhile(
      lambda size: size < batch_size, (1 << i for i in itertools.count())
    )
    for size in (*powers, batch_size):
      images = np.zeros((size, *self._image_size, 3), np.uint8)
      jax.block_until_ready(self._look(self._variables, images))

  def _look_at(
    self,
    pictures: Iterator[UInt8[np.ndarray, 'h w 3']],
    size: int,
    decide: Callable[[float], Any],
    *,
    with_reconstruction: bool,
  ) -> Iterator[Float[np.ndarray, 'h w c']]:
    """The map of each tile, and behind it, as channels, its reconstruction.

    While the device looks at a batch the next one is cut out.
    """

    def begun() -> Iterator[tuple[int, Any]]:
      while batch := list(itertools.islice(pictures, size)):
        padded = np.zeros((size, *self._image_size, 3), np.uint8)
        padded[: len(batch)] = batch
        yield len(batch), self._look(self._variables, padded)

    for number, (seen, maps, decisions) in _one_ahead(begun()):
      seen = seen if with_reconstruction else None
      seen, maps, decisions = jax.device_get((seen, maps, decisions))
      check_numbers((maps,) if decisions is None else (maps, decisions))
      for index in range(number):
        if decisions is not None:
          decide(float(decisions[index]))
        parts = [maps[index, ..., None]]
        if seen is not None:
          parts.append(seen[index].astype(np.float32))
        yield np.concatenate(parts, axis=-1)


def check_numbers(arrays: Iterable[Float[np.ndarray, '...']]) -> None:
  """Raises a `UserError` if there is one that is no number."""
  if not all(np.isfinite(array).all() for array in arrays):
    raise UserError(
      'the networks give maps or scores that are no numbers: their weights are'
      ' damaged, or the training has diverged: restore them from a backup, or'
      ' train again with a lower config.learning_rate'
    )


def as_levels(
  reconstruction: Float[np.ndarray, 'h w 3'],
) -> UInt8[np.ndarray, 'h w 3']:
  """A reconstruction in [0, 1], and what is beyond, as uint8."""
  return (np.clip(reconstruction, 0, 1) * 255 + 0.5).astype(np.uint8)


def _maps(
  strips: Iterable[Float[np.ndarray, '_ w c']], see: Take | None
) -> Iterator[Float[np.ndarray, '_ w']]:
  """The first channel; the others are given to `see`."""
  for strip in strips:
    if strip.shape[2] > 1:
      see(as_levels(strip[..., 1:]))
    yield strip[..., 0]


def _given(
  strips: Iterable[Float[np.ndarray, '_ w']], take: Take
) -> Iterator[Float[np.ndarray, '_ w']]:
  """The same strips, of which each is given to `take` first."""
  for strip in strips:
    take(strip)
    yield strip


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
  """The same items, of which the next one is begun before each is given."""
  for item, following in itertools.pairwise(itertools.chain(items, [None])):
    del following
    yield item
