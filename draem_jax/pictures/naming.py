"""What the picture that is drawn of an image is called."""

import pathlib

from draem_jax import names
from draem_jax.data import images


def picture_name(name: str) -> str:
  """The name of an image's picture: its own, or that with `.png` behind it.

  No two images share one: `a.png` has `a.png`, `a.jpg` has `a.jpg.png`, and an
  image that is called `a.jpg.png` has `a.jpg.png.png`. One that no file system
  would take is shortened, as `names.shorten` does it.

  Args:
    name: a path with slashes, relative to the folder of images.
  """
  folder, slash, file = name.rpartition('/')
  stem, dot, suffix = file.rpartition('.')
  is_plain = suffix == 'png' and not images.is_image(pathlib.PurePath(stem))
  # What is shortened ends in a checksum, so that only its own can be meant.
  file = file if dot and is_plain else names.shorten(file, '.png')
  return folder + slash + file
