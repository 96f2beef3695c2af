"""Anomaly textures: DTD, the pictures of scikit-image, or any folder."""

import hashlib
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import skimage.data
import skimage.util
from jaxtyping import Int, UInt8

from draem_jax import sizes
from draem_jax.data import encoded, files, images, resizing
from draem_jax.data.on_demand import OnDemand
from draem_jax.errors import UserError
from draem_jax.workdir import storage

_log = logging.getLogger(__name__)

# Those of scikit-image's pictures that come with the package and have enough
# structure everywhere.
BUILTIN = (
  'astronaut',
  'brick',
  'camera',
  'cat',
  'coffee',
  'coins',
  'grass',
  'gravel',
  'hubble_deep_field',
  'immunohistochemistry',
  'moon',
  'page',
  'retina',
  'rocket',
  'stereo_motorcycle',
  'text',
)
# A picture is cut into squares: n x n of them, overlapping where the square's
# side, a share of the picture's shorter one, would leave no room.
_CROPS = ((1, 1.0), (2, 0.6), (3, 0.35))
_MIN_CROP_SIZE = 96
_MIN_CROP_CONTRAST = 8  # Standard deviation in levels: no plain background.
_NAMED = 3  # Files passed over that a line names.
_CHECKSUM_BYTES = 4
_MAPPED_FROM = 2**30  # Bytes of a file that is not read at once.

Textures = UInt8[np.ndarray, 't h w 3']


def load_textures(
  source: str | os.PathLike[str],
  *,
  image_size: sizes.Size,
  tfds_dir: str | os.PathLike[str],
  exclude: Collection[str] = (),
  num_textures: int = 0,
  seed: int = 0,
  max_bytes: int | None = None,
  resize: resizing.Way = 'bilinear',
) -> Textures | OnDemand:
  """Loads anomaly textures, resized as the images are.

  Images that cannot be decoded are passed over, with a line. Of those that are
  sampled each is replaced by the next one of the seed's permutation.

  What was decoded is kept under a name that stands for the names of all files,
  and for the stamps of those to be decoded; so it is decoded anew when any of
  that changes. Of textures that are decoded on demand nothing is kept.

  Args:
    source: `'dtd'` for the Describable Textures Dataset by TFDS, `'builtin'`
      for pieces of the pictures that scikit-image bundles, or a folder with
      images at any depth.
    image_size: of the textures, in pixels: one number, or height and width.
    tfds_dir: where DTD is prepared, and where the resized textures are kept
      for the next start.
    exclude: names in `BUILTIN` to leave out; for `'builtin'` only.
    num_textures: how many to sample; 0 for all. The others are not decoded.
      For one seed and source a larger number adds to a smaller one's textures.
    seed: of the sampling.
    max_bytes: how much memory they may take; more is decoded on demand.
    resize: how they are resized, of `resizing.WAYS`.

  Returns:
    RGB, in an order that depends on nothing but the names and, where they are
    sampled, the seed.

  Raises:
    UserError: if there are no textures, fewer than `num_textures`, none that
      can be decoded, or DTD can be neither found nor downloaded.
  """
  tfds_dir = pathlib.Path(tfds_dir)
  if source == 'builtin':
    return builtin_textures(
      image_size=image_size,
      exclude=exclude,
      num_textures=num_textures,
      seed=seed,
      resize=resize,
    )
  if source == 'dtd':
    collection = _open_dtd(tfds_dir, resize)
  else:
    collection = _open_folder(pathlib.Path(source), resize)
  order = _order(len(collection.names), num_textures, seed, source=str(source))
  count = num_textures or len(order)

  size = sizes.pair(image_size)

  def read(place: int) -> UInt8[np.ndarray, 'h w 3']:
    square = collection.decode(int(order[place]), (min(size),) * 2)
    return _continue(square, size)

  if max_bytes is not None and count * math.prod(size) * 3 > max_bytes:
    names = [collection.names[index] for index in order[:count]]
    textures = OnDemand(read, names, size)
  else:
    key = collection.make_key(order, count)
    name = sizes.shown(size) if size[0] != size[1] else size[0]
    name = name if resize == 'bilinear' else f'{name}-{resize}'
    cache = tfds_dir / 'textures' / f'{key}-{name}.npy'
    textures = _read_cache(cache)
    if textures is None:
      textures = _decode(
        read, len(order), num_textures, size=size, source=str(source)
      )
      _write_cache(cache, textures)
  _log.info('%d of the %d textures of %s', len(textures), len(order), source)
  return textures


