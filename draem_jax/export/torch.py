"""The networks as the pair of state dicts that the PyTorch release loads."""

import pathlib

from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.torch_weights import convert


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

  Raises:
    UserError: if the detector has not both networks of the release.
  """
  for network in ('reconstructive', 'discriminative'):
    if network not in detector.variables['params']:
      raise UserError(
        f'--format=torch needs a {network} network, which the run has not: take'
        ' --format=onnx or --format=stablehlo'
      )
  output.mkdir(parents=True, exist_ok=True)
  name = f'DRAEM_{category}_'
  paths = output / f'{name}.pckl', output / f'{name}_seg.pckl'
  convert.save_torch_checkpoint(
    detector.variables, *paths, channel_order=channel_order
  )
  return [f'reconstructive: {paths[0]}', f'discriminative: {paths[1]}']
