"""What differs by platform: one way is traced where it is known, else all."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def known(device: jax.Device) -> contextlib.AbstractContextManager[Any]:
  """Says within which platform what is compiled is for.

  It is JAX's default device, by which JAX keeps traces apart: a program that is
  compiled in this context is called in it.

  Args:
    device: one of those that the program is for, of this process.
  """
  return jax.default_device(device)


def choose(
  *arguments: Any,
  default: Callable[..., Any],
  cpu: Callable[..., Any] | None = None,
  tpu: Callable[..., Any] | None = None,
) -> Any:
  """As `jax.lax.platform_dependent` does, which traces every way each time.

  That is more than a third of the time that the training step takes to trace
  (benchmarks/README.md).

  Args:
    *arguments: of each way.
    default: the way of every platform that has none of its own.
    cpu: that of CPUs, if it is another.
    tpu: likewise.

  Returns:
    What the way of the platform returns.
  """
  named = {'cpu': cpu, 'tpu': tpu}
  ways = {name: way for name, way in named.items() if way is not None}
  device = jax.config.jax_default_device
  if device is None:
    return lax.platform_dependent(*arguments, default=default, **ways)
  platform = getattr(device, 'platform', device)
  return ways.get(platform, default)(*arguments)
