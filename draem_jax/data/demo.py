"""The built-in demo: a small category in MVTec layout, cut from one photo.

The photo is scikit-image's `brick`, an oblique view of a wall. It is colored,
seen from the front and split once into two parts: one for the normal training
images, one for every test image. An image is a crop of its part as a camera
would see it that is led along the courses by hand. A test defect
(`demo_defects`) is drawn into the crop before light, focus and noise come over
it.

Images are float [h w 3], RGB in [0, 1], here.
"""

import functools
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage
from skimage import data, transform

from draem_jax import errors
from draem_jax.data import demo_defects
from draem_jax.data.demo_defects import RgbImage
from draem_jax.data.layouts.mvtec import GOOD

CATEGORY = 'demo'
# The bundled photo. Simulator textures should not come from it as well.
SURFACE = 'brick'
# To be raised with every change of the pixels: an older demo is then replaced.
VERSION = 2

IMAGE_SIZE = 128
NUM_TRAIN = 100
NUM_TEST_GOOD = 20
NUM_TEST_PER_DEFECT = 8

# The wall as seen from the front, in pixels of its own: x along the courses, y
# across them. A brick is 116 pixels long, joint included; nearly all upright
# joints are a multiple of a quarter of that apart.
_SURFACE_WIDTH = 526
_COURSE = 40
_QUARTER_BRICK = 29
# The joints, counted from 0, that an image may be centered on. It shows three
# courses and a little more: the two parts stay apart.
_TRAIN_JOINTS = (7, 10)
_TEST_JOINTS = (2, 3)


# The surface and the camera.


def _photo_from_surface() -> Float[np.ndarray, '3 3']:
  """Homography from the wall seen from the front to the photo's (x, y)."""
  # All joints along the courses meet in one point above the photo, and the
  # fifth is vertical there. The depth falls evenly along the courses.
  vanishing_x, vanishing_y = 219.0, -1209.0
  shrink = 0.0655 / 116
  pitch = 29.5 / _COURSE
  return np.array(
    [
      [-vanishing_x * shrink, pitch, vanishing_x - pitch * 5 * _COURSE],
      [-vanishing_y * shrink, 0, 0],
      [-shrink, 0, 1],
    ]
  )


@functools.cache
def _colored_photo() -> RgbImage:
  """The gray photo in color: red-brown bricks, sand-colored joints."""
  gray = getattr(data, SURFACE)() / 255
  levels = [0.24, 0.36, 0.46, 0.62, 0.82]
  colors = np.array(
    [
      [0.20, 0.11, 0.09],
      [0.47, 0.24, 0.18],
      [0.60, 0.40, 0.31],
      [0.72, 0.65, 0.55],
      [0.93, 0.90, 0.84],
    ]
  )
  channels = [np.interp(gray, levels, channel) for channel in colors.T]
  return np.stack(channels, axis=-1)


def _scene(rng: np.random.Generator, joints: tuple[int, int]) -> RgbImage:
  """A piece of wall centered on one of those joints, weathered."""
  # The camera steps along the wall by quarters of a brick, not quite exactly.
  # Free places would take the networks much longer to learn.
  angle = np.deg2rad(rng.uniform(-1.2, 1.2))
  size = 3 * _COURSE * rng.uniform(0.98, 1.02)
  center = (
    _QUARTER_BRICK * rng.integers(3, 15, endpoint=True) + rng.uniform(-2, 2),
    _COURSE * rng.integers(*joints, endpoint=True) + rng.uniform(-4, 4),
  )
  middle = (IMAGE_SIZE - 1) / 2
  to_middle = transform.SimilarityTransform(translation=(-middle, -middle))
  place = transform.SimilarityTransform(
    scale=size / IMAGE_SIZE, rotation=angle, translation=center
  )
  matrix = _photo_from_surface() @ place.params @ to_middle.params
  scene = transform.warp(
    _colored_photo(),
    transform.ProjectiveTransform(matrix),
    output_shape=(IMAGE_SIZE, IMAGE_SIZE),
    mode='edge',
  )
  weather = demo_defects.blotches(rng, scene, size=rng.uniform(3, 12))
  return scene * (1 + rng.uniform(0, 0.03) * weather[..., None])


