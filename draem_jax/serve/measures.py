"""What the service counts, as Prometheus reads it."""

import bisect
import collections
import os
import threading

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Measures:
  """Counts of requests and pictures."""

  def __init__(self):
    """Has counted nothing."""
    self._lock = threading.Lock()
    self._codes: collections.Counter[int] = collections.Counter()
    self._pictures = dict.fromkeys(('good', 'anomalous', 'refused'), 0)
    self._buckets = [0] * (len(_BUCKETS) + 1)
    self._seconds = 0.0

  def count_request(self, code: int, seconds: float) -> None:
    """Counts a request for predictions."""
    with self._lock:
      self._codes[code] += 1
      self._buckets[bisect.bisect_left(_BUCKETS, seconds)] += 1
      self._seconds += seconds

  def count_picture(self, verdict: str) -> None:
    """Counts a picture: 'good', 'anomalous' or 'refused'."""
    with self._lock:
      self._pictures[verdict] += 1

  def as_text(self, **now: float) -> str:
    """All of it in Prometheus' text format.

    Args:
      **now: values of this moment, by the name of what is measured; a total if
        that ends in `_total`.
    """
    lines = []

    def add(name: str, kind: str, meaning: str, samples: dict) -> None:
      lines.extend([f'# HELP {name} {meaning}', f'# TYPE {name} {kind}'])
      lines.extend(f'{name}{label} {value}' for label, value in samples.items())

    with self._lock:
      add(
        'draem_requests_total',
        'counter',
        'Requests for predictions, by status.',
        {f'{{code="{key}"}}': n for key, n in sorted(self._codes.items())},
      )
      add(
        'draem_pictures_total',
        'counter',
        'Pictures, by verdict.',
        {f'{{verdict="{key}"}}': n for key, n in self._pictures.items()},
      )
      samples, count = {}, 0
      for bound, number in zip((*_BUCKETS, '+Inf'), self._buckets, strict=True):
        count += number
        samples[f'_bucket{{le="{bound}"}}'] = count
      samples |= {'_sum': f'{self._seconds:.6f}', '_count': count}
      add(
        'draem_request_seconds',
        'histogram',
        'Seconds from a request to its answer.',
        samples,
      )
    for name, value in now.items():
      kind = 'counter' if name.endswith('_total') else 'gauge'
      add(f'draem_{name}', kind, f'{name.replace("_", " ")}.', {'': value})
    memory = resident_bytes()
    if memory is not None:
      add(
        'process_resident_memory_bytes',
        'gauge',
        'Resident memory size in bytes.',
        {'': memory},
      )
    return '\n'.join(lines) + '\n'


def resident_bytes() -> int | None:
  """Memory of this process, where the system tells."""
  try:
    with open('/proc/self/statm') as file:
      return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except (OSError, ValueError, IndexError):
    return None
