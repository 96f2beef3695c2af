"""Figure 9 of the paper: how many texture images the simulator needs.

  python -m draem_jax.study --config=configs/figure9.py \
    --workdir=studies/figure9 --config.data.dir=/data/mvtec_ad

The number goes from 1 to all, with and without augmentation; the seed samples
the images, fewer of them from among the more. Without is as in the row `no_aug`
of table 3: neither texture augmentation nor random opacity, which is how the
text reads. Behind a colon stands `small`, the small setting of the README.
"""

from ml_collections import config_dict

from draem_jax import paper
from draem_jax.configs import ablations, mvtec
from draem_jax.studies import plan

COUNTS = 1, 3, 10, 30, 100, 300, 1000, 0  # 0 is all.


def get_config(setting: str = '') -> config_dict.ConfigDict:
  """The study in the paper's setting, or in `'small'`."""
  rows = {}
  for name, kind in (('draem', 'augmented'), ('no_aug', 'plain')):
    for count in COUNTS:
      textures = {'data': {'num_textures': count}}
      rows[f'{kind}_{count or "all"}'] = ablations.ROWS[name] | textures
  return plan.make(
    mvtec.shared(setting),
    name='figure9',
    tables=('figure9',),
    rows=rows,
    categories=paper.CATEGORIES,
  )
