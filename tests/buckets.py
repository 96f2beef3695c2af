"""Stores on this machine that the tests keep workdirs in: of S3 and of Google.

S3 is moto's server, from PyPI. Google's is written here: what of its JSON API
tensorstore asks for, with the conditions that leases need, which the emulators
on PyPI pass over.
"""

import contextlib
import http.server
import itertools
import json
import threading
import urllib.parse
import urllib.request

BUCKET = 'runs-of-tests'


class Google(http.server.ThreadingHTTPServer):
  """A store of Google's with one bucket.

  Attributes:
    objects: generation and content by name.
    refuses: the method and the end of the name of what is answered 403; None
      for the name is the list.
    is_down: whether everything is answered 503.
    before: called with method and name before each answer.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.objects = {}
    self.generations = itertools.count(1)
    self.lock = threading.Lock()
    self.refuses = None
    self.is_down = False
    self.before = lambda method, name: None

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_port}'


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  wbufsize = 1 << 16

  def log_message(self, *unused):
    pass

  def do_GET(self):
    self._answer('GET')

  def do_POST(self):
    self._answer('POST')

  def do_DELETE(self):
    self._answer('DELETE')

  def _answer(self, method):
    content = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    parts = url.path.split('/b/', 1)[1].split('/', 2)
    name = urllib.parse.unquote(parts[2]) if len(parts) == 3 else None
    name = name or query.get('name')
    self.server.before(method, name)
    refuses, end = self.server.refuses or ('', '')
    is_refused = method == refuses and (
      name is None if end is None else (name or '').endswith(end)
    )
    if self.server.is_down:
      self._send(503, b'{"error": {"message": "come back later"}}')
    elif parts[0] != BUCKET:
      self._send(404, b'{"error": {"message": "no such bucket"}}')
    elif is_refused:
      self._send(403, b'{"error": {"message": "may not"}}')
    elif name is None:
      self._list(query)
    else:
      with self.server.lock:
        self._object(method, name, query, content)

  def _list(self, query):
    found = sorted(
      name
      for name in list(self.server.objects)
      if name.startswith(query.get('prefix', ''))
      and name >= query.get('startOffset', '')
      and name < query.get('endOffset', chr(0x10FFFF))
    )
    # In pages, as a large workdir has them.
    start, count = int(query.get('pageToken', 0)), 10
    page = {'items': [{'name': n} for n in found[start : start + count]]}
    if len(found) > start + count:
      page['nextPageToken'] = str(start + count)
    self._send(200, json.dumps(page).encode())

  def _object(self, method, name, query, content):
    objects = self.server.objects
    generation, before = objects.get(name, (0, b''))
    wanted = query.get('ifGenerationMatch')
    if wanted is not None and int(wanted) != generation:
      self._send(412, b'{}')
    elif method == 'POST':
      new = next(self.server.generations)
      objects[name] = new, content
      told = {'name': name, 'generation': str(new), 'size': str(len(content))}
      self._send(200, json.dumps(told).encode())
    elif not generation:
      self._send(404, b'{}')
    elif method == 'DELETE':
      del objects[name]
      self._send(204, b'')
    else:
      self._send(200, before, {'x-goog-generation': str(generation)})

  def _send(self, status, content, headers=()):
    self.send_response(status)
    for key, value in dict(headers).items():
      self.send_header(key, value)
    if status != 204:
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)


@contextlib.contextmanager
def google():
  """A store of Google's, and the environment of who shall find it."""
  server = Google()
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield (
    server,
    {
      'TENSORSTORE_GCS_HTTP_URL': server.url,
      # No file is looked for.
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
    },
  )
  server.shutdown()
  server.server_close()


@contextlib.contextmanager
def amazon():
  """A store of S3, and the environment of who shall find it."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer('127.0.0.1', port=0, verbose=False)
  server.start()
  _, port = server.get_host_and_port()
  url = f'http://127.0.0.1:{port}'
  made = urllib.request.Request(f'{url}/{BUCKET}', method='PUT')
  urllib.request.urlopen(made).close()
  yield (
    server,
    {
      'AWS_ENDPOINT_URL': url,
      'AWS_REGION': 'us-east-1',
      'AWS_ACCESS_KEY_ID': 'key',
      'AWS_SECRET_ACCESS_KEY': 'secret',
    },
  )
  server.stop()
