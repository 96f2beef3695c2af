"""Pictures as a category has them, made of arrays."""

import numpy as np

from draem_jax.data import png
from draem_jax.data.pictures import Pictures


def make_pictures(images, sizes=None, reads=None, **options):
  """Pictures of these images, as PNG files; `reads` gets the places read."""
  files = [png.encode(image) for image in images]

  def read(place):
    if reads is not None:
      reads.append(place)
    return files[place]

  if sizes is None:
    sizes = [image.shape[:2] for image in images]
  names = [f'{place}.png' for place in range(len(images))]
  return Pictures(read, names, np.array(sizes).reshape(-1, 2), **options)
