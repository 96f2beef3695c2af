"""The command that writes a trained detector for other programs.

python -m draem_jax.export --workdir=runs/bottle --format=onnx --output=out/

`torch` is the pair of state dicts of the PyTorch release. `stablehlo` and
`onnx` are whole detectors: from images of any size to maps and scores.
"""

from collections.abc import Callable

from absl import flags

from draem_jax import command, devices, terminal
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx, stablehlo, torch
from draem_jax.torch_weights import convert
from draem_jax.workdir import claim, mirror, storage

# A writer and the order of channels that its users expect.
FORMATS: dict[str, tuple[Callable[..., list[str]], str]] = {
  'torch': (torch.write, 'bgr'),
  'stablehlo': (stablehlo.write, 'rgb'),
  'onnx': (onnx.write, 'rgb'),
}


def main(argv: list[str]) -> None:
  """Writes the run that the flags name in the format that they name."""
  command.refuse_arguments(argv)
  command.required('workdir', 'format', 'output')
  given = flags.FLAGS
  workdir = command.expand_place(given.workdir, '--workdir')
  output = command.expand_place(given.output, '--output')
  devices.find()
  with mirror.read(workdir) as folder:
    detector = Detector.load(folder)
    category = claim.read_config(folder)['category']
  with mirror.written(output, wanted=lambda name: False) as folder:
    if folder.exists() and not folder.is_dir():
      raise UserError(f'--output={folder} is a file: name a folder')
    storage.clear_partial(folder)
    write, channel_order = FORMATS[given.format]
    for line in write(
      detector,
      folder,
      channel_order=given.channel_order or channel_order,
      category=category,
    ):
      terminal.say(line)


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'workdir', None, 'Folder of the trained run, or gs://… or s3://….'
  )
  flags.DEFINE_enum('format', None, list(FORMATS), 'What to write.')
  flags.DEFINE_string(
    'output', None, 'Folder to write to, or gs://… or s3://….'
  )
  flags.DEFINE_enum(
    'channel_order',
    None,
    convert.CHANNEL_ORDERS,
    'Of the images that what is written shall expect; by default bgr for torch,'
    ' as the release feeds them, and rgb for others.',
  )


def run() -> None:
  """The console entry point `draem-export`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
