"""What the command does: flags, the socket, the server and its end."""

import asyncio
import contextlib
import logging
import signal
import socket

import jax
import uvicorn
from absl import flags

from draem_jax import command, devices, terminal
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.serve import access
from draem_jax.serve.app import Service
from draem_jax.serve.limits import Limits
from draem_jax.workdir import claim

_SIGNALS = signal.SIGINT, signal.SIGTERM
# On a CPU larger batches gain little, and one that is not full takes as long.
CPU_BATCH = 1
# Connections at a time; others are turned away at once.
_CONNECTIONS = 500
_KEEP_ALIVE = 15  # Seconds.
# Seconds that requests have once the service is told to stop.
_LAST_ANSWERS = 120


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string('workdir', None, 'Folder of the trained run.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at.')
  flags.DEFINE_integer(
    'port', 8000, 'Port to listen at; 0 takes one that is free.', 0, 65535
  )
  flags.DEFINE_string(
    'token_file',
    None,
    'File with the token that requests must show; or the environment variable'
    f' {access.VARIABLE}.',
  )
  flags.DEFINE_float(
    'threshold', None, 'An image is anomalous above this score.', 0, 1
  )
  flags.DEFINE_float(
    'pixel_threshold', None, 'And a pixel above this map value.', 0, 1
  )
  flags.DEFINE_integer(
    'batch_size',
    None,
    f'Pictures at a time; by default as evaluated, on a CPU {CPU_BATCH}.',
    1,
  )
  flags.DEFINE_float(
    'wait', 5, 'Milliseconds that a picture waits for others, at most.', 0, 1000
  )
  default = Limits()
  flags.DEFINE_integer(
    'max_waiting',
    default.waiting,
    'Pictures under way, of all requests; more are answered by 503.',
    1,
  )
  flags.DEFINE_integer(
    'max_files', default.files, 'Pictures in one request.', 1
  )
  flags.DEFINE_integer(
    'max_mebibytes', default.request_bytes // 2**20, 'Size of a request.', 1
  )
  flags.DEFINE_integer(
    'max_megapixels', default.pixels // 10**6, 'Size of a picture.', 1, 268
  )


def main(argv: list[str]) -> None:
  """Serves until it is told to stop."""
  command.refuse_arguments(argv)
  command.required('workdir')
  given = flags.FLAGS
  path = given.token_file and command.expand(given.token_file)
  token = access.read_token(path or None)
  if token is None and not access.is_loopback(given.host):
    raise UserError(
      f'--host={given.host} lets other machines ask: give a token by'
      f' --token_file or {access.VARIABLE}, or leave --host out'
    )
  with contextlib.closing(_listen(given.host, given.port)) as listener:
    service = _start(token)
    try:
      asyncio.run(_serve(service, listener))
    finally:
      service.close()
  terminal.say(f'stopped; pictures scored: {service.batcher.num_pictures}')


def _start(token: str | None) -> Service:
  given = flags.FLAGS
  workdir = command.expand_workdir(given.workdir)
  devices.find()
  command.use_compilation_cache()
  batch_size = given.batch_size
  if batch_size is None and jax.default_backend() == 'cpu':
    batch_size = CPU_BATCH
  detector = Detector.load(workdir, batch_size=batch_size)
  if (given.threshold, given.pixel_threshold) != (None, None):
    detector = detector.with_thresholds(
      image=given.threshold, pixel=given.pixel_threshold
    )
  detector.check_thresholds()
  if detector.roi is not None and detector.roi.is_by_name:
    raise UserError(
      f'{workdir} was trained with a mask per picture (config.data.roi='
      f'{detector.roi.source}), which pictures that are sent do not have: train'
      " with one mask for all, or with 'auto'"
    )
  limits = Limits(
    request_bytes=given.max_mebibytes * 2**20,
    files=min(given.max_files, given.max_waiting),
    pixels=given.max_megapixels * 10**6,
    waiting=given.max_waiting,
  )
  service = Service(
    detector,
    limits=limits,
    token=token,
    wait=given.wait / 1000,
    title=claim.read_config(workdir)['category'],
  )
  try:
    service.warm_up()
  except BaseException:
    service.close()
    raise
  return service


def _listen(host: str, port: int) -> socket.socket:
  try:
    family, _, _, _, address = socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address, family=family, backlog=128)
  except (OSError, UnicodeError) as error:
    reason = getattr(error, 'strerror', None) or 'no address'
    raise UserError(
      f'--host={host} --port={port} cannot be listened at ({reason}): take'
      ' another, or stop who listens there'
    ) from error


class _Server(uvicorn.Server):
  """A server whose signals are ours."""

  def capture_signals(self) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


async def _serve(service: Service, listener: socket.socket) -> None:
  server = _Server(configure(service))

  def stop() -> None:
    if server.should_exit:
      server.force_exit = True
      return
    terminal.complain('stopping once what was taken is answered')
    server.should_exit = True

  loop = asyncio.get_running_loop()
  for number in _SIGNALS:
    loop.add_signal_handler(number, stop)
  host, port = listener.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  terminal.say(
    f'serving {flags.FLAGS.workdir} on {devices.device_name()} at'
    f' http://{host}:{port}'
  )
  await server.serve(sockets=[listener])


def configure(service: Service) -> uvicorn.Config:
  """How the service is run."""
  logger = logging.getLogger('uvicorn')
  logger.handlers, logger.propagate = [terminal.Handler()], False
  logger.setLevel(logging.WARNING)
  return uvicorn.Config(
    service.app,
    http='h11',
    ws='none',
    loop='asyncio',
    lifespan='off',
    log_config=None,
    access_log=False,
    server_header=False,
    proxy_headers=False,
    limit_concurrency=_CONNECTIONS,
    timeout_keep_alive=_KEEP_ALIVE,
    timeout_graceful_shutdown=_LAST_ANSWERS,
  )
