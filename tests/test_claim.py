import json
import os

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


def changed_text(**fields):
  """A stored config in which some fields are other ones."""
  nested = small_config().to_dict()
  for name, value in fields.items():
    nested[name] = value
  return json.dumps({'config': nested, 'data': DATA})


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('', 'is damaged'),
    ('{"config": ', 'is damaged'),
    ('[]', 'holds no object'),
    ('{"config": 3}', "'config' is no object"),
    ('{"config": {}, "data": []}', "'data' is no object"),
    ('{"data": {}}', 'is not the config of a run'),
    ('{"config": {"seed": 1}}', 'config.category is missing'),
    ('{"config": {"seed": 1, "seed": 2}}', "'seed' twice"),
    ('{"config": ' * 100_000, 'nested without end'),
    ('{"config": ' * 400 + '1' + '}' * 400, 'nested without end'),
    ('{"config": {"seed": ' + '9' * 5000 + '}}', 'is damaged'),
    (changed_text(batch_size=0), 'config.batch_size=0'),
    (changed_text(batch_size=True), 'config.batch_size=True'),
    (changed_text(seed=[]), r'config.seed=\(\)'),
    (changed_text(model=[1]), 'config.model is no field'),
    (changed_text(model={'name': 3}), 'config.model.name=3'),
    (changed_text(magnification=3), 'config.magnification is no field'),
    (changed_text(learning_rate=float('nan')), 'config.learning_rate=nan'),
    (changed_text(score_window='21'), "config.score_window='21'"),
  ],
)
def test_a_damaged_config_is_named(tmp_path, text, words):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=words) as error:
    claim.read_config(tmp_path)
  message = str(error.value)
  assert message.startswith(str(tmp_path / 'config.json'))
  assert '\n' not in message and len(message) < 500
  assert 'restore it, or take another --workdir' in message


@pytest.mark.parametrize(
  'lost', [('model',), ('score',), ('eval', 'holdout'), ('score_window',)]
)
def test_a_part_that_is_lost_is_not_the_default(tmp_path, lost):
  begin(tmp_path)
  path = tmp_path / 'config.json'
  found = json.loads(path.read_text())
  place = found['config']
  for name in lost[:-1]:
    place = place[name]
  del place[lost[-1]]
  path.write_text(json.dumps(found))
  for read in (
    claim.read_config,
    lambda folder: claim.claim(folder, small_config().to_dict(), DATA),
  ):
    with pytest.raises(UserError, match=rf'config.{".".join(lost)}.*missing'):
      read(tmp_path)


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named(tmp_path, make):
  make(tmp_path / 'config.json')
  with pytest.raises(UserError, match='config.json is not a file'):
    claim.read_config(tmp_path)


def test_a_field_that_is_no_more_is_passed_over(tmp_path):
  (tmp_path / 'config.json').write_text(changed_text(profile=''))
  assert 'profile' not in claim.read_config(tmp_path)


def test_an_editor_may_mark_the_encoding(tmp_path):
  begin(tmp_path)
  path = tmp_path / 'config.json'
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
  assert claim.read_config(tmp_path)['seed'] == 0
  path.write_bytes(path.read_bytes().decode().encode('utf-16'))
  with pytest.raises(UserError, match='is no UTF-8'):
    claim.read_config(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    claim.read_config(tmp_path)