def check_number(source: str | os.PathLike[str], num_textures: int) -> None:
  """Checks that a folder has so many textures, without decoding one.

  Args:
    source: as `load_textures` has it; of `'dtd'` and `'builtin'` nothing is
      checked.
    num_textures: how many are to be sampled.

  Raises:
    UserError: if there are fewer, or none at all.
  """
  if source not in ('dtd', 'builtin'):
    count = len(_open_folder(pathlib.Path(source), 'bilinear').names)
    _order(count, num_textures, 0, source=str(source))


def builtin_textures(
  *,
  image_size: sizes.Size,
  exclude: Collection[str] = (),
  num_textures: int = 0,
  seed: int = 0,
  resize: resizing.Way = 'bilinear',
) -> Textures:
  """Square pieces of scikit-image's pictures, at three scales.

  Args:
    image_size: of the textures, in pixels: one number, or height and width.
    exclude: names in `BUILTIN` to leave out.
    num_textures: how many to sample; 0 for all.
    seed: of the sampling.
    resize: how they are resized, of `resizing.WAYS`.

  Raises:
    UserError: if there are fewer than `num_textures`.
    ValueError: if `exclude` names something else.
  """
  unknown = set(exclude) - set(BUILTIN)
  if unknown:
    raise ValueError(f'no built-in textures: {sorted(unknown)}')
  names = [name for name in BUILTIN if name not in exclude]
  pictures = images.map_parallel(
    lambda name: list(_cut(_load_builtin(name))), names
  )
  pieces = [piece for several in pictures for piece in several]
  order = _order(len(pieces), num_textures, seed, source='builtin')
  size = sizes.pair(image_size)
  fit = lambda index: _continue(
    resizing.resize(pieces[index], (min(size),) * 2, resize), size
  )
  return np.stack(
    images.map_parallel(fit, order[: num_textures or None].tolist())
  )


def _continue(
  texture: UInt8[np.ndarray, 's s 3'], size: tuple[int, int]
) -> UInt8[np.ndarray, 'h w 3']:
  """A texture mirrored along a strip: resized to it, it would be smeared."""
  missing = [(0, side - len(texture)) for side in size]
  return np.pad(texture, [*missing, (0, 0)], mode='symmetric')


def _order(
  count: int, num_textures: int, seed: int, *, source: str
) -> Int[np.ndarray, '{count}']:
  """The order in which textures are taken: as they come, or by chance.

  The permutation is one for all numbers of textures, so that a larger number
  adds to a smaller one's.
  """
  if num_textures > count:
    raise UserError(
      f'config.data.num_textures={num_textures}, but {source} holds only'
      f' {count} textures: take {count} or fewer, or 0 for all'
    )
  if not num_textures:
    return np.arange(count)
  return np.random.default_rng(seed).permutation(count)


def _load_builtin(name: str) -> UInt8[np.ndarray, 'h w 3']:
  picture = getattr(skimage.data, name)()
  if isinstance(picture, tuple):  # The left and the right of a stereo pair.
    picture = picture[0]
  picture = skimage.util.img_as_ubyte(picture)
  if picture.ndim == 2:
    picture = np.repeat(picture[..., None], 3, axis=2)
  return picture


def _cut(
  picture: UInt8[np.ndarray, 'h w 3'],
) -> Iterator[UInt8[np.ndarray, 's s 3']]:
  """Yields the squares that have structure."""
  height, width, _ = picture.shape
  for count, share in _CROPS:
    side = max(round(share * min(height, width)), _MIN_CROP_SIZE)
    for y in np.linspace(0, height - side, count).astype(int):
      for x in np.linspace(0, width - side, count).astype(int):
        piece = picture[y : y + side, x : x + side]
        # Every fourth pixel tells as much, and sooner.
        if piece[::4, ::4].std(axis=(0, 1)).max() >= _MIN_CROP_CONTRAST:
          yield piece


class _Collection(NamedTuple):
  """Textures that are not decoded yet.

  Attributes:
    names: of the pictures.
    decode: the picture of an index at a height and width.
    make_key: a name for the first so many of an order, as text.
  """

  names: Sequence[str]
  decode: Callable[[int, tuple[int, int]], UInt8[np.ndarray, 'h w 3']]
  make_key: Callable[[Int[np.ndarray, 't'], int], str]


def _open_dtd(tfds_dir: pathlib.Path, way: resizing.Way) -> _Collection:
  # Not above: this imports every image builder that TFDS has.
  from draem_jax.data import dtd

  source = dtd.open_source(tfds_dir)

  def decode(index: int, size: tuple[int, int]) -> UInt8[np.ndarray, 'h w 3']:
    record = source[index]
    name = record['file_name'].decode()
    with encoded.decode(record['image'], name) as picture:
      return resizing.resize_picture(picture, size, way)

  def make_key(order: Int[np.ndarray, 't'], count: int) -> str:
    key = f'dtd-{len(source)}'
    if count == len(source) and (np.diff(order) == 1).all():
      return key
    return f'{key}-{count}-{hashlib.sha256(order.tobytes()).hexdigest()[:16]}'

  names = [f'dtd {index}' for index in range(len(source))]
  return _Collection(names, decode, make_key)


