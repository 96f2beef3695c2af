"""The recipes beside each other, and `best` with each of its parts taken out.

See `draem_jax.configs.recipes`, whose `get_config` this is.
"""

from draem_jax.configs.recipes import get_config

__all__ = ['get_config']
