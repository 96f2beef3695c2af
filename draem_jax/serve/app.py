"""The service's routes: what is asked, and what is answered.

A picture is decoded and prepared in a thread, scored in a batch, and its
regions and map are made in a thread again; its pixels are let go of once it is
prepared. Of a detector that looks at pictures by tiles one thread does all of
it, and one picture at a time is in memory. Whatever is sent, the answer is a
status and one line that says why.
"""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from draem_jax.data import encoded, png
from draem_jax.detection import stream, tiles
from draem_jax.detection.detector import Detector, resize_map
from draem_jax.detection.regions import find_regions
from draem_jax.errors import UserError
from draem_jax.serve import access, page, uploads
from draem_jax.serve.batching import Batcher, Scored
from draem_jax.serve.limits import Limits, Refused, Room, room_for_bodies
from draem_jax.serve.measures import Measures

_log = logging.getLogger(__name__)

_PARAMETERS = 'threshold', 'pixel_threshold', 'map'
# Pixels of the longer side of a map that is sent: the networks see less.
_LARGEST_MAP = 2048
_LONGEST_RETRY = 60  # Seconds.
_HEADERS = {
  'Cache-Control': 'no-store',
  'X-Content-Type-Options': 'nosniff',
}


@dataclasses.dataclass(frozen=True)
class _Prepared:
  """A picture as the networks see it, and its height and width."""

  name: str
  image: np.ndarray
  shape: tuple[int, int]


class _Bad(Exception):
  """A picture cannot be scored; `answer` says so."""

  def __init__(self, answer: dict[str, Any]):
    super().__init__(answer['error'])
    self.answer = answer


@dataclasses.dataclass(frozen=True)
class _Options:
  """What a request asks for beside the scores.

  Attributes:
    detector: with the thresholds it wants.
    map_side: pixels of the longer side of each map, at most; None for no maps.
    as_png: whether the answer is the map alone.
  """

  detector: Detector
  map_side: int | None
  as_png: bool


