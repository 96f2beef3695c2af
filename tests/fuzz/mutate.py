"""Ways to damage bytes and JSON, sampled by a generator."""

import json
import math
import os
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBERS = 0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**32 - 1

# Values that stand in JSON where another is wanted.
VALUES = (
  *(None, True, False, 0, 1, -1, 0.5, -0.5, 1.5, 1e308, -1e308, 2**63, 2**64),
  *(math.nan, math.inf, -math.inf, 10**400),
  *(
    '',
    'x',
    '0.5',
    'NaN',
    '\0',
    '\n',
    '\ud800',
    '../..',
    'é' * 300,
    'x' * 5000,
  ),
  *([], {}, [0.5], [[]], {'x': {}}, [None] * 3),
)


def pick(rng: np.random.Generator, items) -> Any:
  """One of some items, as it is."""
  return items[int(rng.integers(len(items)))]


def damage(rng: np.random.Generator, data: bytes, other: bytes = b'') -> bytes:
  """Bytes that are damaged in one of the ways of disks, cables and editors.

  Args:
    rng: samples the way.
    data: what is damaged.
    other: what a part may come from.
  """
  damaged = data
  while damaged == data:
    damaged = pick(rng, _WAYS)(rng, data or b'\0', other or data or b'\0')
  return damaged


def _place(rng, data: bytes) -> int:
  # Headers are small, and most that can go wrong goes wrong there.
  top = len(data) if rng.random() < 0.5 else min(len(data), 64)
  return int(rng.integers(top))


def _flip(rng, data, other):
  damaged = bytearray(data)
  for _ in range(int(rng.integers(1, 4))):
    damaged[_place(rng, data)] ^= 1 << int(rng.integers(8))
  return bytes(damaged)


def _set_bytes(rng, data, other):
  damaged, start = bytearray(data), _place(rng, data)
  count = int(rng.integers(1, 9))
  damaged[start : start + count] = rng.bytes(len(data[start : start + count]))
  return bytes(damaged)


def _set_number(rng, data, other):
  kind, size = pick(rng, (('B', 1), ('<H', 2), ('>H', 2), ('<I', 4), ('>I', 4)))
  number = pick(rng, _NUMBERS) & ((1 << 8 * size) - 1)
  start = _place(rng, data)
  return data[:start] + struct.pack(kind, number) + data[start + size :]


def _cut(rng, data, other):
  return data[: _place(rng, data)]


def _cut_out(rng, data, other):
  start = _place(rng, data)
  return data[:start] + data[start + int(rng.integers(1, 65)) :]


def _zero(rng, data, other):
  start = _place(rng, data)
  count = int(rng.integers(1, 1 + len(data) - start))
  return data[:start] + bytes(count) + data[start + count :]


def _double(rng, data, other):
  start = _place(rng, data)
  count = int(rng.integers(1, 65))
  return data[: start + count] + data[start:]


def _splice(rng, data, other):
  return data[: _place(rng, data)] + other[_place(rng, other) :]


def _append(rng, data, other):
  return data + pick(rng, (b'\0', b'\n', b'<html>', other, rng.bytes(100)))


def _replace(rng, data, other):
  return pick(
    rng, (b'', b'\0', b'\n', b'<html>404</html>', rng.bytes(50), other)
  )


def _as_text(rng, data, other):
  return pick(
    rng,
    (
      data.replace(b'\n', b'\r\n'),
      data.replace(b'\r\n', b'\n'),
      b'\xef\xbb\xbf' + data,
      data.decode('latin-1').encode('utf-16'),
      data.decode('latin-1').encode('utf-8'),
      data.rstrip(),
    ),
  )


_WAYS: tuple[Callable[[np.random.Generator, bytes, bytes], bytes], ...] = (
  *(_flip, _flip, _flip, _set_bytes, _set_number, _set_number, _cut, _cut),
  *(_cut_out, _zero, _double, _splice, _append, _replace, _as_text),
)


def damage_json(rng: np.random.Generator, text: str) -> str:
  """JSON that is well-formed, or nearly so, and says something else."""
  if rng.random() < 0.1:
    return pick(
      rng,
      (
        *('{}', '[]', 'null', '0', '""', 'NaN', '[' * 100_000),
        '{"config": ' * 5_000 + '{}' + '}' * 5_000,
        text + text,
        text.replace(',', '', 1),
      ),
    )
  tree = json.loads(text)
  holder, key = _somewhere(rng, tree)
  way = rng.random()
  if way < 0.2 and isinstance(holder, dict):
    del holder[key]
  elif way < 0.3 and isinstance(holder, dict):
    holder[pick(rng, ('', 'x', '__class__', key + ' ', '\0'))] = holder[key]
  elif way < 0.4:
    holder[key] = [holder[key]]
  elif way < 0.5:
    holder[key] = {str(key): holder[key]}
  else:
    holder[key] = pick(rng, VALUES)
  return json.dumps(tree, indent=2)


def _somewhere(rng, tree) -> tuple[Any, Any]:
  """A holder and a key in it, at any depth."""
  while True:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = pick(rng, keys)
    inner = tree[key]
    if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
      return tree, key
    tree = inner


def damage_file(rng: np.random.Generator, path: pathlib.Path) -> str:
  """Damages a file; says how in words."""
  way = rng.random()
  if way < 0.12:
    return become_special(rng, path)
  data = path.read_bytes()
  if way < 0.6 and path.suffix == '.json':
    path.write_text(damage_json(rng, path.read_text()), errors='surrogatepass')
    return 'another value'
  siblings = sorted(p for p in path.parent.iterdir() if p.is_file())
  path.write_bytes(damage(rng, data, pick(rng, siblings).read_bytes()))
  return 'damaged bytes'


def become_special(rng: np.random.Generator, path: pathlib.Path) -> str:
  """Puts what is no regular file in the place of a file; says what it is."""
  path.unlink(missing_ok=True)
  way = pick(
    rng, ('gone', 'folder', 'fifo', 'loop', 'dangling', 'zero', 'full')
  )
  if way == 'folder':
    path.mkdir()
  elif way == 'fifo':
    os.mkfifo(path)
  elif way == 'loop':
    path.symlink_to(path.name)
  elif way == 'dangling':
    path.symlink_to('nowhere')
  elif way in ('zero', 'full'):
    path.symlink_to(f'/dev/{way}')
  return way


def png_chunk(kind: bytes, data: bytes) -> bytes:
  """A chunk of a PNG file, with its checksum."""
  checksum = struct.pack('>I', zlib.crc32(kind + data))
  return struct.pack('>I', len(data)) + kind + data + checksum


def remove(path: pathlib.Path) -> None:
  """Removes a folder, whatever lies in it."""
  shutil.rmtree(path, ignore_errors=True)
