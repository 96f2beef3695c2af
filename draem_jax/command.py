"""How every command starts and ends: flags, log lines, errors, exit status."""

import contextlib
import errno
import gc
import itertools
import logging
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_dict, config_flags

from draem_jax import cluster, interrupt, names, sizes, terminal
from draem_jax.errors import UserError
from draem_jax.workdir import bucket

_log = logging.getLogger(__name__)

# It complains while it is imported, where there is no home folder, say.
logging.getLogger('matplotlib').setLevel(logging.ERROR)

# What the operating system says when the user can mend it, and how.
_REMEDIES = {
  errno.EACCES: 'allow writing and reading there, or name another folder',
  errno.EPERM: 'allow writing and reading there, or name another folder',
  errno.EROFS: 'name a folder on a disk that can be written',
  errno.ENOSPC: 'free some space, or name a folder on another disk',
  errno.EDQUOT: 'free some space, or name a folder on another disk',
  errno.ENOTDIR: 'a file stands where a folder is wanted: name another folder',
  errno.EEXIST: 'a file stands where a folder is wanted: name another folder',
  errno.EISDIR: 'a folder stands where a file is wanted: move it away',
  errno.ENOENT: 'put it back, or name another',
  errno.ENAMETOOLONG: 'take a shorter one',
  errno.ELOOP: 'a link leads back to itself: remove it',
  errno.EIO: 'the disk fails: name a folder on another one',
  errno.ESTALE: 'the disk is gone: connect it again',
  errno.EMFILE: 'allow more open files, as with ulimit -n 4096',
  errno.ENFILE: 'close other programs',
}
# By default 700: what JAX makes while it traces would be looked through again
# and again, and little of it is garbage.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000
_LONGEST_CONFIG = 2**20  # Bytes.
_LONGEST_LINE = 1000  # Characters of what is said of a flag.
# Fields of a config that are paths.
_PATHS = ('dir', 'roi', 'tfds_dir', 'textures')
# Height and width for fields that a flag of one type knows as one number or
# as text.
_HEIGHT_AND_WIDTH = re.compile(
  r'--config\.(image_size|data\.resolution)='
  r'[(\[]?\s*(\d+)\s*[,x×]\s*(\d+)\s*,?\s*[)\]]?'
  r'|--config\.(data\.resolution)=(\d+)'
)


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
  gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
  terminal.prepare()
  _check_flagfiles(sys.argv)
  try:
    define()
  except flags.Error as error:  # Of a file of flags, which is read only now.
    _fail(_say(error, sys.argv))
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


def expand(path: str) -> pathlib.Path:
  """The path of a flag, with the home folder for a `~` at its beginning."""
  return pathlib.Path(os.path.expanduser(path))


def expand_place(path: str, flag: str) -> pathlib.PurePath:
  """The path of a flag that takes the URL of a place in a bucket, too.

  Args:
    path: a folder or a URL.
    flag: its name.

  Raises:
    UserError: if libraries cannot write to a folder of this name, or nothing
      of a bucket can have it.
  """
  if bucket.is_url(path):
    return bucket.parse(path)
  # Of what is written by ourselves alone any name will do.
  return expand_workdir(path) if flag == '--workdir' else expand(path)


def expand_workdir(path: str) -> pathlib.Path:
  """The same of a folder that libraries write to.

  Raises:
    UserError: if its name is one that they cannot take, or a URL.
  """
  _refuse_url(path, '--workdir')
  return _check_writable_name(expand(path), '--workdir')


def find_config(path: str) -> str:
  """A config file that is there: an install has no `configs/` of its own.

  Args:
    path: as `--config` has it, such as `configs/mvtec.py:bottle`.
  """
  file, colon, arguments = path.partition(':')
  packaged = resources.files('draem_jax.configs') / pathlib.Path(file).name
  is_preset = pathlib.Path(file).parent.name in ('', 'configs')
  if os.path.exists(file) and not _is_short_file(file):
    _fail(f'--config={path} is not a config file: name one')
  is_packaged = is_preset and os.path.isfile(str(packaged))
  if is_packaged and not os.path.exists(file):
    file = str(packaged)
  return file + colon + arguments


