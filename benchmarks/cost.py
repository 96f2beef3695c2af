"""Multiply-adds of the networks, counted over their table of layers."""

from collections.abc import Iterator

# A step goes forward once and back twice: to the inputs and to the kernels. A
# multiply-add is two operations.
_FLOP_PER_MULTIPLY_ADD = {'inference': 2, 'training': 6}


def flop(size: int, widths: tuple[int, int], task: str) -> int:
  """Floating-point operations an image.

  Args:
    size: height and width.
    widths: of the reconstructive and the discriminative network.
    task: 'inference' or 'training'.
  """
  return _FLOP_PER_MULTIPLY_ADD[task] * multiply_adds(size, widths)


def multiply_adds(size: int, widths: tuple[int, int]) -> int:
  """Multiply-adds of the convolutions of both networks, an image forward.

  At 256×256 and widths 128 and 64 these are 159.9 G and 38.05 G.
  """
  layers = [*_reconstructive(widths[0]), *_discriminative(widths[1])]
  return sum(
    9 * inputs * features * (size // stride) ** 2
    for stride, inputs, features in layers
  )


def _reconstructive(w: int) -> Iterator[tuple[int, int, int]]:
  """Stride, input and output channels of each convolution."""
  channels = 3
  for block, features in enumerate((w, 2 * w, 4 * w, 8 * w, 8 * w)):
    yield 2**block, channels, features
    yield 2**block, features, features
    channels = features
  stages = (8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)
  for stride, (a, b) in zip((8, 4, 2, 1), stages, strict=True):
    yield stride, channels, a
    yield stride, a, a
    yield stride, a, b
    channels = b
  yield 1, channels, 3


def _discriminative(w: int) -> Iterator[tuple[int, int, int]]:
  """Stride, input and output channels of each convolution."""
  channels = 6
  encoder = (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
  for block, features in enumerate(encoder):
    yield 2**block, channels, features
    yield 2**block, features, features
    channels = features
  for block, features in enumerate((8 * w, 4 * w, 2 * w, w, w)):
    stride, skip = 2 ** (4 - block), encoder[4 - block]
    yield stride, channels, features
    yield stride, features + skip, features
    yield stride, features, features
    channels = features
  yield 1, channels, 2
