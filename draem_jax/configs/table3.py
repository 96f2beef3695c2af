"""Table 3 of the paper: DRÆM with one part taken away or replaced.

  python -m draem_jax.study --config=configs/table3.py \
    --workdir=studies/table3 --config.data.dir=/data/mvtec_ad

The rows are those of `configs/ablations.py`. ImageNet has to be got from
image-net.org: name its folder by
`--config.study.rows.imagenet.data.textures=/data/imagenet/train`, or leave its
row out by naming the others in `--rows`. Behind a colon stands `small`, the
small setting of the README.
"""

from ml_collections import config_dict

from draem_jax import paper
from draem_jax.configs import ablations, mvtec
from draem_jax.studies import plan


def get_config(setting: str = '') -> config_dict.ConfigDict:
  """The study in the paper's setting, or in `'small'`."""
  return plan.make(
    mvtec.shared(setting),
    name='table3',
    tables=('table3',),
    rows=ablations.ROWS,
    trained_by=ablations.TRAINED_BY,
    categories=paper.CATEGORIES,
  )
