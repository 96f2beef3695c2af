"""Which image files a path names: a file, a folder of any depth, or a glob."""

import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from draem_jax.data import images
from draem_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Found:
  """Image files below one folder.

  Attributes:
    root: the folder, absolute.
    names: paths of the files in it, with slashes, sorted.
    unreadable: folders that could not be looked into.
    others: paths of files in it that are no images.
  """

  root: pathlib.Path
  names: list[str]
  unreadable: list[str]
  others: list[str] = dataclasses.field(default_factory=list)


def list_images(folder: str | os.PathLike[str]) -> Found:
  """Lists the image files below a folder, at any depth.

  Hidden files and folders are left out. Links are followed, but not round: no
  folder counts twice.

  Args:
    folder: the top.

  Returns:
    What is there, in the order of the folders' and then the files' names.
  """
  unreadable, names, others = [], [], []
  for file in _walk(os.fspath(folder), unreadable):
    name = os.path.relpath(file, folder).replace(os.sep, '/')
    (names if images.is_image(name) else others).append(name)
  in_order = lambda names: sorted(names, key=lambda name: name.split('/'))
  root = pathlib.Path(os.path.abspath(folder))
  return Found(root, in_order(names), unreadable, in_order(others))


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
  unreadable = []
  if os.path.isdir(path):
    root, files = path, filter(images.is_image, _walk(path, unreadable))
  elif os.path.exists(path):
    # A file that is named counts as an image, whatever its suffix.
    root, files = os.path.dirname(path), [path]
  elif glob.has_magic(path):
    root = _fixed_part(path)
    files = filter(images.is_image, _expand(path, unreadable))
  else:
    raise UserError(
      f'--images={pattern} does not exist: name an image, a folder or a glob'
    )
  is_excluded = _below(excluded)
  names = {
    os.path.relpath(file, root).replace(os.sep, '/')
    for file in files
    if not is_excluded(os.path.dirname(file))
  }
  if not names:
    raise UserError(
      f'--images={pattern} holds no image: name files that end in'
      f' {", ".join(sorted(images.SUFFIXES))}'
    )
  return Found(pathlib.Path(root), sorted(names), unreadable)


def _walk(top: str, unreadable: list[str]) -> Iterator[str]:
  """Files below a folder; each folder once, whatever links say."""
  visited = set()
  note = lambda error: unreadable.append(error.filename)
  for folder, inner, files in os.walk(top, followlinks=True, onerror=note):
    real = os.path.realpath(folder)
    if real in visited:
      inner.clear()
      continue
    visited.add(real)
    # Sorted, so that the same of two links is followed every time.
    inner[:] = sorted(name for name in inner if not name.startswith('.'))
    for name in files:
      if not name.startswith('.'):
        yield os.path.join(folder, name)


def _expand(pattern: str, unreadable: list[str]) -> Iterator[str]:
  for match in glob.iglob(pattern, recursive=True):
    if os.path.isdir(match):
      yield from _walk(match, unreadable)
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
