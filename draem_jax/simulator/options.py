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
    cells: interval of the cells of the noise's lattice along a side, powers of
      two.
    unions: how often such a mask is the union of two.
    intersections: how often it is their intersection, if that is not empty.
    augmentation_probability: how often the texture is augmented at all.
    good_textures: how often it is another good image instead, shifted and
      mirrored and never augmented.
    noise: standard deviation of Gaussian noise on the augmented image, of a
      range of [0, 1].

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
  cells: tuple[int, int] = (1, 32)
  unions: float = 0.0
  intersections: float = 0.0
  augmentation_probability: float = 1.0
  good_textures: float = 0.0
  noise: float = 0.0

  def __post_init__(self):
    # Configs that were stored come back with lists.
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):
        object.__setattr__(self, field.name, tuple(value))
    if any(number & (number - 1) for number in self.cells):
      raise UserError(
        f'config.simulator.cells={self.cells}: take powers of two, such as'
        ' (1, 8)'
      )
    if self.unions + self.intersections > 1:
      raise UserError(
        f'config.simulator.unions={self.unions:g} and'
        f' config.simulator.intersections={self.intersections:g} are shares of'
        ' the same masks: take less of one of them'
      )
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
