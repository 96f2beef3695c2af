"""RIAD, which the paper compares DRÆM with, on MVTec AD or a folder like it.

  python -m draem_jax.main --config=configs/riad.py:bottle \
    --workdir=runs/riad_bottle --config.data.dir=/data/mvtec_ad

The recipe is that of `draem_jax.configs.riad`, which says what stands behind
the colon and what was published.
"""

from draem_jax.configs.riad import get_config

__all__ = ['get_config']
