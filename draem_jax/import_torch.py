"""The command that turns a published PyTorch checkpoint into one of ours.

python -m draem_jax.import_torch --reconstructive=DRAEM_..._bottle_.pckl \
    --discriminative=DRAEM_..._bottle__seg.pckl --workdir=runs/bottle
"""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from draem_jax import command, devices, terminal
from draem_jax.torch_weights.convert import (
  CHANNEL_ORDERS,
  load_torch_checkpoint,
  widths,
)
from draem_jax.training import train


def write_workdir(
  variables: Mapping[str, Any], workdir: str | os.PathLike
) -> None:
  """Writes the networks as a run that `main`, `predict` and `export` take.

  Args:
    variables: `params` and `batch_stats`.
    workdir: a folder that holds no run yet.

  Raises:
    UserError: if it holds one.
  """
  reconstructive, discriminative = widths(variables)
  config = {
    # What the published networks were trained and are evaluated with.
    'category': 'model',
    'image_size': 256,
    'score_window': 21,
    'dtype': 'float32',
    'model': {
      'reconstructive_width': reconstructive,
      'discriminative_width': discriminative,
    },
    'eval': {'batch_size': 16},
  }
  train.save_imported(workdir, variables, config)


def main(argv: list[str]) -> None:
  """Imports the pair that the flags name."""
  command.refuse_arguments(argv)
  command.required('reconstructive', 'discriminative', 'workdir')
  given = flags.FLAGS
  workdir = command.expand_workdir(given.workdir)
  devices.find()
  variables = load_torch_checkpoint(
    given.reconstructive,
    given.discriminative,
    channel_order=given.channel_order,
  )
  write_workdir(variables, workdir)
  reconstructive, discriminative = widths(variables)
  terminal.say(
    f'imported networks of widths {reconstructive} and {discriminative}',
    f'workdir:  {workdir}',
    'evaluate: python -m draem_jax.main'
    ' --config=configs/mvtec.py:CATEGORY,release'
    f' --workdir={workdir} --config.num_epochs=0'
    f' --config.model.reconstructive_width={reconstructive}'
    f' --config.model.discriminative_width={discriminative}',
  )


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'reconstructive', None, 'State dict of the reconstructive network.'
  )
  flags.DEFINE_string(
    'discriminative', None, 'State dict of the discriminative network.'
  )
  flags.DEFINE_string('workdir', None, 'Folder of the run to write.')
  flags.DEFINE_enum(
    'channel_order',
    'bgr',
    CHANNEL_ORDERS,
    'Of the images that the networks were trained on; the published ones: bgr.',
  )


def run() -> None:
  """The console entry point `draem-import-torch`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
