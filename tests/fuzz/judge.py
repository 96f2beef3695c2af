"""What an input is, and the verdict on what a command made of it."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from .process import Result

MEMORY = 2 << 30  # Bytes.
CANARY = 'EXECUTED'  # A file that what is executed makes in its folder.

# In order, with what they mean. The last three are no faults.
VERDICTS = {
  'executed': 'something in a file was executed',
  'hung': 'no end within the time limit',
  'memory': 'more than 2 GB resident',
  'crash': 'ended by a signal',
  'traceback': 'a traceback, or a status that no page names',
  'wrong': 'in order, with a wrong table or an input dropped in silence',
  'unnamed': 'a refusal that does not name what is to be mended',
  'message': 'more than one line of error, or words of a library',
  'left over': 'a temporary file is left',
  'refused': 'one line that names the file or the flag',
  'clean': 'the result of the sound input',
  'other': 'another sound input by now: taken as what it says',
}
IN_ORDER = 'refused', 'clean', 'other'

_MOST_LINES, _MOST_CHARACTERS = 40, 2000
_OF_LIBRARIES = re.compile(
  r'^\S*:\d+: \w*Warning: |^[WEIF]\d{4} |^(WARNING|ERROR|FATAL)[: ]'
  r'|^Exception ignored|^Fatal Python|DecompressionBomb|^\S*\.cc?:\d+'
)
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]')
_TEMPORARY = re.compile(
  r'^\..*\.(part|[0-9a-f]{8})$|\.incomplete\w*$|\.orbax-checkpoint-tmp'
)


class Wrong(Exception):
  """The exit is in order, and what is there is not; the words say what."""


# From result and folder to 'clean' or 'other'; raises `Wrong`.
Check = Callable[[Result, pathlib.Path], str]


@dataclasses.dataclass
class Case:
  """An input.

  Attributes:
    title: what it is, in words.
    command: a name in `process.COMMANDS`, or a function.
    arguments: of the command.
    check: what must hold if the command ends in order.
    names: words of which a refusal has one: the file's name, the flag's.
    variables: of the environment; None for one that is not set.
    prefix: the program that starts the command; the process is then real.
    limit: seconds that it may take.
    statuses: of an exit in order, which `check` is asked about.
  """

  title: str
  command: str | Callable[[], None]
  arguments: Sequence[str]
  check: Check
  names: Sequence[str] = ()
  variables: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
  prefix: Sequence[str] = ()
  limit: float = 60.0
  statuses: tuple[int, ...] = (0,)


def judge(case: Case, result: Result, folder: pathlib.Path) -> tuple[str, str]:
  """The verdict on an input, a key of `VERDICTS`, and why in words."""
  lines = result.err.splitlines()
  last = lines[-1] if lines else ''
  if (folder / CANARY).exists():
    return 'executed', last
  if result.peak > MEMORY:
    return 'memory', f'{result.peak / 2**30:.1f} GiB'
  if result.hung:
    return 'hung', f'{result.seconds:.0f} s'
  if result.status < 0:
    return 'crash', f'signal {-result.status}'
  if 'Traceback (most recent call last)' in result.err:
    return 'traceback', last
  if result.status not in (2, *case.statuses):
    return 'traceback', f'status {result.status}: {last}'
  words = _bad_message(result, lines)
  if words:
    return 'message', words
  left = [p for p in folder.rglob('*') if _TEMPORARY.search(p.name)]
  if left:
    return 'left over', str(left[0].relative_to(folder))
  if result.status == 2:
    if case.names and not any(name in last for name in case.names):
      return 'unnamed', last
    return 'refused', last
  try:
    return case.check(result, folder), last
  except Wrong as error:
    return 'wrong', str(error)


def _bad_message(result: Result, lines: list[str]) -> str:
  """What is wrong with what a user reads; empty if nothing is."""
  errors = [line for line in lines if line.startswith('error: ')]
  if result.status == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
    return f'{len(errors)} lines of error; the last line is {lines[-1:]}'
  if result.status != 2 and errors:
    return errors[0]
  if len(lines) > _MOST_LINES:
    return f'{len(lines)} lines'
  for line in lines:
    if _OF_LIBRARIES.search(line):
      return line
    if len(line) > _MOST_CHARACTERS:
      return f'{len(line)} characters: {line[:80]}'
    if _CONTROL.search(line):
      return f'raw control characters: {line!r}'
  return ''
