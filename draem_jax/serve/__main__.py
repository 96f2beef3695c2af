"""The command that serves a trained detector over HTTP.

python -m draem_jax.serve --workdir=runs/bottle --port=8000
"""

import sys

from draem_jax import command, terminal

# What the extra installs, by the names that Python knows.
_EXTRA = 'python_multipart', 'starlette', 'uvicorn'


def run() -> None:
  """The console entry point `draem-serve`."""
  try:
    from draem_jax.serve import server
  except ModuleNotFoundError as error:
    if error.name not in _EXTRA:
      raise
    terminal.complain(
      f"error: the service needs {error.name}: pip install 'draem_jax[serve]'"
    )
    sys.exit(2)
  command.run(server.main, server.define_flags)


if __name__ == '__main__':
  run()
