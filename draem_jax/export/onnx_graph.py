"""A detector as a graph of ONNX operations.

Each function adds nodes to a `Graph` and returns the name of what they compute.
Images and activations are float32 with channels before pixels, [b c h w], as
ONNX has them; maps have one channel.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from jaxtyping import Float
from onnx import TensorProto, helper, numpy_helper

from draem_jax import losses
from draem_jax.detection import tiles
from draem_jax.export import program

# Of 2022: recent enough for integers where sizes are computed, and read by
# every runtime of the years since.
_OPSET = 18
_GMS_CONSTANT = 0.0026
_GMS_SCALES = 4

Params = Mapping[str, Mapping[str, Mapping[str, Float[np.ndarray, '...']]]]


class Output(NamedTuple):
  """Names of what the networks give, None of what they do not."""

  reconstruction: str | None
  logits: str | None


class Graph:
  """Nodes in the order of computation, and the constants among their inputs."""

  def __init__(self, prefix: str = ''):
    """Is empty.

    Args:
      prefix: of the names, in a graph inside of another, whose names it must
        not take.
    """
    self._prefix = prefix
    self._nodes: list[onnx.NodeProto] = []
    self._constants: list[onnx.TensorProto] = []

  def add(
    self,
    operation: str,
    *inputs: str | float | Sequence[int] | np.ndarray,
    name: str = '',
    **attributes,
  ) -> str:
    """Adds a node with one output.

    Args:
      operation: the name that ONNX has for what the node does.
      *inputs: names, or constants: integers become int64, others float32.
      name: the name of the node and of its output; by default a new one.
      **attributes: what ONNX calls so.

    Returns:
      The name of the output.
    """
    name = name or f'{self._prefix}{operation}_{len(self._nodes)}'
    names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
    self._nodes.append(
      helper.make_node(operation, names, [name], name, **attributes)
    )
    return name

  def _constant(self, value: float | Sequence[int] | np.ndarray) -> str:
    array = np.asarray(value)
    is_integer = np.issubdtype(array.dtype, np.integer)
    array = array.astype(np.int64 if is_integer else np.float32)
    name = f'{self._prefix}constant_{len(self._constants)}'
    self._constants.append(numpy_helper.from_array(array, name))
    return name

  def model(
    self,
    inputs: Mapping[str, tuple[int, Sequence[int | str | None]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str | None]]],
  ) -> onnx.ModelProto:
    """The graph as a checked model.

    Args:
      inputs: element types of `TensorProto` and shapes, by name; a string is a
        size that is not known before, None one without a name.
      outputs: the same of nodes.
    """
    graph = self.as_proto('draem', inputs, outputs)
    opsets = [helper.make_opsetid('', _OPSET)]
    model = helper.make_model(
      graph,
      opset_imports=opsets,
      # Not the newest, which older runtimes would refuse.
      ir_version=helper.find_min_ir_version_for(opsets),
      producer_name='draem_jax',
    )
    onnx.checker.check_model(model, full_check=True)
    return model

  def as_proto(
    self,
    name: str,
    inputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
    outputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
  ) -> onnx.GraphProto:
    """The graph alone; the arguments are a name and those of `model`."""
    return helper.make_graph(
      self._nodes,
      name,
      [helper.make_tensor_value_info(k, *v) for k, v in inputs.items()],
      [helper.make_tensor_value_info(k, *v) for k, v in outputs.items()],
      self._constants,
    )


def make_model(
  params: Params,
  *,
  model_name: str,
  score_map: str,
  image_size: tuple[int, int],
  resize_way: str,
  score_window: int,
  channel_order: str,
  resolution: int | tuple[int, int] | None = None,
  region: Float[np.ndarray, '1 h w'] | None = None,
) -> onnx.ModelProto:
  """A detector from images of any size to maps of that size and scores.

  Args:
    params: of the networks, batch norm folded, on the host.
    model_name: a key of `NETWORKS`.
    score_map: a key of `MAPS`.
    image_size: height and width at which the networks see each image.
    resize_way: to that size, of `resizing.WAYS`.
    score_window: pixels a side of the mean filter of the score.
    channel_order: of the images that the model shall expect.
    resolution: 0 to look at images at their own size by tiles, or the height
      and width to do so at; None to resize them to `image_size`.
    region: 1 where anomalies count; only of images that are resized.
  """
  if resolution is not None:
    graph = Graph()
    add_tiled(
      graph,
      lambda inner, image: MAPS[score_map](
        inner, NETWORKS[model_name](inner, params, image), image
      ),
      image_size=image_size,
      resize_way=resize_way,
      resolution=resolution,
      score_window=score_window,
      channel_order=channel_order,
    )
    return finish(graph)
  graph = Graph()
  image = prepare(
    graph,
    program.INPUT,
    image_size,
    way=resize_way,
    channel_order=channel_order,
  )
  output = NETWORKS[model_name](graph, params, image)
  small_map = MAPS[score_map](graph, output, image)
  if region is not None:
    small_map = graph.add('Mul', small_map, region[None])
  anomaly_map, score = program.OUTPUTS
  add_score(graph, small_map, score_window, name=score)
  height, width = (_size(graph, program.INPUT, axis) for axis in (1, 2))
  large_map = resize(graph, small_map, axis=3, size=width)
  large_map = resize(graph, large_map, axis=2, size=height)
  graph.add('Squeeze', large_map, [1], name=anomaly_map)
  return finish(graph)


def finish(graph: Graph) -> onnx.ModelProto:
  """The model of a graph that has the nodes of `program.OUTPUTS`."""
  anomaly_map, score = program.OUTPUTS
  return graph.model(
    {program.INPUT: (TensorProto.UINT8, ['b', 'h', 'w', 3])},
    {
      anomaly_map: (TensorProto.FLOAT, ['b', 'h', 'w']),
      score: (TensorProto.FLOAT, ['b']),
    },
  )


def add_tiled(
  graph: Graph,
  look: Callable[[Graph, str], str],
  *,
  image_size: tuple[int, int],
  resize_way: str,
  resolution: int | tuple[int, int],
  score_window: int,
  channel_order: str,
) -> None:
  """Adds a detector that looks at pictures by tiles, as the program in JAX.

  A row of tiles is a batch of the networks, and rows take turns in a loop.

  Args:
    graph: what to add to.
    look: adds the networks and the map of tiles, [b 3 h w], to a graph.
    image_size: height and width of a tile.
    resize_way: to `resolution`, of `resizing.WAYS`.
    resolution: height and width to look at images at; 0 for their own.
    score_window: pixels a side of the mean filter of the score.
    channel_order: of the images that the graph shall expect.
  """
  add, x = graph.add, program.INPUT
  (down, across), (anomaly_map, score) = image_size, program.OUTPUTS
  if resolution:
    x = shrink(graph, x, resolution) if resize_way == 'area' else x
    for axis in (2, 1):
      x = resize(graph, x, axis=axis, size=resolution[axis - 1])
    x = add('Floor', add('Add', x, 0.5))
  height, width = (_size(graph, x, axis) for axis in (1, 2))
  rows = _tile_places(graph, height, down)
  columns = add('Reshape', _tile_places(graph, width, across), [-1])
  chosen, weights = _choose(graph, width, across)

  inner = Graph('row_')
  places = inner.add('Gather', rows, 'row_number')
  strip = inner.add('Gather', x, places, axis=1)
  strip = inner.add('Gather', strip, columns, axis=2)
  strip = inner.add('Reshape', strip, [0, 0, -1, across, 3])
  strip = inner.add('Transpose', strip, perm=[0, 2, 4, 1, 3])
  tiles_of_row = inner.add('Reshape', strip, [-1, 3, down, across])
  if channel_order == 'bgr':
    tiles_of_row = inner.add('Gather', tiles_of_row, [2, 1, 0], axis=1)
  tiles_of_row = inner.add('Div', _to_float(inner, tiles_of_row), 255.0)
  # [b n 1 h w], for what a row of [b n] is not known before.
  shape = inner.add('Shape', strip, start=0, end=2)
  shape = inner.add('Concat', shape, [down, across], axis=0)
  maps = inner.add('Reshape', look(inner, tiles_of_row), shape)
  maps = inner.add('Transpose', maps, perm=[0, 2, 1, 3])
  maps = inner.add('Reshape', maps, [0, 0, -1])
  _blend(inner, maps, chosen, weights, axis=2, name='row_map')
  inner.add('Identity', 'row_condition', name='row_goes_on')
  body = inner.as_proto(
    'row',
    {
      'row_number': (TensorProto.INT64, []),
      'row_condition': (TensorProto.BOOL, []),
    },
    {
      'row_goes_on': (TensorProto.BOOL, []),
      'row_map': (TensorProto.FLOAT, [None, down, None]),
    },
  )
  maps = add('Loop', _size(graph, rows, 0), '', body=body)
  maps = add('Transpose', maps, perm=[1, 0, 2, 3])
  maps = add(
    'Reshape', maps, add('Concat', [0, -1], _line(graph, width), axis=0)
  )
  maps = _blend(graph, maps, *_choose(graph, height, down), axis=1)
  maps = add('Unsqueeze', maps, [1])
  add_score(graph, maps, score_window, name=score)
  if resolution:
    old_height, old_width = (_size(graph, program.INPUT, a) for a in (1, 2))
    maps = resize(graph, maps, axis=3, size=old_width)
    maps = resize(graph, maps, axis=2, size=old_height)
  add('Squeeze', maps, [1], name=anomaly_map)


def _starts(graph: Graph, length: str, tile: int) -> tuple[str, str]:
  """The number of the tiles along an axis, and where each begins."""
  add, shared = graph.add, tiles.overlap(tile)
  step = tile - shared
  count = add('Div', add('Add', length, step - 1 - shared), step)
  count = add('Max', count, 1)
  starts = add('Mul', add('Range', 0, count, 1), step)
  return count, add('Min', starts, add('Max', add('Sub', length, tile), 0))


def _tile_places(graph: Graph, length: str, tile: int) -> str:
  """As `program.tile_places`."""
  add = graph.add
  _, starts = _starts(graph, length, tile)
  places = add('Add', add('Unsqueeze', starts, [1]), np.arange(tile)[None])
  period = add('Mul', length, 2)
  places = add('Mod', places, period)
  return add('Min', places, add('Sub', add('Sub', period, 1), places))


def _choose(
  graph: Graph, length: str, tile: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """What `program.blend` looks up of each pixel, and how much it counts."""
  add = graph.add
  count, starts = _starts(graph, length, tile)
  ramp = tiles.ramp(tile)
  pixel, last = add('Range', 0, length, 1), add('Sub', count, 1)
  first = add('Min', add('Div', pixel, tile - tiles.overlap(tile)), last)
  second = add('Max', add('Sub', first, 1), 0)
  # All as long as the axis.
  last = add('Add', add('Mul', pixel, 0), last)
  differs = lambda a, b: add('Not', add('Equal', a, b))
  is_new = (
    None,
    add('Greater', first, 0),
    add('And', differs(last, first), differs(last, second)),
  )
  chosen, weights = [], []
  for number, condition in zip((first, second, last), is_new, strict=True):
    offset = add('Sub', pixel, add('Gather', starts, number))
    inside = add('Min', add('Max', offset, 0), tile - 1)
    is_inside = add('Equal', offset, inside)
    if condition is not None:
      is_inside = add('And', is_inside, condition)
    weight = _to_float(graph, is_inside)
    for is_shared, way in (
      (add('Greater', number, 0), ramp),
      (add('Less', number, last), ramp[::-1]),
    ):
      way = add('Gather', way, inside)
      weight = add('Mul', weight, add('Where', is_shared, way, 1.0))
    chosen.append(add('Add', add('Mul', number, tile), inside))
    weights.append(weight)
  total = add('Sum', *weights)
  return tuple(chosen), tuple(add('Div', each, total) for each in weights)


def _blend(
  graph: Graph,
  x: str,
  chosen: Sequence[str],
  weights: Sequence[str],
  *,
  axis: int,
  name: str = '',
) -> str:
  """Tiles as one, of three axes, by what `_choose` gives."""
  parts = [
    graph.add(
      'Mul',
      graph.add('Gather', x, places, axis=axis),
      graph.add('Reshape', weight, [-1] + [1] * (2 - axis)),
    )
    for places, weight in zip(chosen, weights, strict=True)
  ]
  return graph.add('Sum', *parts, name=name)


def _line(graph: Graph, number: str) -> str:
  """A number as an array of one."""
  return graph.add('Reshape', number, [1])


def prepare(
  graph: Graph,
  images: str,
  size: tuple[int, int],
  *,
  way: str = 'bilinear',
  channel_order: str = 'rgb',
) -> str:
  """Images as the networks see them, to the level as `Detector.prepare`.

  Args:
    graph: what to add to.
    images: uint8 [b h w 3].
    size: height and width of the result.
    way: to resize, of `resizing.WAYS`.
    channel_order: of `images`.

  Returns:
    RGB in [0, 1], [b 3 height width].
  """
  x = shrink(graph, images, size) if way == 'area' else images
  for axis in (2, 1):
    x = resize(graph, x, axis=axis, size=size[axis - 1])
  x = graph.add('Floor', graph.add('Add', x, 0.5))
  x = graph.add('Transpose', x, perm=[0, 3, 1, 2])
  if channel_order == 'bgr':
    x = graph.add('Gather', x, [2, 1, 0], axis=1)
  return graph.add('Div', x, 255.0)


def shrink(graph: Graph, images: str, size: tuple[int, int]) -> str:
  """The mean of what each new pixel covers, as `program.shrink`.

  Args:
    graph: what to add to.
    images: levels [b h w 3].
    size: height and width of the result, but that no axis becomes longer.
  """
  add, x = graph.add, _to_float(graph, images)
  for axis, letters in ((2, 'bhwc,nw->bhnc'), (1, 'bhwc,nh->bnwc')):
    old = _size(graph, images, axis)
    new = add('Min', old, size[axis - 1])
    row = add('Reshape', add('Range', 0, new, 1), [-1, 1])
    column = add('Reshape', add('Range', 0, old, 1), [1, -1])
    lengths = (row, old), (column, new)
    start = add('Max', *(add('Mul', *each) for each in lengths))
    end = add('Min', *(add('Mul', add('Add', i, 1), n) for i, n in lengths))
    overlaps = _to_float(graph, add('Max', add('Sub', end, start), 0))
    x = add('Einsum', x, overlaps, equation=letters)
    x = add('Div', x, _to_float(graph, old))
  return add('Floor', add('Add', x, 0.5 + program.ROUNDING))


def resize(graph: Graph, x: str, *, axis: int, size: int | str) -> str:
  """Resizes an axis as `images.resize_bilinear` does, but does not round.

  In integers as `program.resize`, for the same reason. The operation `Resize`
  computes positions in float32.

  Args:
    graph: what to add to.
    x: four axes of any type.
    axis: the one to resize.
    size: of the axis afterwards, or the name of it.
  """
  add = graph.add
  old = _size(graph, x, axis)
  last = add('Sub', old, 1)
  parts = add('Mul', size, 2)
  odd = add('Add', add('Mul', add('Range', 0, size, 1), 2), 1)
  position = add('Sub', add('Mul', odd, old), size)
  position = add('Max', position, 0)
  position = add('Min', position, add('Mul', last, parts))
  lower = add('Div', position, parts)
  upper = add('Min', add('Add', lower, 1), last)
  remainder = add('Sub', position, add('Mul', lower, parts))
  if isinstance(size, int):
    # OpenVINO would multiply by the reciprocal of `parts`: another rounding.
    weight = add('Gather', np.arange(2 * size) / (2 * size), remainder)
  else:
    weight = add('Div', _to_float(graph, remainder), _to_float(graph, parts))
  weight = add('Reshape', weight, [-1] + [1] * (3 - axis))
  a, b = (
    _to_float(graph, add('Gather', x, index, axis=axis))
    for index in (lower, upper)
  )
  return add('Add', a, add('Mul', add('Sub', b, a), weight))


def _size(graph: Graph, x: str, axis: int) -> str:
  return graph.add('Gather', graph.add('Shape', x), axis)


def _to_float(graph: Graph, x: str) -> str:
  return graph.add('Cast', x, to=TensorProto.FLOAT)


def reconstruct(graph: Graph, params: Params, x: str) -> str:
  """`models.ReconstructiveSubNetwork`."""
  network = 'reconstructive'
  for i in range(1, 6):
    x = _max_pool(graph, x) if i > 1 else x
    x = _block(graph, params, f'{network}/encoder_block{i}', (1, 2), x)
  for i in range(1, 5):
    x = _upsample(graph, x)
    x = _block(graph, params, f'{network}/decoder_block{i}', (1, 2, 3), x)
  return _convolve(graph, params, f'{network}/last_conv', x)


def segment(graph: Graph, params: Params, x: str) -> str:
  """`models.DiscriminativeSubNetwork`, of what it convolves first."""
  network = 'discriminative'
  skips = []
  for i in range(1, 7):
    x = _max_pool(graph, x) if i > 1 else x
    x = _block(graph, params, f'{network}/encoder_block{i}', (1, 2), x)
    skips.append(x)
  skips.pop()
  for i in range(1, 6):
    name = f'{network}/decoder_block{i}'
    x = _block(graph, params, name, (1,), _upsample(graph, x))
    x = graph.add('Concat', x, skips.pop(), axis=1)
    x = _block(graph, params, name, (2, 3), x)
  return _convolve(graph, params, f'{network}/last_conv', x)


def _block(
  graph: Graph, params: Params, name: str, numbers: tuple[int, ...], x: str
) -> str:
  for j in numbers:
    x = graph.add('Relu', _convolve(graph, params, f'{name}_conv{j}', x))
  return x


def _convolve(graph: Graph, params: Params, name: str, x: str) -> str:
  network, layer = name.split('/')
  kernel, bias = (params[network][layer][key] for key in ('kernel', 'bias'))
  kernel = np.transpose(kernel, (3, 2, 0, 1))
  return graph.add('Conv', x, kernel, bias, name=name, pads=[1] * 4)


def _max_pool(graph: Graph, x: str) -> str:
  return graph.add('MaxPool', x, kernel_shape=[2, 2], strides=[2, 2])


def _upsample(graph: Graph, x: str) -> str:
  return _enlarge(graph, x, 2, 'align_corners')


def _enlarge(graph: Graph, x: str, factor: int, mode: str) -> str:
  scales = np.float32([1, 1, factor, factor])
  # The empty name stands for a region that is left out.
  return graph.add(
    'Resize',
    x,
    '',
    scales,
    mode='linear',
    coordinate_transformation_mode=mode,
  )


def _draem(graph: Graph, params: Params, image: str) -> Output:
  reconstruction = reconstruct(graph, params, image)
  both = graph.add('Concat', reconstruction, image, axis=1)
  return Output(reconstruction, segment(graph, params, both))


def _discriminative(graph: Graph, params: Params, image: str) -> Output:
  return Output(None, segment(graph, params, image))


def _reconstructive(graph: Graph, params: Params, image: str) -> Output:
  return Output(reconstruct(graph, params, image), None)


NETWORKS: dict[str, Callable[[Graph, Params, str], Output]] = {
  'draem': _draem,
  'discriminative': _discriminative,
  'reconstructive': _reconstructive,
}


def softmax_map(graph: Graph, output: Output, image: str) -> str:
  """The probability that a pixel is anomalous."""
  normal, anomalous = (
    graph.add('Gather', output.logits, [channel], axis=1) for channel in (0, 1)
  )
  return graph.add('Sigmoid', graph.add('Sub', anomalous, normal))


def ssim_map(graph: Graph, output: Output, image: str) -> str:
  """One minus the structural similarity to the reconstruction."""
  add, x, y = graph.add, output.reconstruction, image
  c1, c2 = 0.01**2, 0.03**2
  mean_x, mean_y = _blur(graph, x), _blur(graph, y)
  square_x, square_y, product = (
    add('Mul', *means)
    for means in ((mean_x, mean_x), (mean_y, mean_y), (mean_x, mean_y))
  )
  var_x, var_y, covariance = (
    add('Sub', _blur(graph, add('Mul', *factors)), expected)
    for factors, expected in (
      ((x, x), square_x),
      ((y, y), square_y),
      ((x, y), product),
    )
  )
  luminance = _similarity(graph, product, square_x, square_y, c1)
  structure = _similarity(graph, covariance, var_x, var_y, c2)
  similarity = add('Mul', luminance, structure)
  return _dissimilarity(graph, add('ReduceMean', similarity, [1]))


def msgms_map(graph: Graph, output: Output, image: str) -> str:
  """One minus the multi-scale similarity of gradient magnitudes."""
  x, y = (
    graph.add('ReduceMean', each, [1])
    for each in (output.reconstruction, image)
  )
  similarities = []
  for scale in range(_GMS_SCALES):
    if scale:
      x, y = (_halve(graph, each) for each in (x, y))
    x_magnitude, y_magnitude = (_magnitude(graph, each) for each in (x, y))
    similarity = _similarity(
      graph,
      graph.add('Mul', x_magnitude, y_magnitude),
      graph.add('Mul', x_magnitude, x_magnitude),
      graph.add('Mul', y_magnitude, y_magnitude),
      _GMS_CONSTANT,
    )
    if scale:
      similarity = _enlarge(graph, similarity, 2**scale, 'half_pixel')
    similarities.append(similarity)
  return _dissimilarity(graph, graph.add('Mean', *similarities))


MAPS: dict[str, Callable[[Graph, Output, str], str]] = {
  'softmax': softmax_map,
  'ssim': ssim_map,
  'msgms': msgms_map,
}


def _similarity(
  graph: Graph, product: str, square_x: str, square_y: str, constant: float
) -> str:
  """(2 xy + c) / (x² + y² + c)."""
  add = graph.add
  above = add('Add', add('Mul', product, 2.0), constant)
  below = add('Add', add('Add', square_x, square_y), constant)
  return add('Div', above, below)


def _dissimilarity(graph: Graph, similarity: str) -> str:
  return graph.add('Clip', graph.add('Sub', 1.0, similarity), 0.0, 1.0)


def _blur(graph: Graph, x: str) -> str:
  """The mean under the window of SSIM, beyond the border zeros."""
  half = losses.gaussian_window()
  window = np.concatenate([half[:0:-1], half])
  for shape, pads in (((-1, 1), [1, 0, 1, 0]), ((1, -1), [0, 1, 0, 1])):
    kernel = np.tile(window.reshape(1, 1, *shape), (3, 1, 1, 1))
    pads = [pad * (len(half) - 1) for pad in pads]
    x = graph.add('Conv', x, kernel, group=3, pads=pads)
  return x


def _magnitude(graph: Graph, x: str) -> str:
  """The magnitude of the gradient by Prewitt's kernels, beyond it zeros."""
  prewitt = np.repeat([[1, 0, -1]], 3, axis=0) / 3
  kernels = np.stack([prewitt, prewitt.T])[:, None]
  return graph.add('ReduceL2', graph.add('Conv', x, kernels, pads=[1] * 4), [1])


def _halve(graph: Graph, x: str) -> str:
  return graph.add('AveragePool', x, kernel_shape=[2, 2], strides=[2, 2])


def add_score(graph: Graph, anomaly_map: str, window: int, *, name: str) -> str:
  """The maximum of the map's local means, beyond the border zeros.

  Args:
    graph: what to add to.
    anomaly_map: [b 1 h w].
    window: side of the square averaged over, odd.
    name: of the result, [b].
  """
  means = graph.add(
    'AveragePool',
    anomaly_map,
    kernel_shape=[window, window],
    pads=[window // 2] * 4,
    count_include_pad=1,
  )
  return graph.add('ReduceMax', means, [1, 2, 3], keepdims=0, name=name)
