"""A service in a thread, and words for what a client sends it."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time

import numpy as np
import uvicorn
from PIL import Image
from redness import Redness

from draem_jax.detection.detector import Detector
from draem_jax.serve.app import Service
from draem_jax.serve.limits import Limits
from draem_jax.serve.server import configure
from draem_jax.workdir.thresholds import Thresholds

BOUNDARY = 'a-boundary'
FORM = {'Content-Type': f'multipart/form-data; boundary={BOUNDARY}'}


def make_detector(batch_size=4):
  return Detector(
    Redness(),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, '8 good images', 0.99, 0.9999),
    batch_size=batch_size,
  )


class Client:
  """Sends requests to a service."""

  def __init__(self, service, port):
    self.service, self.port = service, port

  def send(self, method, path, body=None, headers=None, timeout=30):
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout)
    connection.timeout = timeout
    with contextlib.closing(connection):
      headers = headers or {}
      is_chunked = 'Transfer-Encoding' in headers
      connection.request(method, path, body, headers, encode_chunked=is_chunked)
      answer = connection.getresponse()
      return answer.status, dict(answer.getheaders()), answer.read()

  def predict(self, *files, query='', headers=None):
    status, _, body = self.send(
      'POST', f'/predict{query}', form(*files), FORM | (headers or {})
    )
    return status, json.loads(body)

  def raw(self, data):
    """What comes back on these bytes."""
    with socket.create_connection(('127.0.0.1', self.port), 30) as connection:
      connection.sendall(data)
      connection.shutdown(socket.SHUT_WR)
      return b''.join(iter(lambda: connection.recv(65536), b''))


@contextlib.contextmanager
def running(detector=None, *, limits=None, **options):
  service = Service(
    detector or make_detector(), limits=limits or Limits(), **options
  )
  listener = socket.create_server(('127.0.0.1', 0))
  server = uvicorn.Server(configure(service))
  thread = threading.Thread(target=server.run, args=([listener],))
  thread.start()
  try:
    wait_until(lambda: server.started)
    yield Client(service, listener.getsockname()[1])
  finally:
    server.should_exit = True
    thread.join()
    service.close()


def wait_until(condition, seconds=30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def form(*files, field='file'):
  """The body of a form of (name, content)."""
  parts = []
  for name, content in files:
    head = (
      f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"'
      + (f'; filename="{name}"' if name is not None else '')
      + '\r\n\r\n'
    )
    parts.append(head.encode('utf-8', 'surrogateescape') + content + b'\r\n')
  return b''.join(parts) + f'--{BOUNDARY}--\r\n'.encode()


def picture(size=(40, 60), square=None, format='PNG', **options):
  """A file of a gray picture, with a red square at (top, left, side)."""
  image = np.full((*size, 3), 40, np.uint8)
  if square is not None:
    top, left, side = square
    image[top : top + side, left : left + side] = (255, 0, 0)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, format, **options)
  return buffer.getvalue()