class Service:
  """All that the routes share.

  Attributes:
    app: the ASGI application.
    batcher: what scores.
  """

  def __init__(
    self,
    detector: Detector,
    *,
    limits: Limits,
    token: str | None = None,
    wait: float = 0.005,
    title: str = '',
  ):
    """Starts the threads; `close` ends them.

    Args:
      detector: with thresholds; batches are as large as it says.
      limits: of requests.
      token: what who asks must show, if anything.
      wait: seconds that a picture waits for others to share its batch.
      title: what the detector is for, for the page.
    """
    self._model = detector.fingerprint()
    self._detector = detector.for_scoring()
    self._limits, self._token = limits, token
    self._page = page.make(detector, title=title)
    self._measures = Measures()
    self._bodies = room_for_bodies(limits)
    self._queue = Room(limits.waiting)
    self.batcher = Batcher(self._detector, wait=wait)
    self._pool = futures.ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 1))
    self.app = Starlette(
      routes=[
        Route('/', self._guarded(self._show_page)),
        Route('/predict', self._guarded(self._predict), methods=['POST']),
        Route('/healthz', self._tell_health),
        Route('/metrics', self._guarded(self._tell_measures)),
      ],
      exception_handlers={HTTPException: _refuse},
    )

  def warm_up(self) -> None:
    """Does what would make the first answer late."""
    self.batcher.warm_up()
    # By this scikit-image is loaded.
    find_regions(np.ones((2, 2), np.float32), np.ones((2, 2), bool))

  def close(self) -> None:
    """Answers what waits, and ends the threads."""
    self.batcher.close()
    self._pool.shutdown()

  def _guarded(
    self, endpoint: Callable[[Request], Awaitable[Response]]
  ) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint for those who may ask."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
      access.check(request, self._token)
      return await endpoint(request)

    return guarded

  async def _show_page(self, request: Request) -> Response:
    del request
    # What else it may do, it says itself.
    headers = _HEADERS | {'Content-Security-Policy': "frame-ancestors 'none'"}
    return HTMLResponse(self._page, headers=headers)

  async def _tell_health(self, request: Request) -> Response:
    del request
    if not self.batcher.is_alive():
      return PlainTextResponse('the device is gone\n', 503, _HEADERS)
    return PlainTextResponse('ok\n', headers=_HEADERS)

  async def _tell_measures(self, request: Request) -> Response:
    del request
    text = self._measures.as_text(
      batches_total=self.batcher.num_batches,
      batched_pictures_total=self.batcher.num_pictures,
      pictures_unanswered=self._queue.taken,
      pictures_waiting_for_the_device=self.batcher.num_waiting,
      upload_bytes=self._bodies.taken,
    )
    kind = 'text/plain; version=0.0.4'
    return Response(text, media_type=kind, headers=_HEADERS)

  async def _predict(self, request: Request) -> Response:
    begin = time.monotonic()
    try:
      response = await self._answer(request)
    except HTTPException as refused:
      response = await _refuse(request, refused)
    except ClientDisconnect:
      response = _as_json({'error': 'the client has gone'}, 400)
    # One line in the log and no more, whatever it was.
    except Exception as error:
      reason = ' '.join(str(error).split()) or type(error).__name__
      if isinstance(error, UserError):
        _log.error('%s', reason)
      else:
        _log.error('a request failed: %s: %.300s', type(error).__name__, reason)
        reason = 'the service failed: see its log'
      response = _as_json({'error': reason}, 500)
    seconds = time.monotonic() - begin
    self._measures.count_request(response.status_code, seconds)
    return response

  async def _answer(self, request: Request) -> Response:
    options = self._read_options(request)
    # Whoever finds no place need not send the rest.
    if self._queue.taken >= self._queue.size:
      raise self._full()
    with self._bodies.open() as memory, self._queue.open() as places:
      files = await uploads.read(
        request.headers, request.stream(), limits=self._limits, memory=memory
      )
      if options.as_png and len(files) > 1:
        raise Refused(400, 'there is one map in a PNG: send one file')
      if not places.take(len(files)):
        raise self._full()
      if self._detector.is_tiled:
        results = await self._scan(files, options)
        memory.give_back()
        return await self._in_pool(self._respond, results, options)
      prepared = await self._prepare(files)
      memory.give_back()
      scored = await self._score(prepared)
      describe = functools.partial(self._describe, options=options)
      results = await asyncio.gather(
        *map(functools.partial(self._in_pool, describe), prepared, scored)
      )
      return await self._in_pool(self._respond, results, options)

  async def _scan(
    self, files: list[uploads.Upload], options: _Options
  ) -> list[dict[str, Any]]:
    """What is answered of pictures that are scored by tiles."""
    scan = functools.partial(self._scan_one, options=options)
    jobs = []
    while files:
      jobs.append(self._in_pool(scan, [files.pop(0)]))
    return await asyncio.gather(*jobs)

  def _scan_one(
    self, holder: list[uploads.Upload], *, options: _Options
  ) -> dict[str, Any]:
    with self.batcher.turn:
      upload = holder.pop()
      try:
        with self._open(upload) as picture:
          size = self._detector.size_of(picture.shape)
          with tiles.Spool(size) as spool:
            score = self.batcher.scan(picture, spool)
            drawing = stream.Drawing(
              options.detector, spool, score, picture.shape
            )
            return self._describe_drawing(upload.name, drawing, options)
      except _Bad as bad:
        return bad.answer

  async def _prepare(
    self, files: list[uploads.Upload]
  ) -> list[_Prepared | dict[str, Any]]:
    """The files as the networks see them, or what to say of a bad one."""
    jobs = []
    while files:
      # Each is let go of as soon as it is prepared.
      jobs.append(self._in_pool(self._decode, [files.pop(0)]))
    return await asyncio.gather(*jobs)

  def _decode(self, holder: list[uploads.Upload]) -> _Prepared | dict[str, Any]:
    upload = holder.pop()
    try:
      with self._open(upload) as picture:
        image = self._detector.prepare_picture(picture)
        return _Prepared(upload.name, image, picture.shape)
    except _Bad as bad:
      return bad.answer

  @contextlib.contextmanager
  def _open(self, upload: uploads.Upload) -> Iterator[encoded.Picture]:
    """The picture that was sent, decoded while the block lasts.

    Raises:
      _Bad: if it is none, or there is no memory for it.
    """
    file = io.BytesIO(upload.data)
    upload.data.clear()
    with contextlib.ExitStack() as stack:
      try:
        picture = stack.enter_context(
          encoded.decode(file, upload.name, max_pixels=self._limits.pixels)
        )
      except MemoryError as error:
        raise self._too_large(upload) from error
      except UserError as error:
        self._measures.count_picture('refused')
        raise _Bad({'file': upload.name, 'error': str(error)}) from error
      try:
        yield picture
      except MemoryError as error:
        raise self._too_large(upload) from error

  def _too_large(self, upload: uploads.Upload) -> '_Bad':
    self._measures.count_picture('refused')
    reason = 'there is not enough memory for it: send it again later'
    return _Bad({'file': upload.name, 'error': f'{upload.name}: {reason}'})

  async def _score(
    self, prepared: list[_Prepared | dict[str, Any]]
  ) -> list[Scored | None]:
    answers = [
      asyncio.wrap_future(self.batcher.submit(one.image))
      if isinstance(one, _Prepared)
      else asyncio.sleep(0)
      for one in prepared
    ]
    return await asyncio.gather(*answers)

  def _describe(
    self,
    prepared: _Prepared | dict[str, Any],
    scored: Scored | None,
    *,
    options: _Options,
  ) -> dict[str, Any]:
    """What is answered of a picture."""
    if scored is None:
      return prepared
    drawing = stream.Drawing(
      options.detector, scored.anomaly_map, scored.score, prepared.shape
    )
    small = functools.partial(_encode_map, scored, prepared.shape)
    return self._describe_drawing(prepared.name, drawing, options, small)

  def _describe_drawing(
    self,
    name: str,
    drawing: stream.Drawing,
    options: _Options,
    encode: Callable[[int], bytes] | None = None,
  ) -> dict[str, Any]:
    """The same of what is drawn of it.

    Args:
      name: of the picture.
      drawing: of it.
      options: what is asked for.
      encode: gives its map as a PNG with so long a side; by default one in
        which each pixel has the highest value of those that it stands for.
    """
    height, width = drawing.shape
    area = sum(region.area for region in drawing.regions)
    self._measures.count_picture('anomalous' if area else 'good')
    result = {
      'file': name,
      'width': width,
      'height': height,
      'score': drawing.score,
      'is_anomalous': area > 0,
      'area': area / (width * height),
      'regions': [region.as_dict() for region in drawing.regions],
    }
    if options.map_side is not None:
      encode = encode or functools.partial(_encode_peaks, drawing)
      result['map'] = encode(options.map_side)
    return result

  def _respond(
    self, results: list[dict[str, Any]], options: _Options
  ) -> Response:
    is_bad = all('error' in result for result in results)
    if options.as_png and not is_bad:
      return Response(
        results[0]['map'], media_type='image/png', headers=_HEADERS
      )
    for result in results:
      if 'map' in result:
        result['map'] = base64.b64encode(result['map']).decode()
    thresholds = options.detector.thresholds
    answer = {
      'model': self._model,
      'threshold': thresholds.image,
      'pixel_threshold': thresholds.pixel,
      'results': results,
    }
    if is_bad:
      answer['error'] = results[0]['error']
    return _as_json(answer, 422 if is_bad else 200)

  def _read_options(self, request: Request) -> _Options:
    given = request.query_params
    for name in given:
      if name not in _PARAMETERS:
        known = ', '.join(_PARAMETERS)
        raise Refused(400, f'unknown parameter {name!r:.80}: take {known}')
    detector = self._detector
    image, pixel = (
      _read_number(given, name) for name in ('threshold', 'pixel_threshold')
    )
    if (image, pixel) != (None, None):
      detector = detector.with_thresholds(image=image, pixel=pixel)
    as_png = 'image/png' in request.headers.get('accept', '')
    side = given.get('map', 'true' if as_png else 'false')
    if side in ('true', 'false'):
      return _Options(
        detector, _LARGEST_MAP if side == 'true' else None, as_png
      )
    if not (side.isascii() and side.isdecimal() and len(side) < 6):
      raise Refused(400, f'map={side:.80}: take true, or pixels a side')
    return _Options(detector, min(max(1, int(side)), _LARGEST_MAP), as_png)

  def _full(self) -> Refused:
    seconds = self.batcher.seconds_each * self._queue.taken
    retry = min(max(1, math.ceil(seconds)), _LONGEST_RETRY)
    return Refused(
      503,
      f'{self._queue.taken} pictures wait already: try again in {retry} s',
      {'Retry-After': str(retry)},
    )

  def _in_pool(
    self, function: Callable[..., Any], *args: Any
  ) -> Awaitable[Any]:
    return asyncio.get_running_loop().run_in_executor(
      self._pool, function, *args
    )


