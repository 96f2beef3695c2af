"""A detector as a StableHLO program, which JAX alone runs."""

import pathlib

import jax
import jax.export
from jaxtyping import Array, Float

from draem_jax import score
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import program
from draem_jax.workdir import storage

PROGRAM_FILE = 'detector.stablehlo'
DESCRIPTION_FILE = 'detector.json'
_PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes the program for CPUs, NVIDIA GPUs and TPUs, and a description.

  Args:
    detector: what to write.
    output: the folder to write to.
    channel_order: of the images that the program shall expect.
    category: what the detector was trained on.

  Returns:
    Lines that say what was written and how far it is from the detector.

  Raises:
    UserError: if `flatbuffers` is not installed.
  """
  exported = trace(detector, channel_order=channel_order)
  try:
    serialized = exported.serialize()
  except ImportError as error:
    raise UserError(
      "--format=stablehlo needs flatbuffers: pip install 'draem_jax[export]'"
    ) from error
  difference = program.largest_difference(
    detector,
    jax.export.deserialize(serialized).call,
    channel_order=channel_order,
  )
  description = program.describe(
    detector, channel_order=channel_order, category=category
  )
  description |= {
    'platforms': _PLATFORMS,
    'jax_version': jax.__version__,
    'calling_convention_version': exported.calling_convention_version,
  }
  storage.write_bytes(output / PROGRAM_FILE, bytes(serialized))
  storage.write_json(output / DESCRIPTION_FILE, description)
  return [
    f'program:     {output / PROGRAM_FILE}',
    f'description: {output / DESCRIPTION_FILE}',
    f'largest difference to the detector: {difference:.0e}',
  ]


def trace(detector: Detector, *, channel_order: str) -> jax.export.Exported:
  """The program, for any number of images of any size."""

  if detector.is_tiled:
    return _export(_tiled(detector, channel_order))
  region = program.fixed_region(detector)

  def look(images: Float[Array, 'b h w 3']) -> program.MapAndScore:
    output = detector.model.apply(detector.folded, images, train=False)
    maps = score.make_map(
      output,
      images,
      map_name=detector.score_map,
      window=detector.score_window,
      region=region,
    )
    way = score.IMAGE_SCORES[detector.score_image]
    if way.compute:
      return maps, way.compute(output)
    return maps, score.score_map(
      maps, map_name=detector.score_map, window=detector.score_window
    )

  predict = program.make_program(look, detector, channel_order=channel_order)
  return _export(predict)


def _tiled(detector: Detector, channel_order: str) -> program.Program:

  def look(
    tiles: Float[Array, 'b h w 3'],
  ) -> tuple[Float[Array, 'b h w'], Float[Array, 'b'] | None]:
    output = detector.model.apply(detector.folded, tiles, train=False)
    decide = score.IMAGE_SCORES[detector.score_image].compute
    maps = score.MAPS[detector.score_map].compute(output, tiles)
    return maps, decide and decide(output)

  return program.make_tiled_program(look, detector, channel_order=channel_order)


def _export(predict: program.Program) -> jax.export.Exported:
  return jax.export.export(jax.jit(predict), platforms=_PLATFORMS)(
    program.symbolic_images()
  )
