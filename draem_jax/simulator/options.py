"""What the simulator is told to do, checked once."""

import dataclasses

from draem_jax.errors import UserError
from draem_jax.simulator import augment

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Options:
  """The choices of section 3.3. All intervals are sampled from uniformly.

  Hashable, so that a compiled program can depend on it.

  Attributes:
    mask: the anomaly's shape, a key of `masks.MASKS`.
    texture: the anomaly's looks, a key of `textures.TEXTURES`.
    rotation_probability: how often the image itself is rotated.
    rotation_degrees: interval of that angle.
    threshold: interval of the level above which Perlin noise is anomaly.
    rectangles: interval of the number of rectangles.
    rectangle_sides: interval of their sides, as shares of the image's.
    augmentations: the operations that may change the texture, of
      `augment.AUGMENTATIONS`.
    num_augmentations: how many of them do, all different, in sampled order.
    opacity: interval of the texture's weight inside the mask.
    anomaly_probability: how often the example gets an anomaly at all. Noise
      that stays below the threshold makes an empty one.

  Raises:
    UserError: an option has no meaning.
  """

  mask: str
  texture: str
  rotation_probability: float
  rotation_degrees: Interval
  threshold: Interval
  rectangles: tuple[int, int]
  rectangle_sides: Interval
  augmentations: tuple[str, ...]
  num_augmentations: int
  opacity: Interval
  anomaly_probability: float

  def __post_init__(self):
    # Configs that were stored come back with lists.
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):
        object.__setattr__(self, field.name, tuple(value))
    for name in self.augmentations:
      if name not in augment.AUGMENTATIONS:
        raise UserError(
          f'config.simulator.augmentations has no {name!r}: take some of'
          f' {", ".join(augment.AUGMENTATIONS)}'
        )
    if not 0 <= self.num_augmentations <= len(self.augmentations):
      raise UserError(
        f'config.simulator.num_augmentations={self.num_augmentations}: take 0'
        f' to {len(self.augmentations)}, the number of'
        ' config.simulator.augmentations'
      )
