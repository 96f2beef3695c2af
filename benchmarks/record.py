"""The line of JSON that a benchmark ends with."""

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib

from benchmarks import machine


def print_record(
  benchmark: str,
  results: Any,
  *,
  arguments: Sequence[str] | None = None,
  versions: Mapping[str, str] | None = None,
) -> None:
  """Prints results with the machine, versions, command and date.

  Args:
    benchmark: name of the module in `benchmarks`.
    results: what was measured, as plain values.
    arguments: of the command; those of this process by default.
    versions: of packages other than JAX that took part.
  """
  device = jax.devices()[0]
  arguments = sys.argv[1:] if arguments is None else arguments
  record = {
    'benchmark': benchmark,
    'results': results,
    'machine': {
      'device': device.device_kind,
      'platform': device.platform,
      'processor': machine.processor(),
      'cores': len(os.sched_getaffinity(0)),
    },
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      **(versions or {}),
    },
    'command': shlex.join(
      ['python', '-m', f'benchmarks.{benchmark}', *arguments]
    ),
    'date': datetime.date.today().isoformat(),
  }
  print(json.dumps(record))
