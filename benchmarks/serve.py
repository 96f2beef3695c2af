"""The service under load: every answer compared, none lost, memory over time.

    python -m benchmarks.serve --workdir=runs/bottle --images=DATA/bottle/test

Starts the service, and sends it the images, with broken files among them, from
several clients at a time. Every score, verdict and box must be what `Detector`
says of the same bytes, with the same batch size; every broken file must be
refused, and every request answered. Between the turns of the service the
detector alone scores the same files, from their bytes to maps on the host.
Prints a table and one JSON line; ends with status 1 if an answer was wrong.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from benchmarks import record
from draem_jax.data import files as files_lib
from draem_jax.data import images
from draem_jax.detection.detector import Detector, resize_map
from draem_jax.detection.regions import find_regions
from draem_jax.serve.server import CPU_BATCH

_ROOT = pathlib.Path(__file__).parents[1]
_BOUNDARY = 'a-boundary-of-the-benchmark'
_MOST_TRIES = 1000
_SAMPLE_EVERY = 0.5  # Seconds.


@dataclasses.dataclass(frozen=True)
class _File:
  """A file to send, and what must be answered; None for a broken one."""

  name: str
  data: bytes
  expected: dict[str, Any] | None


class _Load:
  """Clients that send requests until there are none left."""

  def __init__(self, port: int, files: Sequence[_File], *, clients: int):
    self.statuses: collections.Counter[int] = collections.Counter()
    self.wrong: list[str] = []
    self.seconds: list[float] = []
    self.memory: list[tuple[int, float]] = []
    self._port, self._files, self._clients = port, files, clients
    self._lock = threading.Lock()

  def send(self, numbers: Sequence[int]) -> float:
    """Sends so many requests; returns the seconds it took."""
    waiting = queue.SimpleQueue()
    for number in numbers:
      waiting.put(number)
    begin = time.perf_counter()
    ended = threading.Event()
    watcher = threading.Thread(target=self._watch, args=(ended,))
    watcher.start()
    try:
      with futures.ThreadPoolExecutor(self._clients) as pool:
        jobs = [pool.submit(self._work, waiting) for _ in range(self._clients)]
        for job in jobs:
          job.result()
      return time.perf_counter() - begin
    finally:
      ended.set()
      watcher.join()

  def _work(self, waiting: queue.SimpleQueue) -> None:
    with contextlib.closing(
      http.client.HTTPConnection('127.0.0.1', self._port, timeout=300)
    ) as connection:
      while True:
        try:
          number = waiting.get_nowait()
        except queue.Empty:
          return
        self._send_one(connection, self._files[number % len(self._files)])

  def _send_one(
    self, connection: http.client.HTTPConnection, file: _File
  ) -> None:
    head = (
      f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file";'
      f' filename="{file.name}"\r\n\r\n'
    )
    body = head.encode() + file.data + f'\r\n--{_BOUNDARY}--\r\n'.encode()
    kind = f'multipart/form-data; boundary={_BOUNDARY}'
    begin = time.perf_counter()
    for _ in range(_MOST_TRIES):
      connection.request('POST', '/predict', body, {'Content-Type': kind})
      answer = connection.getresponse()
      text = answer.read()
      with self._lock:
        self.statuses[answer.status] += 1
      if answer.status != 503:
        break
      time.sleep(float(answer.getheader('Retry-After')))
    with self._lock:
      self.seconds.append(time.perf_counter() - begin)
      if reason := _find_fault(file, answer.status, text):
        self.wrong.append(f'{file.name}: {reason}')

  def _watch(self, ended: threading.Event) -> None:
    while True:
      with contextlib.suppress(OSError):
        self.memory.append((len(self.seconds), read_memory(self._port)))
      if ended.wait(_SAMPLE_EVERY):
        return


def _find_fault(file: _File, status: int, text: bytes) -> str | None:
  """What is wrong with an answer; None if nothing is."""
  (result,) = json.loads(text)['results'] if status in (200, 422) else [{}]
  if file.expected is None:
    if status == 422 and result.get('error'):
      return None
    return f'a broken file was answered by {status}'
  if status != 200:
    return f'it was answered by {status}: {text[:200]!r}'
  for name, value in file.expected.items():
    if result[name] != value:
      return f'{name} is {result[name]!r:.80}, not {value!r:.80}'
  return None


def make_files(
  detector: Detector, folder: str, *, share: float
) -> tuple[list[_File], list[_File]]:
  """The images with what must be answered, and broken ones of them.

  Args:
    detector: what answers.
    folder: of the images.
    share: of the files that are broken.
  """
  found = files_lib.find_images(folder)
  contents = [(found.root / name).read_bytes() for name in found.names]
  scored = detector.score_all(
    np.stack(images.map_parallel(_preparer(detector), contents))
  )
  sound = []
  for name, data, anomaly_map, score in zip(
    found.names, contents, scored.anomaly_map, scored.score, strict=True
  ):
    shape = images.decode_image(data, name).shape[:2]
    whole = resize_map(anomaly_map, shape)
    mask = detector.find_mask(whole, float(score))
    regions = [region.as_dict() for region in find_regions(whole, mask)]
    expected = {
      'file': name,
      'score': float(score),
      'is_anomalous': bool(mask.any()),
      'regions': json.loads(json.dumps(regions)),
    }
    sound.append(_File(name, data, expected))
  kinds = [
    lambda data: data[: len(data) // 2],
    lambda data: b'',
    lambda data: b'no image at all',
    lambda data: data[:16] + b'\xff' * 8 + data[24:],
  ]
  count = max(1, round(share * len(sound) / (1 - share))) if share else 0
  broken = [
    _File(f'broken{number}.png', kind(sound[number % len(sound)].data), None)
    for number, kind in zip(range(count), itertools.cycle(kinds), strict=False)
  ]
  return sound, broken


def _preparer(detector: Detector) -> Any:
  return lambda data: detector.prepare(images.decode_image(data, 'file'))


@contextlib.contextmanager
def service(flags: Sequence[str]) -> Iterator[tuple[int, subprocess.Popen]]:
  """A service with its port, which is told to stop in the end.

  Raises:
    RuntimeError: if it does not start.
  """
  process = subprocess.Popen(
    [sys.executable, '-m', 'draem_jax.serve', '--port=0', *flags],
    cwd=_ROOT,
    text=True,
    stdout=subprocess.PIPE,
  )
  try:
    line = process.stdout.readline()
    found = re.search(r'at http://127\.0\.0\.1:(\d+)$', line.strip())
    if found is None:
      raise RuntimeError(f'the service did not start: {line}')
    yield int(found[1]), process
  finally:
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(120)
    finally:
      process.kill()


def read_metrics(port: int) -> dict[str, float]:
  """What the service has counted."""
  with contextlib.closing(
    http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  ) as connection:
    connection.request('GET', '/metrics')
    text = connection.getresponse().read().decode()
  lines = [line for line in text.splitlines() if not line.startswith('#')]
  return {name: float(value) for name, value in map(str.split, lines)}


def read_memory(port: int) -> float:
  """MiB that the service takes."""
  return read_metrics(port)['process_resident_memory_bytes'] / 2**20


def time_alone(detector: Detector, contents: Sequence[bytes]) -> float:
  """Seconds of the detector alone, from files' bytes to scores and maps."""
  begin = time.perf_counter()
  prepared = images.map_parallel(_preparer(detector), contents)
  detector.score_all(np.stack(prepared))
  return time.perf_counter() - begin


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--images', required=True)
  parser.add_argument('--clients', type=int, default=8)
  parser.add_argument('--requests', type=int, default=2000)
  parser.add_argument('--broken', type=float, default=0.05)
  parser.add_argument('--batch_size', type=int)
  parser.add_argument('--turns', type=int, default=4)
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args(arguments)
  # The service and this process share the device.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  batch_size = options.batch_size
  if batch_size is None and jax.default_backend() == 'cpu':
    batch_size = CPU_BATCH
  detector = Detector.load(options.workdir, batch_size=batch_size)
  sound, broken = make_files(detector, options.images, share=options.broken)
  # Spread among the others by the seed.
  order = np.random.default_rng(0).permutation(len(sound) + len(broken))
  files = [[*sound, *broken][index] for index in order]
  flags = [
    f'--workdir={os.path.abspath(options.workdir)}',
    f'--batch_size={detector.batch_size}',
  ]
  pieces = np.array_split(np.arange(options.requests), options.turns)
  served = alone = 0.0
  num_alone = 0
  with service(flags) as (port, process):
    load = _Load(port, files, clients=options.clients)
    for piece in pieces:
      served += load.send(piece.tolist())
      contents = [
        file.data
        for file in (files[number % len(files)] for number in piece)
        if file.expected is not None
      ]
      alone += time_alone(detector, contents)
      num_alone += len(contents)
    counted = read_metrics(port)
  results = {
    'requests': options.requests,
    'clients': options.clients,
    'broken_files': len(broken),
    'files': len(files),
    'batch_size': detector.batch_size,
    'statuses': dict(sorted(load.statuses.items())),
    'answered': len(load.seconds),
    'wrong': len(load.wrong),
    'requests_per_second': round(options.requests / served, 2),
    'detector_alone_images_per_second': round(num_alone / alone, 2),
    'milliseconds': {
      name: round(1000 * float(np.quantile(load.seconds, share)), 1)
      for name, share in (('median', 0.5), ('p99', 0.99), ('most', 1))
    },
    'pictures_a_batch': round(
      counted['draem_batched_pictures_total'] / counted['draem_batches_total'],
      2,
    ),
    'mebibytes': _memory_over_time(load.memory, options.requests),
    'exit_status': process.returncode,
  }
  print_table(results)
  for line in load.wrong[:20]:
    print(line)
  record.print_record('serve', results, arguments=arguments)
  is_whole = len(load.seconds) == options.requests and not process.returncode
  if load.wrong or not is_whole:
    sys.exit(1)


def _memory_over_time(
  samples: Sequence[tuple[int, float]], requests: int
) -> dict[str, float]:
  """The most that was taken in each quarter of the requests."""
  most = {}
  for quarter in range(4):
    begin, end = quarter * requests / 4, (quarter + 1) * requests / 4
    found = [memory for done, memory in samples if begin <= done <= end]
    most[f'quarter {quarter + 1}'] = round(max(found, default=float('nan')), 1)
  return most


def print_table(results: dict[str, Any]) -> None:
  """The figures, one a row."""
  print('| figure | measured |')
  print('|---|---|')
  for name, value in results.items():
    if isinstance(value, dict):
      value = ', '.join(f'{key}: {one}' for key, one in value.items())
    print(f'| {name.replace("_", " ")} | {value} |')
  print()


if __name__ == '__main__':
  main()
