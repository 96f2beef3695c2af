"""The service: what it answers, to whom, and what it refuses."""

import base64
import concurrent.futures
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest

pytest.importorskip('uvicorn')

from PIL import Image
from serving import (
  BOUNDARY,
  FORM,
  form,
  make_detector,
  picture,
  running,
  wait_until,
)
from small import random_images
from untrained import write_workdir

from draem_jax import serve
from draem_jax.data import images
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.serve import __main__ as entry
from draem_jax.serve import access
from draem_jax.serve.batching import Batcher
from draem_jax.serve.limits import Limits

SPOT = (10, 20, 20)
TOKEN = 'a token that nobody guesses'.replace(' ', '-')


@pytest.fixture(scope='module')
def client():
  with running() as client:
    client.service.batcher.warm_up()
    yield client


@pytest.fixture
def lines(caplog):
  """What is logged, of which nothing may be a traceback."""
  caplog.set_level('DEBUG', 'draem_jax')
  yield caplog
  for record in caplog.records:
    assert record.exc_info is None and 'Traceback' not in record.getMessage()


class Gate:
  """Holds the device until it is opened; counts who came."""

  def __init__(self, monkeypatch):
    self.opened, self.sizes = threading.Event(), []
    score_all = Detector.score_all

    def wait(detector, batch):
      self.sizes.append(len(batch))
      assert self.opened.wait(30)
      return score_all(detector, batch)

    monkeypatch.setattr(Detector, 'score_all', wait)


@pytest.fixture
def gate(client, monkeypatch):
  gate = Gate(monkeypatch)
  yield gate
  gate.opened.set()


def test_answers_are_those_of_the_detector(client):
  files = [
    ('spot.png', picture(square=SPOT)),
    ('clean.jpg', picture((70, 33), format='JPEG')),
    ('two.bmp', picture((90, 50), (5, 6, 30), format='BMP')),
  ]
  status, answer = client.predict(*files, query='?map=true')
  assert status == 200
  assert (answer['threshold'], answer['pixel_threshold']) == (0.5, 0.5)
  detector = make_detector()
  assert answer['model'] == detector.fingerprint()
  assert [result['file'] for result in answer['results']] == [
    name for name, _ in files
  ]
  for result, (name, content) in zip(answer['results'], files, strict=True):
    image = images.decode_image(content, name)
    expected = detector(image)
    assert (result['height'], result['width']) == image.shape[:2]
    assert result['score'] == float(expected.score[0])
    assert result['is_anomalous'] == bool(expected.is_anomalous[0])
    assert result['area'] == pytest.approx(expected.mask.mean())
    assert result['regions'] == [
      json.loads(json.dumps(region.as_dict())) for region in expected.regions[0]
    ]
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['map']))))
    np.testing.assert_allclose(
      levels / 65535, expected.anomaly_map[0], rtol=0, atol=0.51 / 65535
    )
  assert [result['is_anomalous'] for result in answer['results']] == [
    True,
    False,
    True,
  ]


def test_a_picture_may_be_the_body_and_its_map_the_answer(client):
  body = picture(square=SPOT)
  status, headers, found = client.send(
    'POST', '/predict', body, {'Content-Type': 'image/png'}
  )
  assert status == 200 and headers['content-type'] == 'application/json'
  assert json.loads(found)['results'][0]['is_anomalous']
  assert 'map' not in json.loads(found)['results'][0]
  kinds = {'Content-Type': 'application/octet-stream', 'Accept': 'image/png'}
  status, headers, found = client.send('POST', '/predict?map=30', body, kinds)
  assert (status, headers['content-type']) == (200, 'image/png')
  with Image.open(io.BytesIO(found)) as image:
    assert image.size == (30, 20) and image.mode.startswith('I;16')
  two = form(('a', body), ('b', body))
  status, _, found = client.send(
    'POST', '/predict', two, FORM | {'Accept': 'image/png'}
  )
  assert status == 400 and b'send one file' in found


