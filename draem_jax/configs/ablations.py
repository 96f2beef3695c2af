"""The rows of table 3: DRÆM with one part taken away or replaced.

  python -m draem_jax.main --config=configs/ablations.py:rect,bottle \
    --workdir=runs/rect --config.data.dir=/data/mvtec_ad

Behind the colon stand a row and a category. A row is a few assignments over
the paper's recipe (`configs/mvtec.py:bottle,paper`); `configs/table3.py` runs
all of them.
"""

from typing import Any

from ml_collections import config_dict

from draem_jax.configs import mvtec

ROWS: dict[str, dict[str, Any]] = {
  # Architecture.
  'disc': {
    'model': {'name': 'discriminative'},
    'loss': {'weights': {'l2': 0.0, 'ssim': 0.0}},
  },
  'recon_ae': {
    'model': {'name': 'reconstructive'},
    'loss': {'weights': {'focal': 0.0}},
    'score': {'map': 'ssim'},
  },
  'recon_ae_msgms': {
    'model': {'name': 'reconstructive'},
    'loss': {'weights': {'focal': 0.0}},
    'score': {'map': 'msgms'},
  },
  # The recipe of their public code, with a learning rate between those of its
  # data sets; the segmentation is the map, the decision the image score.
  'bozic': {
    'model': {'name': 'bozic'},
    'loss': {
      'weights': {
        'l2': 0.0,
        'ssim': 0.0,
        'focal': 0.0,
        'segmentation': 1.0,
        'decision': 1.0,
      },
      'schedule': 'segmentation_first',
    },
    'optimizer': 'sgd',
    'learning_rate': 0.1,
    'learning_rate_milestones': (),
    'score': {'map': 'segmentation', 'image': 'decision'},
  },
  # Source of the anomalies. ImageNet has no place of its own in TFDS that may
  # be downloaded: set `data.textures` to its folder.
  'imagenet': {'data': {'textures': 'data/imagenet/train'}},
  'color': {'simulator': {'texture': 'color'}},
  # Their shape.
  'rect': {'simulator': {'mask': 'rectangles'}},
  # How hard they are to see. The paper does not state the opacity where it is
  # not random: 1 is the plain reading.
  'no_aug': {'simulator': {'num_augmentations': 0, 'opacity': (1.0, 1.0)}},
  'img_aug': {'simulator': {'opacity': (1.0, 1.0)}},
  'opacity': {'simulator': {'num_augmentations': 0}},
  'draem': {},
}

# The networks of a row that differs from another in what is made of them.
TRAINED_BY = {'recon_ae_msgms': 'recon_ae'}


def get_config(arguments: str = 'draem,bottle') -> config_dict.ConfigDict:
  """The config for `'row,category'`."""
  row, _, category = (arguments or 'draem,bottle').partition(',')
  if row not in ROWS:
    raise ValueError(f'unknown row {row!r}: take one of {", ".join(ROWS)}')
  config = mvtec.get_config(f'{category or "bottle"},paper')
  config.update(ROWS[row])
  return config
