"""Two CPU devices for every test, before anything imports JAX."""

import os
import pathlib

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
)

import jaxtyping
import pytest

_DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'


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
