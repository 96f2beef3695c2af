"""Pictures made of images: heat maps, panels, galleries, sheets of examples.

Images are uint8 or float in [0, 1], RGB. Anomaly maps are probabilities in
[0, 1] and always drawn on this scale, so that pictures compare and a good image
looks clean. Colors are Okabe and Ito's, which color-blind readers tell apart,
and for maps inferno, which is perceptually uniform.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageColor

from draem_jax.pictures.canvas import GRAY, Page
from draem_jax.workdir import storage

GOOD_COLOR = '#0072B2'
ANOMALOUS_COLOR = '#D55E00'
OUTLINE_COLOR = '#56E0FF'
BOX_COLOR = '#009E73'

_MARGIN = 16
_GAP = 12
# Pixels of what stands on the left of a row.
_ROW_NAME = 96
# Pixels of the longer side of a tile: in panels, and where there are many.
_MIN_TILE, _MAX_TILE = 256, 512
_SMALL_TILE = 176
# Images in which the region of interest is shown, and how many side by side.
MAX_REGIONS, _REGION_COLUMNS = 12, 4
# Opacity of the heat map where the map is 1, and how fast it is reached.
_MAX_OPACITY = 0.7
_OPACITY_GAIN = 1.8

# A box's line is the longer side by this.
_BOX_SHARE = 400

_Picture = UInt8[np.ndarray, 'h w 3'] | Float[np.ndarray, 'h w 3']


def save_png(
  path: str | pathlib.Path, picture: UInt8[np.ndarray, 'h w 3']
) -> None:
  """Writes a PNG whole or not at all, its folder included."""
  with storage.atomic_file(path) as file:
    # Half the time of the default level for a tenth more bytes.
    Image.fromarray(picture).save(file, format='PNG', compress_level=3)


def heat_map_overlay(
  image: _Picture, anomaly_map: Float[np.ndarray, 'h2 w2']
) -> UInt8[np.ndarray, 'h w 3']:
  """The image with its anomaly map over it.

  The map's opacity grows with its value: where it is 0 the image is untouched.

  Args:
    image: the image.
    anomaly_map: its map, of the same size; clipped to [0, 1].

  Raises:
    ValueError: if the sizes differ.
  """
  image = _as_uint8(image)
  if image.shape[:2] != np.shape(anomaly_map):
    raise ValueError(
      f'An image of shape {image.shape} and a map of shape '
      f'{np.shape(anomaly_map)} do not fit.'
    )
  levels = _levels(anomaly_map)
  keep, add = _overlay_tables()
  return (image * keep[levels] + add[levels]).astype(np.uint8)


def overlay_colors() -> UInt8[np.ndarray, '256 4']:
  """The color and opacity that `heat_map_overlay` lays over an image.

  Of each level of the map, from 0 to 1.
  """
  keep, add = _overlay_tables()
  opacity = 1 - keep
  colors = (add - 0.5) / np.maximum(opacity, 1e-6)
  return np.round(np.concatenate([colors, 255 * opacity], axis=1)).astype(
    np.uint8
  )


def colorize(
  anomaly_map: Float[np.ndarray, 'h w'],
) -> UInt8[np.ndarray, 'h w 3']:
  """The anomaly map in inferno's colors, black at 0 and pale yellow at 1."""
  return _inferno()[_levels(anomaly_map)]


def as_gray(
  levels: Float[np.ndarray, 'h w'] | Bool[np.ndarray, 'h w'],
) -> UInt8[np.ndarray, 'h w 3']:
  """A mask, or any plane in [0, 1], from black to white."""
  return _as_uint8(np.repeat(np.asarray(levels, np.float32)[..., None], 3, -1))