def _read_number(given: QueryParams, name: str) -> float | None:
  text = given.get(name)
  if text is None:
    return None
  try:
    value = float(text)
    if not 0 <= value <= 1:
      raise ValueError
  except ValueError as error:
    raise Refused(400, f'{name}={text:.80}: take 0 to 1') from error
  return value


def _encode_map(scored: Scored, shape: tuple[int, int], side: int) -> bytes:
  """The map as a gray PNG of 16 bits, 65535 for 1."""
  scale = min(1, side / max(shape))
  size = tuple(max(1, round(length * scale)) for length in shape)
  levels = np.clip(resize_map(scored.anomaly_map, size), 0, 1) * 65535 + 0.5
  return png.encode(levels.astype(np.uint16))


def _encode_peaks(drawing: stream.Drawing, side: int) -> bytes:
  """The same of a map that is not whole in memory."""
  return png.encode(np.concatenate(list(drawing.levels(side=side))))


def _as_json(
  value: dict[str, Any], status: int = 200, headers: dict | None = None
) -> Response:
  # Escaped, as a name may hold bytes that are no UTF-8.
  text = json.dumps(value, allow_nan=False) + '\n'
  return Response(
    text, status, _HEADERS | (headers or {}), media_type='application/json'
  )


async def _refuse(request: Request, refused: HTTPException) -> Response:
  del request
  return _as_json(
    {'error': refused.detail}, refused.status_code, dict(refused.headers or {})
  )
