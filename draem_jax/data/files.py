"""Which image files a path names: a file, a folder of any depth, or a glob."""

import collections
import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence

from draem_jax.data import images
from draem_jax.errors import UserError

_KINDS = 4  # Kinds of files passed over that a line names.


@dataclasses.dataclass(frozen=True)
class Found:
  """Image files below one folder.

  Attributes:
    root: the folder, absolute.
    names: paths of the files in it, with slashes, sorted.
    unreadable: folders that could not be looked into.
    others: paths of files in it that are no images by their names.
  """

  root: pathlib.Path
  names: list[str]
  unreadable: list[str]
  others: list[str] = dataclasses.field(default_factory=list)


def passed_over(
  others: Sequence[str], *, expected: Collection[str] = ()
) -> str | None:
  """Says which files are no images: how many, of which kinds, and one of them.

  Args:
    others: as `Found` has them.
    expected: suffixes of files that nobody would miss.

  Returns:
    What follows "passed over"; None if there is nothing to tell.
  """
  names, kinds = [], collections.Counter()
  for name in others:
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in expected:
      names.append(name)
      kinds[suffix or 'no suffix'] += 1
  if not names:
    return None
  shown = [f'{count} {kind}' for kind, count in kinds.most_common(_KINDS)]
  if len(kinds) > _KINDS:
    shown.append('...')
  return (
    f'{len(names)} files that are no images by their names'
    f' ({", ".join(shown)}), such as {names[0]}'
  )


def stamp(path: str | os.PathLike[str]) -> str:
  """What changes with a file, whatever is done to keep it from showing.

  Size and time of the content can be those of another file; the time of the
  last change of any kind and the file's number cannot be set at will. They
  differ in a copy, too.

  Args:
    path: of the file.

  Raises:
    OSError: if there is none.
  """
  status = os.stat(path)
  return (
    f'{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}'
    f' {status.st_ino}'
  )


def list_images(folder: str | os.PathLike[str]) -> Found:
  """Lists the image files below a folder, at any depth.

  Hidden files and folders are left out. Links are followed, but not round: no
  folder counts twice. Nothing is asked of a file but its name, so that a data
  set of a million lists in seconds; a link that is named as an image counts as
  one, wherever it leads.

  Args:
    folder: the top.

  Returns:
    What is there, in the order of the folders' and then the files' names.
  """
  unreadable, names, others = [], [], []
  for name in _walk(os.fspath(folder), unreadable):
    (names if images.is_image(name) else others).append(name)
  return Found(pathlib.Path(os.path.abspath(folder)), names, unreadable, others)


def find_images(
  pattern: str, *, excluded: Sequence[str | os.PathLike[str]] = ()
) -> Found:
  """Lists the image files that a path names.

  Of a folder these are all at any depth whose names end as an image's do; of a
  glob (`*`, `?`, `[...]`, and `**` for any depth) all such that match, and all
  in folders that match. Hidden files and folders are left out, links followed.

  Args:
    pattern: the path. The root is its folder, or of a glob the part before the
      first wildcard.
    excluded: folders whose files do not count.

  Raises:
    UserError: if nothing is there, or no image.
  """
  path = os.path.abspath(os.path.expanduser(pattern))
  unreadable, accepts = [], images.is_image
  if os.path.isdir(path):
    root, files = path, _expand(path, unreadable)
  elif os.path.exists(path):
    # A file that is named counts as an image, whatever its suffix.
    root, files, accepts = os.path.dirname(path), [path], lambda file: True
  elif glob.has_magic(path):
    root = _fixed_part(path)
    files = _expand(path, unreadable)
  else:
    raise UserError(
      f'--images={pattern} does not exist: name an image, a folder or a glob'
    )
  is_excluded = _below(excluded)
  start = len(os.path.join(root, ''))
  names, others = set(), set()
  for file in files:
    if not is_excluded(os.path.dirname(file)):
      name = file[start:].replace(os.sep, '/')
      (names if accepts(file) else others).add(name)
  if not names:
    line = passed_over(sorted(others))
    there = f', but {line}' if line else ''
    raise UserError(
      f'--images={pattern} holds no image{there}: name files that end in'
      f' {", ".join(sorted(images.SUFFIXES))}'
    )
  return Found(pathlib.Path(root), sorted(names), unreadable, sorted(others))


def _walk(top: str, unreadable: list[str]) -> Iterator[str]:
  """Paths of files in a folder, with slashes, in the order of their parts.

  Each folder once, whatever links say; the same of two links every time.
  """
  visited = set()
  pending = ['']  # What ends in a slash is a folder, as is the top itself.
  while pending:
    name = pending.pop()
    if name and not name.endswith('/'):
      yield name
      continue
    folder = os.path.join(top, name[:-1]) if name else top
    real = os.path.realpath(folder)
    if real in visited:
      continue
    visited.add(real)
    inner, folders = [], set()
    try:
      with os.scandir(folder) as entries:
        for entry in entries:
          if not entry.name.startswith('.'):
            inner.append(entry.name)
            if _is_folder(entry):
              folders.add(entry.name)
    except OSError as error:
      unreadable.append(error.filename or folder)
      continue
    inner.sort(reverse=True)
    pending += [f'{name}{each}{"/" * (each in folders)}' for each in inner]


def _is_folder(entry: os.DirEntry) -> bool:
  # To see where a link leads takes longer than to list it.
  if entry.is_symlink() and images.is_image(entry.name):
    return False
  try:
    return entry.is_dir()
  except OSError:
    return False


def _expand(pattern: str, unreadable: list[str]) -> Iterator[str]:
  """Files that match or lie in folders that match."""
  matches = [pattern]
  if not os.path.isdir(pattern):
    matches = glob.iglob(pattern, recursive=True)
  for match in matches:
    if os.path.isdir(match):
      for name in _walk(match, unreadable):
        yield os.path.join(match, name)
    else:
      yield match


def _fixed_part(pattern: str) -> str:
  """The folder before the first part of a glob that has a wildcard."""
  while glob.has_magic(pattern):
    pattern = os.path.dirname(pattern)
  return pattern


def _below(folders: Sequence[str | os.PathLike[str]]):
  """A function that says whether a folder is one of these or in one."""
  tops = [os.path.join(os.path.realpath(folder), '') for folder in folders]

  @functools.cache
  def is_below(folder: str) -> bool:
    return os.path.join(os.path.realpath(folder), '').startswith(tuple(tops))

  return is_below
