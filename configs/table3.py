"""Table 3 of the paper.

See `draem_jax.configs.table3`, whose `get_config` this is.
"""

from draem_jax.configs.table3 import get_config

__all__ = ['get_config']
