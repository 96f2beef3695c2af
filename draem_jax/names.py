"""What a file is called: on disk, in a table, in a picture, on a line.

A name is a `str` as Python has it from the file system: bytes that are no
UTF-8, as unzip leaves them of other encodings, are lone surrogates in it. On
Linux it may hold anything but a slash and a NUL, line breaks included.
"""

import hashlib
import unicodedata

# Of one part of a path, on nearly every file system.
_MOST_BYTES = 255
# Marks that turn the direction of what stands behind them.
_DIRECTION_MARKS = frozenset(
  map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
# What the libraries that write checkpoints take for something else: for a
# slash, or for a pattern.
MISTAKEN = '\\[]*'
_UNSEEN = ('Cc', 'Cs', 'Zl', 'Zp')


def to_bytes(name: str) -> bytes:
  """The bytes that a name has on disk, and in a table."""
  return name.encode('utf-8', 'surrogateescape')


def from_bytes(data: bytes) -> str:
  """The name of these bytes; the opposite of `to_bytes`."""
  return data.decode('utf-8', 'surrogateescape')


def shown(text: object) -> str:
  r"""A name, or a line with names in it, as a person is shown it: on one line.

  What would break the line, steer a terminal or turn the direction of writing
  stands as Python would escape it, such as `\n`, and so do bytes that are no
  UTF-8, such as `\xe9`.
  """
  # Where the locale knows ASCII only, what is UTF-8 arrives in single bytes.
  try:
    data = to_bytes(str(text))
  except UnicodeEncodeError:  # A surrogate that stands for no byte.
    data = str(text).encode('utf-8', 'backslashreplace')
  return ''.join(map(_shown, data.decode('utf-8', 'backslashreplace')))


def _shown(character: str) -> str:
  unseen = unicodedata.category(character) in _UNSEEN
  if unseen or character in _DIRECTION_MARKS:
    return character.encode('unicode_escape').decode('ascii')
  return character


def canonical(name: str) -> str:
  """A name by which two that look the same are the same.

  An é may be one letter (NFC, as most systems write it) or an e and an accent
  (NFD, as macOS does).
  """
  return unicodedata.normalize('NFC', name)


def shorten(part: str, suffix: str = '') -> str:
  """A part of a path that a file system takes, with `suffix` behind it.

  Args:
    part: the name of a file or a folder.
    suffix: what is to end it, such as `'.png'`.

  Returns:
    Both; the name cut, and a checksum of all of it behind it, where they are
    longer than 255 bytes.
  """
  data = to_bytes(part)
  room = _MOST_BYTES - len(to_bytes(suffix))
  if len(data) <= room:
    return part + suffix
  mark = _mark(part)
  # A letter that is cut through would be no UTF-8.
  kept = data[: room - len(mark)].decode('utf-8', 'ignore')
  return kept + mark + suffix


def folder(name: str) -> str:
  """The name of the folder that is made for something of this name.

  It is the same, unless libraries could not write there (see `MISTAKEN`) or no
  person could type it: then these letters become underscores, and a checksum
  of the name stands behind.
  """
  odd = {one for one in name if shown(one) != one or one in MISTAKEN}
  plain = ''.join('_' if letter in odd else letter for letter in name)
  return shorten(plain, _mark(name) if odd else '')


def _mark(name: str) -> str:
  return f'~{hashlib.sha256(to_bytes(name)).hexdigest()[:16]}'