def test_a_request_may_have_thresholds_of_its_own(client):
  file = ('a.png', picture(square=SPOT))
  _, answer = client.predict(file, query='?threshold=1')
  assert not answer['results'][0]['is_anomalous']
  assert answer['results'][0]['regions'] == []
  _, answer = client.predict(file, query='?threshold=0.1&pixel_threshold=0.1')
  image = images.decode_image(file[1], 'a')
  expected = make_detector().with_thresholds(image=0.1, pixel=0.1)(image)
  assert answer['results'][0]['area'] == pytest.approx(expected.mask.mean())
  assert (answer['threshold'], answer['pixel_threshold']) == (0.1, 0.1)


@pytest.mark.parametrize(
  'query',
  ['threshold=2', 'threshold=nan', 'threshold=', 'map=-1', 'map=x', 'mop=1'],
)
def test_parameters_that_mean_nothing_are_named(client, query):
  status, answer = client.predict(('a.png', picture()), query=f'?{query}')
  assert status == 400 and query.partition('=')[0] in answer['error']


def test_requests_share_batches(client, gate):
  before = client.service.batcher.num_batches
  with concurrent.futures.ThreadPoolExecutor(9) as pool:
    answers = [
      pool.submit(client.predict, (f'{n}.png', picture(square=(n, n, 20))))
      for n in range(9)
    ]
    # One batch is at the device; the others gather behind it.
    wait_until(lambda: client.service._queue.taken == 9)
    wait_until(
      lambda: client.service.batcher.num_waiting + sum(gate.sizes[:1]) == 9
    )
    gate.opened.set()
    results = [answer.result() for answer in answers]
  assert client.service.batcher.num_batches - before <= 4
  assert max(gate.sizes) == 4 and sum(gate.sizes) == 9
  detector = make_detector()
  for n, (status, answer) in enumerate(results):
    image = images.decode_image(picture(square=(n, n, 20)), '')
    assert status == 200 and answer['results'][0]['file'] == f'{n}.png'
    assert answer['results'][0]['score'] == float(detector(image).score[0])


def test_a_lone_picture_waits_no_longer_than_it_should():
  detector = make_detector()
  batcher = Batcher(detector, wait=0.05)
  try:
    batcher.warm_up()
    begin = time.monotonic()
    futures = [batcher.submit(np.zeros((32, 32, 3), np.uint8))]
    futures[0].result(30)
    assert 0.05 <= time.monotonic() - begin < 5
    # A full batch does not wait at all.
    batcher._wait = 60
    for _ in range(4):
      futures.append(batcher.submit(np.zeros((32, 32, 3), np.uint8)))
    futures[-1].result(30)
    batcher._wait = 60
    last = batcher.submit(np.zeros((32, 32, 3), np.uint8))
  finally:
    batcher.close()  # What waits is scored.
  assert last.result(0).score < 0.5 and not batcher.is_alive()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp('serve')
  write_workdir(folder / 'run')
  (folder / 'token').write_text(TOKEN + '\n')
  return folder


@pytest.fixture(scope='module')
def networks(place):
  return Detector.load(place / 'run', batch_size=4)


def test_scores_do_not_depend_on_who_shares_the_batch(networks):
  detector = networks
  pictures = random_images(9, 32)
  expected = detector.score_all(pictures)
  batcher = Batcher(detector, wait=0.001)
  try:
    for count in (1, 2, 3, 4):
      futures = [batcher.submit(one) for one in pictures[-count:]]
      for answer, score, anomaly_map in zip(
        futures,
        expected.score[-count:],
        expected.anomaly_map[-count:],
        strict=True,
      ):
        found = answer.result(60)
        assert found.score == float(score)
        np.testing.assert_array_equal(found.anomaly_map, anomaly_map)
  finally:
    batcher.close()


