"""What a run says of its progress, by a clock that the tests wind."""

import re
import time

import jax
import pytest

from draem_jax.training import progress


class Loss(float):
  """A loss that the devices are not done with until they are told so."""

  done = False

  def is_ready(self):
    return self.done


class Run:
  """Steps of equal length on a device, looked at as the thread looks."""

  def __init__(self, monkeypatch, *, num_steps, first_step=0, batch=8):
    self.now, self.steps, self.said = 100.0, {}, []
    self.first_step = first_step
    note = lambda text, *args: self.said.append((self.now, text % args))
    monkeypatch.setattr(progress._log, 'info', note)
    self.told = progress.Progress(
      first_step=first_step,
      num_steps=num_steps,
      batch_size=batch,
      clock=lambda: self.now,
    )
    # The thread would look at another time.
    monkeypatch.setattr(self.told, '_keep_looking', lambda: None)
    self.told.start()

  def wait(self, seconds):
    """Lets the time pass, and the thread look."""
    for _ in range(round(seconds * 2)):
      self.now += 0.5
      self.told.look()

  def train(self, count, seconds):
    """Hands over steps at once, of which each takes so long."""
    before = len(self.steps) + self.first_step
    for step in range(before + 1, before + count + 1):
      self.steps[step] = Loss(step)
      self.told.hand_over(step, self.steps[step])
    for step in range(before + 1, before + count + 1):
      self.wait(seconds - 0.5)
      self.steps[step].done = True
      self.wait(0.5)

  def lines(self, pattern='.'):
    return [text for _, text in self.said if re.search(pattern, text)]


@pytest.fixture
def begin(monkeypatch):
  begun = []

  def begin(**options):
    begun.append(Run(monkeypatch, **options))
    return begun[-1]

  yield begin
  for run in begun:
    run.told.close()


def test_how_long_it_takes_is_said_without_the_compilation(begin):
  run = begin(num_steps=3000)
  run.wait(40)  # The compilation.
  assert not run.lines()
  run.train(30, seconds=1)
  (line,) = run.lines('to come')
  # Said after the sixth: the first may be slower.
  assert line == '2,994 steps to come take about 50 minutes, at 1 s a step'
  assert not run.lines('light')


def test_lines_come_by_time_where_steps_do_not_bring_them(begin):
  run = begin(num_steps=3000)
  run.train(130, seconds=1)
  lines = run.lines('^step')
  assert len(lines) == 4
  # The mean loss of the steps since the line before, whose losses are 1, 2, ...
  assert lines[0] == 'step 30/3000: loss 15.5000, 8.0 images/s, 49:30 left'
  assert lines[1].startswith('step 60/3000: loss 45.5000, 8.0 images/s')


def test_lines_of_the_loop_come_instead(begin):
  run = begin(num_steps=3000)
  for step in range(10, 130, 10):
    run.train(10, seconds=1)
    run.told.show(step, 0.5, 8.0)
  assert len(run.lines('^step')) == 12
  run.train(35, seconds=1)
  assert len(run.lines('^step')) == 13


@pytest.mark.parametrize('seconds', [1, 7, 20, 29, 31, 45, 75, 200])
def test_no_minute_goes_by_without_a_line(begin, seconds):
  run = begin(num_steps=3000)
  for _ in range(600 // seconds):
    run.train(1, seconds=seconds)
  times = [at for at, text in run.said if text.startswith('step')]
  # The loop begins at 100.
  assert times[0] - (100 + seconds) <= 30
  gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
  assert max(gaps) <= 60 and times[-1] >= run.now - 60
  first = next(at for at, text in run.said if 'take' in text)
  assert first <= 160


def test_a_machine_on_which_a_step_takes_a_minute(begin):
  run = begin(num_steps=18_288)
  run.wait(55)
  assert run.lines() == ['compiling the step, for 50 seconds so far']
  run.said.clear()
  run.train(1, seconds=75)
  bound, advice, estimate = run.lines('more than|light|to come')
  assert bound.endswith('the run will take more than 6.3 days')
  assert 'configs/mvtec.py:CATEGORY,light' in advice and 'GPU' in advice
  assert estimate.startswith('18,287 steps to come take about 16 days')
  assert run.lines('^step 1/18288: loss 1.0000, 0.1 images/s')
  run.said.clear()
  run.train(2, seconds=75)
  assert run.lines('^step 2/18288: under way for 50 seconds')
  assert run.lines('^step [23]/18288: loss')
  assert not run.lines('light|to come')


def test_what_is_short_or_on_a_gpu_gets_no_advice(begin, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  run = begin(num_steps=100_000)
  run.train(10, seconds=5)
  assert run.lines('to come take about 5.8 days')
  assert not run.lines('light')


def test_a_run_that_goes_on_counts_what_is_left(begin):
  run = begin(num_steps=1000, first_step=900)
  run.train(20, seconds=2)
  assert run.lines('to come') == [
    '96 steps to come take about 3.2 minutes, at 2 s a step'
  ]


def test_time_away_counts_for_nothing(begin):
  run = begin(num_steps=1000)
  run.train(3, seconds=1)
  with run.told.away():
    run.wait(300)
  assert not run.lines()
  run.train(10, seconds=1)
  assert run.lines('to come') == [
    '994 steps to come take about 17 minutes, at 1 s a step'
  ]


def test_the_thread_looks_and_ends(caplog, monkeypatch):
  monkeypatch.setattr(progress, '_LOOK_EVERY', 0.001)
  caplog.set_level('INFO', 'draem_jax')
  hours = iter(range(0, 10**9, 3600))
  told = progress.Progress(
    first_step=0, num_steps=9, batch_size=1, clock=lambda: next(hours)
  )
  told.start()
  loss = Loss(1)
  loss.done = True
  told.hand_over(1, loss)
  deadline = time.monotonic() + 30
  while 'step 1/9' not in caplog.text and time.monotonic() < deadline:
    time.sleep(0.001)
  assert 'step 1/9: loss 1.0000' in caplog.text
  told.close()
  assert not told._thread.is_alive()


def test_a_time_in_words():
  words = {
    9.4: '9 seconds',
    119: '119 seconds',
    150: '2.5 minutes',
    3599: '60 minutes',
    43200: '12 hours',
    1.4e6: '16 days',
  }
  assert {seconds: progress.in_words(seconds) for seconds in words} == words