def _photograph(rng: np.random.Generator, scene: RgbImage) -> RgbImage:
  """The scene in uneven light, through a lens, on a noisy sensor."""
  y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
  direction = rng.uniform(0, 2 * np.pi)
  ramp = (np.cos(direction) * x + np.sin(direction) * y) / IMAGE_SIZE - 0.5
  light = rng.uniform(0.88, 1.12) * (1 + rng.uniform(0, 0.2) * ramp)
  white_balance = [rng.uniform(0.96, 1.04), 1.0, rng.uniform(0.96, 1.04)]
  image = scene * light[..., None] * white_balance
  blur = rng.uniform(0.3, 0.8)
  image = ndimage.gaussian_filter(image, (blur, blur, 0))
  noise = rng.normal(0, rng.uniform(0.006, 0.016), image.shape)
  return np.clip(image + noise, 0, 1)


# The files.


def _image_files(
  seed: int,
) -> Iterator[tuple[str, UInt8[np.ndarray, 'h w *c']]]:
  """Yields every PNG of the category: its path and its uint8 pixels."""

  def to_uint8(image):
    return np.round(255 * image).astype(np.uint8)

  # A generator of its own for each image: none depends on the others' number.
  for index in range(NUM_TRAIN):
    rng = np.random.default_rng((seed, 0, index))
    image = _photograph(rng, _scene(rng, _TRAIN_JOINTS))
    yield f'train/{GOOD}/{index:03}.png', to_uint8(image)
  for index in range(NUM_TEST_GOOD):
    rng = np.random.default_rng((seed, 1, index))
    image = _photograph(rng, _scene(rng, _TEST_JOINTS))
    yield f'test/{GOOD}/{index:03}.png', to_uint8(image)
  for number, (defect, draw) in enumerate(demo_defects.DEFECTS.items()):
    for index in range(NUM_TEST_PER_DEFECT):
      rng = np.random.default_rng((seed, 2 + number, index))
      scene, mask = draw(rng, _scene(rng, _TEST_JOINTS))
      image = _photograph(rng, scene)
      yield f'test/{defect}/{index:03}.png', to_uint8(image)
      yield f'ground_truth/{defect}/{index:03}_mask.png', to_uint8(mask)


def _num_files() -> int:
  return (
    NUM_TRAIN
    + NUM_TEST_GOOD
    + 2 * NUM_TEST_PER_DEFECT * len(demo_defects.DEFECTS)
  )


def _readme(seed: int) -> str:
  """Says where the images come from; its first line, which version it is."""
  return (
    f'Built-in demo of draem_jax, version {VERSION}, seed {seed}.\n\n'
    f"Crops of scikit-image's bundled photo '{SURFACE}' (CC0), colored, with "
    'defects\ndrawn into the test images. Another version of the program may '
    'replace this folder.\n'
  )


def write_demo_category(folder: str | pathlib.Path, *, seed: int = 0) -> None:
  """Writes the category into `folder/demo`, as if it were one of MVTec AD.

  The category appears complete or not at all. A complete one of this version
  and seed is left as it is, one of another is replaced.

  Args:
    folder: the data folder, created if missing.
    seed: of crops, light and defects; equal seeds give equal images.

  Raises:
    UserError: if the folder cannot be written to, or holds a category of that
      name that is not this demo.
  """
  target = pathlib.Path(folder) / CATEGORY
  readme = target / 'readme.txt'
  try:
    if target.exists():
      found = readme.read_text() if readme.is_file() else ''
      if not found.startswith('Built-in demo of draem_jax'):
        raise errors.UserError(
          f'{target}: exists and is not the built-in demo; move it away or '
          'choose another folder for the demo.'
        )
      num_files = sum(1 for _ in target.rglob('*.png'))
      same = found.splitlines()[0] == _readme(seed).splitlines()[0]
      if same and num_files == _num_files():
        return
    _write_in_place_of(target, seed)
  except OSError as error:
    raise errors.UserError(
      f'{folder}: cannot write the demo there ({error.strerror or error}); '
      'make room, or choose a folder that you may write to.'
    ) from error


def _write_in_place_of(target: pathlib.Path, seed: int) -> None:
  """Writes the category beside the target, then moves it there."""
  target.parent.mkdir(parents=True, exist_ok=True)
  # The dot hides what a killed process leaves behind from lists of categories.
  with tempfile.TemporaryDirectory(prefix='.demo-', dir=target.parent) as temp:
    category = pathlib.Path(temp) / CATEGORY
    for file, pixels in _image_files(seed):
      path = category / file
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path, compress_level=1)
    (category / 'readme.txt').write_text(_readme(seed))
    if target.exists():
      target.rename(pathlib.Path(temp) / 'replaced')
    category.rename(target)
