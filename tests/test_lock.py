"""The lock of a workdir, held by processes that live and that die."""

import signal
import subprocess
import sys
import textwrap

import pytest

from draem_jax.errors import UserError
from draem_jax.workdir import lock


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock of the folder until it is killed."""
  code = """
    import sys, time
    from draem_jax.workdir import lock
    with lock.hold(sys.argv[1]):
      print('held', flush=True)
      time.sleep(600)
  """
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code), tmp_path],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_folder_that_another_process_writes_is_refused(tmp_path, holder):
  assert lock.is_held(tmp_path)
  with (
    pytest.raises(UserError, match=f'process {holder.pid} on .*--workdir'),
    lock.hold(tmp_path),
  ):
    pass


def test_a_dead_process_holds_nothing(tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert not lock.is_held(tmp_path)
  with lock.hold(tmp_path):
    assert lock.is_held(tmp_path)
  assert not lock.is_held(tmp_path)


def test_whoever_looks_does_not_stand_in_the_way(tmp_path):
  assert not lock.is_held(tmp_path)
  with lock.hold(tmp_path):
    pass
  assert not lock.is_held(tmp_path)
  with lock.hold(tmp_path), pytest.raises(UserError), lock.hold(tmp_path):
    pass


def test_where_nothing_can_be_locked_a_line_says_so(
  tmp_path, monkeypatch, caplog
):
  def refuse(*unused):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with lock.hold(tmp_path):
    assert 'cannot be locked (Operation not supported)' in caplog.text
