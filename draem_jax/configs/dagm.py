"""DRÆM on DAGM 2007, ten classes of textures with one kind of defect each.

The recipe of the paper (Zavrtanik, Kristan, Skočaj: DRÆM, ICCV 2021, sections
4.1 and 4.3), at full width, the images of 512x512 resized to 256x256:

  python -m draem_jax.main --config=configs/dagm.py:Class1 \
    --workdir=runs/Class1 --config.data.dir=/data/dagm

`:Class1` to `:Class10` are folders of `config.data.dir`; `:all` trains a model
for each class there, one after the other, and writes a table with averages over
the classes. Behind a comma stands the preset, `paper` (the default) or
`release`, as in `configs/mvtec.py`. The ten classes are trained on every good
image of `Train`; the defective ones are left out. The ground truth is coarse,
so that there are metrics of images only; pictures and reports show it.

Expected after the whole recipe (table 4 of the paper, averages over the
classes): 99.0 image AUROC, 96.5 true positive rate (TPR), 99.4 true negative
rate (TNR) and 98.5 accuracy (CA). At which threshold, the paper does not say:
`results.json` has the three at the detector's own, and as `best_f1_...` at the
one of best F1 on the test images, as the protocol's code takes it.
"""

from ml_collections import config_dict

from draem_jax.configs import mvtec


def get_config(arguments: str = 'Class1') -> config_dict.ConfigDict:
  """The config for `'class'`, `'class,preset'` or `'all'`."""
  config = mvtec.get_config(arguments or 'Class1')
  config.data.layout = 'dagm'
  config.data.dir = 'data/dagm'
  return config
