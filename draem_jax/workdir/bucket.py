"""Objects of a bucket, `gs://bucket/run` or `s3://bucket/run`: read and write.

By tensorstore, which orbax brings along: there is nothing else to install. It
finds credentials as Google's and Amazon's own programs do, and repeats what
fails for a moment. S3 of other makers is named by `AWS_ENDPOINT_URL`.
"""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from draem_jax import names
from draem_jax.errors import PassingError, UserError

_DRIVERS = {'gs': 'gcs', 's3': 's3'}
# With one slash where pathlib has had it.
_URL = re.compile(r'(gs|s3):/{1,2}([^/]*)(?:/(.*))?', re.DOTALL)
_DOCS = 'docs/workdirs-in-buckets.md'
# A quarter of a minute until a store that refuses counts as out of reach, two
# minutes for one that is silent, which tensorstore would wait for for ever.
_RETRIES = {'max_retries': 5, 'initial_delay': '500ms', 'max_delay': '8s'}
_PATIENCE = {
  'TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS': '15',
  'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '15',
  'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
}

# Of what a list must have if it can be read: tensorstore takes a refusal by
# Google for the end of the list, and a run would begin anew over an old one.
_LANDMARKS = (
  '.lock',
  'config.json',
  'metrics.jsonl',
  'predictions.csv',
  'regions.jsonl',
  'results.json',
)

# The generation of an object that is not there.
ABSENT = b'\x02'

# What a store says, and what there is to do. The words are tensorstore's, or
# the status of HTTP where it has none of its own.
_CREDENTIALS = f'give this process credentials for it ({_DOCS})'
_REMEDIES = {
  'NOT_FOUND': ('there is no such bucket', 'create it, or name another'),
  'PERMISSION_DENIED': ('access is denied', _CREDENTIALS),
  'UNAUTHENTICATED': ('there are no credentials', _CREDENTIALS),
  'INVALID_ARGUMENT': ('the store refuses the request', 'see ' + _DOCS),
  'Invalid ': ('this can be no name', 'name another'),
}
_OUT_OF_REACH = ('it cannot be reached', 'see to the network')


def is_url(path: str | os.PathLike[str]) -> bool:
  """Whether this names objects of a bucket, and no folder."""
  return bool(_URL.fullmatch(os.fspath(path)))


def parse(url: str | os.PathLike[str]) -> pathlib.PurePath:
  """The path of a URL, to which `/` adds a name.

  Raises:
    UserError: if it names no bucket, or what no object can be called.
  """
  scheme, bucket, path = _URL.fullmatch(os.fspath(url)).groups(default='')
  parts = path.rstrip('/').split('/')
  try:
    path.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'{names.shown(url)}: its name is no UTF-8, which buckets want'
    ) from error
  if not bucket or (path and not {'', '.', '..'}.isdisjoint(parts)):
    raise UserError(
      f'{url} names no place in a bucket: take {scheme}://bucket/name'
    )
  # Only what is a URL needs it.
  from etils import epath

  return epath.Path(f'{scheme}://{bucket}/{path}'.rstrip('/'))


