"""What a person types, and where a command is started."""

import json
import os
import pathlib
import time

import numpy as np

from draem_jax import config as config_lib

from . import checks
from .judge import CANARY, Case, Wrong
from .mutate import pick
from .place import PREDICT, STUDY, Place, read_rows
from .process import ROOT, Result

_PHOTOS = {'a.png': 'rgb.png', 'z.jpg': 'plain.jpg'}

# No field of numbers takes one of these, but for two, which some may: a pair,
# and a digit of another script, which Python reads.
_PERHAPS = '1,2', '١'
_NO_NUMBERS = (
  *('nan', 'inf', '-inf', '1e400', '-1e400', 'NaN', 'Infinity', '', 'x', '0x'),
  *('1,2', '1..2', '--1', '1 2', '١', 'None', '()', '[]', '{}', '(1', '[nan]'),
  *('(nan, nan)', '(0.0, inf)', '("a", "b")', '(1, None)', '(1, 2, 3, 4)'),
  *('\udcff', 'é' * 200, '9' * 5000, f'__import__("os").mkdir("{CANARY}")'),
)
_NUMBERS = (
  *('-1', '0', '1', '2', '1.5', '-0.0', '1e-400', '1e-45', '1e30', '1e308'),
  *('100000000', '2147483648', '4294967296', '9223372036854775808'),
  *('18446744073709551616', '-9223372036854775809', 'True', '1_000', '(0.5,)'),
  *('(0.7, 0.3)', '(-1e9, 1e9)', '(0, 0)', '(0.5, 0.5)', '()', '1e1000000'),
)
_TEXTS = (
  *(
    '',
    ' ',
    '.',
    '/',
    '/dev/null',
    '/proc/self/mem',
    'none',
    'nan',
    '\n',
    '\0',
  ),
  *('x' * 300, 'x/' * 3000, '~nobody/x', '-', '*', '\udcff', 'é', '%s', 'all'),
  *('draem', 'builtin', 'softmax', 'adam', 'DRAEM', 'None', '["x"]', 'photos'),
)
# A large value is sound there, and takes for ever.
_ENDLESS = 'num_steps', 'num_epochs'


