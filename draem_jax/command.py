"""How every command starts and ends: flags, log lines, errors, exit status."""

import errno
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from importlib import resources

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_dict, config_flags

from draem_jax import interrupt
from draem_jax.errors import UserError

# What the operating system says when the user can mend it, and how.
_REMEDIES = {
  errno.EACCES: 'allow writing and reading there, or name another folder',
  errno.EPERM: 'allow writing and reading there, or name another folder',
  errno.EROFS: 'name a folder on a disk that can be written',
  errno.ENOSPC: 'free some space, or name a folder on another disk',
  errno.EDQUOT: 'free some space, or name a folder on another disk',
  errno.ENOTDIR: 'a file stands where a folder is wanted: name another folder',
}


class Stopped(Exception):
  """The command ends early and in order, with a message and an exit status."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


def run(main: Callable[[list[str]], None], define: Callable[[], None]) -> None:
  """Runs a command from flags to exit status.

  Args:
    main: what the command does, with the arguments that are no flags.
    define: what defines its flags: only now, since other commands of the same
      process have flags of the same names.
  """
  define()
  app.run(wrap(main), flags_parser=parse_flags)


def required(*names: str) -> None:
  """Raises a `UserError` for the first of these flags that is not given."""
  for name in names:
    if not flags.FLAGS[name].value:
      raise UserError(f'--{name} is missing: see --help')


def refuse_arguments(argv: list[str], hint: str = '') -> None:
  """Raises a `UserError` if there is an argument that is no flag."""
  if len(argv) > 1:
    raise UserError(f'unknown argument {argv[1]!r}: flags begin with --{hint}')


def find_config(path: str) -> str:
  """A config file that is there: an install has no `configs/` of its own.

  Args:
    path: as `--config` has it, such as `configs/mvtec.py:bottle`.
  """
  file, colon, arguments = path.partition(':')
  packaged = resources.files('draem_jax.configs') / pathlib.Path(file).name
  is_preset = pathlib.Path(file).parent.name in ('', 'configs')
  if not os.path.exists(file) and is_preset and packaged.is_file():
    file = str(packaged)
  return file + colon + arguments


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake there is one line and exit status 2."""
  argv = [
    f'--config={find_config(argument[9:])}'
    if argument.startswith('--config=')
    else argument
    for argument in argv
  ]
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(_last_line(error))
  except (AttributeError, KeyError) as error:
    _fail(f'{_named_argument(argv, error)} is no field of the config')
  # A config file may raise anything, and config_flags wraps it in a trace.
  except Exception as error:
    _fail(f'--config: {_last_line(error)}')


def wrap(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Makes `main` end with one line where the user can mend what went wrong."""

  def wrapped(argv: list[str]) -> None:
    _set_up_logging()
    try:
      main(argv)
    except UserError as error:
      _fail(str(error))
    except Stopped as stop:
      print(stop, file=sys.stderr)
      sys.exit(stop.status)
    except interrupt.Interrupted as stop:
      print(stop, file=sys.stderr)
      sys.exit(128 + stop.signal_number)
    except OSError as error:
      if error.errno not in _REMEDIES:
        raise
      _fail(f'{error.filename}: {error.strerror}: {_REMEDIES[error.errno]}')

  return wrapped


def read_config() -> config_dict.ConfigDict:
  """The config that `--config` names, with what the command line assigns.

  Raises:
    UserError: if the file cannot be read.
  """
  config = flags.FLAGS.config
  try:
    config.category  # noqa: B018
  except OSError as error:  # config_flags tells of a missing file only now.
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    raise UserError(
      f'--config={path} cannot be read: name a config file, such as'
      ' configs/demo.py'
    ) from error
  return config


def use_compilation_cache() -> None:
  """Keeps compiled programs, so that the second start is quick.

  They lie in `~/.cache/draem_jax`, or where `JAX_COMPILATION_CACHE_DIR` says.
  """
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(root) / 'draem_jax' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def be_quiet() -> None:
  """Leaves the lines on progress to another process of the same run."""
  logging.getLogger('draem_jax').setLevel(logging.WARNING)


def _set_up_logging() -> None:
  """Our own lines plainly on stderr, those of libraries only if they matter."""
  absl.logging.set_verbosity(absl.logging.ERROR)
  warnings.filterwarnings('ignore', module='orbax')
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(message)s'))
  logger = logging.getLogger('draem_jax')
  logger.handlers = [handler]
  logger.setLevel(logging.INFO)
  logger.propagate = False


def _named_argument(argv: list[str], error: Exception) -> str:
  """The first `--config.name` whose last part the error names."""
  names = [
    argument.split('=', 1)[0]
    for argument in argv
    if argument.startswith('--config.')
  ]
  quoted = [name for name in names if f"'{name.split('.')[-1]}'" in str(error)]
  # A field inside one that does not exist is named by the outer one only.
  return (quoted or names or ['--config'])[0]


def _last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1] if lines else type(error).__name__


def _fail(message: str) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
