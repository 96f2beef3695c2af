"""Tables 1 and 2 of the paper: detection and localization on MVTec AD.

  python -m draem_jax.study --config=configs/table1.py \
    --workdir=studies/mvtec --config.data.dir=/data/mvtec_ad

One run a category and seed, with the paper's recipe, beside what the paper
prints of it and of the systems it compares with. Both tables are made of the
same runs. Behind a colon stands `small`, the small setting of the README, which
two CPU cores train in minutes; it reaches no published number.
"""

from ml_collections import config_dict

from draem_jax import paper
from draem_jax.configs import mvtec
from draem_jax.studies import plan


def get_config(setting: str = '') -> config_dict.ConfigDict:
  """The study in the paper's setting, or in `'small'`."""
  return plan.make(
    mvtec.shared(setting),
    name='mvtec',
    tables=('table1', 'table2'),
    rows={'draem': {}},
    categories=paper.CATEGORIES,
  )
