"""The command that looks at a folder of images before anyone trains.

python -m draem_jax.data --check=DATA
"""

import pathlib

from absl import flags

from draem_jax import command, interrupt, names, terminal
from draem_jax.data import checking, layouts
from draem_jax.errors import UserError


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'check', None, 'Folder of categories, or a category, to look at.'
  )
  flags.DEFINE_enum(
    'layout',
    layouts.AUTO,
    [layouts.AUTO, *layouts.LAYOUTS],
    'How the files lie; auto finds out.',
  )


def main(argv: list[str]) -> None:
  """Says what the folder is taken for, and what is odd or broken in it."""
  command.refuse_arguments(argv)
  command.required('check')
  folder = command.expand(flags.FLAGS.check)
  if not folder.is_dir():
    raise UserError(f'--check={folder} is not a folder: name one of images')
  with interrupt.raised(notice='stopping', message='stopped'):
    broken = _check(folder, flags.FLAGS.layout)
  if broken:
    raise command.Stopped(f'broken: {broken}, see above', 1)


def _check(folder: pathlib.Path, layout: str) -> int:
  """Writes the findings; returns how many things are broken."""
  try:
    found = checking.find(folder, layout=layout)
  except UserError as error:
    terminal.say(f'  broken: {error}')
    return 1
  odd = broken = 0
  for name, place in found.items():
    if isinstance(place, UserError):
      findings = checking.Findings([f'{names.shown(name)}:'])
      findings.broken.append(str(place))
    else:
      findings = checking.check(name, place)
    terminal.say(
      *findings.lines,
      *(f'  odd: {line}' for line in findings.odd),
      *(f'  broken: {line}' for line in findings.broken),
    )
    odd += len(findings.odd)
    broken += len(findings.broken)
  kinds = 'category' if len(found) == 1 else 'categories'
  terminal.say(f'{len(found)} {kinds}, {odd} odd, {broken} broken')
  return broken


def run() -> None:
  """The console entry point `draem-data`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
