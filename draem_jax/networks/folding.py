"""Batch norm folded into the convolutions, for networks that only predict.

In evaluation batch norm is linear, and so is the convolution before it: one
convolution with another kernel and another bias does what both do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from draem_jax.networks import layers


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Folds every batch norm, exactly but for the rounding of the result.

  Args:
    variables: the 'params' and 'batch_stats' of `models.Networks` or of a part
      of it, on the host.

  Returns:
    Variables for the same module with `train=False`: 'params' that hold a
    kernel and a bias for each convolution, computed in float64 and stored in
    the dtype that they had, and of 'batch_stats' what is no batch norm's.
  """
  params, statistics = _fold(
    variables.get('params', {}), variables.get('batch_stats', {})
  )
  return {'params': params} | (
    {'batch_stats': statistics} if statistics else {}
  )


def _fold(
  params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The folded parameters, and the statistics that are still needed."""
  if 'norm_scale' in params:
    return _fold_layer(**params, **statistics), {}
  folded, left = dict(params), dict(statistics)
  for name, child in params.items():
    if isinstance(child, Mapping):
      folded[name], rest = _fold(child, statistics.get(name, {}))
      left.pop(name, None)
      if rest:
        left[name] = rest
  return folded, left


def _fold_layer(
  *,
  kernel: Float[np.ndarray, 'k k c d'],
  bias: Float[np.ndarray, 'd'],
  norm_scale: Float[np.ndarray, 'd'],
  norm_bias: Float[np.ndarray, 'd'],
  mean: Float[np.ndarray, 'd'],
  var: Float[np.ndarray, 'd'],
) -> dict[str, Float[np.ndarray, 'k k c d'] | Float[np.ndarray, 'd']]:
  factor = np.float64(norm_scale) / np.sqrt(np.float64(var) + layers.EPSILON)
  bias = (np.float64(bias) - mean) * factor + norm_bias
  return {
    'kernel': np.asarray(kernel * factor, kernel.dtype),
    'bias': np.asarray(bias, kernel.dtype),
  }
