"""What the paper published: tables 1 to 4, and the categories they are about.

Zavrtanik, Kristan, Skočaj: DRÆM - A discriminatively trained reconstruction
embedding for surface anomaly detection, ICCV 2021,
doi:10.1109/ICCV48922.2021.00822. All numbers are in percent, as printed; those
that do not agree with each other stand as printed, too, and `NOTES` says so.
Nothing of the package is imported here, so that all of it may import this.
"""

from typing import NamedTuple


class Published(NamedTuple):
  """A system on one category of MVTec AD, or its averages over all of them.

  Attributes:
    image_auroc: from table 1.
    pixel_auroc: from table 2; None if the system is not in it.
    pixel_ap: as `pixel_auroc`.
  """

  image_auroc: float
  pixel_auroc: float | None
  pixel_ap: float | None


class Localization(NamedTuple):
  """A cell of table 2."""

  pixel_auroc: float
  pixel_ap: float


class Table3Row(NamedTuple):
  """An experiment of the ablation study: averages over the 15 categories.

  Attributes:
    name: the experiment's, as printed.
    image_auroc: of its detection.
    pixel_auroc: of its localization.
    pixel_ap: of its localization.
  """

  name: str
  image_auroc: float
  pixel_auroc: float
  pixel_ap: float


class Table4Row(NamedTuple):
  """A system on DAGM: averages over the ten classes, None where none is given.

  Attributes:
    auroc: of the images.
    tpr: the true positive rate.
    tnr: the true negative rate.
    accuracy: the share of images that are classified right, printed as CA.
    is_supervised: whether the system learns from the defects' labels.
  """

  auroc: float | None
  tpr: float | None
  tnr: float | None
  accuracy: float | None
  is_supervised: bool = False


OURS = 'DRÆM'

# Whose each system is, in the order of the tables. Tables 1, 2 and 4 print
# references, some of them without a name.
SYSTEMS = {
  'GANomaly': 'Akcay et al. 2018',
  'DAGAN': 'Tang et al. 2020',
  'US': 'Uninformed Students, Bergmann et al. 2020',
  'RIAD': 'Zavrtanik et al. 2020',
  'MAD': 'Rippel et al. 2020',
  'PaDiM': 'Defard et al. 2020',
  OURS: 'Zavrtanik et al. 2021',
  'CADN': 'Zhang et al. 2021',
  'Rački et al.': '2018',
  'Lin et al.': '2020',
  'Božič et al.': '2020',
}

# Rows and columns stand as on the paper's page, to be compared with it by eye.
_COLUMNS1 = ('GANomaly', 'DAGAN', 'US', 'RIAD', 'MAD', 'PaDiM', OURS)
_ROWS1 = {
  'bottle': (79.4, 98.3, 99.0, 99.9, 100.0, 99.9, 99.2),
  'capsule': (72.1, 68.7, 86.1, 88.4, 92.3, 91.3, 98.5),
  'grid': (74.3, 86.7, 81.0, 99.6, 92.9, 96.7, 99.9),
  'leather': (80.8, 94.4, 88.2, 100.0, 100.0, 100.0, 100.0),
  'pill': (67.1, 76.8, 87.9, 83.8, 83.4, 93.3, 98.9),
  'tile': (72.0, 96.1, 99.1, 98.7, 97.4, 98.1, 99.6),
  'transistor': (80.8, 79.4, 81.8, 90.9, 95.9, 97.4, 93.1),
  'zipper': (74.4, 78.1, 91.9, 98.1, 97.9, 90.3, 100.0),
  'cable': (71.1, 66.5, 86.2, 81.9, 94.0, 92.7, 91.8),
  'carpet': (82.1, 90.3, 91.6, 84.2, 95.5, 99.8, 97.0),
  'hazelnut': (87.4, 100.0, 93.1, 83.3, 98.7, 92.0, 100.0),
  'metal_nut': (69.4, 81.5, 82.0, 88.5, 93.1, 98.7, 98.7),
  'screw': (100.0, 100.0, 54.9, 84.5, 81.2, 85.8, 93.9),
  'toothbrush': (70.0, 95.0, 95.3, 100.0, 95.8, 96.1, 100.0),
  'wood': (92.0, 97.9, 97.7, 93.0, 97.6, 99.2, 99.1),
}
_AVERAGES1 = (78.2, 87.3, 87.7, 91.7, 94.4, 95.5, 98.0)