class Bucket:
  """The objects whose names begin with a URL and a slash.

  Attributes:
    url: where they lie.
  """

  def __init__(self, url: str | os.PathLike[str]):
    """Opens them; whether there is a bucket shows when it is written to."""
    self.url = str(parse(url))
    scheme, bucket, path = _URL.fullmatch(self.url).groups(default='')
    spec = {'driver': _DRIVERS[scheme], 'bucket': bucket}
    spec['path'] = f'{path}/' if path else ''
    if scheme == 's3':
      spec |= _s3_settings()
    self.has_conditions = scheme == 'gs'
    with self._naming_errors(), _muting_libraries():
      self._objects = _open(spec)
      # Any request: the first one looks for credentials.
      self._objects.read(_LANDMARKS[0].encode()).result()

  def list(self) -> list[str]:
    """The names of all objects, relative to the URL.

    What no file can be called is left out, as the empty objects are that
    consoles make for folders.

    Raises:
      UserError: if they cannot be listed, or not all of them.
    """
    # More than once, for another process may have written one meanwhile.
    for _ in range(3):
      with self._naming_errors():
        found = self._objects.list().result()
      every = {names.from_bytes(name) for name in found}
      if not any(
        name not in every and self.read(name)[1] != ABSENT
        for name in _LANDMARKS
      ):
        break
    else:
      raise UserError(
        f'{self.url}: access is denied (objects can be read, but not all of'
        f' them listed): see {_DOCS}'
      )
    return [
      name
      for name in every
      if '\0' not in name and {'', '.', '..'}.isdisjoint(name.split('/'))
    ]

  def read(self, name: str) -> tuple[bytes, bytes]:
    """An object and its generation, which is `ABSENT` if it is not there."""
    with self._naming_errors():
      found = self._objects.read(names.to_bytes(name)).result()
    return found.value, found.stamp.generation

  def write(self, name: str, content: bytes) -> None:
    """Writes an object, whole or not at all."""
    with self._naming_errors():
      self._objects.write(names.to_bytes(name), content).result()

  def delete(self, name: str) -> None:
    """Deletes an object, if it is there."""
    with self._naming_errors():
      self._objects.write(names.to_bytes(name), None).result()

  def exchange(
    self, name: str, content: bytes | None, generation: bytes
  ) -> bytes | None:
    """Writes, or deletes for None, an object unless another process did.

    Args:
      name: of the object.
      content: what it shall be.
      generation: what it is so far, as `read` or this told.

    Returns:
      Its generation now; None if it was another before, and is left alone.
      Of S3 that is looked up first (see `has_conditions`): two processes in
      the same moment may both be told that they were the first.
    """
    with self._naming_errors():
      name = names.to_bytes(name)
      stamp = self._objects.write(name, content, if_equal=generation).result()
    return stamp.generation or None

  @contextlib.contextmanager
  def _naming_errors(self) -> Iterator[None]:
    """Makes a line of what the store says."""
    try:
      yield
    # Tensorstore raises it for everything.
    except ValueError as error:
      words = ' '.join(str(error).split())
      # A store that is down for a while, as far as anybody here can tell.
      kind, what, remedy = PassingError, *_OUT_OF_REACH
      for said, found in _REMEDIES.items():
        if said in words:
          kind, what, remedy = UserError, *found
      # What follows is the request in full.
      detail = words.split(' [', 1)[0]
      raise kind(f'{self.url}: {what} ({detail:.200}): {remedy}') from error


@functools.cache
def _context() -> Any:
  for name, value in _PATIENCE.items():
    os.environ.setdefault(name, value)
  # It takes a moment to import, and only buckets need it.
  import tensorstore as ts

  return ts.Context(
    {'gcs_request_retries': _RETRIES, 's3_request_retries': _RETRIES}
  )


@contextlib.contextmanager
def _muting_libraries() -> Iterator[None]:
  """Keeps stderr free of a line from C for each place without credentials."""
  kept = os.dup(2)
  try:
    with open(os.devnull, 'wb') as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _open(spec: dict[str, Any]) -> Any:
  import tensorstore as ts

  return ts.KvStore.open(spec, context=_context()).result()


def _s3_settings() -> dict[str, Any]:
  """What Amazon's programs read of the environment, unlike tensorstore."""
  settings, given = {}, os.environ
  region = given.get('AWS_REGION') or given.get('AWS_DEFAULT_REGION')
  endpoint = given.get('AWS_ENDPOINT_URL_S3') or given.get('AWS_ENDPOINT_URL')
  if endpoint:
    settings['endpoint'] = endpoint
    region = region or 'us-east-1'
  if region:
    settings['aws_region'] = region
  if given.get('AWS_ACCESS_KEY_ID') and given.get('AWS_SECRET_ACCESS_KEY'):
    # Or it would complain of files that need not be there.
    settings['aws_credentials'] = {'type': 'environment'}
  return settings
