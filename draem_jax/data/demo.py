"""The built-in demo: a small category in MVTec layout, cut from one photo.

The photo is scikit-image's `brick`, an oblique view of a wall. It is coloured,
seen from the front and split once into two parts: one for the normal training
images, one for every test image. An image is a crop of its part as a
hand-held camera would see it. A test defect is drawn into the crop before
light, focus and noise come over it, by code that has nothing in common with
the training simulator.

Images are float [h w 3] RGB in [0, 1] here, lengths are pixels of the written
image, masks are bool [h w].
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage
from skimage import data, transform

from draem_jax import errors

CATEGORY = 'demo'
# The bundled photo. Simulator textures should not come from it as well.
SURFACE = 'brick'
# To be raised with every change of the pixels: an older demo is then replaced.
VERSION = 1

IMAGE_SIZE = 128
NUM_TRAIN = 100
NUM_TEST_GOOD = 20
NUM_TEST_PER_DEFECT = 8

# The wall as seen from the front, in pixels of its own: x along the courses, y
# across them, 40 pixels a course and 116 a brick. The upper rows are for
# training, the lower ones for testing.
_SURFACE_WIDTH = 526
_TRAIN_ROWS = (0, 300)
_TEST_ROWS = (300, 484)
# The side of a crop, in pixels of the surface.
_CROP_SIZE = 150

RgbImage = Float[np.ndarray, 'h w 3']
Coverage = Float[np.ndarray, 'h w']
Mask = Bool[np.ndarray, 'h w']


# The surface and the camera.


def _photo_from_surface() -> Float[np.ndarray, '3 3']:
  """Homography from the wall seen from the front to the photo's (x, y)."""
  # All courses meet in one point above the photo, and the one through its
  # column is vertical. The depth 1 - shrink x falls evenly along the courses.
  vanishing_x, vanishing_y = 219.0, -1209.0
  shrink = 0.0655 / 116
  pitch = 29.5 / 40
  return np.array(
    [
      [-vanishing_x * shrink, pitch, vanishing_x - pitch * 207],
      [-vanishing_y * shrink, 0, 0],
      [-shrink, 0, 1],
    ]
  )


@functools.cache
def _coloured_photo() -> RgbImage:
  """The gray photo in colour: red-brown bricks, sand-coloured joints."""
  gray = getattr(data, SURFACE)() / 255
  levels = [0.24, 0.36, 0.46, 0.62, 0.82]
  colours = np.array(
    [
      [0.20, 0.11, 0.09],
      [0.47, 0.24, 0.18],
      [0.60, 0.40, 0.31],
      [0.72, 0.65, 0.55],
      [0.93, 0.90, 0.84],
    ]
  )
  channels = [np.interp(gray, levels, channel) for channel in colours.T]
  return np.stack(channels, axis=-1)


def _crop(rng: np.random.Generator, rows: tuple[int, int]) -> RgbImage:
  """A crop at a random place of those rows, turned and scaled a little."""
  angle = np.deg2rad(rng.uniform(-3, 3))
  size = _CROP_SIZE * rng.uniform(0.94, 1.06)
  # Half the side of the upright square round the turned crop.
  reach = size / 2 * (np.cos(angle) + abs(np.sin(angle)))
  centre = (
    rng.uniform(reach, _SURFACE_WIDTH - reach),
    rng.uniform(rows[0] + reach, rows[1] - reach),
  )
  middle = (IMAGE_SIZE - 1) / 2
  to_middle = transform.SimilarityTransform(translation=(-middle, -middle))
  place = transform.SimilarityTransform(
    scale=size / IMAGE_SIZE, rotation=angle, translation=centre
  )
  matrix = _photo_from_surface() @ place.params @ to_middle.params
  return transform.warp(
    _coloured_photo(),
    transform.ProjectiveTransform(matrix),
    output_shape=(IMAGE_SIZE, IMAGE_SIZE),
    mode='edge',
  )


