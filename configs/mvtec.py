"""DRÆM on MVTec AD, or on any folder of that layout.

  python -m draem_jax.main --config=configs/mvtec.py:bottle \
    --workdir=runs/bottle --config.data.dir=/data/mvtec_ad

The recipes are those of `draem_jax.configs.mvtec`, which says what stands
behind the colon. A recipe of one's own begins with one of them:

  config = get_config('bottle,release')
  config.learning_rate = 3e-4
"""

from draem_jax.configs.mvtec import get_config

__all__ = ['get_config']
