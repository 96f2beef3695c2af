import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from small import random_images
from untrained import random_variables, write_workdir

from draem_jax import score as score_lib
from draem_jax.data.images import resize_bilinear
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx as export_onnx
from draem_jax.export import onnx_graph
from draem_jax.networks import folding, models
from draem_jax.torch_weights import convert

# Batches of other numbers and sizes than any that it was tried with.
SHAPES = [(1, 32, 32), (3, 90, 61), (2, 20, 40)]
WIDTHS = {'reconstructive_width': 4, 'discriminative_width': 2}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
  # OpenVINO's own switch: its import reports to nobody.
  monkeypatch.setenv('CI', 'true')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return Detector.load(write_workdir(folder, thresholds=(0.25, 0.0)))


@pytest.fixture(scope='module', params=convert.CHANNEL_ORDERS)
def channel_order(request):
  return request.param


@pytest.fixture(scope='module')
def written(detector, channel_order, tmp_path_factory):
  """The file, and what the writer says."""
  folder = tmp_path_factory.mktemp('onnx')
  lines = export_onnx.write(
    detector, folder, channel_order=channel_order, category='pens'
  )
  assert [path.name for path in folder.iterdir()] == ['detector.onnx']
  return folder / 'detector.onnx', lines


@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
def test_runtimes_agree_with_the_detector(
  detector, channel_order, written, runtime
):
  run = export_onnx.RUNTIMES[runtime](written[0].read_bytes())
  for count, height, width in SHAPES:
    images = random_images(count, 96)[:, 3 : 3 + height, 1 : 1 + width]
    expected = detector(images)
    if channel_order == 'bgr':
      images = images[..., ::-1]
    anomaly_map, score = run(np.ascontiguousarray(images))
    assert anomaly_map.dtype == score.dtype == np.float32
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, 0, 2e-6)
    np.testing.assert_allclose(score, expected.score, 0, 2e-6)
    assert anomaly_map.std() > 1e-3


def test_the_writer_says_how_far_the_file_is_from_the_detector(written):
  path, lines = written
  assert lines[0] == f'program: {path}'
  assert lines[1].startswith('largest difference to the detector in ONNX Runt')
  assert float(lines[1].split()[-1]) < 2e-6


def test_the_file_says_what_it_takes_gives_and_decides_by(
  detector, channel_order, written
):
  session = onnxruntime.InferenceSession(written[0])
  (images,) = session.get_inputs()
  assert (images.name, images.type) == ('images', 'tensor(uint8)')
  assert images.shape == ['b', 'h', 'w', 3]
  outputs = {each.name: each.shape for each in session.get_outputs()}
  assert outputs == {'anomaly_map': ['b', 'h', 'w'], 'score': ['b']}
  metadata = session.get_modelmeta().custom_metadata_map
  assert float(metadata['image_threshold']) == detector.thresholds.image
  assert float(metadata['pixel_threshold']) == detector.thresholds.pixel
  assert metadata['channel_order'] == channel_order
  assert (metadata['category'], metadata['score_window']) == ('pens', '5')


def load_graph(runtime, graph, outputs, inputs, rank=4):
  """A function of arrays by name that computes the named nodes.

  Args:
    runtime: a key of `RUNTIMES`.
    graph: what to run.
    outputs: names of nodes.
    inputs: element types and shapes by name.
    rank: of the outputs.
  """
  model = graph.model(
    inputs, {name: (TensorProto.FLOAT, [None] * rank) for name in outputs}
  ).SerializeToString()
  if runtime == 'ONNX Runtime':
    session = onnxruntime.InferenceSession(model)
    return lambda **arrays: session.run(outputs, arrays)
  import openvino

  core = openvino.Core()
  options = {'INFERENCE_PRECISION_HINT': 'f32'}
  compiled = core.compile_model(core.read_model(model), 'CPU', options)

  def run(**arrays):
    results = compiled(arrays)
    return [np.array(results[name]) for name in outputs]

  return run


