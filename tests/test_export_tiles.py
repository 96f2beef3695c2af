"""Exported programs of detectors that look at pictures by tiles."""

import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from redness import Redness
from small import random_images
from test_tiles import Deciding, Restoring
from untrained import write_workdir

from draem_jax.detection import tiles
from draem_jax.detection.detector import Detector
from draem_jax.export import onnx as export_onnx
from draem_jax.export import onnx_graph, program, stablehlo
from draem_jax.workdir.thresholds import Thresholds

# Less than a tile, a tile, and several of them.
SHAPES = [(1, 32, 32), (1, 20, 70), (2, 61, 90)]


@pytest.mark.parametrize('length', [7, 32, 33, 81, 300])
def test_pixels_find_their_tiles_without_a_loop(length, tile=32):
  rng = np.random.default_rng(0)
  axis = tiles.place(length, tile)
  line = rng.uniform(size=length).astype(np.float32)
  places = np.asarray(program.tile_places(length, tile))
  mirrored = np.pad(line, (0, max(0, tile - length)), mode='symmetric')
  expected = [mirrored[start : start + tile] for start in axis.starts]
  np.testing.assert_array_equal(line[places], expected)
  values = rng.uniform(size=places.shape).astype(np.float32)
  tiling = tiles.Tiling(tiles.place(1, 1), axis)
  (blended,) = tiles.blend(tiling, values[:, None])
  found = program.blend(
    jnp.asarray(values.reshape(1, 1, -1)), length, tile, axis=2
  )
  np.testing.assert_allclose(found[0], blended, 0, 1e-6)
  found = program.blend(
    jnp.asarray(values.reshape(1, -1, 1)), length, tile, axis=1
  )
  np.testing.assert_allclose(found[0, :, 0], blended[0], 0, 1e-6)


def agree(detector, run, channel_order='rgb', atol=1e-5):
  for count, height, width in SHAPES:
    images = random_images(count, 96)[:, 3 : 3 + height, 1 : 1 + width]
    expected = detector(images)
    if channel_order == 'bgr':
      images = images[..., ::-1]
    anomaly_map, score = run(np.ascontiguousarray(images))
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, 0, atol)
    np.testing.assert_allclose(score, expected.score, 0, atol)
    assert np.std(anomaly_map) > 1e-3


def redness(resolution, **options):
  """A detector that is compiled in no time."""
  return Detector(
    options.pop('model', Redness()),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
    resolution=resolution,
    **options,
  )


@pytest.mark.parametrize('resolution', [0, (40, 72)])
def test_stablehlo_tiles_inside(tmp_path, resolution):
  pytest.importorskip('flatbuffers', reason='JAX saves programs with it')
  detector = redness(resolution)
  lines = stablehlo.write(
    detector, tmp_path, channel_order='bgr', category='pens'
  )
  # The program does not round what it resizes, and the map is the red channel.
  bound = 0.6 / 255 if resolution else 1e-5
  assert float(lines[-1].split()[-1]) < bound
  exported = jax.export.deserialize(
    bytearray((tmp_path / 'detector.stablehlo').read_bytes())
  )
  agree(detector, jax.jit(exported.call), 'bgr', atol=bound)
  described = json.loads((tmp_path / 'detector.json').read_text())
  assert described['resolution'] == (resolution and list(resolution))


@pytest.mark.parametrize(
  ('model', 'score_image', 'score_map'),
  [(Deciding, 'decision', 'softmax'), (Restoring, 'window', 'riad')],
)
def test_decisions_and_smoothed_maps(model, score_image, score_map):
  detector = redness(
    0, model=model(), score_image=score_image, score_map=score_map
  )
  exported = stablehlo.trace(detector, channel_order='rgb')
  agree(detector, jax.jit(exported.call))


@pytest.mark.parametrize('resolution', [0, (40, 72)])
@pytest.mark.parametrize('way', ['bilinear', 'area'])
@pytest.mark.parametrize('runtime', export_onnx.RUNTIMES)
def test_onnx_tiles_inside(monkeypatch, resolution, way, runtime):
  monkeypatch.setenv('CI', 'true')  # Keeps OpenVINO's report at home.
  graph = onnx_graph.Graph()
  onnx_graph.add_tiled(
    graph,
    lambda inner, image: inner.add('Gather', image, [0], axis=1),
    image_size=(32, 32),
    resize_way=way,
    resolution=resolution,
    score_window=5,
    channel_order='bgr',
  )
  serialized = onnx_graph.finish(graph).SerializeToString()
  run = export_onnx.RUNTIMES[runtime](serialized)
  agree(redness(resolution, resize=way), run, 'bgr')


def test_onnx_has_the_networks_in_the_loop(tmp_path):
  detector = Detector.load(write_workdir(tmp_path, **{'data.resolution': 0}))
  serialized = export_onnx.serialize(
    detector, channel_order='rgb', category='pens'
  )
  run = export_onnx.load_onnx_runtime(serialized)
  assert program.largest_difference(detector, run, channel_order='rgb') < 1e-5
