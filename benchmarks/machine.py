"""The machine that a benchmark runs on, in words."""

import platform


def processor() -> str:
  """Name of the processor, as far as the system tells."""
  try:
    with open('/proc/cpuinfo') as lines:
      names = [line for line in lines if line.startswith('model name')]
    return names[0].split(':')[1].strip()
  except (OSError, IndexError):
    return platform.processor() or platform.machine()
