"""Two CPU devices for every test, before anything imports JAX.

Programs are compiled without most optimizations, for most run once; with
`JAX_DISABLE_MOST_OPTIMIZATIONS=false` they are those that users run. What one
test has compiled no other compiles again, whichever process it is in.
"""

import os
import pathlib
import tempfile

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
)
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')

import jax
import jaxtyping
import pytest

# Of this run of the suite, for its workers.
_PROGRAMS = 'DRAEM_JAX_TESTS_PROGRAMS'
_DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'


def pytest_configure(config):
  """Shares compiled programs between the tests, in a folder that goes again."""
  if _PROGRAMS not in os.environ:
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ[_PROGRAMS] = folder.name
  jax.config.update('jax_compilation_cache_dir', os.environ[_PROGRAMS])
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture
def example_data() -> pathlib.Path:
  """A folder of real categories and textures beside the checkout."""
  if not _DATA.is_dir():
    pytest.skip(f'{_DATA} is not there')
  return _DATA


@pytest.fixture
def unchecked():
  """Annotations are not looked at, so that the package's own words are."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)
