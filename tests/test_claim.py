import pytest
from small import small_config

from draem_jax import config as config_lib
from draem_jax.errors import UserError
from draem_jax.workdir import claim

DATA = {'training images': '01234567', 'textures': '89abcdef'}


def test_the_same_run_may_go_on(tmp_path):
  config = small_config().to_dict()
  claim.claim(tmp_path / 'run', config, DATA)
  claim.claim(tmp_path / 'run', config, DATA)
  # Tuples come back from JSON, and what is missing has its default.
  assert claim.read_config(tmp_path / 'run') == config_lib.complete(config)


def begin(folder):
  claim.claim(folder, small_config().to_dict(), DATA)
  (folder / 'checkpoints' / '2').mkdir(parents=True)


def test_another_config_is_refused_by_field(tmp_path):
  begin(tmp_path)
  other = small_config(**{'seed': 5, 'simulator.opacity': (0.5, 1.0)})
  with pytest.raises(UserError) as error:
    claim.claim(tmp_path, other.to_dict(), DATA)
  message = str(error.value)
  assert 'config.seed=5 (there 0)' in message
  assert 'config.simulator.opacity' in message
  assert 'batch_size' not in message and '\n' not in message
  assert claim.read_config(tmp_path)['seed'] == 0


def test_before_the_first_step_any_config_may_come(tmp_path):
  claim.claim(tmp_path, small_config().to_dict(), DATA)
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  claim.claim(tmp_path, small_config(seed=5).to_dict(), DATA)
  assert claim.read_config(tmp_path)['seed'] == 5


def test_fields_that_do_not_shape_the_weights_may_change(tmp_path):
  begin(tmp_path)
  claim.claim(tmp_path, small_config(log_every=7).to_dict(), DATA)
  assert claim.read_config(tmp_path)['log_every'] == 7


def test_other_data_are_refused(tmp_path):
  begin(tmp_path)
  with pytest.raises(UserError, match='other textures'):
    claim.claim(
      tmp_path, small_config().to_dict(), DATA | {'textures': '00000000'}
    )


@pytest.mark.parametrize('text', ['', '{"config": ', '[]', '{"config": 3}'])
def test_a_damaged_config_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match='config.json'):
    claim.read_config(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    claim.read_config(tmp_path)
