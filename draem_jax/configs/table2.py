"""Table 2 of the paper, whose runs are those of table 1.

python -m draem_jax.study --config=configs/table2.py \
    --workdir=studies/mvtec --config.data.dir=/data/mvtec_ad
"""

from draem_jax.configs.table1 import get_config

__all__ = ['get_config']
