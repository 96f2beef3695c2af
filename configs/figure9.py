"""Figure 9 of the paper.

See `draem_jax.configs.figure9`, whose `get_config` this is.
"""

from draem_jax.configs.figure9 import get_config

__all__ = ['get_config']
