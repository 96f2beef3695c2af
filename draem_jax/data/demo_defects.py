"""The defects of the built-in demo, each drawn into a clean scene.

A scene is a float image [h w 3] of a wall, RGB in [0, 1], before the camera's
light, focus and noise. Every defect is a function of a generator and a scene
that returns a changed copy and the mask of the change. Lengths are pixels of
the scene; what is drawn is meant for scenes of about 128 pixels. The contrast
of a defect varies from just visible to plain.

Nothing here has anything in common with the training simulator.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage import transform

RgbImage = Float[np.ndarray, 'h w 3']
Coverage = Float[np.ndarray, 'h w']
Mask = Bool[np.ndarray, 'h w']


def scratch(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A bent furrow: a chalky bottom with the shadow of one edge beside it."""
  along = rng.uniform(0, 2 * np.pi)
  length = rng.uniform(30, 75)
  t = np.linspace(-0.5, 0.5, 120)[:, None]
  bend = rng.uniform(-0.12, 0.12) * length
  points = _place(rng, scene, margin=35) + t * length * _unit(along)
  points = points + 4 * bend * (0.25 - t**2) * _unit(along + np.pi / 2)
  # Pressed in the middle, lifted towards the ends.
  widths = rng.uniform(2.2, 3.6) * np.sqrt(1 - (1.9 * t[:, 0]) ** 2)

  strength = rng.uniform(0.3, 0.9)
  shadow = _stroke(scene, points + [0.8, 0.8], widths)
  bottom = _stroke(scene, points - [0.3, 0.3], 0.75 * widths)
  image = _paint(scene, np.array([0.10, 0.06, 0.05]), strength * shadow)
  image = _paint(image, np.array([0.86, 0.74, 0.64]), strength * bottom)
  return image, np.maximum(shadow, bottom) >= 0.5


def stain(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A dried liquid: it filters the color below it, most of all at its rim."""
  filters = {
    'oil': (0.45, 0.45, 0.50),
    'rust': (1.05, 0.62, 0.30),
    'moss': (0.55, 0.85, 0.40),
    'ink': (0.50, 0.60, 1.00),
  }
  color = np.array(filters[rng.choice(list(filters))])
  radius = rng.uniform(8, 20)
  center = _place(rng, scene, margin=24)
  coverage = _blob(rng, scene, center, radius, raggedness=0.3, softness=1.0)
  inner = ndimage.gaussian_filter(coverage, radius / 6)
  density = 0.75 + 0.12 * blotches(rng, scene, size=4.0) + 0.5 * (1 - inner)
  strength = rng.uniform(0.3, 0.85)
  opacity = strength * np.clip(density, 0, 1) * coverage
  return np.clip(_paint(scene, scene * color, opacity), 0, 1), coverage >= 0.5


def hole(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A piece broken out: a dark pit, lit on the side away from the light."""
  center = _place(rng, scene, margin=16)
  radius = rng.uniform(3.5, 9)
  pit = _blob(rng, scene, center, radius, raggedness=0.25, softness=0.6)
  y, x = _pixels(scene)
  # From 0 at the shaded wall to 1 at the lit one.
  light = _unit(rng.uniform(0, 2 * np.pi))
  depth = ((x - center[0]) * light[0] + (y - center[1]) * light[1]) / radius
  lit = np.clip(0.5 + 0.5 * depth, 0, 1)[..., None]
  crumbs = rng.normal(0, 0.04, scene.shape[:2])[..., None]
  dark, bright = np.array([0.09, 0.06, 0.05]), np.array([0.42, 0.27, 0.20])
  bottom = np.clip(dark + lit**2 * (bright - dark) + crumbs, 0, 1)
  return _paint(scene, bottom, rng.uniform(0.35, 1) * pit), pit >= 0.5


def fibre(rng: np.random.Generator, scene: RgbImage) -> tuple[RgbImage, Mask]:
  """A foreign thread or hair that lies on the surface, curled."""
  colors = {
    'blue': (0.20, 0.30, 0.62),
    'green': (0.18, 0.45, 0.25),
    'black': (0.08, 0.08, 0.09),
    'white': (0.92, 0.92, 0.90),
    'yellow': (0.85, 0.72, 0.25),
  }
  color = np.array(colors[rng.choice(list(colors))])
  steps = rng.integers(50, 110)
  # The curvature wanders slowly, which makes arcs and loops.
  curvature = ndimage.gaussian_filter1d(rng.normal(size=steps), 10)
  curvature = curvature - 0.7 * curvature.mean()
  curvature *= rng.uniform(0.03, 0.08) / curvature.std()
  heading = rng.uniform(0, 2 * np.pi) + np.cumsum(curvature)
  points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)
  points += _place(rng, scene, margin=40) - points.mean(axis=0)
  width = rng.uniform(1.6, 2.8)
  coverage = _stroke(scene, points, np.full(steps, width))
  image = _paint(scene, color, rng.uniform(0.3, 0.9) * coverage)
  return image, coverage >= 0.5


