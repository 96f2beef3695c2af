"""A detector as an ONNX file, for ONNX Runtime, OpenVINO and their like."""

import pathlib

import jax
import numpy as np
from jaxtyping import Float, UInt8

from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import program
from draem_jax.workdir import storage

FILE = 'detector.onnx'


def write(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes one file with everything in it, run once if ONNX Runtime is there.

  Args:
    detector: what to write.
    output: the folder to write to.
    channel_order: of the images that the file shall expect.
    category: what the detector was trained on.

  Returns:
    Lines that say what was written and how far it is from the detector.

  Raises:
    UserError: if `onnx` is not installed, or cannot hold such a detector.
  """
  serialized = serialize(
    detector, channel_order=channel_order, category=category
  )
  lines = [f'program: {output / FILE}']
  try:
    run = load_onnx_runtime(serialized)
  except ImportError:
    lines.append('not compared to the detector: onnxruntime is not installed')
  else:
    difference = program.largest_difference(
      detector, run, channel_order=channel_order
    )
    lines.append(
      f'largest difference to the detector in ONNX Runtime: {difference:.0e}'
    )
  storage.write_bytes(output / FILE, serialized)
  return lines


def serialize(
  detector: Detector, *, channel_order: str, category: str
) -> bytes:
  """The bytes of the file.

  The networks compute in float32, whatever the detector's dtype. What
  `program.describe` says stands in the metadata, as text.

  Raises:
    UserError: if `onnx` is not installed, or cannot hold such a detector.
  """
  try:
    import onnx
  except ImportError as error:
    raise UserError(
      "--format=onnx needs onnx: pip install 'draem_jax[onnx]'"
    ) from error
  from draem_jax.export import onnx_graph

  model_name = type(detector.model).__name__.lower()
  score_map = detector.score_map
  for what, name, table in (
    ('networks', model_name, onnx_graph.NETWORKS),
    ('anomaly map', score_map, onnx_graph.MAPS),
  ):
    if name not in table:
      raise UserError(
        f'--format=onnx has no {what} {name!r}, only {", ".join(table)}: take'
        ' --format=stablehlo'
      )
  model = onnx_graph.make_model(
    jax.device_get(detector.folded)['params'],
    model_name=model_name,
    score_map=score_map,
    image_size=detector.image_size,
    resize_way=detector.resize,
    resolution=detector.resolution if detector.is_tiled else None,
    score_window=detector.score_window,
    channel_order=channel_order,
    region=program.fixed_region(detector),
  )
  description = program.describe(
    detector, channel_order=channel_order, category=category
  )
  given = {k: str(v) for k, v in description.items() if v is not None}
  onnx.helper.set_model_props(model, given)
  return model.SerializeToString()


def load_onnx_runtime(serialized: bytes) -> program.Run:
  """The program in ONNX Runtime, on the CPU.

  Raises:
    ImportError: if it is not installed.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(
    serialized, providers=['CPUExecutionProvider']
  )
  return lambda images: session.run(program.OUTPUTS, {program.INPUT: images})


def load_openvino(serialized: bytes) -> program.Run:
  """The program in OpenVINO, on the CPU, in float32.

  `write` does not call it, for the import of OpenVINO reports to its makers
  unless they are told not to (`opt_in_out --opt_out`) or `CI` is `true`.

  Raises:
    ImportError: if it is not installed.
  """
  import openvino

  core = openvino.Core()
  # Where the processor can, it would compute in bfloat16.
  options = {'INFERENCE_PRECISION_HINT': 'f32'}
  compiled = core.compile_model(core.read_model(serialized), 'CPU', options)

  def run(
    images: UInt8[np.ndarray, 'b h w 3'],
  ) -> tuple[Float[np.ndarray, 'b h w'], Float[np.ndarray, 'b']]:
    results = compiled(images)
    return tuple(results[name] for name in program.OUTPUTS)

  return run


RUNTIMES = {'ONNX Runtime': load_onnx_runtime, 'OpenVINO': load_openvino}
