"""The networks: DRÆM's two, together and alone (sections 3.1 and 3.2)."""

from draem_jax.networks.models import (
  MODELS,
  Networks,
  Output,
  abstract_variables,
  make,
)

__all__ = ['MODELS', 'Networks', 'Output', 'abstract_variables', 'make']