def draw_outline(
  picture: UInt8[np.ndarray, 'h w 3'], mask: Bool[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'h w 3']:
  """The picture with a thin line around the mask, in `OUTLINE_COLOR`.

  The line runs outside the mask, so that even a thin defect stays visible.
  """
  # Here, as it takes a while to import, and few commands draw.
  from scipy import ndimage

  mask = np.asarray(mask, bool)
  picture = picture.copy()
  around = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask
  picture[around] = ImageColor.getrgb(OUTLINE_COLOR)
  return picture


def draw_boxes(
  picture: UInt8[np.ndarray, 'h w 3'],
  boxes: Sequence[tuple[int, int, int, int]],
  *,
  top: int = 0,
  shape: tuple[int, int] | None = None,
) -> None:
  """Draws frames around boxes into a picture, or into a strip of one.

  They keep some distance, so that what is inside stays visible.

  Args:
    picture: the picture or strip, which is changed.
    boxes: left, top, width and height of each, in pixels of the whole picture.
    top: the strip's first row in the picture.
    shape: the whole picture's height and width; those of `picture` by default.
  """
  height, width = shape or picture.shape[:2]
  line = max(1, round(max(height, width) / _BOX_SHARE))
  gap = 2 * line
  for left, upper, box_width, box_height in boxes:
    # Of a box at the border the frame stays inside the picture.
    x0, y0 = max(left - gap - line, 0), max(upper - gap - line, 0)
    x1 = min(left + box_width + gap + line, width)
    y1 = min(upper + box_height + gap + line, height)
    for rows, columns in (
      ((y0, y0 + line), (x0, x1)),
      ((y1 - line, y1), (x0, x1)),
      ((y0, y1), (x0, x0 + line)),
      ((y0, y1), (x1 - line, x1)),
    ):
      begin, end = (max(row - top, 0) for row in rows)
      picture[begin:end, slice(*columns)] = ImageColor.getrgb(BOX_COLOR)


def panel(
  *,
  image: _Picture,
  anomaly_map: Float[np.ndarray, 'h w'],
  score: float,
  name: str,
  label: bool | None = None,
  defect: str | None = None,
  reconstruction: _Picture | None = None,
  mask: Bool[np.ndarray, 'h w'] | None = None,
  threshold: float | None = None,
) -> UInt8[np.ndarray, 'H W 3']:
  """All there is to see of one image, in a row under a line of text.

  Args:
    image: the input.
    anomaly_map: its anomaly map.
    score: its score.
    name: what to call it, a file name as a rule.
    label: True for an anomalous image; None when unknown.
    defect: what to call its kind of defect, if anything.
    reconstruction: its reconstruction; None where the networks have none, and
      then there is no tile of it.
    mask: the ground truth, outlined on the map; None when unknown.
    threshold: the score above which the verdict is anomalous.
  """
  size = min(max(*image.shape[:2], _MIN_TILE), _MAX_TILE)
  image, anomaly_map = fit(image, size), fit_map(anomaly_map, size)
  tiles = {'Input': image}
  if reconstruction is not None:
    tiles['Reconstruction'] = fit(reconstruction, size)
  tiles['Heat map'] = heat_map_overlay(image, anomaly_map)
  if mask is not None and np.any(mask):
    tiles['Anomaly map, ground truth outlined'] = draw_outline(
      colorize(anomaly_map), fit_map(mask, size) >= 0.5
    )
  else:
    tiles['Anomaly map'] = colorize(anomaly_map)

  height, width = image.shape[:2]
  column = max(width, _MIN_TILE) + _GAP
  top, scale_width = _MARGIN + 56, 44
  page = Page(
    2 * _MARGIN + len(tiles) * column - _GAP + scale_width,
    top + height + _MARGIN,
  )
  _write_headline(page, name, defect, label, score, threshold)
  for number, (caption, tile) in enumerate(tiles.items()):
    left = _MARGIN + number * column
    page.write((left, top - 14), caption, color=GRAY)
    page.paste(tile, (left, top))
  _draw_scale(page, (left + width + _GAP, top), height)
  return page.array


def mistakes_gallery(
  *,
  images: UInt8[np.ndarray, 'n h w 3']
  | Float[np.ndarray, 'n h w 3']
  | Sequence[UInt8[np.ndarray, '_ _ 3'] | Float[np.ndarray, '_ _ 3']],
  anomaly_maps: Float[np.ndarray, 'n h w'] | Sequence[Float[np.ndarray, '_ _']],
  scores: Float[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  names: Sequence[str],
  masks: Bool[np.ndarray, 'n h w']
  | Sequence[Bool[np.ndarray, '_ _']]
  | None = None,
  threshold: float | None = None,
  count: int = 6,
) -> UInt8[np.ndarray, 'H W 3']:
  """The good images that score highest and the anomalous that score lowest.

  Args:
    images: the inputs.
    anomaly_maps: their maps.
    scores: their scores.
    labels: True for anomalous images.
    names: what to call them.
    masks: the ground truth, outlined in the heat maps.
    threshold: the score above which an image is called anomalous, which tells
      mistakes from near misses.
    count: number of images of each kind.
  """
  order = np.argsort(scores, kind='stable')
  good = [index for index in order[::-1] if not labels[index]]
  anomalous = [index for index in order if labels[index]]
  sections = {
    'Good images with the highest scores': good[:count],
    'Anomalous images with the lowest scores': anomalous[:count],
  }
  cell = _SMALL_TILE + _GAP
  # Of strips, which would else stand in empty squares.
  shown = [images[index].shape for index in good[:count] + anomalous[:count]]
  row = max(_fitted_size(each, _SMALL_TILE)[1] for each in shown) + _GAP
  heading, caption = 32, 56
  heights = [
    heading + (2 * row + caption if chosen else caption)
    for chosen in sections.values()
  ]
  page = Page(2 * _MARGIN + count * cell - _GAP, _MARGIN + sum(heights))
  for section, (title, chosen) in enumerate(sections.items()):
    top = _MARGIN + sum(heights[:section])
    page.write((_MARGIN, top + 8), title, size=15, bold=True)
    if not chosen:
      page.write((_MARGIN, top + heading + 8), 'There is none.', color=GRAY)
    for column, index in enumerate(chosen):
      left = _MARGIN + column * cell
      image = fit(images[index], _SMALL_TILE)
      overlay = heat_map_overlay(
        image, fit_map(anomaly_maps[index], _SMALL_TILE)
      )
      if masks is not None:
        mask = fit_map(masks[index], _SMALL_TILE) >= 0.5
        overlay = draw_outline(overlay, mask)
      page.paste(image, (left, top + heading))
      page.paste(overlay, (left, top + heading + row))
      _write_caption(
        page,
        (left, top + heading + 2 * row),
        names[index],
        bool(labels[index]),
        float(scores[index]),
        threshold,
      )
  return page.array


def simulated_sheet(
  *,
  images: Float[np.ndarray, 'n h w 3'],
  augmented: Float[np.ndarray, 'n h w 3'],
  masks: Float[np.ndarray, 'n h w'],
  reconstructions: Float[np.ndarray, 'n h w 3'] | None = None,
  anomaly_maps: Float[np.ndarray, 'n h w'] | None = None,
  max_examples: int = 8,
) -> UInt8[np.ndarray, 'H W 3']:
  """Simulated examples as the networks see them, one a row.

  Args:
    images: the anomaly-free images, the target of the reconstruction.
    augmented: the same with simulated anomalies, the input.
    masks: 1 where the anomaly is.
    reconstructions: what the networks make of the input; None where they make
      none, and then there is no column of it.
    anomaly_maps: where they see the anomaly; the mask is outlined.
    max_examples: number of the examples to show, at most.
  """
  rows = range(min(len(images), max_examples))
  masks = [fit_map(masks[row], _SMALL_TILE) for row in rows]
  columns = {
    'Image': [fit(images[row], _SMALL_TILE) for row in rows],
    'Augmented': [fit(augmented[row], _SMALL_TILE) for row in rows],
    'Mask': [as_gray(mask) for mask in masks],
  }
  if reconstructions is not None:
    columns['Reconstruction'] = [
      fit(reconstructions[row], _SMALL_TILE) for row in rows
    ]
  if anomaly_maps is not None:
    columns['Anomaly map, mask outlined'] = [
      draw_outline(
        colorize(fit_map(anomaly_maps[row], _SMALL_TILE)), masks[row] >= 0.5
      )
      for row in rows
    ]
  return grid(list(columns.items()))


def region_sheet(
  images: UInt8[np.ndarray, 'n h w 3'], inside: Bool[np.ndarray, 'n h w']
) -> UInt8[np.ndarray, 'H W 3']:
  """Where the object is in images: outlined, what is around it darker.

  Args:
    images: a few of them.
    inside: True where the object is.
  """
  tile = _MIN_TILE
  columns = [('inside of the line anomalies count', [])]
  columns += [('', []) for _ in range(min(_REGION_COLUMNS, len(images)) - 1)]
  for index, (image, region) in enumerate(zip(images, inside, strict=True)):
    large = fit(image, tile)
    region = fit_map(region, tile) >= 0.5
    dark = np.where(region[..., None], large, large // 2)
    columns[index % len(columns)][1].append(draw_outline(dark, region))
  return grid(columns, tile=tile)


def grid(
  columns: Sequence[tuple[str, Sequence[UInt8[np.ndarray, '_ _ 3'] | None]]],
  *,
  tile: int = _SMALL_TILE,
  row_names: Sequence[str] = (),
) -> UInt8[np.ndarray, 'H W 3']:
  """Tiles in columns under their captions.

  Args:
    columns: the caption of each and its tiles; None leaves a place free. All
      captions have one line, or two, of which the first is a headline then.
    tile: pixels of the longer side of the tiles.
    row_names: what to write on the left of each row, if anything.
  """
  num_rows = max(len(tiles) for _, tiles in columns)
  num_lines = 1 + columns[0][0].count('\n')
  cell = tile + _GAP
  shown = [each for _, tiles in columns for each in tiles if each is not None]
  # Strips would else stand in empty squares.
  tall = max((len(each) for each in shown), default=tile) + _GAP
  first = _MARGIN + (_ROW_NAME if row_names else 0)
  top = _MARGIN + 4 + 18 * num_lines
  page = Page(
    first + len(columns) * cell - _GAP + _MARGIN,
    top + num_rows * tall - _GAP + _MARGIN,
  )
  for row, name in enumerate(row_names):
    middle = top + row * tall + (tall - _GAP) // 2
    page.write((_MARGIN, middle), name, color=GRAY, size=12)
  for column, (caption, tiles) in enumerate(columns):
    left = first + column * cell
    *headline, line = caption.split('\n')
    for text in headline:
      page.write((left, _MARGIN + 7), text, bold=True, width=cell)
    page.write((left, top - 15), line, color=GRAY, size=12, width=cell)
    for row, picture in enumerate(tiles):
      if picture is not None:
        page.paste(picture, (left, top + row * tall))
  return page.array


def _write_headline(
  page: Page,
  name: str,
  defect: str | None,
  label: bool | None,
  score: float,
  threshold: float | None,
) -> None:
  """Name on the left; score, verdict and what it is worth on the right."""
  middle, right = _MARGIN + 10, page.width - _MARGIN
  text = f'score {number(score)}'
  if threshold is not None:
    text += f', threshold {number(threshold)}'
    verdict, outcome, color = _judge(score, label, threshold)
    if outcome is not None:
      style = {'size': 14, 'anchor': 'rm', 'bold': outcome != 'correct'}
      right -= page.write((right, middle), outcome, **style) + 10
    right -= page.write_badge((right, middle), verdict, color, size=12) + 10
  right -= page.write((right, middle), text, size=14, anchor='rm') + 24
  title = name if defect is None else f'{name}  ({defect})'
  page.write(
    (_MARGIN, middle), title, size=15, bold=True, width=right - _MARGIN
  )


def _write_caption(
  page: Page,
  corner: tuple[int, int],
  name: str,
  label: bool,
  score: float,
  threshold: float | None,
) -> None:
  """Two lines under a picture of the gallery."""
  left, top = corner
  page.write((left, top + 4), name, size=11, width=_SMALL_TILE)
  page.write((left, top + 22), f'score {number(score)}', size=11, color=GRAY)
  if threshold is None:
    return
  _, outcome, color = _judge(score, label, threshold)
  end = (left + _SMALL_TILE, top + 22)
  if outcome == 'correct':
    page.write(end, outcome, size=11, color=GRAY, anchor='rm')
  else:
    page.write_badge(end, outcome, color, size=10)


def _judge(
  score: float, label: bool | None, threshold: float
) -> tuple[str, str | None, str]:
  """Verdict, what it is worth (None when the truth is unknown), its color."""
  called = score > threshold
  verdict = 'anomalous' if called else 'good'
  color = ANOMALOUS_COLOR if called else GOOD_COLOR
  if label is None:
    return verdict, None, color
  if called == label:
    return verdict, 'correct', color
  return verdict, 'false alarm' if called else 'missed', color


def _draw_scale(page: Page, corner: tuple[int, int], height: int) -> None:
  """The colors of the map from 1 at the top to 0."""
  left, top = corner
  values = np.repeat(np.linspace(1, 0, height)[:, None], 10, axis=1)
  page.paste(colorize(values), corner)
  labels = [(1, 'lt'), (0.5, 'lm'), (0, 'lb')]
  if height < 36:  # Beside a strip there is no room for all, or for any.
    labels = labels[::2] if height >= 24 else []
  for value, anchor in labels:
    y = top + (1 - value) * (height - 1)
    page.write((left + 15, y), f'{value:g}', size=11, color=GRAY, anchor=anchor)


def number(value: float) -> str:
  """A score in few characters; small ones keep two digits."""
  return f'{value:.3f}' if value == 0 or value >= 0.01 else f'{value:.2g}'


def _as_uint8(picture: _Picture) -> UInt8[np.ndarray, 'h w 3']:
  picture = np.asarray(picture)
  if picture.dtype == np.uint8:
    return picture
  return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _fitted_size(shape: Sequence[int], size: int) -> tuple[int, int]:
  """Width and height, as PIL wants them, with the longer side at `size`."""
  scale = size / max(shape[:2])
  return max(round(shape[1] * scale), 1), max(round(shape[0] * scale), 1)


def fit(picture: _Picture, size: int) -> UInt8[np.ndarray, 'h2 w2 3']:
  """The picture with its longer side at `size`."""
  fitted = _fitted_size(picture.shape, size)
  image = Image.fromarray(_as_uint8(picture))
  return np.asarray(image.resize(fitted, Image.Resampling.BICUBIC))


def fit_map(
  anomaly_map: Shaped[np.ndarray, 'h w'], size: int
) -> Float[np.ndarray, 'h2 w2']:
  """The map, or a mask as one, with its longer side at `size`."""
  fitted = _fitted_size(anomaly_map.shape, size)
  image = Image.fromarray(np.asarray(anomaly_map, np.float32))
  return np.asarray(image.resize(fitted, Image.Resampling.BILINEAR))


def _levels(anomaly_map: Float[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w']:
  """The map in 256 levels; 0 stays 0."""
  return (np.clip(anomaly_map, 0, 1) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _inferno() -> UInt8[np.ndarray, '256 3']:
  import matplotlib

  colors = matplotlib.colormaps['inferno'](np.arange(256))[:, :3]
  return (colors * 255 + 0.5).astype(np.uint8)


@functools.cache
def _overlay_tables() -> tuple[
  Float[np.ndarray, '256 1'], Float[np.ndarray, '256 3']
]:
  """For each level: factor of the image, and the color that is added.

  The ends of inferno are left out: over an image black would read as shadow,
  and pale yellow would vanish on white.
  """
  values = np.linspace(0, 1, 256, dtype=np.float32)
  opacity = (_MAX_OPACITY * np.minimum(_OPACITY_GAIN * values, 1))[:, None]
  colors = _inferno()[(76 + 146 * values).astype(int)].astype(np.float32)
  return 1 - opacity, opacity * colors + 0.5