_COLUMNS2 = ('US', 'RIAD', 'PaDiM', OURS)
_ROWS2 = {
  'bottle': ((97.8, 74.2), (98.4, 76.4), (98.2, 77.3), (99.1, 86.5)),
  'capsule': ((96.8, 25.9), (92.8, 38.2), (98.6, 46.7), (94.3, 49.4)),
  'grid': ((89.9, 10.1), (98.8, 36.4), (97.1, 35.7), (99.7, 65.7)),
  'leather': ((97.8, 40.9), (99.4, 49.1), (99.0, 53.5), (98.6, 75.3)),
  'pill': ((96.5, 62.0), (95.7, 51.6), (95.7, 61.2), (97.6, 48.5)),
  'tile': ((92.5, 65.3), (89.1, 52.6), (94.1, 52.4), (99.2, 92.3)),
  'transistor': ((73.7, 27.1), (87.7, 39.2), (97.6, 72.0), (90.9, 50.7)),
  'zipper': ((95.6, 36.1), (97.8, 63.4), (98.4, 58.2), (98.8, 81.5)),
  'cable': ((91.9, 48.2), (84.2, 24.4), (96.7, 45.4), (94.7, 52.4)),
  'carpet': ((93.5, 52.2), (96.3, 61.4), (99.0, 60.7), (95.5, 53.5)),
  'hazelnut': ((98.2, 57.8), (96.1, 33.8), (98.1, 61.1), (99.7, 92.9)),
  'metal_nut': ((97.2, 83.5), (92.5, 64.3), (97.3, 77.4), (99.5, 96.3)),
  'screw': ((97.4, 7.8), (98.8, 43.9), (98.4, 21.7), (97.6, 58.2)),
  'toothbrush': ((97.9, 37.7), (98.9, 50.6), (98.8, 54.7), (98.1, 44.7)),
  'wood': ((92.1, 53.3), (85.8, 38.2), (94.1, 46.3), (96.4, 77.7)),
}
_AVERAGES2 = ((93.9, 45.5), (94.2, 48.2), (97.4, 55.0), (97.3, 68.4))

# By the row's name in `configs/ablations.py`.
TABLE3 = {
  'disc': Table3Row('Disc.', 93.9, 92.7, 62.5),
  'recon_ae': Table3Row('Recon.-AE', 83.9, 89.7, 47.5),
  'recon_ae_msgms': Table3Row('Recon.-AE MSGMS', 90.7, 93.4, 50.9),
  'bozic': Table3Row('Božič et al.', 92.8, 93.9, 60.7),
  'imagenet': Table3Row('DRÆM ImageNet', 97.9, 97.0, 67.9),
  'color': Table3Row('DRÆM color', 96.2, 92.6, 56.5),
  'rect': Table3Row('DRÆM rect', 96.9, 96.8, 65.1),
  'no_aug': Table3Row('DRÆM no aug', 97.4, 94.5, 64.3),
  'img_aug': Table3Row('DRÆM img aug', 97.4, 95.0, 64.5),
  # The text calls it "only opacity randomization".
  'opacity': Table3Row('DRÆM opacity only', 97.9, 97.1, 68.4),
  'draem': Table3Row(OURS, 98.0, 97.3, 68.4),
}

TABLE4 = {
  'RIAD': Table4Row(78.6, 79.2, 69.1, 70.4),
  'US': Table4Row(72.5, 72.6, 65.3, 66.2),
  'MAD': Table4Row(82.4, 78.7, 85.7, 66.2),
  'PaDiM': Table4Row(95.0, 83.3, 97.5, 95.7),
  OURS: Table4Row(99.0, 96.5, 99.4, 98.5),
  'CADN': Table4Row(None, None, None, 89.1, is_supervised=True),
  'Rački et al.': Table4Row(99.6, 99.9, 99.5, None, is_supervised=True),
  'Lin et al.': Table4Row(99.0, 99.4, 99.9, None, is_supervised=True),
  'Božič et al.': Table4Row(100.0, 100.0, 100.0, 100.0, is_supervised=True),
}

# What does not follow from the other numbers of its table, by table.
NOTES = {
  1: 'The average of PaDiM is printed as 95.5; its 15 numbers give 95.4.',
  4: (
    'The accuracies of MAD and DRÆM are as printed: their rates, with the share'
    ' of defective test images, give 84.8 and 99.0.'
  ),
}

# Of MVTec AD; in the order of the alphabet.
CATEGORIES = tuple(sorted(_ROWS1))
# Of DAGM 2007.
DAGM_CLASSES = tuple(f'Class{number}' for number in range(1, 11))

# Image AUROC by system and category, and its printed averages by system.
TABLE1 = {
  system: {name: _ROWS1[name][column] for name in CATEGORIES}
  for column, system in enumerate(_COLUMNS1)
}
TABLE1_AVERAGES = dict(zip(_COLUMNS1, _AVERAGES1, strict=True))

# Pixel AUROC and AP by system and category, and their printed averages.
TABLE2 = {
  system: {name: Localization(*_ROWS2[name][column]) for name in CATEGORIES}
  for column, system in enumerate(_COLUMNS2)
}
TABLE2_AVERAGES = {
  system: Localization(*average)
  for system, average in zip(_COLUMNS2, _AVERAGES2, strict=True)
}

# Tables 1 and 2 together, by system and category, and their printed averages.
PUBLISHED = {
  system: {
    name: Published(value, *TABLE2.get(system, {}).get(name, (None, None)))
    for name, value in column.items()
  }
  for system, column in TABLE1.items()
}
AVERAGES = {
  system: Published(value, *TABLE2_AVERAGES.get(system, (None, None)))
  for system, value in TABLE1_AVERAGES.items()
}

# Which system networks are, by their name in a config.
SYSTEM_OF = {'draem': OURS, 'riad': 'RIAD', 'bozic': 'Božič et al.'}

# DRÆM by category.
DRAEM = PUBLISHED[OURS]
