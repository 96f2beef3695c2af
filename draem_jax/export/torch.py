"""The networks as the pair of state dicts that the PyTorch release loads."""

import pathlib

from draem_jax import convert
from draem_jax.detector import Detector


def write(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes both state dicts.

  Args:
    detector: whose networks to write.
    output: the folder to write to.
    channel_order: of the images that the written networks shall expect; the
      release feeds 'bgr'.
    category: becomes part of the names of the files.

  Returns:
    Lines that say what was written.
  """
  name = f'DRAEM_{category}_'
  paths = output / f'{name}.pckl', output / f'{name}_seg.pckl'
  convert.save_torch_checkpoint(
    detector.variables, *paths, channel_order=channel_order
  )
  return [f'reconstructive: {paths[0]}', f'discriminative: {paths[1]}']