def test_a_full_queue_answers_at_once(monkeypatch):
  with running(limits=Limits(waiting=3, files=3)) as client:
    gate = Gate(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      one = pool.submit(client.predict, ('a.png', picture(square=SPOT)))
      wait_until(lambda: client.service._queue.taken == 1)
      # Three more are one too many, two are not.
      three = [(f'{n}.png', picture()) for n in range(3)]
      body = form(*three)
      status, headers, text = client.send('POST', '/predict', body, FORM)
      assert status == 503 and int(headers['retry-after']) >= 1
      assert b'try again' in text
      two = pool.submit(client.predict, *three[:2])
      wait_until(lambda: client.service._queue.taken == 3)
      # Whoever comes now is told before its body is read.
      with socket.create_connection(('127.0.0.1', client.port), 30) as late:
        late.sendall(
          b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type:'
          b' image/png\r\nContent-Length: 1000\r\n\r\n'
        )
        assert late.recv(4096).startswith(b'HTTP/1.1 503')
      assert client.send('GET', '/healthz')[0] == 200
      gate.opened.set()
      assert one.result()[0] == two.result()[0] == 200
    wait_until(lambda: client.service._queue.taken == 0)
    assert client.predict(*three)[0] == 200


def png_header(width, height):
  """A small PNG that claims to be large."""
  head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  chunk = lambda kind, data: (
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zlib.crc32(kind + data))
  )
  data = zlib.compress(bytes(1000))
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', head)
    + chunk(b'IDAT', data)
    + chunk(b'IEND', b'')
  )


def test_limits_hold(lines):
  limits = Limits(request_bytes=2**20, files=3, pixels=5000)
  with running(limits=limits) as client:
    status, answer = client.predict(('big.png', png_header(100, 51)))
    assert status == 422
    assert 'big.png has 100x51 pixels, more than' in answer['error']
    status, answer = client.predict(('all.png', picture((50, 100))))
    assert status == 200
    status, answer = client.predict(*[('a.png', picture())] * 4)
    assert status == 413 and 'more than 3 files' in answer['error']
    status, answer = client.predict(('a.png', bytes(2**20)))
    assert status == 413 and 'more than 1 MiB' in answer['error']
    chunks = (bytes(2**16) for _ in range(40))
    kinds = {'Content-Type': 'image/png', 'Transfer-Encoding': 'chunked'}
    status, _, body = client.send('POST', '/predict', chunks, kinds)
    assert status == 413 and b'more than 1 MiB' in body
    fields = form(*[(None, b'x')] * 50)
    status, _, body = client.send('POST', '/predict', fields, FORM)
    assert status == 400 and b'fields' in body
    # All requests together: what one has taken, another does not get.
    with client.service._bodies.open() as others:
      assert others.take(client.service._bodies.size - 100)
      status, headers, body = client.send(
        'POST', '/predict', bytes(200), {'Content-Type': 'image/png'}
      )
      assert status == 503 and headers['retry-after'] == '1'
    assert client.service._bodies.taken == client.service._queue.taken == 0
    assert client.predict(('a.png', picture()))[0] == 200


def test_a_body_that_does_not_come_is_given_up(lines):
  with running(limits=Limits(silence=0.2)) as client:
    with socket.create_connection(('127.0.0.1', client.port), 30) as slow:
      slow.sendall(
        b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png'
        b'\r\nContent-Length: 1000\r\n\r\nabc'
      )
      assert slow.recv(4096).startswith(b'HTTP/1.1 408')
    # One who goes away leaves nothing behind.
    with socket.create_connection(('127.0.0.1', client.port), 30) as gone:
      gone.sendall(
        b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png'
        b'\r\nContent-Length: 1000\r\n\r\n' + bytes(500)
      )
      wait_until(lambda: client.service._bodies.taken == 500)
    wait_until(lambda: client.service._bodies.taken == 0)


def test_bad_files_are_told_one_by_one(client, lines):
  good = picture(square=SPOT)
  status, answer = client.predict(
    ('cut.png', good[:-30]), ('good.png', good), ('empty.png', b'')
  )
  assert status == 200 and 'error' not in answer
  cut, found, empty = answer['results']
  assert cut['error'].startswith('cut.png cannot be read as an image')
  assert 'score' not in cut and found['is_anomalous']
  assert 'empty.png is empty' in empty['error']
  status, answer = client.predict(('no.png', b'no image'), ('e.png', b''))
  assert status == 422
  assert answer['error'] == answer['results'][0]['error']
  assert 'no.png cannot be read as an image (unknown' in answer['error']
  status, _, body = client.send(
    'POST',
    '/predict',
    b'no image',
    {'Content-Type': 'image/png', 'Accept': 'image/png'},
  )
  assert status == 422 and b'cannot be read' in body


