"""Contenders measured in alternation, the PyTorch peer among them."""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds a call of one contender."""

  best: float
  median: float
  calls: int


def measure(
  contenders: Mapping[str, Callable[[int], float]],
  *,
  rounds: int,
  seconds: float,
) -> dict[str, Timing]:
  """Times contenders in alternation, so that all meet the same conditions.

  Args:
    contenders: by name, functions that make a number of calls and return the
      seconds they took; warmed up.
    rounds: how often each has its turn.
    seconds: about how long a turn is; at least one call.
  """
  calls, turns = {}, {name: [] for name in contenders}
  for name, run in contenders.items():
    calls[name] = max(1, round(seconds / run(1)))
  for _ in range(rounds):
    for name, run in contenders.items():
      turns[name].append(run(calls[name]) / calls[name])
  return {
    name: Timing(min(each), statistics.median(each), calls[name])
    for name, each in turns.items()
  }


class PeerFailed(Exception):
  """The PyTorch peer cannot run here; the message says why, if it is known."""


class TorchPeer:
  """The PyTorch peer in a process of its own.

  Attributes:
    about: its `device`, the version of `torch`, `threads` and the bytes of
      `peak_memory` on a GPU.
  """

  def __init__(
    self,
    variant: str,
    *,
    task: str,
    size: int,
    widths: Sequence[int],
    batch: int,
  ):
    """Starts and warms up.

    Args:
      variant: see `torch_peer.Variant`.
      task: 'training' or 'inference'.
      size: height and width of the images.
      widths: of the reconstructive and the discriminative network.
      batch: images a call.

    Raises:
      PeerFailed: if the process ends.
    """
    self.variant = variant
    self._process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'benchmarks.torch_worker'),
        *(f'--task={task}', f'--variant={variant}', f'--size={size}'),
        *('--widths', *map(str, widths), f'--batch={batch}'),
      ],
      cwd=_ROOT,
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    self.about = self._read()

  def __call__(self, calls: int) -> float:
    """Makes `calls` calls and returns their seconds."""
    try:
      print(calls, file=self._process.stdin, flush=True)
    except BrokenPipeError as error:
      raise self._failed() from error
    return self._read()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def _read(self) -> Any:
    line = self._process.stdout.readline()
    if not line:
      raise self._failed()
    return json.loads(line)

  def _failed(self) -> PeerFailed:
    status = self._process.wait()
    return PeerFailed(f'{self.variant}: exit status {status}, see above')


def start_peers(
  variants: Sequence[str], **options: Any
) -> tuple[dict[str, TorchPeer], list[str]]:
  """Starts one peer a variant.

  Args:
    variants: see `torch_peer.Variant`.
    **options: see `TorchPeer`.

  Returns:
    Those that run, by the name of their row, and the names of the others.
  """
  peers, failed = {}, []
  for variant in variants:
    name = f'PyTorch, {variant.replace("+", ", ")}'
    try:
      peers[name] = TorchPeer(variant, **options)
    except PeerFailed as error:
      print(error, file=sys.stderr)
      failed.append(name)
  return peers, failed


def peer_versions(peers: Mapping[str, TorchPeer]) -> dict[str, str]:
  """The version of PyTorch, if a peer ran."""
  for peer in peers.values():
    return {'torch': peer.about['torch']}
  return {}
