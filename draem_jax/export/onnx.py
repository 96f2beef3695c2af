"""A detector as an ONNX file, for ONNX Runtime, OpenVINO and their like."""

import importlib
import logging
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from draem_jax import score, workdir
from draem_jax.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import channels_first, program

FILE = 'detector.onnx'
_OPSET = 18

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def write(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes one file with everything in it, and runs it in each runtime here.

  Args:
    detector: what to write.
    output: the folder to write to.
    channel_order: of the images that the file shall expect.
    category: what the detector was trained on.

  Returns:
    Lines that say what was written and how far it is from the detector.

  Raises:
    UserError: if `jax2onnx` is not installed.
  """
  serialized = serialize(
    detector, channel_order=channel_order, category=category
  )
  lines = [f'program: {output / FILE}']
  for name, load in RUNTIMES.items():
    try:
      run = load(serialized)
    except ImportError:
      continue
    difference = program.largest_difference(
      detector, run, channel_order=channel_order
    )
    lines.append(
      f'largest difference to the detector in {name}: {difference:.0e}'
    )
  workdir.write_bytes(output / FILE, serialized)
  return lines


def serialize(
  detector: Detector, *, channel_order: str, category: str
) -> bytes:
  """The bytes of the file.

  The networks compute in float32, whatever the detector's dtype. What
  `program.describe` says stands in the metadata, as text.

  Raises:
    UserError: if `jax2onnx` is not installed.
  """
  try:
    jax2onnx, onnx = map(importlib.import_module, ('jax2onnx', 'onnx'))
  except ImportError as error:
    raise UserError(
      f'--format=onnx needs {error.name}: pip install jax2onnx'
    ) from error
  # It warns of each shape that it leaves to the runtime.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  networks = channels_first.make_networks(jax.device_get(detector.folded))
  model = jax2onnx.to_onnx(
    program.make_program(
      networks,
      detector,
      channel_order=channel_order,
      image_score=_image_score,
    ),
    [program.symbolic_images()],
    model_name='draem',
    opset=_OPSET,
    input_names=[program.INPUT],
    output_names=list(program.OUTPUTS),
  )
  description = program.describe(
    detector, channel_order=channel_order, category=category
  )
  given = {k: str(v) for k, v in description.items() if v is not None}
  onnx.helper.set_model_props(model, given)
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _image_score(
  anomaly_map: Float[Array, 'b h w'], *, window: int
) -> Float[Array, 'b']:
  # Of an Einsum with an ellipsis, runtimes take the batch for 1.
  rows, columns = (
    score.window_mean(size, window, np.float32)
    for size in anomaly_map.shape[1:]
  )
  means = jnp.matmul(rows, jnp.matmul(anomaly_map, columns))
  return means.max(axis=(1, 2))


def load_onnx_runtime(serialized: bytes) -> Run:
  """The program in ONNX Runtime, on the CPU.

  Raises:
    ImportError: if it is not installed.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(
    serialized, providers=['CPUExecutionProvider']
  )
  return lambda images: session.run(program.OUTPUTS, {program.INPUT: images})


def load_openvino(serialized: bytes) -> Run:
  """The program in OpenVINO, on the CPU, in float32.

  Raises:
    ImportError: if it is not installed.
  """
  # Otherwise its import would fork, and report the import to its makers.
  sys.modules.setdefault('openvino_telemetry', None)
  import openvino

  core = openvino.Core()
  # Where the processor can, it would compute in bfloat16.
  options = {'INFERENCE_PRECISION_HINT': 'f32'}
  compiled = core.compile_model(core.read_model(serialized), 'CPU', options)

  def run(images):
    results = compiled(images)
    return tuple(results[name] for name in program.OUTPUTS)

  return run


RUNTIMES = {'ONNX Runtime': load_onnx_runtime, 'OpenVINO': load_openvino}
