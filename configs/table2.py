"""Table 2 of the paper.

See `draem_jax.configs.table2`, whose `get_config` this is.
"""

from draem_jax.configs.table2 import get_config

__all__ = ['get_config']
