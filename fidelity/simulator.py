"""How near the simulator comes to the release: noise, operations, statistics.

    python -m fidelity.simulator
    python -m fidelity.simulator \
        --images=/data/mvtec_ad/bottle/train/good --textures=/data/dtd/images

The first compares single operations with arrays that the release's libraries
computed; the second also draws whole examples and compares their statistics
with those of the release on the same data. Prints tables in Markdown.
"""

import argparse
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from skimage import measure

from draem_jax.configs import mvtec
from draem_jax.data import images as image_files
from draem_jax.data import textures as texture_files
from draem_jax.simulator import augment, perlin, rotation, simulate
from draem_jax.simulator.options import Options

GOLDEN = pathlib.Path(__file__).parents[1] / 'tests' / 'golden'
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BATCH_SIZE = 10

Row = dict[str, str | float]

_HSV = 'float32 sums of OpenCV cut off at whole numbers'
_BLEND = 'float32 products of PIL cut off at whole numbers'
# For each operation of the golden arrays: function, keywords made of the
# arguments in the array's name, and why it is not exact.
_OPERATIONS = {
  'gamma_contrast': (
    augment.gamma_contrast,
    lambda gamma: {'gamma': jnp.full(3, gamma, jnp.float32)},
    '',
  ),
  'multiply_add_brightness_hsv': (
    augment.brightness,
    lambda scale, offset: {'scale': scale, 'offset': offset / 255},
    _HSV,
  ),
  'sharpness': (augment.sharpness, lambda factor: {'factor': factor}, _BLEND),
  'hue_saturation': (
    augment.hue_saturation,
    lambda hue, saturation: {
      'hue_shift': hue / 255,
      'saturation_shift': saturation / 255,
    },
    _HSV,
  ),
  'solarize': (
    augment.solarize,
    lambda threshold: {'threshold': threshold / 255},
    '',
  ),
  'posterize': (augment.posterize, lambda bits: {'bits': int(bits)}, ''),
  'invert': (augment.invert, dict, ''),
  'autocontrast': (
    augment.autocontrast,
    lambda cutoff: {'cutoff': cutoff},
    'exact quotients; PIL cuts off float64 products just below them',
  ),
  'equalize': (augment.equalize, dict, ''),
  'rotate': (augment.rotate, lambda degrees: {'degrees': degrees}, ''),
}


def perlin_cases() -> Iterator[tuple[tuple[int, int], np.ndarray, np.ndarray]]:
  """Resolution, noise of the release, and ours from the same angles."""
  golden = np.load(GOLDEN / 'perlin.npz')
  noise = jax.jit(perlin.perlin_noise, static_argnames='shape')
  for case in range(5):
    angles, resolution, expected = (
      golden[f'{case}/{name}'] for name in ('angles', 'resolution', 'noise')
    )
    lattice = np.zeros((perlin.LATTICE_SIZE,) * 2, np.float32)
    lattice[: angles.shape[0], : angles.shape[1]] = angles
    ours = noise(lattice, jnp.asarray(resolution), shape=expected.shape)
    yield tuple(map(int, resolution)), expected, np.asarray(ours)


def perlin_table() -> list[Row]:
  """Differences of Perlin noise, in units of its range [-1, 1]."""
  return [
    {
      'Perlin noise': f'{expected.shape[0]} × {expected.shape[1]}',
      'lattice': f'{resolution[0]} × {resolution[1]}',
      'largest difference': f'{np.abs(ours - expected).max():.0e}',
    }
    for resolution, expected, ours in perlin_cases()
  ]


