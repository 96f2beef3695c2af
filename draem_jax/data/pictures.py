"""Pictures of any sizes, decoded when they are asked for, whole or in part."""

import contextlib
import copy
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from draem_jax import sizes as sizes_lib
from draem_jax.data import encoded, images, resizing


class Pictures:
  """A list of pictures, each of its own size, of which few are in memory.

  An index gives a picture as an array [h, w, 3]; a slice or an array of places
  gives the pictures there as a list of the same kind.

  Attributes:
    names: of the pictures, for what there is to say of one.
    sizes: height and width of each.
  """

  def __init__(
    self,
    read: Callable[[int], bytes],
    names: Sequence[str],
    sizes: Int[np.ndarray, 'n 2'],
    *,
    resize: resizing.Way = 'bilinear',
  ):
    """Decodes nothing yet.

    Args:
      read: the content of the image file of a place. May be called by several
        threads.
      names: of the pictures, in order.
      sizes: height and width that each shall have.
      resize: how those that have another are resized, of `resizing.WAYS`.
    """
    self.names, self.sizes = list(names), np.asarray(sizes)
    self._read, self._resize = read, resize
    self._places, self._own_sizes = np.arange(len(self.names)), self.sizes
    self._forget()

  def __len__(self) -> int:
    return len(self.names)

  def __iter__(self) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
    return (self[index] for index in range(len(self)))

  def __getitem__(
    self, index: int | np.integer | slice | Int[np.ndarray, 'k'] | list[int]
  ) -> 'UInt8[np.ndarray, "h w 3"] | Pictures':
    if isinstance(index, int | np.integer):
      return self._whole(range(len(self))[index])
    chosen = np.arange(len(self))[index]
    part = copy.copy(self)
    part.names = [self.names[place] for place in chosen]
    part.sizes, part._own_sizes = self.sizes[chosen], self._own_sizes[chosen]
    part._places = self._places[chosen]
    part._forget()
    return part

  @property
  def common_size(self) -> tuple[int, int] | None:
    """The height and width of all of them; None where they differ."""
    if not len(self) or (self.sizes != self.sizes[0]).any():
      return None
    return tuple(self.sizes[0].tolist())

  @property
  def nbytes(self) -> int:
    """What all of them would take, decoded."""
    return 3 * int(self.sizes.prod(axis=1).sum())

  def at_least(self, size: sizes_lib.Size) -> 'Pictures':
    """The same, with those that are smaller in a side mirrored beyond it.

    Args:
      size: one number, or height and width.
    """
    enlarged = self[:]
    enlarged.sizes = np.maximum(self.sizes, sizes_lib.pair(size))
    return enlarged

  def keep(self, max_bytes: int | None) -> None:
    """Keeps pictures that are decoded from now on, as many as have room.

    The first ones stay: where every picture is drawn as often as any other, no
    choice would spare more work.

    Args:
      max_bytes: the room; None for no bound.
    """
    self._forget()
    self._room = self.nbytes if max_bytes is None else max_bytes

  def cut(
    self, index: int, corner: Sequence[int], size: tuple[int, int]
  ) -> UInt8[np.ndarray, '{size[0]} {size[1]} 3']:
    """A part of a picture; what lies beyond its edges is black.

    Args:
      index: of the picture.
      corner: the part's first row and column, which may be beyond.
      size: its height and width.
    """
    is_kept = index in self._kept or self._has_room(index)
    if is_kept or (self.sizes[index] != self._own_sizes[index]).any():
      return cut(self._whole(index), corner, size)
    with self._open(index) as picture:
      if picture.shape != tuple(self.sizes[index]):
        return cut(self._decode(index, picture), corner, size)
      # Its other rows need not become RGB.
      first = max(0, corner[0])
      last = min(corner[0] + size[0], picture.shape[0])
      if first >= last:
        return np.zeros((*size, 3), np.uint8)
      rows = picture.rows(first, last)
    return cut(rows, (corner[0] - first, corner[1]), size)

  def checksum(self) -> str:
    """A checksum of the pictures, as they are encoded."""
    each = images.map_parallel(
      lambda place: zlib.crc32(self._read(place)), self._places.tolist()
    )
    return f'{zlib.crc32(np.array(each, "<u4").tobytes()):08x}'

  def _forget(self) -> None:
    self._kept, self._room, self._lock = {}, 0, threading.Lock()

  def _has_room(self, index: int) -> bool:
    return 3 * int(self.sizes[index].prod()) <= self._room

  def _whole(self, index: int) -> UInt8[np.ndarray, 'h w 3']:
    found = self._kept.get(index)
    if found is not None:
      return found
    with self._open(index) as picture:
      image = self._decode(index, picture)
    with self._lock:
      if index not in self._kept and self._has_room(index):
        self._room -= image.nbytes
        # Whoever gets it shares it.
        image.flags.writeable = False
        self._kept[index] = image
    return image

  def _open(
    self, index: int
  ) -> contextlib.AbstractContextManager[encoded.Picture]:
    data = self._read(int(self._places[index]))
    return encoded.decode(data, self.names[index])

  def _decode(
    self, index: int, picture: encoded.Picture
  ) -> UInt8[np.ndarray, 'h w 3']:
    size = tuple(self._own_sizes[index].tolist())
    image = resizing.resize_picture(picture, size, self._resize)
    missing = self.sizes[index] - image.shape[:2]
    if missing.any():
      beyond = [(0, int(rest)) for rest in missing]
      image = np.pad(image, [*beyond, (0, 0)], mode='symmetric')
    return image


class Masks:
  """Which share of each pixel a defect covers, for pictures of any sizes.

  An index gives that of a picture as an array [h, w], in [0, 1].
  """

  def __init__(self, levels: Pictures, is_covered: Bool[np.ndarray, 'n']):
    """Decodes nothing yet.

    Args:
      levels: the masks as images, 255 for all of a pixel.
      is_covered: where any is; of the others no image is looked at.
    """
    self._levels, self._is_covered = levels, is_covered

  def __len__(self) -> int:
    return len(self._levels)

  def __iter__(self) -> Iterator[Float[np.ndarray, 'h w']]:
    return (self[index] for index in range(len(self)))

  def __getitem__(self, index: int | np.integer) -> Float[np.ndarray, 'h w']:
    if not self._is_covered[index]:
      return np.zeros(self._levels.sizes[index], np.float32)
    return self._levels[index][..., 0] / np.float32(255)


def cut(
  image: UInt8[np.ndarray, 'h w 3'],
  corner: Sequence[int],
  size: tuple[int, int],
) -> UInt8[np.ndarray, '{size[0]} {size[1]} 3']:
  """A part of an image; what lies beyond its edges is black.

  Args:
    image: from which it is copied.
    corner: the part's first row and column, which may be beyond.
    size: its height and width.
  """
  part = np.zeros((*size, 3), np.uint8)
  source, target = [], []
  for start, side, length in zip(corner, size, image.shape, strict=False):
    first, last = max(0, start), max(0, min(start + side, length))
    source.append(slice(first, last))
    target.append(slice(first - start, max(first, last) - start))
  part[tuple(target)] = image[tuple(source)]
  return part
