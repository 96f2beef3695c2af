"""A short run of the fuzzer; a long one is `python -m tests.fuzz.run`."""

import json
import os
import subprocess
import sys

import pytest

from . import kills, run
from .judge import IN_ORDER
from .process import ROOT


@pytest.fixture(scope='module')
def lines(tmp_path_factory):
  """What was found, by kind; the traps have shown that faults are seen."""
  work = tmp_path_factory.mktemp('fuzz')
  command = [sys.executable, '-m', 'tests.fuzz.run', '--short', '--traps']
  done = subprocess.run(
    [*command, f'--work={work}'],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=600,
  )
  log = work / 'log.jsonl'
  assert log.exists(), done.stdout + done.stderr
  return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize('kind', run.SHORT)
def test_no_input_of_this_kind_finds_a_fault(lines, kind):
  some = [line for line in lines if line['kind'] == kind]
  assert len(some) == run.SHORT[kind]
  faults = [line for line in some if line['verdict'] not in IN_ORDER]
  assert not faults, '\n'.join(
    f'{kind}:{line["number"]} {line["verdict"]}: {line["title"]}:'
    f' {line["words"]}\n{line["err"]}'
    for line in faults
  )


def test_kinds_and_numbers_make_an_input():
  counts = run.share_out(200, {'images': 3, 'flags': 1})
  assert counts == {'images': 150, 'flags': 50}
  mixed = run.mix(counts)
  assert len(set(mixed)) == 200
  assert {kind for kind, _ in mixed[:5]} == {'images', 'flags'}


def test_kills_see_what_is_left_over_missing_or_other(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  for folder, number in ((whole, 1), (killed, 2)):
    (folder / 'figures').mkdir(parents=True)
    (folder / 'timing.json').write_text(f'{{"train_seconds": {number}}}')
    (folder / 'metrics.jsonl').write_text(
      f'{{"step": 1, "seconds": {number}, "images_per_second": 2.5, "loss": 3}}'
    )
    (folder / 'report.html').write_text(
      f'<p>{number}.5 s, {number}0 images a second</p>'
    )
    (folder / 'figures' / 'curves.png').write_bytes(b'x')
  sound = kills.contents(whole)
  assert sound.keys() == {'metrics.jsonl', 'report.html', 'figures/curves.png'}
  assert not kills.differences(kills.contents(killed), sound)
  (killed / 'figures' / 'curves.png').write_bytes(b'y')
  (killed / '.results.json.0123abcd').touch()
  (killed / 'report.html').unlink()
  assert kills.differences(kills.contents(killed), sound) == [
    'left over: .results.json.0123abcd',
    'missing: report.html',
    'other bytes: figures/curves.png',
  ]


def test_kills_are_spread_over_the_duration():
  moments = kills.sample_moments(0, 'main', 50)
  assert [int(50 * moment) for moment in moments] == list(range(50))
  assert moments != kills.sample_moments(1, 'main', 50)