def _photograph(rng: np.random.Generator, scene: RgbImage) -> RgbImage:
  """The scene in uneven light, through a lens, on a noisy sensor."""
  y, x = _pixels()
  direction = rng.uniform(0, 2 * np.pi)
  ramp = (np.cos(direction) * x + np.sin(direction) * y) / IMAGE_SIZE - 0.5
  light = rng.uniform(0.88, 1.12) * (1 + rng.uniform(0, 0.2) * ramp)
  white_balance = [rng.uniform(0.96, 1.04), 1.0, rng.uniform(0.96, 1.04)]
  image = scene * light[..., None] * white_balance
  blur = rng.uniform(0.3, 0.8)
  image = ndimage.gaussian_filter(image, (blur, blur, 0))
  noise = rng.normal(0, rng.uniform(0.008, 0.02), image.shape)
  return np.clip(image + noise, 0, 1)


# What the defects are drawn with.


def _pixels() -> tuple[Coverage, Coverage]:
  """Coordinates y and x of every pixel."""
  return np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(float)


def _paint(
  image: RgbImage, colour: np.ndarray, opacity: np.ndarray
) -> RgbImage:
  """Lays a colour, or another image, over the image."""
  return image + opacity[..., None] * (colour - image)


def _stroke(points: np.ndarray, widths: np.ndarray) -> Coverage:
  """Coverage by a pen of these widths [n] that visits these points [n 2]."""
  coverage = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
  y, x = _pixels()
  for (point_x, point_y), width in zip(points, widths, strict=True):
    distance = np.hypot(x - point_x, y - point_y)
    np.maximum(coverage, width / 2 + 0.5 - distance, out=coverage)
  return np.minimum(coverage, 1)


def _blob(
  rng: np.random.Generator,
  centre: np.ndarray,
  radius: float,
  *,
  raggedness: float,
  softness: float = 0.6,
) -> Coverage:
  """Coverage by a round patch with an irregular edge, soft or sharp."""
  y, x = _pixels()
  distance = np.hypot(x - centre[0], y - centre[1])
  inside = radius - distance + raggedness * radius * _blotches(rng, radius / 3)
  # Without the islands that the irregularity leaves around the patch.
  patches, _ = ndimage.label(inside > 0)
  largest = np.bincount(patches[patches > 0]).argmax()
  patch = (patches == largest).astype(float)
  return ndimage.gaussian_filter(patch, softness, radius=2)


def _blotches(rng: np.random.Generator, size: float) -> Coverage:
  """Smooth noise with mean 0 and variance 1, spots of about this size."""
  noise = rng.normal(size=(IMAGE_SIZE, IMAGE_SIZE))
  noise = ndimage.gaussian_filter(noise, size, mode='wrap')
  return (noise - noise.mean()) / noise.std()


def _centre(rng: np.random.Generator, margin: float) -> np.ndarray:
  """A point (x, y) at least the margin away from the image's edge."""
  return rng.uniform(margin, IMAGE_SIZE - margin, 2)


def _unit(angle: float) -> np.ndarray:
  return np.array([np.cos(angle), np.sin(angle)])


# The defects. Each takes a scene and returns it with the defect and its mask.