def rotate_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Degrees, noise rotated by OpenCV, and by us."""
  golden = np.load(GOLDEN / 'rotate.npz')
  rotate = jax.jit(rotation.rotate)
  for name in golden:
    if name != 'noise':
      degrees = name.removeprefix('rotated_')
      ours = rotate(golden['noise'], degrees=float(degrees))
      yield degrees, golden[name], np.asarray(ours)


def rotate_table() -> list[Row]:
  """Differences of rotated noise, in units of its range [-1, 1]."""
  return [
    {
      'rotation': f'{degrees}°',
      'largest difference': f'{np.abs(ours - expected).max():.0e}',
      'mean difference': f'{np.abs(ours - expected).mean():.0e}',
    }
    for degrees, expected, ours in rotate_cases()
  ]


def augment_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Name, levels of both images from the release's libraries, and from us."""
  golden = np.load(GOLDEN / 'augment.npz')
  inputs = [np.float32(golden[f'image{number}']) / 255 for number in (0, 1)]
  for name in sorted({name.split('/')[0] for name in golden if '/' in name}):
    function, keywords, _ = _OPERATIONS[_operation(name)]
    function = jax.jit(functools.partial(function, **keywords(*_values(name))))
    expected = np.stack([golden[f'{name}/{number}'] for number in (0, 1)])
    yield name, expected, np.stack([function(image) for image in inputs]) * 255


def augment_table() -> list[Row]:
  """Differences of each operation in levels of 255, over two images."""
  rows = []
  for name, expected, ours in augment_cases():
    difference = np.abs(np.round(ours) - expected)
    reason = _OPERATIONS[_operation(name)][2]
    values = ', '.join(f'{value:g}' for value in _values(name))
    rows.append(
      {
        'operation': _operation(name).replace('_', ' '),
        'arguments': values,
        'largest difference': f'{difference.max():.0f}',
        'mean difference': f'{difference.mean():.4f}',
        'reason': reason if difference.any() else '',
      }
    )
  return rows


def _operation(name: str) -> str:
  return next(key for key in _OPERATIONS if name.startswith(key))


def _values(name: str) -> list[float]:
  rest = name.removeprefix(_operation(name))
  return [float(value) for value in rest.split('_') if value]


def release_options() -> Options:
  """What the preset `release` tells the simulator."""
  return Options(**mvtec.get_config('bottle,release').simulator)


