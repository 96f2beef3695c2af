"""The commands: imported together, found in an install, refusing mistakes."""

import errno
import importlib
import importlib.metadata
import logging
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags

from draem_jax import command, interrupt
from draem_jax.configs import demo
from draem_jax.errors import UserError

COMMANDS = (
  *('main', 'predict', 'figures', 'import_torch', 'export.__main__'),
  'data.__main__',
)


def test_all_commands_can_be_imported_in_one_process():
  for name in COMMANDS:
    module = importlib.import_module(f'draem_jax.{name}')
    assert callable(module.run)
  assert 'workdir' not in flags.FLAGS


# What takes long to import, and is not needed to read flags.
SLOW = {
  'IPython',
  'matplotlib',
  'orbax.checkpoint',
  'pandas',
  'scipy.ndimage',
  'sklearn',
  'tensorboardX',
  'tensorflow_datasets',
  'tensorstore',
  'torch',
}


def test_commands_import_what_is_slow_only_when_they_need_it():
  code = """
import sys
from draem_jax import main, predict, study
from draem_jax.export import __main__
print(*sys.modules)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], text=True, capture_output=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  found = set(done.stdout.split())
  assert 'draem_jax.training.train' in found
  assert not SLOW & found


def test_the_console_entry_points_are_there():
  scripts = importlib.metadata.entry_points(group='console_scripts')
  found = {
    script.name: script.load()
    for script in scripts
    if script.name.startswith('draem-')
  }
  assert set(found) == {
    'draem-train',
    'draem-data',
    'draem-predict',
    'draem-export',
    'draem-figures',
    'draem-import-torch',
    'draem-study',
    'draem-serve',
  }
  assert all(callable(run) for run in found.values())


def test_an_install_finds_the_configs_it_came_with(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = command.find_config('configs/demo.py:fast')
  path, _, arguments = found.rpartition(':')
  assert pathlib.Path(path) == pathlib.Path(demo.__file__)
  assert arguments == 'fast'
  assert command.find_config('elsewhere/demo.py') == 'elsewhere/demo.py'
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'demo.py').touch()
  assert command.find_config('configs/demo.py') == 'configs/demo.py'


def test_outside_a_checkout_the_config_is_read(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'draem_jax.main'),
      *('--config=configs/mvtec.py:cup', '--config.image_size=33'),
    ],
    cwd=tmp_path,
    text=True,
    capture_output=True,
    timeout=300,
  )
  assert done.returncode == 2
  assert 'config.image_size=33' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
  ('failure', 'status', 'words'),
  [
    (UserError('a: remedy'), 2, 'error: a: remedy'),
    (command.Stopped('some are broken', 1), 1, 'some are broken'),
    (interrupt.Interrupted(15, 'saved'), 143, 'saved'),
    (KeyboardInterrupt(), 130, 'stopped'),
    (UserError('two\nlines \udce9'), 2, r'error: two\nlines \xe9'),
    (
      OSError(errno.ENAMETOOLONG, 'File name too long', 'xxx'),
      2,
      'error: xxx: File name too long: take a shorter one',
    ),
  ],
)
def test_how_a_command_ends(failure, status, words, capsys):
  def main(argv):
    raise failure

  with pytest.raises(SystemExit) as end:
    command.wrap(main)([])
  assert end.value.code == status
  assert capsys.readouterr().err.strip() == words


def test_a_tilde_is_the_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert command.expand('~/runs') == pathlib.Path('/home/somebody/runs')
  assert command.expand_workdir('~/runs') == command.expand('~/runs')


@pytest.mark.parametrize('name', ['a[1]', 'a\\b', 'a\udce9', 'a**b'])
def test_a_workdir_that_libraries_mistake_is_refused(name):
  with pytest.raises(UserError, match=r'--workdir=/x/a.*name another folder'):
    command.expand_workdir(f'/x/{name}')


def test_no_flag_has_a_nul_in_it(capsys):
  with pytest.raises(SystemExit) as end:
    command.parse_flags(['main', '--workdir=a\0b'])
  assert end.value.code == 2
  assert capsys.readouterr().err.startswith(r'error: --workdir=a\x00b: ')


def test_without_a_home_folder_nothing_is_kept(monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(jax.config, 'update', lambda *given: kept.append(given))
  monkeypatch.setattr(logging.getLogger('draem_jax'), 'propagate', True)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  # As where a user without a home folder runs a container.
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  kept = []
  with caplog.at_level('INFO'):
    command.use_compilation_cache()
  assert 'jax_compilation_cache_dir' not in dict(kept)
  assert 'there is no home folder' in caplog.text
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  command.use_compilation_cache()
  assert 'jax_compilation_cache_dir' not in dict(kept)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  command.use_compilation_cache()
  assert dict(kept)['jax_compilation_cache_dir'] == str(
    tmp_path / 'cache/draem_jax/xla'
  )


def test_a_config_that_is_no_file_is_not_read(tmp_path, capsys):
  os.mkfifo(tmp_path / 'pipe.py')
  (tmp_path / 'long.py').write_bytes(b'#' * 2**21)
  for path in (
    '/dev/zero',
    tmp_path,
    tmp_path / 'pipe.py',
    tmp_path / 'long.py',
  ):
    with pytest.raises(SystemExit) as end:
      command.find_config(str(path))
    assert end.value.code == 2
    assert f'--config={path}' in capsys.readouterr().err


def test_an_unknown_preset_and_an_endless_name_are_one_line(capsys):
  command.find_config('x' * 5000)
  packaged = command.find_config('configs/mvtec.py:part,nothing')
  program = (
    'from draem_jax import command, main; main.define_flags();'
    f' command.parse_flags(["main", "--config={packaged}"])'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], text=True, capture_output=True
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: --config') and 'nothing' in line


def test_a_file_of_flags_that_cannot_be_read_is_named(capsys, tmp_path):
  missing = tmp_path / 'flags.txt'

  def define():
    flags.FLAGS.read_flags_from_files([f'--flagfile={missing}'])

  with pytest.raises(SystemExit) as stop:
    command.run(lambda argv: None, define)
  assert stop.value.code == 2
  line = capsys.readouterr().err
  assert line.startswith('error: --flagfile: ') and str(missing) in line
  assert line.count('\n') == 1


def test_a_message_about_a_flag_is_not_as_long_as_its_value():
  error = flags.IllegalFlagValueError(f'flag --seed={"9" * 5000}: no number')
  line = command._say(error)
  assert len(line) < 1100
  assert line.startswith('flag --seed=99') and line.endswith(': no number')


def test_programs_are_not_kept_in_a_file(monkeypatch, caplog, tmp_path):
  (tmp_path / 'a').write_text('')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'a'))
  monkeypatch.setattr(logging.getLogger('draem_jax'), 'propagate', True)
  before = jax.config.jax_compilation_cache_dir
  try:
    command.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert 'is no folder' in caplog.text


def test_a_file_of_flags_that_is_no_file_is_not_waited_for(capsys, tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for argv in ([f'--flagfile={tmp_path}/pipe'], ['-flagfile', str(tmp_path)]):
    with pytest.raises(SystemExit) as stop:
      command._check_flagfiles(['main', *argv])
    assert stop.value.code == 2
    assert 'is no file: name one' in capsys.readouterr().err
  (tmp_path / 'flags').write_text('')
  command._check_flagfiles(['main', f'--flagfile={tmp_path}/flags', '-x'])


def test_an_unknown_flag_in_a_file_of_flags_names_the_file():
  error = flags.UnrecognizedFlagError('x')
  assert command._say(error, ['main', '--flagfile=a.txt']).endswith(
    '(in --flagfile=a.txt)'
  )
