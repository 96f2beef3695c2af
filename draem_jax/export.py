"""The command that writes the networks of a run for other programs.

python -m draem_jax.export --workdir=runs/bottle --format=torch --output=out/

`torch` is the pair of state dicts of the PyTorch release. `stablehlo` is one
file that holds network and weights and that needs no more than JAX and
`flatbuffers`:

  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  anomaly_map, score = exported.call(images)  # uint8 [b, size, size, 3], RGB
"""

import pathlib
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from draem_jax import command, import_torch, models
from draem_jax import workdir as workdir_lib
from draem_jax.detector import Detector
from draem_jax.errors import UserError

STABLEHLO_FILE = 'detector.stablehlo'
STABLEHLO_DESCRIPTION = 'detector.json'
_PLATFORMS = ('cpu', 'cuda', 'tpu')


def write_torch(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes the state dicts that the PyTorch release loads.

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
  import_torch.save_torch_checkpoint(
    detector.variables, *paths, channel_order=channel_order
  )
  return [f'reconstructive: {paths[0]}', f'discriminative: {paths[1]}']


def write_stablehlo(
  detector: Detector, output: pathlib.Path, *, channel_order: str, category: str
) -> list[str]:
  """Writes a program for batches of any size, and what to know about it.

  The program takes prepared images, uint8 [b, size, size, 3], and returns the
  anomaly map [b, size, size] and the score [b], both in [0, 1], for CPUs,
  NVIDIA GPUs and TPUs.

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

  def predict(images):
    images = images[..., ::-1] if channel_order == 'bgr' else images
    output = detector.model.apply(
      detector.variables, images.astype(jnp.float32) / 255, train=False
    )
    anomaly_map = models.anomaly_map(output.logits)
    window = detector.score_window
    return anomaly_map, models.image_score(anomaly_map, window=window)

  size = detector.image_size
  (batch,) = jax.export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
  exported = jax.export.export(jax.jit(predict), platforms=_PLATFORMS)(images)
  try:
    serialized = exported.serialize()
  except ImportError as error:
    raise UserError(
      '--format=stablehlo needs flatbuffers: pip install flatbuffers'
    ) from error
  (output / STABLEHLO_FILE).write_bytes(serialized)
  thresholds = detector.thresholds
  workdir_lib.write_json(
    output / STABLEHLO_DESCRIPTION,
    {
      'category': category,
      'image_size': size,
      'channel_order': channel_order,
      'score_window': detector.score_window,
      'image_threshold': thresholds and thresholds.image,
      'pixel_threshold': thresholds and thresholds.pixel,
      'platforms': _PLATFORMS,
      'jax_version': jax.__version__,
      'calling_convention_version': exported.calling_convention_version,
    },
  )
  difference = _largest_difference(detector, serialized, channel_order)
  return [
    f'program:     {output / STABLEHLO_FILE}',
    f'description: {output / STABLEHLO_DESCRIPTION}',
    f'largest difference to the detector: {difference:.0e}',
  ]


def _largest_difference(
  detector: Detector, serialized: bytearray, channel_order: str
) -> float:
  """Of map and score, on two images of random blocks."""
  size = detector.image_size
  blocks = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  images = np.stack([detector.prepare(image) for image in blocks])
  expected = detector.score_all(images)
  exported = jax.export.deserialize(serialized)
  images = images[..., ::-1] if channel_order == 'bgr' else images
  anomaly_map, score = exported.call(np.ascontiguousarray(images))
  assert anomaly_map.shape == (2, size, size)
  return max(
    float(np.abs(anomaly_map - expected.anomaly_map).max()),
    float(np.abs(score - expected.score).max()),
  )


# A writer and the order of channels that its users expect.
FORMATS: dict[str, tuple[Callable[..., list[str]], str]] = {
  'torch': (write_torch, 'bgr'),
  'stablehlo': (write_stablehlo, 'rgb'),
}


def main(argv: list[str]) -> None:
  """Writes the run that the flags name in the format that they name."""
  if len(argv) > 1:
    raise UserError(f'unknown argument {argv[1]!r}: flags begin with --')
  given = flags.FLAGS
  for name in ('workdir', 'format', 'output'):
    if not given[name].value:
      raise UserError(f'--{name} is missing: see --help')
  workdir, output = (
    pathlib.Path(path).expanduser() for path in (given.workdir, given.output)
  )
  detector = Detector.load(workdir)
  category = workdir_lib.read_config(workdir).get('category', 'model')
  if output.exists() and not output.is_dir():
    raise UserError(f'--output={output} is a file: name a folder')
  output.mkdir(parents=True, exist_ok=True)
  write, channel_order = FORMATS[given.format]
  for line in write(
    detector,
    output,
    channel_order=given.channel_order or channel_order,
    category=category,
  ):
    print(line)


def run() -> None:
  """The console entry point."""
  # Not where the module is imported, for other commands have such flags, too.
  flags.DEFINE_string('workdir', None, 'Folder of the trained run.')
  flags.DEFINE_enum('format', None, list(FORMATS), 'What to write.')
  flags.DEFINE_string('output', None, 'Folder to write to.')
  flags.DEFINE_enum(
    'channel_order',
    None,
    import_torch.CHANNEL_ORDERS,
    'Of the images that what is written shall expect; by default bgr for torch,'
    ' as the release feeds them, and rgb for others.',
  )
  app.run(command.wrap(main), flags_parser=command.parse_flags)


if __name__ == '__main__':
  run()