def scratch(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A bent furrow: a chalky bottom with the shadow of one edge beside it."""
  along = rng.uniform(0, 2 * np.pi)
  length = rng.uniform(35, 80)
  t = np.linspace(-0.5, 0.5, 120)[:, None]
  bend = rng.uniform(-0.12, 0.12) * length
  points = _centre(rng, 35) + t * length * _unit(along)
  points = points + 4 * bend * (0.25 - t**2) * _unit(along + np.pi / 2)
  # Pressed in the middle, lifted towards the ends.
  widths = rng.uniform(2.2, 3.8) * np.sqrt(1 - (1.9 * t[:, 0]) ** 2)

  strength = rng.uniform(0.35, 1)
  shadow = _stroke(points + [0.8, 0.8], widths)
  bottom = _stroke(points - [0.3, 0.3], 0.75 * widths)
  image = _paint(scene, np.array([0.10, 0.06, 0.05]), strength * shadow)
  image = _paint(image, np.array([0.86, 0.74, 0.64]), strength * bottom)
  return image, np.maximum(shadow, bottom) >= 0.5


def stain(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A dried liquid: it filters the colour below it, most of all at its rim."""
  filters = {
    'oil': (0.45, 0.45, 0.50),
    'rust': (1.05, 0.62, 0.30),
    'moss': (0.55, 0.85, 0.40),
    'ink': (0.50, 0.60, 1.00),
  }
  colour = np.array(filters[rng.choice(list(filters))])
  radius = rng.uniform(9, 22)
  coverage = _blob(rng, _centre(rng, 24), radius, raggedness=0.3, softness=1)
  inner = ndimage.gaussian_filter(coverage, radius / 6)
  density = 0.75 + 0.12 * _blotches(rng, 4) + 0.5 * (1 - inner)
  density = np.clip(density, 0, 1)
  strength = rng.uniform(0.3, 0.9)
  image = _paint(scene, scene * colour, strength * density * coverage)
  return np.clip(image, 0, 1), coverage >= 0.5


def hole(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A piece broken out: a dark pit, lit on the side away from the light."""
  centre = _centre(rng, 16)
  radius = rng.uniform(4.5, 10)
  pit = _blob(rng, centre, radius, raggedness=0.25)
  y, x = _pixels()
  # From 0 at the shaded wall to 1 at the lit one.
  light = _unit(rng.uniform(0, 2 * np.pi))
  depth = ((x - centre[0]) * light[0] + (y - centre[1]) * light[1]) / radius
  lit = np.clip(0.5 + 0.5 * depth, 0, 1)[..., None]
  crumbs = rng.normal(0, 0.04, scene.shape[:2])[..., None]
  dark, bright = np.array([0.09, 0.06, 0.05]), np.array([0.42, 0.27, 0.20])
  bottom = np.clip(dark + lit**2 * (bright - dark) + crumbs, 0, 1)
  image = _paint(scene, bottom, rng.uniform(0.55, 1) * pit)
  return image, pit >= 0.5


def fibre(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A thread or a hair on the surface, curled."""
  colours = {
    'blue': (0.20, 0.30, 0.62),
    'green': (0.18, 0.45, 0.25),
    'black': (0.08, 0.08, 0.09),
    'white': (0.92, 0.92, 0.90),
    'yellow': (0.85, 0.72, 0.25),
  }
  colour = np.array(colours[rng.choice(list(colours))])
  steps = rng.integers(55, 120)
  # The curvature wanders slowly, which makes arcs and loops.
  curvature = ndimage.gaussian_filter1d(rng.normal(size=steps), 10)
  curvature = curvature - 0.7 * curvature.mean()
  curvature *= rng.uniform(0.03, 0.08) / curvature.std()
  heading = rng.uniform(0, 2 * np.pi) + np.cumsum(curvature)
  points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)
  points += _centre(rng, 40) - points.mean(axis=0)
  width = rng.uniform(1.8, 3.0)
  coverage = _stroke(points, np.full(steps, width))
  image = _paint(scene, colour, rng.uniform(0.5, 0.95) * coverage)
  return image, coverage >= 0.5


def misplaced(
  rng: np.random.Generator, scene: RgbImage
) -> tuple[RgbImage, Mask]:
  """A rectangular piece taken out and put back turned, moved and tilted."""
  centre = _centre(rng, 30)
  half_size = rng.uniform(10, 22, 2)
  y, x = _pixels()
  frame = rng.uniform(-0.3, 0.3)
  across = (x - centre[0]) * np.cos(frame) + (y - centre[1]) * np.sin(frame)
  down = (y - centre[1]) * np.cos(frame) - (x - centre[0]) * np.sin(frame)
  # Distance to the nearest side, positive inside.
  inside = np.minimum(half_size[0] - abs(across), half_size[1] - abs(down))

  turn = transform.SimilarityTransform(rotation=rng.uniform(0.4, 2.7))
  to_centre = transform.SimilarityTransform(translation=-centre)
  back = transform.SimilarityTransform(
    translation=centre + rng.uniform(-12, 12, 2)
  )
  piece = transform.warp(scene, to_centre + turn + back, mode='reflect')
  # Being tilted, it takes the light differently, and its joint is open.
  relit = rng.uniform(0.08, 0.25) * rng.choice([-1, 1])
  piece = np.clip(piece * (1 + relit), 0, 1)
  image = _paint(scene, piece, np.clip(inside + 0.5, 0, 1))
  joint = np.clip(1.5 - abs(inside - 1), 0, 1) * rng.uniform(0.2, 0.7)
  image = _paint(image, np.array([0.12, 0.08, 0.07]), joint)
  return image, inside >= 0


DEFECTS: dict[str, Callable[..., tuple[RgbImage, Mask]]] = {
  'fibre': fibre,
  'hole': hole,
  'misplaced': misplaced,
  'scratch': scratch,
  'stain': stain,
}


# The files.


def _image_files(seed: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields every PNG of the category: its path and its uint8 pixels."""

  def to_uint8(image):
    return np.round(255 * image).astype(np.uint8)

  # A generator of its own for each image: none depends on the others' number.
  for index in range(NUM_TRAIN):
    rng = np.random.default_rng((seed, 0, index))
    image = _photograph(rng, _crop(rng, _TRAIN_ROWS))
    yield f'train/good/{index:03}.png', to_uint8(image)
  for index in range(NUM_TEST_GOOD):
    rng = np.random.default_rng((seed, 1, index))
    image = _photograph(rng, _crop(rng, _TEST_ROWS))
    yield f'test/good/{index:03}.png', to_uint8(image)
  for number, (defect, draw) in enumerate(DEFECTS.items()):
    for index in range(NUM_TEST_PER_DEFECT):
      rng = np.random.default_rng((seed, 2 + number, index))
      scene, mask = draw(rng, _crop(rng, _TEST_ROWS))
      image = _photograph(rng, scene)
      yield f'test/{defect}/{index:03}.png', to_uint8(image)
      yield f'ground_truth/{defect}/{index:03}_mask.png', to_uint8(mask)


def _num_files() -> int:
  return NUM_TRAIN + NUM_TEST_GOOD + 2 * NUM_TEST_PER_DEFECT * len(DEFECTS)


def _readme(seed: int) -> str:
  """Says where the images come from; also tells one version from another."""
  return (
    f'Built-in demo of draem_jax, version {VERSION}, seed {seed}.\n\n'
    f"Crops of scikit-image's bundled photo '{SURFACE}' (CC0), coloured, with "
    'defects\ndrawn into the test images. Another version of the program may '
    'replace this folder.\n'
  )


def write_demo_category(folder: str | pathlib.Path, *, seed: int = 0) -> None:
  """Writes the category into `folder/demo`, as if it were one of MVTec AD.

  The category appears complete or not at all. A complete one of this version
  and seed is left as it is, one of another is replaced.

  Args:
    folder: The data folder, created if missing.
    seed: Chooses crops, light, and defects; equal seeds give equal images.

  Raises:
    UserError: The folder cannot be written to, or holds a category of that
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
      if found == _readme(seed) and num_files == _num_files():
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
      Image.fromarray(pixels).save(path)
    (category / 'readme.txt').write_text(_readme(seed))
    if target.exists():
      target.rename(pathlib.Path(temp) / 'replaced')
    category.rename(target)