def _open_folder(folder: pathlib.Path, way: resizing.Way) -> _Collection:
  if not folder.is_dir():
    raise UserError(
      f"config.data.textures={folder} is not a folder: give 'dtd', 'builtin'"
      ' or a folder of images'
    )
  found = files.list_images(folder)
  if found.unreadable:
    _log.warning(
      'passed over %d folders of textures that cannot be read, such as %s',
      len(found.unreadable),
      found.unreadable[0],
    )
  line = files.passed_over(found.others)
  if line:
    _log.info('passed over %s, among the textures', line)
  if not found.names:
    raise UserError(
      f'config.data.textures={folder} holds no images, at no depth: give'
      " 'dtd', 'builtin' or a folder of images"
    )

  def make_key(order: Int[np.ndarray, 't'], count: int) -> str:
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for index in order[:count]:
      name = found.names[index]
      try:
        seen = files.stamp(os.path.join(folder, name))
      except OSError:  # A link to nowhere, which will be passed over.
        seen = ''
      digest.update(os.fsencode(f'{name}\0{seen}\n'))
    # One of these replaces an image that cannot be decoded.
    for index in order[count:]:
      digest.update(os.fsencode(f'{found.names[index]}\n'))
    return digest.hexdigest()[:16]

  decode = lambda index, size: resizing.read_image(
    folder / found.names[index], size, way
  )
  return _Collection(found.names, decode, make_key)


def _decode(
  read: Callable[[int], UInt8[np.ndarray, 'h w 3']],
  available: int,
  num_textures: int,
  *,
  size: tuple[int, int],
  source: str,
) -> Textures:
  """Decodes the first `num_textures` that can be; 0: all that can be."""
  count = num_textures or available
  textures = np.empty((count, *size, 3), np.uint8)
  done, place, errors = 0, 0, []

  def load(offset: int) -> UserError | None:
    try:
      textures[done + offset] = read(place + offset)
    except UserError as error:
      return error
    return None

  while done < count and place < available:
    results = images.map_parallel(
      load,
      range(min(count - done, available - place)),
      description='loading textures',
    )
    place += len(results)
    for offset, error in enumerate(results, start=done):
      if error:
        errors.append(error)
        continue
      if done != offset:  # What follows a gap moves up.
        textures[done] = textures[offset]
      done += 1
  if errors:
    _log.warning(
      'passed over %d textures that cannot be decoded, such as: %s',
      len(errors),
      '; '.join(map(str, errors[:_NAMED])),
    )
  if not done:
    raise UserError(
      f'config.data.textures={source}: none of its {available} images can be'
      f' decoded, for one: {errors[0]}'
    )
  if done < num_textures:
    raise UserError(
      f'config.data.num_textures={num_textures}, but of the {available} images'
      f' of {source} only {done} can be decoded: take {done} or fewer, or 0 for'
      ' all'
    )
  return textures[:done]


def _read_cache(path: pathlib.Path) -> Textures | None:
  try:
    # Whatever else has this name, such as a pipe, may wait for a writer.
    if not path.is_file():
      return None
    size = path.stat().st_size
    with open(path, 'rb') as file:
      found = _checksum(file, size - _CHECKSUM_BYTES)
      if file.read() != found:
        return None
    large = size > _MAPPED_FROM
    return np.load(path, mmap_mode='r' if large else None)
  # Not there, not to be read, or the disk lost a part of it.
  except (OSError, EOFError, ValueError):
    return None


def _checksum(file: BinaryIO, size: int) -> bytes:
  """A checksum of the first `size` bytes of a file, which are read."""
  checksum = 0
  while size > 0 and (piece := file.read(min(size, 1 << 24))):
    checksum = zlib.crc32(piece, checksum)
    size -= len(piece)
  return checksum.to_bytes(_CHECKSUM_BYTES, 'little')


def _write_cache(path: pathlib.Path, textures: Textures) -> None:
  """Saves for the next start; where that fails, that start takes longer."""
  try:
    with storage.atomic_file(path) as file:
      np.save(file, textures)
      # Behind the array, where NumPy does not look.
      size = file.tell()
      file.flush()
      with open(file.name, 'rb') as written:
        file.write(_checksum(written, size))
  except OSError as error:
    _log.info('decoded textures are not kept for the next start: %s', error)
