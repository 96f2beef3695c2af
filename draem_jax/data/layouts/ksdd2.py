"""The layout of KolektorSDD2.

It is one category, with `{train,test}/NNNNN.png` and beside each image
`NNNNN_GT.png`. An image is defective if a pixel of its ground truth is not 0;
those of `train` are left out.
"""

import pathlib

from draem_jax.data import images
from draem_jax.data.layouts.contents import Contents, read_labeled
from draem_jax.errors import UserError

EXPECTED = '<category>/train/NNNNN.png and NNNNN_GT.png'

_TRUTH = '_GT'


def is_category(folder: pathlib.Path) -> bool:
  """Whether images and ground truth lie side by side in `train`."""
  train = folder / 'train'
  return train.is_dir() and any(map(images.is_image, train.glob(f'*{_TRUTH}*')))


def read(folder: pathlib.Path) -> Contents:
  """Finds out which images are good.

  Args:
    folder: the category's.

  Returns:
    The images, sorted by path, without the defective ones of `train`.

  Raises:
    UserError: if there are no good images to train on, or an image or a ground
      truth has no partner.
  """
  train, test = (
    read_labeled(folder, part, mark=_TRUTH, suffix='.png')
    for part in ('train', 'test')
  )
  good = [member for member in train if not member.is_anomalous]
  if not good:
    raise UserError(
      f'{folder / "train"} holds no good images: put some there, each with a'
      f' black NNNNN{_TRUTH}.png'
    )
  return Contents(good, test, left_out=len(train) - len(good))
