"""Files that a person gives: images, masks, names, weights of PyTorch."""

import io
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import unicodedata
import zipfile
import zlib

import numpy as np
from PIL import Image

from draem_jax.data.images import SUFFIXES

from . import checks, mutate
from .judge import CANARY, Case, Wrong
from .mutate import pick, png_chunk
from .place import (
  DEFECTS,
  EVALUATE,
  PREDICT,
  TABLE,
  Place,
  digest,
  read_rows,
  truth,
)
from .process import ROOT, Result, fork

# Sound images beside the damaged one: those before and behind it in the table.
_SOUND = {'a.png': 'rgb.png', 'z.jpg': 'plain.jpg'}


def images(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """An odd file among the images to score."""
  place.copy(folder, 'run')
  _write_sound(place, folder)
  originals = sorted(place.rows)
  original = pick(rng, originals)
  data = place.picture(original)
  name = 'odd' + pathlib.Path(original).suffix
  variables, limit, must_score = {}, 60.0, False
  way = rng.random()
  if way < 0.6:
    title = f'damaged bytes of {original}'
    data = mutate.damage(rng, data, place.picture(pick(rng, originals)))
    if rng.random() < 0.2:
      name = 'odd' + pick(rng, sorted(SUFFIXES))
  elif way < 0.7:
    title, data = pick(rng, _CLAIMS)(rng)
    original = ''
  elif way < 0.8:
    title, data, original = _side_chunk(rng, place)
    name = 'odd' + pathlib.Path(original).suffix
    must_score = True
  elif way < 0.9:
    original = ''
    title, data = _foreign(rng)
    name = 'odd' + pick(rng, sorted(SUFFIXES))
    variables = _false_ghostscript(folder)
  else:
    original, data = '', b''
    name = 'odd' + pick(rng, sorted(SUFFIXES))
    title = _special(rng, folder / 'photos' / name)
  path = folder / 'photos' / name
  if data:
    path.write_bytes(data)
  doubtful = '' if path.is_dir() or not os.path.lexists(path) else name
  check = checks.table(place, _SOUND, doubtful=doubtful, original=original)
  if must_score:
    pictures = _SOUND | {name: original}
    check = checks.table(place, pictures)
  return Case(
    title,
    'predict',
    PREDICT,
    check,
    variables=variables,
    limit=limit,
    statuses=(0, 1),
  )


def large_image(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """A genuine picture of many megapixels, which is to be scored."""
  place.copy(folder, 'run')
  _write_sound(place, folder)
  side = pick(rng, (4000, 7000, 9400, 13000))
  kind = pick(rng, ('png', 'jpg', 'tif'))
  rows = rng.integers(0, 256, (side // 100, side // 100), np.uint8)
  picture = Image.fromarray(rows).resize((side, side), Image.Resampling.NEAREST)
  for index in range(1 if side > 10_000 else 3):
    picture.save(folder / 'photos' / f'large{index}.{kind}')

  def check(result: Result, folder: pathlib.Path) -> str:
    rows = read_rows(folder / TABLE)
    if result.status or len(rows) != len(list((folder / 'photos').iterdir())):
      raise Wrong(f'{len(rows)} rows with status {result.status}')
    return 'clean'

  title = f'{side}x{side} pixels as {kind}'
  return Case(title, 'predict', PREDICT, check, limit=600, statuses=(0, 1))


def masks(rng: np.random.Generator, place: Place, folder: pathlib.Path) -> Case:
  """Ground truth written in another way, or damaged."""
  place.copy(folder, 'DATA', 'textures', 'bare')
  (folder / 'bare').rename(folder / 'run')
  defect, index = pick(rng, DEFECTS), int(rng.integers(2))
  path = folder / f'DATA/part/ground_truth/{defect}/{index:03}_mask.png'
  names = [f'{defect}/{index:03}']
  check = checks.results(place)
  if rng.random() < 0.65:
    # The same way for all, as one tool writes all masks of a category.
    title, write = pick(rng, _MASKS)
    for each in DEFECTS:
      for number in range(2):
        one = folder / f'DATA/part/ground_truth/{each}/{number:03}_mask.png'
        one.unlink()
        write(one, truth(each, number), rng)
    names = ['ground_truth']
  elif rng.random() < 0.4:
    title = 'damaged bytes'
    path.write_bytes(mutate.damage(rng, path.read_bytes()))
    before = checks.pixels(
      place.get('DATA') / path.relative_to(folder / 'DATA'), folder
    )
    found = checks.pixels(path, folder)
    check = checks.results(place, or_other=found not in ('', before))
  elif rng.random() < 0.3:
    title = 'empty mask'
    Image.fromarray(np.zeros_like(truth(defect, index))).save(path)

    def check(result: Result, folder: pathlib.Path) -> str:
      if names[0] not in result.err:
        raise Wrong(f'nothing is said of {path.name}, which is all 0')
      return 'other'

  elif rng.random() < 0.5:
    title = mutate.become_special(rng, path)
  else:
    title, write = pick(rng, _NO_MASKS)
    names.append(f'ground_truth/{defect}')
    path.unlink()
    write(path, truth(defect, index), rng)
  return Case(title, 'main', EVALUATE, check, names=names)


def names(rng: np.random.Generator, place: Place, folder: pathlib.Path) -> Case:
  """Names that people, archives and other systems give to files."""
  name = _odd_name(rng)
  if rng.random() < 0.6:
    return _odd_photo(rng, place, folder, name)
  return _odd_member(rng, place, folder, name)


def _odd_photo(rng, place, folder, name) -> Case:
  place.copy(folder, 'run')
  _write_sound(place, folder)
  pictures = dict(_SOUND)
  arguments = list(PREDICT)
  where = pick(rng, ('file', 'file', 'folder', 'output', 'workdir', 'broken'))
  doubtful = ''
  if where == 'file' or where == 'broken':
    data = place.picture('gray.png') if where == 'file' else b'broken'
    (folder / 'photos' / f'{name}.png').write_bytes(data)
    if where == 'file':
      pictures[f'{name}.png'] = 'gray.png'
    else:
      doubtful = f'{name}.png'
  elif where == 'folder':
    (folder / 'photos' / name).mkdir()
    (folder / 'photos' / name / 'b.png').write_bytes(place.picture('gray.png'))
    pictures[f'{name}/b.png'] = 'gray.png'
  elif where == 'output':
    arguments[2] = f'--output=out/{name}'
  else:
    (folder / 'run').rename(folder / name)
    arguments[0] = f'--workdir=./{name}'
  check = checks.table(place, pictures, doubtful=doubtful)
  if where == 'output':
    inner = check

    def check(result: Result, folder: pathlib.Path) -> str:
      # The name may be that of the table itself.
      (folder / 'out').rename(folder / 'around')
      (folder / 'around' / name).rename(folder / 'out')
      return inner(result, folder)

  title = f'{where} called {name!r}'
  plain = [checks.longest_plain_part(name)]
  return Case(title, 'predict', arguments, check, plain, statuses=(0, 1))


def _odd_member(rng, place, folder, name) -> Case:
  place.copy(folder, 'DATA', 'textures', 'bare')
  (folder / 'bare').rename(folder / 'run')
  part, arguments = folder / 'DATA' / 'part', list(EVALUATE)
  where = pick(rng, ('train', 'test', 'defect', 'texture', 'category'))
  if where == 'train':
    (part / 'train/good/000.png').rename(part / 'train/good' / f'{name}.png')
  elif where == 'test':
    (part / 'test/crack/000.png').rename(part / 'test/crack' / f'{name}.png')
    truths = part / 'ground_truth/crack'
    try:
      (truths / '000_mask.png').rename(truths / f'{name}_mask.png')
    except OSError:  # Too long with its ending.
      (truths / '000_mask.png').rename(truths / f'{name}.png')
  elif where == 'defect':
    for inner in ('test', 'ground_truth'):
      (part / inner / 'crack').rename(part / inner / name)
  elif where == 'texture':
    (folder / 'textures/0.png').rename(folder / 'textures' / f'{name}.png')
  else:
    part.rename(part.with_name(name))
    arguments[0] = f'--config=configs/mvtec.py:{name},release'
    if ',' in name or ':' in name:
      arguments[0] = EVALUATE[0]
      arguments.append(f'--config.category={name}')

  def check(result: Result, folder: pathlib.Path) -> str:
    path = folder / 'run' / 'results.json'
    found = path.read_text() if path.exists() else 'none'
    if found.splitlines()[2:] != place.results.splitlines()[2:]:
      raise Wrong(f'results.json differs: {found[:200]}')
    if '<img src=x' in (folder / 'run' / 'report.html').read_text():
      raise Wrong('a name has become an element of the report')
    if where in ('test', 'defect'):
      panels = list((folder / 'run/figures/panels').rglob('*.png'))
      if len(panels) != 6:
        raise Wrong(f'{len(panels)} panels of 6 images')
    return 'clean'

  title = f'{where} called {name!r}'
  return Case(
    title, 'main', arguments, check, [checks.longest_plain_part(name)]
  )


def _odd_name(rng: np.random.Generator) -> str:
  """A name of up to 251 bytes, to which `.png` can be added."""
  if rng.random() < 0.5:
    return pick(rng, _NAMES)
  # Any bytes but those that no name has.
  data = bytes(rng.integers(1, 256, int(rng.integers(1, 24)), np.uint8))
  data = data.replace(b'/', b'_')
  name = data.decode('utf-8', 'surrogateescape')
  return f'x{name}' if name.startswith('.') else name


_NAMES = (
  *('-x', '--workdir=x', ' x', 'x ', 'x.', '~', '~x', '$HOME', '%s%n', '{0}'),
  *('a\nb', 'a\rb', 'a\r\nb', '\n', 'a\tb', '\x1b[31mred', '\x07', '\x7f'),
  *('a"b', "a'b", 'a,b', 'a;b', 'a:b', 'a|b', 'a\\b', '=1+1', '@x', '#', '?'),
  *('*', '[a-z]', '**', 'x' * 251, 'é' * 125, '漢' * 83, '😀' * 62, 'x' * 240),
  *('<img src=x onerror=alert(1)>', '<script>alert(1)', '&amp;'),
  *('<!--', ']]>', '`x`', '$(touch ' + CANARY + ')', '`touch ' + CANARY + '`'),
  unicodedata.normalize('NFC', 'Größe é'),
  unicodedata.normalize('NFD', 'Größe é'),
  *(
    '\u202egnp',
    '\u200b',
    '\ufeff',
    '\u2028',
    '\x85',
    '\xa0',
    'ＡＢ',
    'İ',
    'ß',
  ),
  *('\udcff\udcfe', '\udcce\udcc4', 'a\udc80', '\udcb2\udce2\udcca\udcd4'),
  *('CON', 'nul', 'x.jpg', 'x.png', 'A', 'a.PNG', 'predictions.csv', 'good'),
)


def weights(
  rng: np.random.Generator, place: Place, folder: pathlib.Path
) -> Case:
  """Files of weights that are damaged or that want something executed."""
  golden = ROOT / 'tests' / 'golden'
  pair = {
    'reconstructive': golden / 'DRAEM_golden_part_.pckl',
    'discriminative': pick(
      rng,
      (
        golden / 'DRAEM_golden_part__seg.pckl',
        golden / 'torch' / 'DRAEM_golden_part__seg_stream.pckl',
      ),
    ),
  }
  which = pick(rng, list(pair))
  data = pair[which].read_bytes()
  is_zip = data.startswith(b'PK')
  way = rng.random()
  if way < 0.35:
    title = f'damaged bytes of {pair[which].name}'
    data = mutate.damage(rng, data)
  elif way < 0.65 and is_zip:
    title = f'damaged pickle in {pair[which].name}'
    data = _repack(data, lambda inner: mutate.damage(rng, inner))
  elif way < 0.85:
    title, attack = _attack(rng)
    if is_zip and rng.random() < 0.7:
      data = _repack(data, lambda inner: attack)
    else:
      data = attack + data if rng.random() < 0.5 else attack
  elif way < 0.93:
    title = 'attack inside a state dict'
    _, attack = _attack(rng)
    start = int(rng.integers(2, 200))
    data = _repack(data, lambda p: p[:start] + attack[2:-1] + p[start:])
    data = data or attack
  else:
    other = pick(rng, sorted((golden / 'torch').iterdir()))
    title, data = f'{other.name} in its place', other.read_bytes()
  path = folder / f'{which}.pckl'
  path.write_bytes(data)
  if rng.random() < 0.05:
    title = mutate.become_special(rng, path)
  files = pair | {which: path}
  arguments = [f'--{name}={file}' for name, file in files.items()]
  arguments.append('--workdir=run')

  def check(result: Result, folder: pathlib.Path) -> str:
    del result
    found = fork(lambda: print(digest('run', of_draem=True)), folder=folder)
    if found.status:
      raise Wrong(f'what was imported cannot be loaded: {found.err[-200:]}')
    if found.out.strip() == place.imported:
      return 'clean'
    # The archive has checksums, and the stream has none.
    if is_zip and data.startswith(b'PK') and _has_wrong_checksum(data):
      raise Wrong('weights of a damaged archive are taken')
    return 'other'

  return Case(title, 'import_torch', arguments, check, [path.name])


def _write_sound(place: Place, folder: pathlib.Path) -> None:
  (folder / 'photos').mkdir()
  for name, picture in _SOUND.items():
    (folder / 'photos' / name).write_bytes(place.picture(picture))


# Images that are none, or not what they say.


def _claims_png(rng) -> tuple[str, bytes]:
  width, height = (pick(rng, (1, 40, 13000, 65535, 2**31 - 1)) for _ in 'wh')
  depth, kind = pick(rng, ((8, 2), (8, 0), (16, 6), (1, 0), (8, 3)))
  # As many rows as fit into some megabytes before they are packed.
  rows = bytes(min(height * (1 + width), 20 << 20))
  header = struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0)
  data = (
    b'\x89PNG\r\n\x1a\n'
    + png_chunk(b'IHDR', header)
    + png_chunk(b'IDAT', zlib.compress(rows))
    + png_chunk(b'IEND', b'')
  )
  return f'PNG that says {width}x{height}', data


def _claims_bmp(rng) -> tuple[str, bytes]:
  width, height = (pick(rng, (-40, 0, 40, 30000, 2**31 - 1)) for _ in 'wh')
  header = struct.pack('<IiiHHIIiiII', 40, width, height, 1, 24, *[0] * 6)
  data = b'BM' + struct.pack('<IHHI', 54, 0, 0, 54) + header + bytes(1000)
  return f'BMP that says {width}x{height}', data


def _claims_ppm(rng) -> tuple[str, bytes]:
  kind = pick(rng, (b'P5', b'P6', b'P2', b'P4', b'P7', b'Pf'))
  size = pick(rng, (b'99999 99999', b'0 0', b'-4 4', b'9' * 30 + b' 1', b'#'))
  data = kind + b'\n' + size + b'\n255\n' + bytes(100)
  return f'PPM that says {size[:20].decode()}', data


def _claims_jpeg(rng) -> tuple[str, bytes]:
  data = io.BytesIO()
  Image.new('RGB', (16, 16), (9, 99, 199)).save(data, 'JPEG')
  data = bytearray(data.getvalue())
  start = data.index(b'\xff\xc0') + 5
  height, width = (pick(rng, (0, 16, 17, 20000, 65535)) for _ in 'hw')
  data[start : start + 4] = struct.pack('>HH', height, width)
  return f'JPEG that says {width}x{height}', bytes(data)


def _claims_tiff(rng) -> tuple[str, bytes]:
  width, height = (pick(rng, (0, 40, 50000, 2**32 - 1)) for _ in 'wh')
  entries = (
    *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8)),
    *((259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1)),
    *((278, 4, 1, height), (279, 4, 1, pick(rng, (0, 100, 2**32 - 1)))),
  )
  data = b'II*\0' + struct.pack('<IH', 8, len(entries))
  data += b''.join(struct.pack('<HHII', *entry) for entry in entries)
  return f'TIFF that says {width}x{height}', data + bytes(100)


def _claims_webp(rng) -> tuple[str, bytes]:
  data = io.BytesIO()
  Image.new('RGB', (16, 16)).save(data, 'WEBP', lossless=True)
  chunks = data.getvalue()[12:]
  canvas = struct.pack('<I', 2**24 - 1)[:3]
  chunks = b'VP8X' + struct.pack('<II', 10, 0) + canvas * 2 + chunks
  size = struct.pack('<I', 4 + len(chunks))
  return 'WebP that says 16777216x16777216', b'RIFF' + size + b'WEBP' + chunks


_CLAIMS = (
  *(_claims_png, _claims_png, _claims_bmp, _claims_ppm),
  *(_claims_jpeg, _claims_tiff, _claims_webp),
)


def _side_chunk(rng, place: Place) -> tuple[str, bytes, str]:
  """A sound picture with a broken part that says nothing of its pixels."""
  if rng.random() < 0.5:
    original = pick(rng, ('rgb.png', 'gray.png', 'palette.png', 'deep.png'))
    data = place.picture(original)
    kind = pick(rng, (b'eXIf', b'iCCP', b'tEXt', b'zTXt', b'iTXt', b'tIME'))
    content = pick(
      rng,
      (
        *(b'', b'\0', b'x' * 30, rng.bytes(200), b'II*\0\xff\xff\xff\xff'),
        *(b'Exif\0\0MM\0*', b'x\0\0' + zlib.compress(bytes(100 << 20))),
      ),
    )
    chunk = png_chunk(kind, content)
    if rng.random() < 0.3:
      chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
    end = 33 if rng.random() < 0.7 else len(data) - 12
    title = f'{kind.decode()} of {len(content)} bytes in {original}'
    return title, data[:end] + chunk + data[end:], original
  original = pick(rng, ('plain.jpg', 'gray.jpg', 'progressive.jpg'))
  data = place.picture(original)
  number = pick(rng, (0xE0, 0xE1, 0xE2, 0xED, 0xFE))
  start = pick(
    rng,
    (
      *(b'', b'Exif\0\0', b'Exif\0\0II*\0\xff\xff\xff\xff', b'JFIF\0'),
      *(b'ICC_PROFILE\0\x01\x02', b'ICC_PROFILE\0', b'Photoshop 3.0\08BIM'),
      *(
        b'Exif\0\0MM\0*\0\0\0\x08\xff\xff',
        b'http://ns.adobe.com/xap/1.0/\0<x',
      ),
    ),
  )
  content = start + pick(rng, (b'', rng.bytes(60), bytes(60)))
  segment = b'\xff' + bytes([number]) + struct.pack('>H', 2 + len(content))
  title = f'segment {number:x} of {content[:12]!r} in {original}'
  return title, data[:2] + segment + content + data[2:], original


def _foreign(rng) -> tuple[str, bytes]:
  """A file of a format that no page lists."""
  picture = Image.effect_noise((48, 40), 50)
  kinds = 'GIF', 'ICO', 'TGA', 'PCX', 'JPEG2000', 'DDS', 'SGI', 'EPS', 'PDF'
  kind = pick(rng, (*kinds, 'EPS', 'EPS', 'PSD', 'text'))
  if kind == 'PSD':
    header = struct.pack('>4sH6sHIIHH', b'8BPS', 1, bytes(6), 1, 40, 48, 8, 1)
    return 'PSD', header + bytes(14) + picture.tobytes()
  if kind == 'text':
    texts = b'<svg/>', b'<html>', b'{}', b'PK\x03\x04', b'%!PS', b'SIMPLE  = T'
    return 'text', pick(rng, texts) + bytes(int(rng.integers(0, 99)))
  data = io.BytesIO()
  picture.convert('RGB').save(data, kind)
  data = data.getvalue()
  return kind, mutate.damage(rng, data) if rng.random() < 0.3 else data


def _false_ghostscript(folder: pathlib.Path) -> dict[str, str]:
  """The programs that Pillow starts, which tell that they were."""
  for name in ('gs', 'djpeg', 'cjpeg', 'xdg-open', 'ppmquant'):
    path = folder / 'bin' / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\ntouch {folder / CANARY}\nexit 1\n')
    path.chmod(0o755)
  return {'PATH': f'{folder / "bin"}:{os.environ["PATH"]}'}


def _special(rng, path: pathlib.Path) -> str:
  if rng.random() < 0.2:
    with path.open('wb') as file:
      file.truncate(50 << 30)
    return '50 GB of nothing'
  return mutate.become_special(rng, path)


# Ways in which masks are written.


def _binary(**options):
  """Two values: 0, and one of the options."""

  def write(path, found, rng):
    picture = Image.fromarray(found * np.array(options['value'], found.dtype))
    picture.convert(options.get('mode', picture.mode)).save(
      path.with_suffix(options.get('suffix', '.png')), **options.get('save', {})
    )

  return write


def _colors(mode: str):
  def write(path, found, rng):
    color = rng.integers(1, 256, 3, np.uint8)
    color[rng.integers(3)] = 0
    picture = Image.fromarray(found[..., None] * color)
    picture.convert(mode).save(path)

  return write


def _alpha(path, found, rng):
  levels = np.full((*found.shape, 4), 255, np.uint8)
  levels[..., 3] = 255 * found
  Image.fromarray(levels).save(path)


def _classes(*values: int):
  """Two halves of a defect are of two classes."""

  def write(path, found, rng):
    levels = found * np.uint8(values[0])
    half = found.shape[1] // 2 - 8
    levels[:, half:] = found[:, half:] * np.uint8(values[1])
    Image.fromarray(levels).save(path)

  return write


def _deep(value: int):
  def write(path, found, rng):
    Image.fromarray(found.astype(np.uint16) * np.uint16(value)).save(path)

  return write


def _palette(path, found, rng):
  picture = Image.fromarray(found, 'P')
  picture.putpalette([0, 0, 0, *rng.integers(1, 256, 3).tolist()])
  picture.save(path)


_MASKS = (
  ('0 and 1', _binary(value=1)),
  ('0 and 100', _binary(value=100)),
  ('0 and 240', _binary(value=240)),
  ('one bit', _binary(value=255, mode='1')),
  ('BMP', _binary(value=255, suffix='.bmp')),
  ('TIFF', _binary(value=255, suffix='.tif')),
  (
    'lossless WebP',
    _binary(value=255, suffix='.webp', save={'lossless': True}),
  ),
  ('gray and alpha', _binary(value=255, mode='LA')),
  ('RGB', _binary(value=255, mode='RGB')),
  ('RGBA', _binary(value=255, mode='RGBA')),
  ('RGBA of 0 and 1', _binary(value=1, mode='RGBA')),
  ('a color', _colors('RGB')),
  ('a color, and alpha', _colors('RGBA')),
  ('alpha alone', _alpha),
  ('classes 1 and 2', _classes(1, 2)),
  ('classes 1 and 200', _classes(1, 200)),
  ('classes 240 and 236', _classes(240, 236)),
  ('16 bits, 0 and 65535', _deep(65535)),
  ('16 bits, 0 and 1', _deep(1)),
  ('16 bits, 0 and 255', _deep(255)),
  ('16 bits, 0 and 256', _deep(256)),
  ('a palette', _palette),
)


def _resized(path, found, rng):
  size = pick(rng, ((47, 40), (40, 48), (1, 1), (96, 80)))
  Image.fromarray(255 * found).resize(size).save(path)


def _floats(path, found, rng):
  Image.fromarray(found.astype(np.float32)).save(path.with_suffix('.tif'))


def _two(path, found, rng):
  for suffix in ('.png', '.bmp'):
    Image.fromarray(255 * found).save(path.with_suffix(suffix))


def _text(path, found, rng):
  path.write_bytes(pick(rng, (b'', b'none', b'[]', b'\x89PNG\r\n\x1a\n')))


def _renamed(path, found, rng):
  name = pick(
    rng, ('999_mask.png', 'mask.png', '_mask.png', '000_001_mask.png')
  )
  Image.fromarray(255 * found).save(path.with_name(name))


_NO_MASKS = (
  *(('another size', _resized), ('floats', _floats), ('two masks', _two)),
  *(('no image', _text), ('another name', _renamed)),
)


# Weights.


class _Call:
  """What a pickle of this calls when Python reads it."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def _attack(rng) -> tuple[str, bytes]:
  """A pickle that would make a file."""
  touch = f'touch {CANARY}'
  calls = {
    'os.system': (os.system, touch),
    'open': (open, CANARY, 'w'),
    'eval': (eval, f"open('{CANARY}', 'w')"),
    'exec': (exec, f"open('{CANARY}', 'w')"),
    'subprocess.Popen': (subprocess.Popen, ('touch', CANARY)),
    'os.mkdir': (os.mkdir, CANARY),
    'pathlib': (pathlib.Path.touch, pathlib.Path(CANARY)),
    'shutil.copy': (shutil.copy, '/etc/hostname', CANARY),
    'pickle.loads': (*(pickle.loads, pickle.dumps(_Call(os.system, touch))),),
  }
  title = pick(rng, list(calls))
  value = _Call(*calls[title])
  value = pick(
    rng,
    (value, [value], {'state_dict': value}, {'encoder.block1.0.weight': value}),
  )
  data = pickle.dumps(value, protocol=int(rng.integers(6)))
  if rng.random() < 0.2:
    title, data = f'damaged {title}', mutate.damage(rng, data)
  return title, data


def _repack(data: bytes, change) -> bytes:
  """An archive with another pickle and right checksums."""
  if not zipfile.is_zipfile(io.BytesIO(data)):
    return change(data)
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(data)) as source,
    zipfile.ZipFile(out, 'w') as target,
  ):
    for name in source.namelist():
      content = source.read(name)
      if name.endswith('data.pkl'):
        content = change(content)
      target.writestr(name, content)
  return out.getvalue()


def _has_wrong_checksum(data: bytes) -> bool:
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      return archive.testzip() is not None
  except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error):
    return True