def _is_short_file(path: str) -> bool:
  """Whether this is a file, no device or pipe, of a size that people write."""
  return os.path.isfile(path) and os.path.getsize(path) < _LONGEST_CONFIG


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake there is one line and exit status 2."""
  for argument in argv:
    if '\0' in argument:
      _fail(f'{argument}: no name has a NUL in it: leave it out')
  argv = [
    f'--config={find_config(argument[9:])}'
    if argument.startswith('--config=')
    else argument
    for argument in argv
  ]
  argv, found = _take_sizes(argv)
  try:
    rest = flags.FLAGS(argv)
    for name, size in found.items():
      _assign_size(name, size)
    return rest
  except flags.Error as error:
    _fail(_say(error, argv))
  except (AttributeError, KeyError) as error:
    _fail(f'{_named_argument(argv, error)} is no field of the config')
  # A config file may raise anything, and config_flags wraps it in a trace.
  except Exception as error:
    _fail(f'--config: {_last_line(error)}')


def _take_sizes(
  argv: list[str],
) -> tuple[list[str], dict[str, sizes.Size]]:
  """The arguments without those that are sizes, and the last of each field."""
  found, rest = {}, []
  for argument in argv:
    if match := _HEIGHT_AND_WIDTH.fullmatch(argument):
      name, height, width, *alone = match.groups()
      if name:
        found[name] = sizes.short((int(height), int(width)))
      else:
        found[alone[0]] = int(alone[1])
    else:
      rest.append(argument)
  return rest, found


def _assign_size(name: str, size: sizes.Size) -> None:
  with contextlib.suppress(OSError):  # Of a missing file `read_config` tells.
    config = flags.FLAGS.config
    *parents, last = name.split('.')
    for parent in parents:
      config = config[parent]
    with config.ignore_type():
      config[last] = size


def wrap(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Makes `main` end with one line where the user can mend what went wrong."""

  def wrapped(argv: list[str]) -> None:
    _set_up_logging()
    try:
      main(argv)
    except UserError as error:
      _fail(str(error), error.status)
    except Stopped as stop:
      terminal.complain(*str(stop).split('\n'))
      sys.exit(stop.status)
    except interrupt.Interrupted as stop:
      terminal.complain(str(stop))
      sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
      terminal.complain('stopped')
      sys.exit(128 + signal.SIGINT)
    except OSError as error:
      cluster.end_if_gone(error)
      if error.errno not in _REMEDIES:
        raise
      where = error.filename or _folder()
      _fail(f'{where}: {error.strerror}: {_REMEDIES[error.errno]}')
    except Exception as error:
      cluster.end_if_gone(error)
      raise

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
  for name in _PATHS:
    value = config.data.get(name)
    if isinstance(value, str):
      _refuse_url(value, f'config.data.{name}')
      config.data[name] = os.path.expanduser(value)
  _check_writable_name(config.data.tfds_dir, 'config.data.tfds_dir')
  return config


def use_compilation_cache() -> None:
  """Keeps compiled programs, so that the second start is quick.

  They lie in `~/.cache/draem_jax`, or where `JAX_COMPILATION_CACHE_DIR` says.
  """
  given = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if given and os.path.exists(given) and not os.path.isdir(given):
    _log.warning(
      'compiled programs are not kept: JAX_COMPILATION_CACHE_DIR=%s is no'
      ' folder',
      given,
    )
    jax.config.update('jax_compilation_cache_dir', None)
    return
  if given is None:
    root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = pathlib.Path(root) / 'draem_jax' / 'xla'
    try:
      if not folder.is_absolute():
        raise OSError(errno.ENOENT, 'there is no home folder')
      folder.mkdir(parents=True, exist_ok=True)
      if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
      # Not worth stopping for: in containers it is so as a rule.
      _log.info(
        'compiled programs are not kept (%s: %s): set'
        ' JAX_COMPILATION_CACHE_DIR to a folder for them',
        folder,
        error.strerror,
      )
      return
    jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def be_quiet() -> None:
  """Leaves the lines on progress to another process of the same run."""
  logging.getLogger('draem_jax').setLevel(logging.WARNING)


def _set_up_logging() -> None:
  """Our own lines plainly on stderr, those of libraries only if they matter."""
  absl.logging.set_verbosity(absl.logging.ERROR)
  warnings.filterwarnings('ignore', module='orbax')
  logger = logging.getLogger('draem_jax')
  logger.handlers = [terminal.Handler()]
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


def _check_flagfiles(argv: list[str]) -> None:
  """Ends the command if one would wait for what is no file."""
  for flag, following in itertools.pairwise([*argv, '']):
    name, equals, path = flag.partition('=')
    if name.lstrip('-') == 'flagfile' and name.startswith('-'):
      path = os.path.expanduser(path if equals else following)
      if os.path.exists(path) and not os.path.isfile(path):
        _fail(f'--flagfile={path} is no file: name one')


def _say(error: flags.Error, argv: Sequence[str] = ()) -> str:
  """What is wrong with the flags, in a line that names one."""
  line = _last_line(error)
  if isinstance(error, flags.CantOpenFlagFileError):
    what = line.rpartition('flagfile: ')[2]
    return f'--flagfile: {what}: name a file that can be read'
  # What a config file raised about its argument names no flag.
  files = [flag for flag in argv if flag.lstrip('-').startswith('flagfile')]
  if files and isinstance(error, flags.UnrecognizedFlagError):
    line = f'{line} (in {files[-1]})'
  line = line if '--' in line else f'--config: {line}'
  if len(line) > _LONGEST_LINE:
    half = _LONGEST_LINE // 2
    line = f'{line[:half]}...{line[-half:]}'
  return line


def _last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1] if lines else type(error).__name__


def _fail(message: str, status: int = UserError.status) -> None:
  terminal.complain(f'error: {message}')
  sys.exit(status)


def _check_writable_name(path: Any, field: str) -> Any:
  """The path, unless libraries would write elsewhere or not at all."""
  whole = os.path.abspath(path)
  try:
    whole.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'{field}={path}: its name is no UTF-8, which the libraries that write'
      ' there want: name another folder'
    ) from error
  if mistaken := [letter for letter in names.MISTAKEN if letter in whole]:
    raise UserError(
      f'{field}={path}: the libraries that write there cannot take'
      f' {" ".join(mistaken)} in a name: name another folder'
    )
  return path


def _refuse_url(path: str, field: str) -> None:
  if bucket.is_url(path):
    raise UserError(
      f'{field}={path} is in a bucket, where only main, predict and export have'
      ' --workdir: take a folder, of a mounted disk or of a copy'
    )


def _folder() -> str:
  """Where the command writes: what an error without a name is about."""
  for name in ('output', 'workdir'):
    if name in flags.FLAGS and flags.FLAGS[name].value:
      return flags.FLAGS[name].value
  return 'standard output'  # Or what else has no name.
