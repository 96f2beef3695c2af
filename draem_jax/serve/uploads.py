"""The pictures in the body of a request: read within bounds, kept in memory.

A body is a form (`multipart/form-data`), of which every part with a file name
is a picture, or a picture itself. Nothing of it is written to disk.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from draem_jax import names
from draem_jax.serve.limits import Limits, Refused, Share

_TYPES = (
  'multipart/form-data with a file in each part, as `curl -F file=@photo.png`'
  ' sends it, or image/... with the content of one file'
)
# Parts of a form that are no files.
_MOST_FIELDS = 32
_MOST_HEADERS = 16
_MOST_HEADER_BYTES = 4096


@dataclasses.dataclass
class Upload:
  """A file that was sent, under the name that its sender gave it."""

  name: str
  data: bytearray = dataclasses.field(default_factory=bytearray)


async def read(
  headers: Mapping[str, str],
  body: AsyncIterator[bytes],
  *,
  limits: Limits,
  memory: Share,
) -> list[Upload]:
  """Reads the files of a request.

  Args:
    headers: of the request.
    body: its bytes as they come.
    limits: of the request.
    memory: what it may take of the memory for all bodies.

  Raises:
    Refused: if it is none that can be read, or too much.
  """
  size = 0
  length = headers.get('content-length', '')
  if length.isascii() and length.isdecimal():
    _check_size(int(length), limits)
  try:
    add, finish = _reader(headers, limits)
    async with asyncio.timeout(limits.receiving):
      chunks = aiter(body)
      while True:
        async with asyncio.timeout(limits.silence):
          chunk = await anext(chunks, None)
        if chunk is None:
          break
        size += len(chunk)
        _check_size(size, limits)
        if not memory.take(len(chunk)):
          raise Refused(
            503,
            'too many uploads at once: try again later',
            {'Retry-After': '1'},
          )
        add(chunk)
  except TimeoutError as error:
    raise Refused(408, 'the body came too slowly: send it again') from error
  except FormParserError as error:
    raise Refused(
      400, f'the form is broken ({_one_line(error)}): send it again'
    ) from error
  uploads = finish()
  if not uploads:
    raise Refused(400, f'there is no file in the request: send {_TYPES}')
  return uploads


_Reader = tuple[Callable[[bytes], object], Callable[[], list[Upload]]]


def _reader(headers: Mapping[str, str], limits: Limits) -> _Reader:
  """What takes the chunks of a body, and what has its files in the end."""
  kind, options = parse_options_header(headers.get('content-type', ''))
  if kind == b'multipart/form-data':
    if not options.get(b'boundary'):
      raise Refused(
        400,
        'the form names no boundary in its Content-Type: let the client write'
        ' that header',
      )
    form = _Form(options[b'boundary'], limits)
    return form.add, form.finish
  if kind.startswith(b'image/') or kind == b'application/octet-stream':
    upload = Upload('picture')

    def finish() -> list[Upload]:
      return [upload] if upload.data else []

    return upload.data.extend, finish
  found = kind.decode('latin-1') or 'none'
  raise Refused(415, f'the Content-Type is {found:.80}: send {_TYPES}')


class _Form:
  """A form of which the files are kept and the fields passed over."""

  def __init__(self, boundary: bytes, limits: Limits):
    self._limits = limits
    self._uploads: list[Upload] = []
    self._fields, self._is_whole = 0, False
    self._upload: Upload | None = None
    self._headers: list[tuple[bytearray, bytearray]] = []
    self._parser = python_multipart.MultipartParser(
      boundary,
      {
        'on_part_begin': self._begin,
        'on_header_begin': lambda: self._headers.append(
          (bytearray(), bytearray())
        ),
        'on_header_field': lambda data, start, end: self._headers[-1][0].extend(
          data[start:end]
        ),
        'on_header_value': lambda data, start, end: self._headers[-1][1].extend(
          data[start:end]
        ),
        'on_headers_finished': self._open,
        'on_part_data': self._take,
        'on_end': self._end,
      },
      max_header_count=_MOST_HEADERS,
      max_header_size=_MOST_HEADER_BYTES,
    )

  def add(self, chunk: bytes) -> None:
    self._parser.write(chunk)

  def finish(self) -> list[Upload]:
    if not self._is_whole:
      raise Refused(400, 'the form is cut short: send it again')
    # A field for files that was left empty.
    return [one for one in self._uploads if one.name or one.data]

  def _begin(self) -> None:
    self._headers, self._upload = [], None

  def _open(self) -> None:
    name = self._file_name()
    if name is None:
      self._fields += 1
      if self._fields > _MOST_FIELDS:
        raise Refused(
          400, f'the form has more than {_MOST_FIELDS} fields: leave them out'
        )
      return
    if len(self._uploads) >= self._limits.files:
      raise Refused(
        413,
        f'there are more than {self._limits.files} files in the request: send'
        ' several requests',
      )
    self._upload = Upload(name)
    self._uploads.append(self._upload)

  def _file_name(self) -> str | None:
    for field, value in self._headers:
      if field.lower() == b'content-disposition':
        _, options = parse_options_header(bytes(value))
        name = options.get(b'filename')
        return None if name is None else names.from_bytes(name)
    return None

  def _take(self, data: bytes, start: int, end: int) -> None:
    if self._upload is not None:
      self._upload.data += data[start:end]

  def _end(self) -> None:
    self._is_whole = True


def _check_size(size: int, limits: Limits) -> None:
  if size > limits.request_bytes:
    raise Refused(
      413,
      f'the request has more than {limits.request_bytes // 2**20} MiB: send'
      ' fewer or smaller files',
    )


def _one_line(error: Exception) -> str:
  return names.shown(' '.join(str(error).split()))[:200]
