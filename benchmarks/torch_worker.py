"""The process that runs the PyTorch peer while a benchmark measures it.

A process of its own, so that neither framework holds threads or memory that
slow the other down. It says what it is in one line of JSON, then reads a number
of calls from each line and answers with the seconds that they took.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import torch_peer


def make_train_step(
  variant: torch_peer.Variant,
  device: torch.device,
  *,
  size: int,
  widths: tuple[int, int],
  batch: int,
) -> Callable[[], None]:
  """A step on one fixed batch that lies on the device."""
  step = torch_peer.TrainStep(torch_peer.Draem(*widths), variant, device)
  rng = np.random.default_rng(0)
  shape = (batch, 3, size, size)
  augmented, image = rng.uniform(size=(2, *shape)).astype(np.float32)
  mask = (rng.uniform(size=(batch, 1, size, size)) > 0.9).astype(np.float32)
  tensors = [
    torch_peer.place(torch.from_numpy(array), variant, device)
    for array in (augmented, image, mask)
  ]
  return lambda: step(*tensors)


def make_scorer(
  variant: torch_peer.Variant,
  device: torch.device,
  *,
  size: int,
  widths: tuple[int, int],
  batch: int,
) -> Callable[[], None]:
  """Scores a batch of images that lie on the host."""
  scorer = torch_peer.Scorer(torch_peer.Draem(*widths), variant, device)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
  return lambda: scorer(images)


_TASKS = {'training': make_train_step, 'inference': make_scorer}


def main():
  """Builds what the flags say, warms it up, answers until its input ends."""
  # Whatever else a library prints goes to stderr.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--task', choices=_TASKS, required=True)
  parser.add_argument('--variant', required=True)
  parser.add_argument('--size', type=int, required=True)
  parser.add_argument('--widths', type=int, nargs=2, required=True)
  parser.add_argument('--batch', type=int, required=True)
  options = parser.parse_args()

  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  variant = torch_peer.Variant.parse(options.variant)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  if not variant.release:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')
  torch.manual_seed(0)
  call = _TASKS[options.task](
    variant,
    device,
    size=options.size,
    widths=options.widths,
    batch=options.batch,
  )
  time_calls(call, 2)  # Compiles, chooses algorithms, allocates.
  print(
    json.dumps(
      {
        'device': _device_name(device),
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'peak_memory': _peak_memory(device),
      }
    ),
    file=answers,
    flush=True,
  )
  for line in sys.stdin:
    print(json.dumps(time_calls(call, int(line))), file=answers, flush=True)


def time_calls(call: Callable[[], None], count: int) -> float:
  """Seconds of some calls, until the device has done them."""
  start = time.perf_counter()
  for _ in range(count):
    call()
  if torch.cuda.is_available():
    torch.cuda.synchronize()
  return time.perf_counter() - start


def _device_name(device: torch.device) -> str:
  return torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu'


def _peak_memory(device: torch.device) -> int | None:
  """Bytes that tensors have taken at most; unknown of a CPU."""
  return torch.cuda.max_memory_allocated() if device.type == 'cuda' else None


if __name__ == '__main__':
  main()