def config(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """A value on the command line for a field of the config."""
  return _config(rng, place, folder, trains=False)


def config_trained(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """The same for two steps of training."""
  return _config(rng, place, folder, trains=True)


def _config(rng, place, folder, *, trains: bool) -> Case:
  place.copy(folder, 'bare', 'tfds')
  (folder / 'bare').rename(folder / 'run')
  name = pick(rng, list(config_lib.FIELDS))
  default = config_lib.FIELDS[name].default
  numeric = not isinstance(default, str)
  values = pick(rng, (_NO_NUMBERS, _NUMBERS) if numeric else (_TEXTS,))
  value = pick(rng, values)
  field = name
  if rng.random() < 0.08:
    field = pick(rng, _no_fields(name))
  elif name in _ENDLESS and value in _NUMBERS[8:]:
    value = '-5'
  arguments = [*place.evaluate(), f'--config.{field}={value}']
  if trains and name not in _ENDLESS:
    arguments.insert(-1, '--config.num_steps=2')
  if not trains and rng.random() < 0.1:
    # Alone, for what is assigned to a field may stand in its way.
    arguments = [pick(rng, _CONFIGS), *arguments[1:-1]]
    field, value = 'config', arguments[0][9:]

  def check(result: Result, folder: pathlib.Path) -> str:
    odd = value in _NO_NUMBERS and value not in _PERHAPS
    if numeric and odd and field == name:
      raise Wrong(f'{name}={value[:40]} is taken')
    found = json.loads((folder / 'run' / 'results.json').read_text())
    if bool(found.get('failure')) != bool(result.status):
      raise Wrong(f'status {result.status}: {found.get("failure")}')
    for key, each in found.items():
      # A threshold may stand just below the least score.
      if isinstance(each, float) and not -1e-30 <= each <= 1:
        raise Wrong(f'{key} is {each} with {name}={value[:40]}')
    return 'clean' if json.dumps(found) == _compact(place.results) else 'other'

  title = f'--config.{field[:40]}={value[:40]}'
  if field == 'config':
    title = arguments[0][:60]
  names = [field.rpartition('.')[2], '--config', 'config.', value or '""']
  if field == 'config':
    names.append('has no category')  # A preset names another one.
  # 1: the training came to nothing.
  ends = (0, 1) if trains else (0,)
  return Case(title, 'main', arguments, check, names, limit=120, statuses=ends)


def _no_fields(name: str) -> tuple[str, ...]:
  return (
    *('', '.', 'x', 'x.y', f'{name}.x', f'{name}.', f'.{name}', f'{name} '),
    *(
      '__class__',
      'lock',
      'to_dict',
      name.upper(),
      f'{name}[0]',
      'é',
      '\udcff',
    ),
    *('data', 'model', 'simulator', 'loss.weights', 'study.rows'),
  )


_CONFIGS = (
  *('--config=', '--config=.', '--config=configs', '--config=none.py'),
  *('--config=/dev/null', '--config=/dev/zero', '--config=run/config.json'),
  *('--config=configs/mvtec.py:', '--config=configs/mvtec.py:,', '--config=\0'),
  *('--config=configs/mvtec.py:part,x', '--config=configs/mvtec.py:part,,'),
  *('--config=configs/demo.py:x', '--config=configs/mvtec.py:a/../part'),
  *('--config=configs/mvtec.py:..', '--config=configs/mvtec.py:../..'),
  *(
    '--config=configs/mvtec.py:/',
    '--config=x' * 3,
    '--config=configs/table3.py',
  ),
  *('--config=\udcff.py', '--config=' + 'x' * 300 + '.py', '--noconfig'),
  '--config=configs/dagm.py:part',
)


def _compact(text: str) -> str:
  return json.dumps(json.loads(text))


def flags(rng: np.random.Generator, place: Place, folder: pathlib.Path) -> Case:
  """A flag of any command with an odd value, or an odd flag."""
  place.copy(folder, 'run')
  _write_photos(place, folder)
  (folder / 'empty').mkdir()
  (folder / 'loop').symlink_to('loop')
  os.mkfifo(folder / 'fifo')
  command = pick(rng, list(_FLAGS))
  arguments = list(_SOUND[command])
  if command in ('main', 'study'):
    arguments += place.evaluate()[1:] if command == 'main' else []
  name = pick(rng, _FLAGS[command])
  value = pick(rng, _VALUES)
  argument = f'--{name}={value}'
  if rng.random() < 0.25:
    argument = pick(rng, _ODD)
    name = argument
  arguments.append(argument)
  if rng.random() < 0.1:
    arguments = [argument]  # Then another one may be what is missing.

  def check(result: Result, folder: pathlib.Path) -> str:
    del result
    tables = [
      p for p in folder.rglob('predictions.csv') if 'run' not in p.parts
    ]
    for table in tables:
      for image, cells in read_rows(table).items():
        picture = _PHOTOS.get(pathlib.Path(image).name)
        # The verdict depends on thresholds, and they may be given.
        if picture is None or cells[0] != place.rows[picture][0]:
          raise Wrong(f'{image} has {cells}')
    return 'other'

  plain = [checks.longest_plain_part(part) for part in (name, value) if part]
  return Case(
    f'{command} {argument[:60]!r}',
    command,
    arguments,
    check,
    [part for part in (*plain, name, value) if part]
    if len(arguments) > 1
    else [],
    variables={'HOME': str(folder / 'empty')},
    statuses=(0, 1),
  )


_SOUND = {
  'predict': PREDICT,
  'main': ('--config=configs/mvtec.py:part,release',),
  'export': ('--workdir=run', '--format=stablehlo', '--output=exported'),
  'import_torch': (
    f'--reconstructive={ROOT}/tests/golden/DRAEM_golden_part_.pckl',
    f'--discriminative={ROOT}/tests/golden/DRAEM_golden_part__seg.pckl',
    '--workdir=imported',
  ),
  'study': (*STUDY, '--list'),
}
_FLAGS = {
  'predict': (
    *('workdir', 'images', 'images', 'images', 'output', 'output'),
    *('threshold', 'pixel_threshold', 'batch_size'),
  ),
  'main': ('workdir', 'config'),
  'export': ('workdir', 'format', 'output', 'channel_order'),
  'import_torch': (
    *('reconstructive', 'discriminative', 'workdir', 'channel_order'),
  ),
  'study': ('workdir', 'rows', 'categories', 'seeds', 'processes', 'only'),
}
_VALUES = (
  *('', ' ', '.', './', '-', '--', '=', ',', '\n', '\0', '\udcff', 'é', '%s'),
  *('nan', 'inf', '-1', '0', '1', '0.5', '1.5', '1e400', '1e-400', 'true'),
  *('9' * 400, 'x' * 300, 'x/' * 3000, 'None', '[]', '0x10', '1_0', '1,2'),
  *('/dev/null', '/dev/full', '/dev/null/x', '/dev/zero', '/proc/self/mem'),
  *(
    '/proc/self/fd/0',
    '/proc/1/root/x',
    '/sys',
    '~',
    '~nobody',
    '~/x',
    '$HOME',
  ),
  *('run', 'run/', 'run/config.json', 'run/checkpoints', 'photos', 'photos/'),
  *('photos/*', 'photos/**', '**/**/**/*', '[', '[!', 'photos/[a', '*' * 60),
  *('photos/a.png', 'photos/a.png/', 'photos/none.png', './photos/../photos'),
  *('empty', 'loop', 'fifo', 'fifo/x', 'file:///x', 'gs://x/y', 's3://x/y'),
  *(
    'http://localhost:1/x',
    'photos/{a,z}.*',
    'photos\\a.png',
    'out/predictions',
  ),
)
_ODD = (
  *('--flagfile=none', '--flagfile=photos', '--flagfile=/dev/zero'),
  *('--flagfile=fifo', '--flagfile=loop', '--flagfile=run/config.json'),
  *('--undefok=x', '--x', '--x=1', '--', '-', '---', '--=', '--\udcff', '-h'),
  *('--help', '--helpfull', '--helpshort', '--help=x', '--noworkdir', 'x', ''),
  *(
    '--verbosity=99',
    '--verbosity=x',
    '--log_dir=none',
    '--workdir',
    '-workdir',
  ),
  *('--only_check_args', '--nothreshold', '--thresh=1', '--images', '\0'),
  *('--stderrthreshold=x', '--logtostderr', '--alsologtostderr', '--v=9'),
  *('--showprefixforinfo=x', '--helpxml', '--version', '--xla_flags=x'),
)


def streams(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Closed streams, poor environments, and folders that forbid things."""
  place.copy(folder, 'run')
  _write_photos(place, folder)
  title = pick(rng, list(_STREAMS))
  prefix, variables = _STREAMS[title]
  prefix = [word.replace('HERE', str(folder)) for word in prefix]
  check = checks.table(place, _PHOTOS)
  if title == 'ASCII':
    name = 'Größe\udcff.png'
    (folder / 'photos' / name).write_bytes(place.picture('gray.png'))
    check = checks.table(place, _PHOTOS | {name: 'gray.png'})

  def even_if_closed(result: Result, folder: pathlib.Path) -> str:
    return check(result._replace(status=0), folder)

  return Case(
    title,
    'predict',
    PREDICT,
    even_if_closed,
    variables=variables,
    prefix=prefix,
    limit=120,
    statuses=(0, 1, 120) if 'std' in title else (0,),
  )


def _shell(script: str) -> tuple[str, ...]:
  return 'bash', '-c', script, 'bash'


_ASCII = {
  'LC_ALL': 'C',
  'LANG': 'C',
  'PYTHONUTF8': '0',
  'PYTHONCOERCECLOCALE': '0',
  'PYTHONIOENCODING': 'ascii',
}
_STREAMS: dict[str, tuple[tuple[str, ...], dict[str, str | None]]] = {
  'no stdout': (_shell('exec "$@" >&-'), {}),
  'no stderr': (_shell('exec "$@" 2>&-'), {}),
  'no stdin': (_shell('exec "$@" <&-'), {}),
  'no streams': (_shell('exec "$@" <&- >&- 2>&-'), {}),
  'full stdout': (_shell('exec "$@" >/dev/full'), {}),
  'full stderr': (_shell('exec "$@" 2>/dev/full'), {}),
  'stdout that nobody reads': (
    _shell('"$@" | true; exit ${PIPESTATUS[0]}'),
    {},
  ),
  'stderr that nobody reads': (
    *(_shell('"$@" 2> >(true); status=$?; wait; exit $status'), {}),
  ),
  'ASCII': ((), _ASCII),
  'no HOME': ((), {'HOME': None, 'XDG_CACHE_HOME': None}),
  'HOME that is not there': ((), {'HOME': '/nonexistent'}),
  'HOME that cannot be written': (
    *((), {'HOME': '/proc', 'JAX_COMPILATION_CACHE_DIR': None}),
  ),
  'no place for temporary files': ((), {'TMPDIR': '/nonexistent'}),
  'a cache that is a file': ((), {'JAX_COMPILATION_CACHE_DIR': '/dev/null'}),
  'umask 077': (_shell('umask 077; exec "$@"'), {}),
  'umask 777': (_shell('umask 777; exec "$@"'), {}),
  'few open files': (_shell('ulimit -n 64; exec "$@"'), {}),
  'a folder that is gone': (
    *(_shell('mkdir gone; cd gone; rmdir ../gone; exec "$@"'), {}),
  ),
  'a terminal of no width': ((), {'COLUMNS': '0', 'TERM': 'dumb'}),
  'only a GPU': ((), {'JAX_PLATFORMS': 'cuda'}),
  'no such platform': ((), {'JAX_PLATFORMS': 'none'}),
}


def _write_photos(place: Place, folder: pathlib.Path) -> None:
  (folder / 'photos').mkdir()
  for name, picture in _PHOTOS.items():
    (folder / 'photos' / name).write_bytes(place.picture(picture))


# What the fuzzer must find, for a fuzzer that finds nothing proves nothing.


def _raise() -> None:
  raise ValueError('x')


def _fill() -> None:
  kept = []
  while True:
    kept.append(np.ones(1 << 24))


def _leave() -> None:
  pathlib.Path('.x.png.part').touch()
  print('error: x.png', file=os.sys.stderr)
  raise SystemExit(2)


def _say(text: str, status: int = 2):
  def say() -> None:
    print(text, file=os.sys.stderr)
    raise SystemExit(status)

  return say


def _check_nothing(result: Result, folder: pathlib.Path) -> str:
  raise Wrong('no table')


TRAPS = {
  'executed': lambda: pathlib.Path(CANARY).touch(),
  'hung': lambda: time.sleep(100),
  'memory': _fill,
  'crash': lambda: os.kill(os.getpid(), 11),
  'traceback': _raise,
  'wrong': lambda: None,
  'unnamed': _say('error: y.png'),
  'message': _say('error: x.png\nerror: x.png'),
  'left over': _leave,
  'refused': _say('error: x.png cannot be read'),
}


def traps(rng: np.random.Generator, place: Place, folder: pathlib.Path) -> Case:
  """One of the things that must be found."""
  del place, folder
  title = pick(rng, list(TRAPS))
  return trap(title)


def trap(title: str) -> Case:
  """What must have the verdict that it is called by."""
  limit = 2.0 if title == 'hung' else 60.0
  return Case(title, TRAPS[title], (), _check_nothing, ['x.png'], limit=limit)
