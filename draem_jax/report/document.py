"""One HTML file with all that belongs to it: no request leaves it."""

import base64
import hashlib
import html
import json
import string
from importlib import resources
from typing import Any

import numpy as np

from draem_jax import names
from draem_jax.pictures import panels, plots

_FILES = resources.files('draem_jax.report')

# Colors that the pictures have too; the style sheet knows the rest.
_COLORS = {
  '--good': panels.GOOD_COLOR,
  '--anomalous': panels.ANOMALOUS_COLOR,
  '--outline': panels.OUTLINE_COLOR,
  '--images': plots.IMAGE_COLOR,
  '--pixels': plots.PIXEL_COLOR,
}
# Stops of the gradient that stands for the colors of an anomaly map.
_NUM_STOPS = 9


def escape(text: Any) -> str:
  """Text as HTML, in an element or in a quoted attribute.

  It is shown on one line, as `names.shown` has it.
  """
  return html.escape(names.shown(text))


def fill(template: str, **fields: str) -> str:
  """A template of this package with its fields, which are HTML, filled in."""
  return string.Template(_read(template)).substitute(fields)


def page(*, title: str, body: str, script: str = '', data: Any = None) -> str:
  """A whole document.

  A content security policy forbids every request and every script but ours.

  Args:
    title: plain text.
    body: HTML.
    script: name of the script in this package; none by default.
    data: what the script reads, as plain values.

  Raises:
    ValueError: if `data` holds NaN or infinity, which JSON has no word for.
  """
  return assemble(
    title=title, body=body, code=_read(script) if script else '', data=data
  )


def assemble(
  *,
  title: str,
  body: str,
  code: str = '',
  style: str = '',
  data: Any = None,
  sources: str = 'img-src data:',
) -> str:
  """A whole document of parts that are no files of this package.

  Args:
    title: plain text.
    body: HTML.
    code: the script, if there is one.
    style: what follows the report's own style sheet.
    data: what the script reads, as plain values.
    sources: what may be loaded, as a content security policy has it.

  Raises:
    ValueError: if `data` holds NaN or infinity, which JSON has no word for.
  """
  code = '\n' + code if code else ''
  digest = hashlib.sha256(code.encode()).digest()
  return fill(
    'page.html',
    title=escape(title),
    sources=sources,
    script_hash=base64.b64encode(digest).decode(),
    style=f':root {{{_colors()}}}\n{_read("report.css")}{style}',
    body=body,
    data=_embedded_json(data),
    script=code,
  )


def _colors() -> str:
  """The colors of the pictures as CSS declarations."""
  stops = panels.colorize(np.linspace(0, 1, _NUM_STOPS)[None])[0]
  gradient = ','.join('#' + bytes(stop).hex() for stop in stops)
  colors = _COLORS | {'--map': gradient}
  return ''.join(f'{name}:{value};' for name, value in colors.items())


def _read(name: str) -> str:
  return (_FILES / name).read_text(encoding='utf-8')


def _embedded_json(value: Any) -> str:
  """JSON that cannot end the script element it stands in."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text
