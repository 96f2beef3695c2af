"""Table 4 of the paper: DAGM 2007, ten classes, one model each.

  python -m draem_jax.study --config=configs/table4.py \
    --workdir=studies/table4 --config.data.dir=/data/dagm

The rates are given at the detector's own threshold and at that of best F1 on
the test images, which is how the protocol's published code takes it; the paper
does not state it for DRÆM. Behind a colon stands `small`, the small setting of
the README.
"""

from ml_collections import config_dict

from draem_jax import paper
from draem_jax.configs import mvtec
from draem_jax.studies import plan


def get_config(setting: str = '') -> config_dict.ConfigDict:
  """The study in the paper's setting, or in `'small'`."""
  config = mvtec.shared(setting)
  config.data.layout = 'dagm'
  config.data.dir = 'data/dagm'
  return plan.make(
    config,
    name='table4',
    tables=('table4',),
    rows={'draem': {}},
    categories=paper.DAGM_CLASSES,
  )
