"""The recipes beside each other, and one of our own, whole and part by part.

See `draem_jax.configs.recipes`, whose `get_config` this is.
"""

from draem_jax.configs.recipes import get_config

__all__ = ['get_config']
