"""Anomaly textures: DTD, the pictures of scikit-image, or any folder."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterator

import numpy as np
import skimage.data
import skimage.util
from jaxtyping import UInt8

from draem_jax.data import files, images
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

Textures = UInt8[np.ndarray, 't h w 3']


def load_textures(
  source: str | os.PathLike[str],
  *,
  image_size: int,
  tfds_dir: str | os.PathLike[str],
  exclude: Collection[str] = (),
) -> Textures:
  """Loads anomaly textures, resized bilinearly without antialiasing.

  Args:
    source: `'dtd'` for the Describable Textures Dataset by TFDS, `'builtin'`
      for pieces of the pictures that scikit-image bundles, or a folder with
      images at any depth.
    image_size: height and width of the textures, in pixels.
    tfds_dir: where DTD is prepared, and where the resized textures are kept
      for the next start.
    exclude: names in `BUILTIN` to leave out; for `'builtin'` only.

  Returns:
    RGB, in an order that depends on nothing but the names.

  Raises:
    UserError: if there are no textures, one cannot be read, or DTD can be
      neither found nor downloaded.
  """
  tfds_dir = pathlib.Path(tfds_dir)
  if source == 'builtin':
    return builtin_textures(image_size=image_size, exclude=exclude)
  if source == 'dtd':
    key, count, decode = _open_dtd(tfds_dir)
  else:
    key, count, decode = _open_folder(pathlib.Path(source))
  cache = tfds_dir / 'textures' / f'{key}-{image_size}.npy'
  textures = _read_cache(cache)
  if textures is None:
    textures = _decode_all(decode, count, image_size)
    _write_cache(cache, textures)
  return textures


def builtin_textures(
  *, image_size: int, exclude: Collection[str] = ()
) -> Textures:
  """Square pieces of scikit-image's pictures, at three scales.

  Args:
    image_size: height and width of the textures, in pixels.
    exclude: names in `BUILTIN` to leave out.

  Raises:
    ValueError: if `exclude` names something else.
  """
  unknown = set(exclude) - set(BUILTIN)
  if unknown:
    raise ValueError(f'no built-in textures: {sorted(unknown)}')
  names = [name for name in BUILTIN if name not in exclude]
  pieces = images.map_parallel(
    lambda name: [
      images.resize_bilinear(piece, (image_size, image_size))
      for piece in _cut(_load_builtin(name))
    ],
    names,
  )
  return np.stack([piece for several in pieces for piece in several])


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


def _open_dtd(
  tfds_dir: pathlib.Path,
) -> tuple[str, int, Callable[[int], UInt8[np.ndarray, 'h w 3']]]:
  # Not above: this imports every image builder that TFDS has.
  from draem_jax.data import dtd

  source = dtd.open_source(tfds_dir)

  def decode(index: int) -> UInt8[np.ndarray, 'h w 3']:
    record = source[index]
    return images.decode_image(record['image'], record['file_name'].decode())

  return f'dtd-{len(source)}', len(source), decode


def _open_folder(
  folder: pathlib.Path,
) -> tuple[str, int, Callable[[int], UInt8[np.ndarray, 'h w 3']]]:
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
  if not found.names:
    raise UserError(
      f'config.data.textures={folder} holds no images, at no depth: give'
      " 'dtd', 'builtin' or a folder of images"
    )
  digest = hashlib.sha256(str(folder.resolve()).encode())
  for name in found.names:
    stat = (folder / name).stat()
    digest.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
  decode = lambda index: images.read_image(folder / found.names[index])
  return digest.hexdigest()[:16], len(found.names), decode


def _decode_all(
  decode: Callable[[int], UInt8[np.ndarray, 'h w 3']], count: int, size: int
) -> Textures:
  textures = np.empty((count, size, size, 3), np.uint8)

  def load(index: int) -> None:
    textures[index] = images.resize_bilinear(decode(index), (size, size))

  images.map_parallel(load, range(count), description='loading textures')
  return textures


def _read_cache(path: pathlib.Path) -> Textures | None:
  try:
    return np.load(path)
  # Not there, not to be read, or the disk lost a part of it.
  except (OSError, EOFError, ValueError):
    return None


def _write_cache(path: pathlib.Path, textures: Textures) -> None:
  """Saves for the next start; where that fails, that start takes longer."""
  try:
    with storage.atomic_file(path) as file:
      np.save(file, textures)
  except OSError as error:
    _log.info('decoded textures are not kept for the next start: %s', error)
