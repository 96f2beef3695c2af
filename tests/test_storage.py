import json
import os

import pytest

from draem_jax.workdir import storage


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'deep' / 'file.json'
  storage.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    storage.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}
  assert os.listdir(path.parent) == ['file.json']


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / 'file'
  storage.write_text(path, 'dræm\n')
  assert path.read_bytes() == 'dræm\n'.encode()
  with pytest.raises(KeyboardInterrupt), storage.atomic_file(path) as file:
    file.write(b'half')
    file.flush()
    assert path.read_bytes() == 'dræm\n'.encode()
    raise KeyboardInterrupt
  assert path.read_bytes() == 'dræm\n'.encode()
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_a_file_is_as_readable_as_the_umask_says(tmp_path, umask):
  before = os.umask(umask)
  try:
    storage.write_bytes(tmp_path / 'ours', b'')
    (tmp_path / 'theirs').write_bytes(b'')
  finally:
    os.umask(before)
  ours, theirs = ((tmp_path / x).stat().st_mode for x in ('ours', 'theirs'))
  assert ours == theirs
