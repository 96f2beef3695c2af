"""What differs by platform, where that is known and where it is not."""

import jax
import jax.numpy as jnp
import numpy as np

from draem_jax import platforms


def chosen(traced, x):
  def way(name, add):
    def run(x):
      traced.append(name)
      return x + add

    return run

  return platforms.choose(
    x, cpu=way('cpu', 1), tpu=way('tpu', 2), default=way('default', 3)
  )


def test_a_known_platform_traces_its_way_alone():
  traced = []
  run = jax.jit(lambda x: chosen(traced, x))
  with platforms.known(jax.devices('cpu')[0]):
    np.testing.assert_array_equal(run(jnp.zeros(2)), 1)
  assert traced == ['cpu']
  # What is not known to be for a CPU alone is traced anew, for all.
  np.testing.assert_array_equal(run(jnp.zeros(2)), 1)
  assert sorted(traced[1:]) == ['cpu', 'default', 'tpu']
  lowered = run.trace(jnp.zeros(2)).lower(lowering_platforms=('cuda',))
  assert '3.0' in lowered.as_text() and '1.0' not in lowered.as_text()


def test_a_platform_without_a_way_takes_the_default():
  with platforms.known(jax.devices('cpu')[0]):
    found = platforms.choose(4.0, tpu=lambda x: x + 1, default=lambda x: x + 2)
  assert found == 6
