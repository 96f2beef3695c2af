"""Images that are decoded whenever they are drawn, for memory has no room."""

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from draem_jax import sizes
from draem_jax.data import images
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

_NAMED = 5  # Images passed over that are each worth a line.


class OnDemand:
  """A stack of images that can be indexed by an array, as one of NumPy's.

  An image that cannot be decoded gives way to the next one in the list that
  can, and after the last comes the first. So what a place holds depends on the
  files alone, not on what was drawn before.

  Attributes:
    shape: of the stack.
    dtype: of its pixels.
    nbytes: what it would take, decoded.
  """

  def __init__(
    self,
    read: Callable[[int], UInt8[np.ndarray, 'h w 3']],
    names: Sequence[str],
    image_size: sizes.Size,
  ):
    """Decodes the first image only.

    Args:
      read: the decoded and resized image of a place in the list; raises a
        `UserError` if it cannot be decoded. May be called by several threads.
      names: of the images, in order.
      image_size: of each: one number, or height and width.

    Raises:
      UserError: if no image can be decoded.
    """
    self._read, self._names = read, names
    self._broken, self._lock = set(), threading.Lock()
    self.shape = (len(names), *sizes.pair(image_size), 3)
    self.dtype = np.dtype(np.uint8)
    self.nbytes = math.prod(self.shape)
    self[np.zeros(1, int)]

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(
    self, indices: Int[np.ndarray, 'b']
  ) -> UInt8[np.ndarray, 'b h w 3']:
    """Decodes some images, on a thread per core."""
    return np.stack(images.map_parallel(self._load, indices.tolist()))

  def checksum(self) -> str:
    """A checksum of the names: all of the files cannot be read at a start."""
    digest = hashlib.sha256(os.fsencode('\n'.join(self._names)))
    return digest.hexdigest()[:16]

  def _load(self, place: int) -> UInt8[np.ndarray, 'h w 3']:
    count = len(self)
    for candidate in range(place, place + count):
      candidate %= count
      if candidate in self._broken:
        continue
      try:
        return self._read(candidate)
      except UserError as error:
        self._pass_over(candidate, error)
    raise UserError(
      f'none of the {count} textures can be decoded, {self._names[place]} for'
      ' one: replace them, or set config.data.textures'
    )

  def _pass_over(self, place: int, error: UserError) -> None:
    with self._lock:
      self._broken.add(place)
      count = len(self._broken)
    if count <= _NAMED or count % 100 == 0:
      _log.warning('passed over texture file no. %d: %s', count, error)