@pytest.mark.parametrize(
  'name',
  ['x%0D%0Ay.png', 'ä "q".png'.replace('"', '%22'), '\udcff.png', '../x'],
)
def test_whatever_a_file_is_called(client, lines, name):
  status, answer = client.predict((name, picture()))
  assert status == 200 and answer['results'][0]['file'] == name


def test_a_device_that_fails_is_one_line(client, lines, monkeypatch):

  def fail(detector, batch):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory\nallocating')

  monkeypatch.setattr(Detector, 'score_all', fail)
  status, answer = client.predict(('a.png', picture()), ('b.png', picture()))
  assert (status, answer['error']) == (500, 'the service failed: see its log')
  assert any('RESOURCE_EXHAUSTED' in line for line in lines.messages)
  assert all('\n' not in line for line in lines.messages)
  monkeypatch.undo()
  assert client.predict(('a.png', picture()))[0] == 200


BROKEN = {
  'no boundary': (
    'POST',
    '/predict',
    {'Content-Type': 'multipart/form-data'},
    b'x',
    400,
  ),
  'long boundary': (
    'POST',
    '/predict',
    {'Content-Type': f'multipart/form-data; boundary={"b" * 999}'},
    b'x',
    400,
  ),
  'garbage': ('POST', '/predict', FORM, b'garbage', 400),
  'cut': ('POST', '/predict', FORM, form(('a.png', b'abc'))[:-20], 400),
  'nothing': ('POST', '/predict', FORM, b'', 400),
  'no part': ('POST', '/predict', FORM, f'--{BOUNDARY}--\r\n'.encode(), 400),
  'no file': ('POST', '/predict', FORM, form((None, b'x')), 400),
  'no name': ('POST', '/predict', FORM, form(('', b'')), 400),
  'long header': (
    'POST',
    '/predict',
    FORM,
    form(('a' * 10_000, b'x')),
    400,
  ),
  'broken header': (
    'POST',
    '/predict',
    FORM,
    form(('a', b'x')).replace(b'Content-Disposition', b'Content Disposition'),
    400,
  ),
  'no type': ('POST', '/predict', {}, b'x', 415),
  'empty type': ('POST', '/predict', {'Content-Type': ''}, b'x', 415),
  'odd type': ('POST', '/predict', {'Content-Type': ';;="'}, b'x', 415),
  'json': ('POST', '/predict', {'Content-Type': 'text/json'}, b'{}', 415),
  'empty body': ('POST', '/predict', {'Content-Type': 'image/png'}, b'', 400),
  'GET': ('GET', '/predict', {}, None, 405),
  'DELETE': ('DELETE', '/', {}, None, 405),
  'POST to the page': ('POST', '/', FORM, form(('a', b'x')), 405),
  'elsewhere': ('GET', '/../etc/passwd', {}, None, 404),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_broken_request_is_refused_in_one_line(client, lines, case):
  method, path, headers, body, expected = BROKEN[case]
  status, found, text = client.send(method, path, body, headers)
  assert status == expected, text
  error = json.loads(text)['error']
  assert error and '\n' not in error
  assert found['content-type'] == 'application/json'
  assert client.service._bodies.taken == client.service._queue.taken == 0


@pytest.mark.parametrize(
  'data',
  [
    b'\x16\x03\x01\x02\x00\x01\x00',
    b'GET / HTTP/9.9\r\n\r\n',
    b'POST /predict HTTP/1.1\r\n\r\n',
    b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n',
    b'POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked'
    b'\r\nContent-Type: image/png\r\n\r\nzz\r\n',
    b'GET /' + b'a' * 100_000 + b' HTTP/1.1\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + bytes(10) + b'\r\n\r\n',
  ],
)
def test_what_is_no_http_is_refused(client, lines, capfd, data):
  answer = client.raw(data)
  assert not answer or re.match(rb'HTTP/1.1 4\d\d ', answer), answer
  assert client.predict(('a.png', picture()))[0] == 200
  assert 'Traceback' not in capfd.readouterr().err


def test_only_who_has_the_token_may_ask():
  with running(token=TOKEN) as client:
    pair = base64.b64encode(f'any:{TOKEN}'.encode()).decode()
    right = [f'Bearer {TOKEN}', f'bearer {TOKEN}', f'Basic {pair}']
    wrong = [
      *('', 'Bearer', 'Bearer ', f'Bearer {TOKEN}x', f'Bearer {TOKEN[:-1]}'),
      *(TOKEN, 'Basic !', 'Basic ', f'Basic {pair[:-4]}', 'Bearer \xe9\xff'),
    ]
    body = form(('a.png', picture()))
    for path in ('/', '/metrics', '/predict'):
      method = 'POST' if path == '/predict' else 'GET'
      for header in right:
        headers = FORM | {'Authorization': header, 'Host': 'elsewhere.example'}
        assert client.send(method, path, body, headers)[0] == 200
      for header in wrong:
        headers = FORM | {'Authorization': header}
        status, found, text = client.send(method, path, body, headers)
        assert status == 401 and found['www-authenticate'].startswith('Basic')
        assert TOKEN.encode() not in text
    assert client.send('GET', '/healthz')[0] == 200


@pytest.mark.parametrize(
  ('headers', 'expected'),
  [
    ({'Host': 'localhost:8000'}, 200),
    ({'Host': '[::1]'}, 200),
    ({'Host': 'evil.example'}, 403),
    ({'Host': '127.0.0.1.evil.example'}, 403),
    ({'Host': '[::1'}, 403),
    ({'Host': ''}, 403),
    ({'Host': 'localhost', 'Origin': 'http://localhost'}, 200),
    ({'Host': 'localhost', 'Origin': 'http://evil.example'}, 403),
    ({'Host': 'localhost', 'Origin': 'null'}, 403),
  ],
)
def test_pages_of_others_may_not_ask(client, headers, expected):
  body = form(('a.png', picture()))
  status, _, _ = client.send('POST', '/predict', body, FORM | headers)
  assert status == expected


def test_measures_are_prometheus_text(client):
  client.predict(('a.png', picture(square=SPOT)), ('b.png', b'x'))
  status, headers, text = client.send('GET', '/metrics')
  assert status == 200 and headers['content-type'].startswith('text/plain; v')
  samples = {}
  for line in text.decode().splitlines():
    if not line.startswith('#'):
      name, value = line.rsplit(' ', 1)
      assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"\})?', name)
      assert name not in samples
      samples[name] = float(value)
  assert samples['draem_requests_total{code="200"}'] >= 1
  assert samples['draem_pictures_total{verdict="anomalous"}'] >= 1
  assert samples['draem_pictures_total{verdict="refused"}'] >= 1
  assert samples['draem_batched_pictures_total'] >= 1
  assert samples['process_resident_memory_bytes'] > 2**20
  counts = [
    value for name, value in samples.items() if '_seconds_bucket' in name
  ]
  assert counts == sorted(counts)
  assert counts[-1] == samples['draem_request_seconds_count']


def test_the_page_asks_nobody_else(client):
  status, headers, body = client.send('GET', '/')
  assert status == 200 and headers['content-type'].startswith('text/html')
  assert headers['content-security-policy'] == "frame-ancestors 'none'"
  text = body.decode()
  assert "default-src 'none'" in text and "connect-src 'self'" in text
  assert 'http://' not in text and 'https://' not in text


# The command ----------------------------------------------------------------


def start(place, *flags):
  return subprocess.Popen(
    [sys.executable, '-m', 'draem_jax.serve', *flags],
    cwd=place,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(place / 'cache'),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_sigterm_finishes_what_was_taken(place, networks):
  flags = '--workdir=run', '--port=0', '--token_file=token', '--batch_size=4'
  process = start(place, *flags)
  line = process.stdout.readline()
  port = int(re.search(r'at http://127\.0\.0\.1:(\d+)$', line)[1])
  content = picture(square=SPOT)
  body = form(('a.png', content))
  head = (
    'POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer'
    f' {TOKEN}\r\nContent-Length: {len(body)}\r\n'
    f'Content-Type: {FORM["Content-Type"]}\r\n\r\n'
  ).encode()
  idle = socket.create_connection(('127.0.0.1', port), 60)
  taken = [socket.create_connection(('127.0.0.1', port), 60) for _ in range(6)]
  for connection in taken:
    connection.sendall(head + body[:50])
  time.sleep(0.3)  # Until they are seen.
  process.send_signal(signal.SIGTERM)
  assert 'stopping' in process.stderr.readline()
  wait_until(lambda: not _is_open(port))
  image = networks.prepare(images.decode_image(content, ''))
  expected = float(networks.score_all(image[None]).score[0])
  for connection in taken:
    connection.sendall(body[50:])
  for connection in taken:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200
    found = json.loads(answer.read())
    assert found['results'][0]['score'] == expected
    connection.close()
  idle.close()
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert out == 'stopped; pictures scored: 6\n' and 'Traceback' not in err


def _is_open(port):
  try:
    socket.create_connection(('127.0.0.1', port), 1).close()
  except OSError:
    return False
  return True


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'abc\n', 'has 3 characters'),
    (b'', 'has 0 characters'),
    (b'a token with spaces', 'letters, digits and signs'),
    (b'\xff' * 20, 'letters, digits and signs'),
    (None, 'does not exist'),
  ],
)
def test_a_token_that_is_none_is_named(tmp_path, content, words):
  path = tmp_path / 'token'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=words) as error:
    access.read_token(path)
  assert str(error.value).startswith(f'--token_file={path}')


