"""Table 4 of the paper.

See `draem_jax.configs.table4`, whose `get_config` this is.
"""

from draem_jax.configs.table4 import get_config

__all__ = ['get_config']
