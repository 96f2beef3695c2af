"""Streams that are closed, cut off, full or know ASCII only."""

import logging
import os
import subprocess
import sys

import pytest
from tqdm.contrib.logging import logging_redirect_tqdm

from draem_jax import terminal

# Does what a command does: prepares, opens a file, writes on both streams.
PROGRAM = r"""
import logging, os, sys
from draem_jax import terminal
terminal.prepare()
file = open(sys.argv[1], 'w')
assert file.fileno() > 2
logger = logging.getLogger('draem_jax')
logger.handlers = [terminal.Handler()]
for number in range(100):
  logger.warning('line %d of two\nlines', number)
terminal.say('said \udce9', *['dr\xe6m'] * 20_000)
terminal.complain('complained')
os.write(2, b'a library complains\n')
file.write('done')
file.close()
"""


def run(tmp_path, redirection='', **environment):
  """Runs the program under a shell; returns status, streams, its file."""
  program, out = tmp_path / 'program.py', tmp_path / 'out'
  program.write_text(PROGRAM)
  done = subprocess.run(
    ['bash', '-c', f'"$@" {redirection}', '-', sys.executable, program, out],
    capture_output=True,
    env={**os.environ, **environment},
  )
  return done, out.read_text() if out.exists() else None


def test_every_line_arrives(tmp_path):
  done, content = run(tmp_path)
  assert done.returncode == 0
  said = done.stdout.decode().splitlines()
  assert said[0] == r'said \xe9'
  assert len(said) == 20_001
  lines = done.stderr.decode().splitlines()
  assert lines[0] == r'line 0 of two\nlines'
  assert lines[100:] == ['complained', 'a library complains']
  assert content == 'done'


@pytest.mark.parametrize(
  'redirection',
  ['2>&-', '>&-', '<&- >&- 2>&-', '| true', '2>&1 | true', '| head -1'],
)
def test_nobody_who_reads_is_no_reason_to_stop(tmp_path, redirection):
  done, content = run(tmp_path, redirection)
  assert content == 'done'
  assert b'Traceback' not in done.stderr
  assert b'Exception' not in done.stderr


def test_what_ascii_has_no_letter_for_is_escaped(tmp_path):
  ascii_only = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  done, content = run(tmp_path, **ascii_only)
  assert done.returncode == 0
  assert done.stdout.splitlines()[1] == rb'dr\xe6m'
  assert content == 'done'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_is_an_error_that_names_the_stream(tmp_path):
  done, _ = run(tmp_path, '> /dev/full')
  assert done.returncode == 1
  assert b"No space left on device: '<stdout>'" in done.stderr


def test_a_progress_bar_that_takes_over_writes_one_line_too(capsys):
  logger = logging.getLogger('draem_jax.test_terminal')
  logger.handlers, logger.propagate = [terminal.Handler()], False
  with logging_redirect_tqdm([logger]):
    logger.warning('two\nlines \udce9')
  assert capsys.readouterr().err == r'two\nlines \xe9' + '\n'
