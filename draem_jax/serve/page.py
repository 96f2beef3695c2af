"""The page of the service: pictures are dropped on it, and it shows where.

It is one document; nothing but its requests to the service leaves it.
"""

import string
from importlib import resources

from draem_jax.detection.detector import Detector
from draem_jax.pictures import panels
from draem_jax.report import document
from draem_jax.score import IMAGE_SCORES

_FILES = resources.files('draem_jax.serve')
# The heat maps come as pictures, and the user's own lie in memory.
_SOURCES = "img-src data: blob:; connect-src 'self'"
# Pixels of the longer side of the pictures on the page.
_SIDE = 1024


def make(detector: Detector, *, title: str) -> str:
  """The document.

  Args:
    detector: what answers, with thresholds.
    title: what it is for, plain text.
  """
  thresholds = detector.thresholds
  body = string.Template(_read('page.html')).substitute(
    title=document.escape(title),
    threshold=panels.number(thresholds.image),
    source=document.escape(thresholds.source),
  )
  return document.assemble(
    title=f'{title}: anomaly detection',
    body=body,
    code=_read('page.js'),
    style=_read('page.css'),
    data={
      'threshold': thresholds.image,
      'pixelThreshold': thresholds.pixel,
      # Whether scores and map values are of one scale, as `Detector` asks.
      'compares': IMAGE_SCORES[detector.score_image].reads is None,
      'side': _SIDE,
      'colors': panels.overlay_colors().ravel().tolist(),
      'outline': panels.OUTLINE_COLOR,
      'box': panels.BOX_COLOR,
    },
    sources=_SOURCES,
  )


def _read(name: str) -> str:
  return (_FILES / name).read_text(encoding='utf-8')