def draw_statistics(
  images: np.ndarray,
  textures: np.ndarray,
  *,
  num_draws: int,
  seed: int = 0,
  options: Options | None = None,
) -> dict[str, np.ndarray]:
  """Draws examples and measures each.

  Args:
    images: anomaly-free images, uint8 [n h w 3].
    textures: uint8 [t h w 3].
    num_draws: how many examples, a multiple of `BATCH_SIZE`.
    seed: of the draws.
    options: of the simulator; the preset `release` if None.

  Returns:
    Of all draws: `is_nonempty`, `has_black_corner`. Of those with an anomaly:
    `area` (share of the image), `change` (mean absolute change of a value
    inside the mask) and `regions` (connected by edges or corners).
  """
  draw = jax.jit(
    functools.partial(
      simulate.simulate_batch, options=options or release_options()
    )
  )
  rng = np.random.default_rng(seed)
  measured = {'is_nonempty': [], 'has_black_corner': []}
  measured |= {'area': [], 'change': [], 'regions': []}
  for number in range(num_draws // BATCH_SIZE):
    keys = jax.random.fold_in(jax.random.key(seed), number)
    batch = draw(
      jax.random.split(keys, BATCH_SIZE),
      images[rng.integers(len(images), size=BATCH_SIZE)],
      textures[rng.integers(len(textures), size=BATCH_SIZE)],
    )
    batch = jax.tree.map(np.asarray, batch)
    for image, augmented, mask in zip(
      batch.image, batch.augmented, batch.mask, strict=True
    ):
      inside = mask > 0
      measured['is_nonempty'].append(inside.any())
      measured['has_black_corner'].append(not image[0, 0].any())
      if inside.any():
        measured['area'].append(inside.mean())
        measured['change'].append(np.abs(augmented - image)[inside].mean())
        measured['regions'].append(measure.label(inside, connectivity=2).max())
  return {name: np.array(values) for name, values in measured.items()}


def compare_statistics(measured: dict[str, np.ndarray]) -> list[Row]:
  """Sets measured statistics beside the release's.

  Args:
    measured: what `draw_statistics` returned.

  Returns:
    For each figure `ours`, the release's (`release`) and `error`: the standard
    error of the difference of two such samples, by bootstrap.
  """
  reference = json.loads((GOLDEN / 'simulator_reference.json').read_text())
  num_draws = reference['samples']
  num_anomalies = round(num_draws * reference['fraction_with_nonempty_mask'])
  rows = []

  def compare(figure: str, values, function: Callable, theirs, size: int):
    rng = np.random.default_rng(0)
    # Both samples vary; ours is resampled at its own size and at theirs.
    variance = sum(
      np.var([function(rng.choice(values, n)) for _ in range(200)])
      for n in (size, len(values))
    )
    rows.append(
      {
        'figure': figure,
        'ours': float(function(values)),
        'release': theirs,
        'error': float(np.sqrt(variance)),
      }
    )

  for figure, name, key in (
    ('share of masks not empty', 'is_nonempty', 'fraction_with_nonempty_mask'),
    (
      'share of inputs with a black corner',
      'has_black_corner',
      'fraction_of_inputs_with_a_black_corner',
    ),
  ):
    compare(figure, measured[name], np.mean, reference[key], num_draws)
  for figure, name, key in (
    ('mask area', 'area', 'mask_area'),
    ('change inside', 'change', 'mean_abs_change_inside_mask'),
    ('connected regions', 'regions', 'connected_regions'),
  ):
    theirs = reference[key]
    values = measured[name]
    compare(f'{figure}, mean', values, np.mean, theirs['mean'], num_anomalies)
    for quantile, value in zip(
      QUANTILES, theirs['quantiles_1_5_25_50_75_95_99'], strict=True
    ):
      function = functools.partial(np.quantile, q=quantile)
      title = f'{figure}, {100 * quantile:.0f} % quantile'
      compare(title, values, function, value, num_anomalies)
  return rows


def load_images(
  images_dir: pathlib.Path, textures_dir: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
  """Images and textures of two folders, uint8, at the reference's size."""
  reference = json.loads((GOLDEN / 'simulator_reference.json').read_text())
  size = reference['image_size']
  paths = sorted(filter(image_files.is_image, images_dir.iterdir()))
  images = [
    image_files.resize_bilinear(image_files.read_image(path), (size, size))
    for path in paths
  ]
  with tempfile.TemporaryDirectory() as cache:
    textures = texture_files.load_textures(
      textures_dir, image_size=size, tfds_dir=cache
    )
  return np.stack(images), np.asarray(textures)


def statistics_table(
  images_dir: pathlib.Path, textures_dir: pathlib.Path, *, num_draws: int
) -> list[Row]:
  """Statistics of whole examples beside the release's.

  Args:
    images_dir: a folder of anomaly-free images; the release's figures are of
      the bottle category of MVTec AD.
    textures_dir: a folder of textures; there, ten classes of the Describable
      Textures.
    num_draws: how many examples.

  Returns:
    A row a figure.
  """
  images, textures = load_images(images_dir, textures_dir)
  measured = draw_statistics(images, textures, num_draws=num_draws)
  return [
    {
      'figure': row['figure'],
      'ours': f'{row["ours"]:.4g}',
      'release': f'{row["release"]:.4g}',
      'difference': f'{row["ours"] / row["release"] - 1:+.1%}',
      'in standard errors': f'{_in_errors(row):+.1f}',
    }
    for row in compare_statistics(measured)
  ]


def _in_errors(row: Row) -> float:
  difference = row['ours'] - row['release']
  return difference / row['error'] if row['error'] else 0.0


def markdown(rows: list[Row]) -> str:
  """Rows of equal keys as a Markdown table."""
  lines = [rows[0].keys(), ['---'] * len(rows[0])]
  lines += [row.values() for row in rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def main():
  """Print all tables that the given folders allow."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=pathlib.Path)
  parser.add_argument('--textures', type=pathlib.Path)
  parser.add_argument('--draws', type=int, default=6000)
  options = parser.parse_args()
  for table in (perlin_table, rotate_table, augment_table):
    print(markdown(table()), end='\n\n')
  if options.images and options.textures:
    rows = statistics_table(
      options.images, options.textures, num_draws=options.draws
    )
    print(f'{options.draws} draws:\n\n{markdown(rows)}')


if __name__ == '__main__':
  main()