def test_where_a_token_comes_from(tmp_path, monkeypatch):
  monkeypatch.delenv('DRAEM_TOKEN', raising=False)
  assert access.read_token(None) is None
  monkeypatch.setenv('DRAEM_TOKEN', TOKEN)
  assert access.read_token(None) == TOKEN
  (tmp_path / 'token').write_text(f'  {TOKEN[::-1]}\n')
  assert access.read_token(tmp_path / 'token') == TOKEN[::-1]
  monkeypatch.setenv('DRAEM_TOKEN', 'abc')
  with pytest.raises(UserError, match='DRAEM_TOKEN has 3 characters'):
    access.read_token(None)


@pytest.mark.parametrize(
  ('host', 'expected'),
  [
    *((host, True) for host in ('127.0.0.1', 'localhost', '::1', '127.3.4.5')),
    *((host, False) for host in ('0.0.0.0', '::', '10.0.0.1', 'my-machine')),
  ],
)
def test_what_is_this_machine_alone(host, expected):
  assert access.is_loopback(host) == expected


def test_mistakes_are_one_line(place):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    cases = [
      (('--workdir=run', '--host=0.0.0.0'), 'lets other machines ask'),
      (('--workdir=run', f'--port={port}'), 'cannot be listened at'),
    ]
    processes = [start(place, *flags) for flags, _ in cases]
    for process, (_, words) in zip(processes, cases, strict=True):
      out, err = process.communicate(timeout=120)
      assert process.returncode == 2 and not out
      assert err.startswith('error: ') and err.count('\n') == 1, err
      assert words in err


def test_without_the_extra_the_command_is_one_line(monkeypatch, capsys):
  # As if it had not been imported yet.
  monkeypatch.delitem(sys.modules, 'draem_jax.serve.server', raising=False)
  monkeypatch.delattr(serve, 'server', raising=False)
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  with pytest.raises(SystemExit) as stop:
    entry.run()
  assert stop.value.code == 2
  line = capsys.readouterr().err
  assert line.startswith('error: the service needs uvicorn: pip install')
  assert line.count('\n') == 1