def misplaced(
  rng: np.random.Generator, scene: RgbImage
) -> tuple[RgbImage, Mask]:
  """A rectangular piece taken out and put back turned, moved and tilted."""
  center = _place(rng, scene, margin=30)
  half_size = rng.uniform(8, 18, 2)
  y, x = _pixels(scene)
  frame = rng.uniform(-0.3, 0.3)
  across = (x - center[0]) * np.cos(frame) + (y - center[1]) * np.sin(frame)
  down = (y - center[1]) * np.cos(frame) - (x - center[0]) * np.sin(frame)
  # Distance to the nearest side, positive inside.
  inside = np.minimum(half_size[0] - abs(across), half_size[1] - abs(down))

  turn = transform.SimilarityTransform(rotation=rng.uniform(0.4, 2.7))
  to_center = transform.SimilarityTransform(translation=-center)
  back = transform.SimilarityTransform(
    translation=center + rng.uniform(-12, 12, 2)
  )
  piece = transform.warp(scene, to_center + turn + back, mode='reflect')
  # Being tilted, it takes the light differently, and its joint is open.
  relit = rng.uniform(0.1, 0.3) * rng.choice([-1, 1])
  piece = np.clip(piece * (1 + relit), 0, 1)
  image = _paint(scene, piece, np.clip(inside + 0.5, 0, 1))
  joint = np.clip(1.5 - abs(inside - 1), 0, 1) * rng.uniform(0.1, 0.6)
  return _paint(image, np.array([0.12, 0.08, 0.07]), joint), inside >= 0


DEFECTS: dict[str, Callable[..., tuple[RgbImage, Mask]]] = {
  'fibre': fibre,
  'hole': hole,
  'misplaced': misplaced,
  'scratch': scratch,
  'stain': stain,
}


def blotches(
  rng: np.random.Generator, scene: RgbImage, *, size: float
) -> Float[np.ndarray, 'h w']:
  """Smooth noise of mean 0 and variance 1, with spots of about this size."""
  noise = rng.normal(size=scene.shape[:2])
  noise = ndimage.gaussian_filter(noise, size, mode='wrap')
  return (noise - noise.mean()) / noise.std()


def _paint(
  image: RgbImage, color: Float[np.ndarray, '3'] | RgbImage, opacity: Coverage
) -> RgbImage:
  """Lays a color, or another image, over the image."""
  return image + opacity[..., None] * (color - image)


def _stroke(
  scene: RgbImage,
  points: Float[np.ndarray, 'n 2'],
  widths: Float[np.ndarray, 'n'],
) -> Coverage:
  """Coverage by a pen of these widths that visits these points."""
  y, x = _pixels(scene)
  coverage = np.zeros_like(x)
  for (point_x, point_y), width in zip(points, widths, strict=True):
    reach = width / 2 + 0.5
    # The pixels around the point: others are farther than the pen reaches.
    near = tuple(
      slice(
        max(0, math.floor(middle - reach)), max(0, math.ceil(middle + reach))
      )
      for middle in (point_y, point_x)
    )
    distance = np.hypot(x[near] - point_x, y[near] - point_y)
    np.maximum(coverage[near], reach - distance, out=coverage[near])
  return np.minimum(coverage, 1)


def _blob(
  rng: np.random.Generator,
  scene: RgbImage,
  center: Float[np.ndarray, '2'],
  radius: float,
  *,
  raggedness: float,
  softness: float,
) -> Coverage:
  """Coverage by a round patch with an irregular edge, soft or sharp."""
  y, x = _pixels(scene)
  distance = np.hypot(x - center[0], y - center[1])
  wobble = raggedness * radius * blotches(rng, scene, size=radius / 3)
  # Without the islands that the wobble leaves around the patch.
  patches, _ = ndimage.label(distance < radius + wobble)
  largest = np.bincount(patches[patches > 0]).argmax()
  patch = (patches == largest).astype(float)
  return ndimage.gaussian_filter(patch, softness, radius=2)


def _pixels(scene: RgbImage) -> Float[np.ndarray, '2 h w']:
  """Coordinates y and x of every pixel."""
  height, width, _ = scene.shape
  return np.mgrid[:height, :width].astype(float)


def _place(
  rng: np.random.Generator, scene: RgbImage, *, margin: int
) -> Float[np.ndarray, '2']:
  """A point (x, y) at least the margin away from the image's edge."""
  height, width, _ = scene.shape
  return rng.uniform(margin, (width - margin, height - margin))


def _unit(angle: float) -> Float[np.ndarray, '2']:
  return np.array([np.cos(angle), np.sin(angle)])
