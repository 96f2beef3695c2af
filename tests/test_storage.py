import errno
import json
import os
import subprocess
import sys

import pytest

from draem_jax.errors import UserError
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


def test_what_a_killed_process_left_is_cleared(tmp_path):
  code = (
    'import os, sys; from draem_jax.workdir import storage\n'
    'with storage.atomic_file(sys.argv[1]) as file:\n'
    '  file.write(b"half"); file.flush(); os._exit(9)'
  )
  name = 'x' * 255
  command = [sys.executable, '-c', code, str(tmp_path / 'a' / name)]
  assert subprocess.run(command, check=False).returncode == 9
  assert len(os.listdir(tmp_path / 'a')) == 1
  (tmp_path / 'a' / '.0123.part').touch()
  storage.clear_partial(tmp_path)
  assert len(os.listdir(tmp_path / 'a')) == 2
  with storage.atomic_file(tmp_path / 'a' / name) as file:
    # What is being written stays.
    storage.clear_partial(tmp_path, deep=True)
    file.write(b'whole')
  assert (tmp_path / 'a' / name).read_bytes() == b'whole'
  assert sorted(os.listdir(tmp_path / 'a')) == ['.0123.part', name]
  storage.clear_partial(tmp_path / 'nowhere')


def test_a_full_disk_names_the_file(tmp_path):
  path = tmp_path / 'file'
  with pytest.raises(OSError) as caught, storage.atomic_file(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert caught.value.filename == str(path)
  assert not os.listdir(tmp_path)


def test_what_is_no_file_of_ours_is_not_read(tmp_path):
  path = tmp_path / 'file.json'
  with pytest.raises(FileNotFoundError):
    storage.read_json(path, remedy='r')
  for target in ('/dev/zero', tmp_path):
    path.symlink_to(target)
    with pytest.raises(UserError, match='file.json is not a file: r$'):
      storage.read_json(path, remedy='r')
    path.unlink()
  with path.open('wb') as file:
    file.truncate(1 << 40)
  with pytest.raises(UserError, match='file.json is damaged .*: r$'):
    storage.read_json(path, remedy='r')


def test_a_name_may_be_as_long_as_can_be(tmp_path):
  path = tmp_path / ('x' * 255)
  storage.write_bytes(path, b'whole')
  assert path.read_bytes() == b'whole'