def channels_first(x):
  return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def image_type(channels=3):
  return TensorProto.FLOAT, ['b', channels, 32, 64]


# Where the size is no power of 2, a division more or less would round.
@pytest.mark.parametrize('size', [32, 96, 224, 256])
@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
def test_images_are_prepared_to_the_same_level(runtime, size):
  graph = onnx_graph.Graph()
  prepared = onnx_graph.prepare(graph, 'images', (size, size))
  run = load_graph(
    runtime,
    graph,
    [prepared],
    {'images': (TensorProto.UINT8, ['b', 'h', 'w', 3])},
  )
  rng = np.random.default_rng(size)
  sizes = [(1, 1), (size, size), (2 * size, 3), (7, 200), (504, 798)]
  sizes += [tuple(each) for each in rng.integers(1, 700, (12, 2))]
  for old in sizes:
    image = rng.integers(0, 256, (*old, 3)).astype(np.uint8)
    (found,) = run(images=image[None])
    levels = np.moveaxis(found[0], 0, -1) * np.float32(255)
    expected = resize_bilinear(image, (size, size))
    np.testing.assert_allclose(levels, expected, 0, 1e-4, err_msg=str(old))


def biased_params(seed=0):
  """Of both networks, batch norm folded, with biases."""
  folded = folding.fold(jax.device_get(random_variables(WIDTHS, seed)))
  folded = jax.tree.map(np.array, folded)
  rng = np.random.default_rng(seed)
  for layers in folded['params'].values():
    for layer in layers.values():
      layer['bias'] = rng.normal(0, 0.3, layer['bias'].shape).astype('f4')
  return folded['params']


def prepared_images(count, size=64, seed=0):
  return jnp.asarray(random_images(count, size, seed) / 255, jnp.float32)


@jax.jit
def apply_draem(params, image):
  model = models.Draem(**WIDTHS)
  output = model.apply({'params': params}, image, train=False)
  return output.reconstruction, output.logits


@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
@pytest.mark.parametrize('name', onnx_graph.NETWORKS)
def test_networks_compute_the_same(runtime, name):
  params, image = biased_params(), prepared_images(2)[:, :32]
  if name == 'discriminative':
    # Blind for the reconstruction it is the network of the image alone.
    first = params['discriminative']['encoder_block1_conv1']
    first['kernel'][:, :, :3] = 0
  expected = apply_draem(params, image)
  if name == 'discriminative':
    first['kernel'] = first['kernel'][:, :, 3:]
  given = {k: v for k, v in params.items() if name in ('draem', k)}
  graph = onnx_graph.Graph()
  output = onnx_graph.NETWORKS[name](graph, given, 'image')
  assert (output.reconstruction is None) == (name == 'discriminative')
  assert (output.logits is None) == (name == 'reconstructive')
  names = [each for each in output if each]
  run = load_graph(runtime, graph, names, {'image': image_type()})
  found = run(image=channels_first(image))
  expected = [x for x, each in zip(expected, output, strict=True) if each]
  for x, y in zip(found, map(channels_first, expected), strict=True):
    np.testing.assert_allclose(x, y, 0, 1e-5 * np.abs(y).max())


def expected_map(name, *arrays):
  """Of reconstruction, logits and image, in float64."""
  with jax.enable_x64(True):
    *output, image = (jnp.asarray(array, jnp.float64) for array in arrays)
    found = score_lib.MAPS[name].compute(models.Output(*output), image)
    return np.asarray(found)


