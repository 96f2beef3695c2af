"""Who may ask: with the token, or, where there is none, from this machine.

Without a token any page that is open in a browser on this machine could send a
request, so that names under which others could lead it here are refused, and
so are requests that pages of other origins send.
"""

import base64
import binascii
import hmac
import ipaddress
import os
import pathlib
import urllib.parse

from starlette.requests import Request

from draem_jax.errors import UserError
from draem_jax.serve.limits import Refused
from draem_jax.workdir import storage

VARIABLE = 'DRAEM_TOKEN'
_SHORTEST = 16


def read_token(path: pathlib.Path | None) -> str | None:
  """The token in a file, or else in the environment; None if in neither.

  Args:
    path: of the file, if there is one.

  Raises:
    UserError: if the file cannot be read, or the token is too short or holds
      something that no header can.
  """
  if path is not None:
    where, remedy = f'--token_file={path}', 'put a token there'
    try:
      data = storage.read_bytes(path, remedy=remedy)
    except FileNotFoundError as error:
      raise UserError(f'{where} does not exist: {remedy}') from error
    token = data.decode('latin-1').strip()
  else:
    where, token = VARIABLE, os.environ.get(VARIABLE, '').strip()
    if not token:
      return None
  if len(token) < _SHORTEST:
    raise UserError(
      f'{where} has {len(token)} characters: take a token of {_SHORTEST} or'
      ' more, such as `openssl rand -hex 32` makes'
    )
  if not all('!' <= character <= '~' for character in token):
    raise UserError(f'{where}: a token has letters, digits and signs only')
  return token


def is_loopback(host: str) -> bool:
  """Whether an address, or a name, is that of this machine alone."""
  try:
    return ipaddress.ip_address(host.strip('[]')).is_loopback
  except ValueError:
    return host.lower() == 'localhost'


def check(request: Request, token: str | None) -> None:
  """Lets pass who may ask.

  Args:
    request: the request.
    token: what it must show, if anything.

  Raises:
    Refused: if it may not.
  """
  host = request.headers.get('host', '')
  if token is None:
    if not is_loopback(_split(f'//{host}')[0]):
      raise Refused(403, 'without a token the service answers to localhost')
  elif not _shows(request.headers.get('authorization', ''), token):
    raise Refused(
      401,
      'the token is missing or wrong: send Authorization: Bearer TOKEN',
      # By this a browser asks for a name, which may be any, and a password.
      {'WWW-Authenticate': 'Basic realm="draem_jax", charset="UTF-8"'},
    )
  origin = request.headers.get('origin')
  if origin is not None and _split(origin)[1] != host:
    raise Refused(403, 'pages of other origins may not ask')


def _split(url: str) -> tuple[str, str]:
  """The name in a URL, and the same with its port; empty if it is none."""
  try:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or '', parts.netloc
  except ValueError:
    return '', ''


def _shows(header: str, token: str) -> bool:
  """Whether an Authorization header has the token, as it is or as password."""
  scheme, _, value = header.partition(' ')
  value = value.strip()
  if scheme.lower() == 'basic':
    try:
      pair = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
      return False
    given = pair.partition(b':')[2]
  elif scheme.lower() == 'bearer':
    given = value.encode('utf-8', 'surrogateescape')
  else:
    return False
  return hmac.compare_digest(given, token.encode())
