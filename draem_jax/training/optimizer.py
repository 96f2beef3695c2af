"""The optimizers and the learning rate, as a config describes them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import PyTree


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
  """The learning rate by step: it rises at first, and falls at milestones."""
  falls = optax.piecewise_constant_schedule(
    config['learning_rate'],
    {
      int(share * num_steps): config['learning_rate_factor']
      for share in config['learning_rate_milestones']
    },
  )
  warmup = int(config['learning_rate_warmup'] * num_steps)
  if not warmup:
    return falls
  # A step of rate 0 would be lost: the first one is above it.
  return lambda step: falls(step) * jnp.minimum(1, (step + 1) / warmup)


def make_optimizer(
  schedule: optax.Schedule, name: str = 'adam'
) -> optax.GradientTransformation:
  """Adam with PyTorch's defaults, as the release uses it, Muon or plain SGD.

  Muon (Jordan et al., https://kellerjordan.github.io/posts/muon, 2024) makes
  the update of each kernel orthogonal, as a matrix of all that it reads by the
  channels that it gives, and as large as an update of Adam (Liu et al.,
  arXiv:2502.16982). Everything else gets Adam with Nesterov's momentum.

  Args:
    schedule: the learning rate by step.
    name: 'adam', 'muon', or 'sgd', which is without momentum.
  """
  if name == 'sgd':
    return optax.sgd(schedule)
  if name == 'muon':
    return optax.contrib.muon(
      schedule,
      beta=0.9,
      muon_weight_dimension_numbers=_kernels_as_matrices,
      consistent_rms=0.2,
    )
  return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def _kernels_as_matrices(params: PyTree) -> PyTree:
  """Which axes Muon makes rows and columns; None where there are no two."""
  matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda x: matrix if x.ndim == 4 else None, params)