@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
@pytest.mark.parametrize('name', onnx_graph.MAPS)
def test_maps_are_the_same(runtime, name):
  image = prepared_images(3)[:, :32]
  rng = np.random.default_rng(0)
  noise = rng.normal(0, 0.1, image.shape).astype(np.float32)
  reconstruction = image + noise * jnp.arange(3)[:, None, None, None]
  logits = rng.normal(0, 3, (*image.shape[:3], 2)).astype(np.float32)
  expected = expected_map(name, reconstruction, logits, image)
  graph = onnx_graph.Graph()
  output = onnx_graph.Output('reconstruction', 'logits')
  found = onnx_graph.MAPS[name](graph, output, 'image')
  tensors = {'reconstruction': reconstruction, 'logits': logits, 'image': image}
  used = {'softmax': ['logits']}.get(name, ['reconstruction', 'image'])
  given = {key: channels_first(tensors[key]) for key in used}
  types = {key: image_type(x.shape[1]) for key, x in given.items()}
  (found,) = load_graph(runtime, graph, [found], types)(**given)
  # The variances of SSIM are small differences of float32.
  np.testing.assert_allclose(
    found[:, 0], expected, 0, 1e-4 if name == 'ssim' else 1e-6
  )
  assert found.min() >= 0 and found.max() <= 1 and found.std() > 0.1


@pytest.mark.parametrize('window', [1, 5, 21, 33])
@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
def test_scores_are_the_same(runtime, window):
  rng = np.random.default_rng(window)
  anomaly_map = rng.random((3, 1, 32, 32), np.float32) ** 4
  graph = onnx_graph.Graph()
  onnx_graph.add_score(graph, 'map', window, name='score')
  run = load_graph(
    runtime,
    graph,
    ['score'],
    {'map': (TensorProto.FLOAT, ['b', 1, 32, 32])},
    rank=1,
  )
  (found,) = run(map=anomaly_map)
  expected = score_lib.image_score(
    jnp.asarray(anomaly_map[:, 0]), window=window
  )
  np.testing.assert_allclose(found, expected, 0, 1e-6)


@pytest.mark.parametrize(
  ('networks', 'score_map'),
  [
    ('draem', 'msgms'),
    ('discriminative', 'softmax'),
    ('reconstructive', 'ssim'),
    ('reconstructive', 'msgms'),
  ],
)
@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
def test_variants_go_from_images_to_maps_and_scores(
  runtime, networks, score_map
):
  params = biased_params()
  images = random_images(2, 64)[:, :32, :32]
  image = prepared_images(2)[:, :32, :32]
  # What it reconstructs shall be near enough to the image to be compared.
  last = params['reconstructive']['last_conv']
  last['kernel'] *= 0.2
  last['bias'] += 0.5
  first = params['discriminative']['encoder_block1_conv1']
  if networks == 'discriminative':
    first['kernel'][:, :, :3] = 0
  output = apply_draem(params, image)
  if networks == 'discriminative':
    first['kernel'] = first['kernel'][:, :, 3:]
  small = expected_map(score_map, *output, image)
  model = onnx_graph.make_model(
    {k: v for k, v in params.items() if networks in ('draem', k)},
    model_name=networks,
    score_map=score_map,
    image_size=(32, 32),
    resize_way='bilinear',
    score_window=5,
    channel_order='rgb',
  )
  run = export_onnx.RUNTIMES[runtime](model.SerializeToString())
  anomaly_map, score = run(images)
  np.testing.assert_allclose(anomaly_map, small, 0, 1e-4)
  expected = score_lib.image_score(jnp.asarray(small), window=5)
  np.testing.assert_allclose(score, expected, 0, 1e-4)
  assert np.ptp(anomaly_map) > 0.1


def test_a_missing_exporter_is_named_and_leaves_no_folder(
  detector, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'onnx', None)
  with pytest.raises(UserError, match=r"pip install 'draem_jax\[onnx\]'"):
    export_onnx.write(
      detector, tmp_path / 'out', channel_order='rgb', category='pens'
    )
  assert not list(tmp_path.iterdir())


def test_an_unknown_map_is_named(detector, tmp_path, monkeypatch):
  monkeypatch.setattr(detector, 'score_map', 'flow', raising=False)
  with pytest.raises(UserError, match="no anomaly map 'flow', only softmax, "):
    export_onnx.write(
      detector, tmp_path / 'out', channel_order='rgb', category='pens'
    )
  assert not list(tmp_path.iterdir())
