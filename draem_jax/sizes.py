"""Heights and widths of images, which are one number where they are equal."""

from collections.abc import Sequence

Size = int | Sequence[int]


def pair(size: Size) -> tuple[int, int]:
  """Height and width of a size that may be one number.

  Args:
    size: one number, or height and width.
  """
  if isinstance(size, int):
    return size, size
  height, width = size
  return int(height), int(width)


def short(size: Size) -> int | tuple[int, int]:
  """One number if height and width are equal, else both."""
  height, width = pair(size)
  return height if height == width else (height, width)


def shown(size: Size, sign: str = 'x') -> str:
  """Height and width for people, such as `'64x128'`."""
  return sign.join(map(str, pair(size)))
