"""DRÆM on DAGM 2007: image AUROC, TPR, TNR and accuracy, as in table 4.

  python -m draem_jax.main --config=configs/dagm.py:Class1 \
    --workdir=runs/Class1 --config.data.dir=/data/dagm

The recipes are those of `draem_jax.configs.dagm`, which says what stands behind
the colon.
"""

from draem_jax.configs.dagm import get_config

__all__ = ['get_config']
