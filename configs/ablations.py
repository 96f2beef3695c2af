"""The rows of table 3.

See `draem_jax.configs.ablations`, whose `get_config` this is.
"""

from draem_jax.configs.ablations import get_config

__all__ = ['get_config']
