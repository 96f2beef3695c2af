"""Peak memory of scoring one large picture by tiles, as `predict` does.

    python -m benchmarks.memory --side=10000 --folder=/tmp/large

Makes a JPEG of side×side pixels with a red defect of 30×25 in the folder, and
scores it with networks without weights, whose map is the red channel: what is
measured is all but the activations of a batch of tiles. Prints the resident
memory before and the highest.
"""

import argparse
import contextlib
import pathlib
import resource
import subprocess
import sys

import jax.numpy as jnp
from jaxtyping import Array, Float
from PIL import Image

from draem_jax import terminal
from draem_jax.data.files import find_images
from draem_jax.detection import stream
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.networks import models
from draem_jax.workdir.thresholds import Thresholds


class _Red(models.Networks):
  """Networks without weights, whose anomaly map is the red channel."""

  outputs = ('logits',)

  def setup(self) -> None:
    """There is nothing to set up."""

  def run(
    self, image: Float[Array, 'b h w 3'], *, train: bool
  ) -> models.Output:
    """Logits whose softmax is the red channel."""
    del train
    red = jnp.clip(image[..., 0], 1e-6, 1 - 1e-6)
    logits = jnp.stack([jnp.log1p(-red), jnp.log(red)], axis=-1)
    return models.Output(reconstruction=None, logits=logits)


def main(argv: list[str] | None = None) -> None:
  """Makes the picture in a process of its own, then scores it in this one."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--side', type=int, default=10_000)
  parser.add_argument('--tile', type=int, default=256)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--make', action='store_true', help=argparse.SUPPRESS)
  given = parser.parse_args(argv)
  photos = given.folder / 'photos'
  photos.mkdir(parents=True, exist_ok=True)
  if given.make:
    _make(photos / 'large.jpg', given.side)
    return
  options = [f'--side={given.side}', f'--folder={given.folder}', '--make']
  # Its memory would be taken for that of the scoring.
  subprocess.run(
    [sys.executable, '-m', 'benchmarks.memory', *options], check=True
  )
  detector = Detector(
    _Red(),
    {},
    image_size=given.tile,
    score_window=21,
    thresholds=Thresholds(0.5, 0.5, 'made up', 0.99, 0.9999),
    resolution=0,
  )
  detector.compile_tiles()
  before = _peak()
  out = given.folder / 'out'
  with contextlib.closing(Predictions(out, {})) as predictions:
    found = find_images(str(photos))
    stream.score_files(detector, found, predictions, overlay_side=2048)
    predictions.write_regions()
  terminal.say(f'{before:.0f} MiB before, {_peak():.0f} MiB at most')


def _make(path: pathlib.Path, side: int) -> None:
  image = Image.new('RGB', (side, side), (40, 60, 50))
  left = side // 2
  image.paste((250, 0, 0), (left, left, left + 30, left + 25))
  image.save(path, quality=90)


def _peak() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == '__main__':
  main()
