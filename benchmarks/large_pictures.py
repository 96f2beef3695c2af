"""Measures a resized and a cropped detector on large pictures, side by side.

  python -m benchmarks.large_pictures --folder=/tmp/large --kinds=plates,strips

Makes pictures of brushed metal, `plates` of 3000x4000 and `strips` of 200x5000
pixels, good ones and such with pits of 10 pixels, trains two detectors of the
same widths on each and prints a row of a table for each: one sees the pictures
resized to 256x256, the other crops of 64x64 at their own size. Both are
trained by Muon for 500 steps, so that the first has seen 16 times the pixels.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image, ImageFilter

SHAPES = {'plates': (3000, 4000), 'strips': (200, 5000)}
COUNTS = {'train/good': 24, 'test/good': 6, 'test/pit': 10}
_PIT = 10  # Pixels across.
_DARKER = 0.3  # Of the light of a pixel, what a pit takes.
_DETECTORS = {
  'resized': ('--config.image_size=256', '--config.score_window=21'),
  'cropped': ('--config.image_size=64', '--config.data.resolution=0'),
}


def main() -> None:
  """Makes what is not there yet, trains and prints a line of JSON for each."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--kinds', default='plates,strips')
  parser.add_argument('--detectors', default='resized,cropped')
  args = parser.parse_args()
  for kind in args.kinds.split(','):
    data = args.folder / 'data'
    if not (data / kind).exists():
      partial = data / f'.{kind}'
      shutil.rmtree(partial, ignore_errors=True)
      make_category(partial, SHAPES[kind])
      partial.rename(data / kind)
    for detector in args.detectors.split(','):
      workdir = args.folder / f'{kind}-{detector}'
      _train(kind, data, workdir, [*_DETECTORS[detector]])
      print(json.dumps(_row(kind, detector, workdir)), flush=True)


def make_category(folder: pathlib.Path, shape: tuple[int, int]) -> None:
  """Writes a category in the layout of MVTec AD.

  Args:
    folder: where to; its parts appear in it.
    shape: height and width of the pictures.
  """
  rng = np.random.default_rng(0)
  for part, count in COUNTS.items():
    (folder / part).mkdir(parents=True)
    for i in range(count):
      picture = brushed_metal(rng, shape)
      if part == 'test/pit':
        mask = _add_pits(rng, picture)
        path = folder / 'ground_truth/pit' / f'{i:03}_mask.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
      pixels = picture.clip(0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(folder / part / f'{i:03}.jpg', quality=92)


def brushed_metal(
  rng: np.random.Generator, shape: tuple[int, int]
) -> np.ndarray:
  """Fine grooves along the rows, nearly even light, and the sensor's noise.

  Args:
    rng: decides everything that chance does.
    shape: height and width.

  Returns:
    float32 [h, w, 3], about in [0, 255].
  """
  height, width = shape
  grooves = rng.normal(0, 60, (height, width // 40 + 1)).clip(-128, 127)
  grooves = Image.fromarray((grooves + 128).astype(np.uint8))
  grooves = grooves.filter(ImageFilter.GaussianBlur(0.8)).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  light = rng.uniform(-2, 2, (3, 4)) + 128
  light = Image.fromarray(light.astype(np.uint8)).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  gray = np.asarray(light, np.float32) + 0.35 * (
    np.asarray(grooves, np.float32) - 128
  )
  gray += rng.normal(0, 3, gray.shape).astype(np.float32)
  return gray[..., None] + np.array([2, 4, 10], np.float32)


def _add_pits(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
  """Draws three pits into a picture, in place, and returns their mask."""
  height, width, _ = picture.shape
  mask = np.zeros((height, width), np.uint8)
  rows, columns = np.mgrid[-8:9, -8:9]
  distance = np.hypot(rows, columns)
  for _ in range(3):
    y, x = rng.integers(8, height - 8), rng.integers(8, width - 8)
    place = np.s_[y - 8 : y + 9, x - 8 : x + 9]
    depth = np.clip((_PIT / 2 + 1 - distance) / 2, 0, 1)[..., None]
    picture[place] = picture[place] * (1 - _DARKER * depth)
    mask[place] = np.maximum(mask[place], (distance <= _PIT / 2) * 255)
  return mask


def _train(
  kind: str,
  data: pathlib.Path,
  workdir: pathlib.Path,
  options: list[str],
) -> None:
  subprocess.run(
    [
      sys.executable,
      '-m',
      'draem_jax.main',
      f'--config=configs/mvtec.py:{kind},release,small',
      f'--workdir={workdir}',
      f'--config.data.dir={data}',
      '--config.data.textures=builtin',
      '--config.data.tfds_dir=',
      '--config.data.resize=area',
      '--config.eval.holdout=0.1',
      '--config.eval.mask_threshold=0.5',
      '--config.batch_size=4',
      '--config.num_steps=500',
      '--config.optimizer=muon',
      '--config.learning_rate=0.006',
      '--config.learning_rate_warmup=0.05',
      '--config.ema=0.99',
      *options,
    ],
    check=True,
    stdout=(workdir.parent / f'{workdir.name}.log').open('w'),
    stderr=subprocess.STDOUT,
  )


def _row(kind: str, detector: str, workdir: pathlib.Path) -> dict:
  """What is told of a detector."""
  results = json.loads((workdir / 'results.json').read_text())
  return {'pictures': kind, 'detector': detector, **results}


if __name__ == '__main__':
  main()
