"""What the paper published: its categories, and DRÆM's numbers on them.

Zavrtanik, Kristan, Skočaj: DRÆM - A discriminatively trained reconstruction
embedding for surface anomaly detection, ICCV 2021,
doi:10.1109/ICCV48922.2021.00822. Nothing of the package is imported here, so
that all of it may import this.
"""

from typing import NamedTuple


class Published(NamedTuple):
  """DRÆM on one category, in percent as printed in tables 1 and 2."""

  image_auroc: float
  pixel_auroc: float
  pixel_ap: float


DRAEM = {
  'bottle': Published(99.2, 99.1, 86.5),
  'cable': Published(91.8, 94.7, 52.4),
  'capsule': Published(98.5, 94.3, 49.4),
  'carpet': Published(97.0, 95.5, 53.5),
  'grid': Published(99.9, 99.7, 65.7),
  'hazelnut': Published(100.0, 99.7, 92.9),
  'leather': Published(100.0, 98.6, 75.3),
  'metal_nut': Published(98.7, 99.5, 96.3),
  'pill': Published(98.9, 97.6, 48.5),
  'screw': Published(93.9, 97.6, 58.2),
  'tile': Published(99.6, 99.2, 92.3),
  'toothbrush': Published(100.0, 98.1, 44.7),
  'transistor': Published(93.1, 90.9, 50.7),
  'wood': Published(99.1, 96.4, 77.7),
  'zipper': Published(100.0, 98.8, 81.5),
}

# Of MVTec AD; in the order of the alphabet.
CATEGORIES = tuple(DRAEM)
