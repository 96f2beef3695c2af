"""Checks that the lowest versions that setup.cfg claims do work.

    python .ci/floors.py

Installs exactly these in a fresh environment, trains the demo for ten steps at
a tiny size, and exports it. The floors are those of `install_requires` and of
the extras that the exports need; the newest versions are what the tests run on.

Only what setup.cfg names stands at its floor; what that needs in turn is as new
as pip finds it, as for a user with one old package. So a floor can break by a
release of a third package, as TFDS 4.9.9 did by protobuf 7. Raise the floor
then, or, where there is none that works, name the third package in setup.cfg
with a bound.
"""

import configparser
import os
import pathlib
import re
import shlex
import subprocess
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXTRAS = ('export', 'onnx')
DEMO = {
  'image_size': 32,
  'model.reconstructive_width': 4,
  'model.discriminative_width': 2,
  'batch_size': 2,
  'num_steps': 10,
  'log_every': 5,
  'checkpoint_every': 5,
}


def read_floors(path: pathlib.Path) -> dict[str, str]:
  """The lowest version of each package that a setup.cfg claims."""
  config = configparser.ConfigParser()
  config.read(path)
  extras = config['options.extras_require']
  lines = config['options']['install_requires'].split()
  lines += [line for extra in EXTRAS for line in extras[extra].split()]
  floors = {}
  for line in lines:
    match = re.fullmatch(r'([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)', line)
    if not match:
      raise SystemExit(f'{path}: {line!r} is not of the kind name>=version')
    floors[match[1]] = match[2]
  return floors


def run(*command: str | pathlib.Path, **environment: str) -> None:
  """Runs a command; its output is shown only if it fails."""
  found = subprocess.run(
    command,
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  if found.returncode:
    print(found.stdout)
    line = shlex.join(map(str, command))
    raise SystemExit(f'floors of setup.cfg fail: {line}')


def main() -> None:
  """Installs, trains and exports."""
  floors = read_floors(ROOT / 'setup.cfg')
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    venv.create(folder / 'environment', with_pip=True)
    python = folder / 'environment' / 'bin' / 'python'
    constraints = folder / 'floors.txt'
    constraints.write_text(
      ''.join(f'{package}=={floor}\n' for package, floor in floors.items())
    )
    package = f'.[{",".join(EXTRAS)}]'
    pip = (python, '-m', 'pip', 'install', '--quiet')
    run(*pip, '--constraint', constraints, '--editable', package)
    quick = {
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
      'XDG_CACHE_HOME': str(folder / 'cache'),
    }
    workdir = f'--workdir={folder / "run"}'
    fields = [f'--config.{field}={value}' for field, value in DEMO.items()]
    demo = ('draem_jax.main', '--config=configs/demo.py', *fields)
    run(python, '-m', *demo, workdir, **quick)
    for format_name in ('onnx', 'stablehlo'):
      export = ('draem_jax.export', f'--format={format_name}')
      output = f'--output={folder / format_name}'
      run(python, '-m', *export, workdir, output, **quick)
  versions = ', '.join(f'{name} {floor}' for name, floor in floors.items())
  print(f'floors of setup.cfg: {versions}: all work')


if __name__ == '__main__':
  main()
