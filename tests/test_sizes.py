"""Images that are no squares, from the config to the exported file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small import random_images, small_config
from untrained import write_workdir

from draem_jax import command, config, experiment, sizes
from draem_jax.data import textures
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx, program, stablehlo
from draem_jax.pictures import panels
from draem_jax.simulator import masks
from draem_jax.simulator.options import Options


def strips(count, seed=0):
  """Smooth random pictures, uint8 [count 32 96 3]."""
  return np.concatenate(
    [random_images(count, seed=10 * seed + part) for part in range(3)], axis=2
  )


@pytest.mark.parametrize('size', [64, (64, 64), [64, 64]])
def test_a_square_is_one_number(size):
  assert sizes.pair(size) == (64, 64)
  assert sizes.short(size) == 64
  assert sizes.shown(size) == '64x64'


def test_a_rectangle_is_two():
  assert sizes.pair([32, 96]) == sizes.short([32, 96]) == (32, 96)
  assert sizes.shown((32, 96), ' × ') == '32 × 96'


@pytest.mark.parametrize(
  ('value', 'remedy'),
  [
    ((32, 100), r'take \(32, 96\)'),
    ([32, 64, 96], 'one number, or height and width'),
    ((), 'one number, or height and width'),
    ((32, 'a'), 'not a multiple'),
    ((32, 9000), r'take \(32, 8192\) or less'),
    ((32, float('nan')), 'not a multiple'),
  ],
)
def test_what_is_no_size_is_named(value, remedy):
  wrong = small_config().to_dict() | {'image_size': value}
  with pytest.raises(UserError, match=rf'^config.image_size=.*{remedy}'):
    config.check(wrong)
  config.check(wrong | {'image_size': [32, 96]})  # As JSON has it.


@pytest.mark.parametrize(
  'text', ['32x96', '32,96', '(32, 96)', '[32,96]', '(32,96,)']
)
def test_a_flag_takes_height_and_width(text):
  argv = ['main', f'--config.image_size={text}', '--config.seed=1']
  rest, found = command._take_sizes(argv)
  assert rest == ['main', '--config.seed=1']
  assert found == {'image_size': (32, 96)}
  square = ['--config.image_size=96x96', f'--config.data.resolution={text}']
  found = {'image_size': 96, 'data.resolution': (32, 96)}
  assert command._take_sizes(square) == ([], found)
  # What is one number, or none, is for the flag's own parser to judge.
  for other in ('96', 'x', '1x2x3', '-32x96'):
    argv = [f'--config.image_size={other}']
    assert command._take_sizes(argv) == (argv, {})
  # Of this one text is the default, which a flag would take a number for.
  alone = ['--config.data.resolution=0']
  assert command._take_sizes(alone) == ([], {'data.resolution': 0})


def test_noise_keeps_its_shape_on_a_strip():
  options = Options(**small_config().simulator.to_dict())
  keys = jax.random.split(jax.random.key(0), 60)
  noise = lambda key, shape: masks.perlin_noise(key, shape, options)[0]
  square = jax.vmap(lambda key: noise(key, (32, 32)))
  for shape, axis in (((32, 96), 1), ((96, 32), 2)):
    strip = jax.vmap(lambda key, s=shape: noise(key, s))
    found, expected = np.array(strip(keys)), np.array(square(keys))
    assert found.shape == (60, *shape)
    starts = set()
    for one, wanted in zip(found, expected, strict=True):
      # The same square, somewhere along the strip, and nothing else.
      windows = np.lib.stride_tricks.sliding_window_view(one, (32, 32))
      places = np.argwhere((windows == wanted).all(axis=(-1, -2)))
      assert len(places) and np.count_nonzero(one) == np.count_nonzero(wanted)
      starts.add(int(places[0].max()))
    assert min(starts) < 8 and max(starts) > 56 and len(starts) > 20, axis


def test_textures_go_on_mirrored(tmp_path):
  Image.fromarray(random_images(1, 64)[0]).save(tmp_path / 'a.png')
  load = lambda size: np.asarray(
    textures.load_textures(tmp_path, image_size=size, tfds_dir=tmp_path / 'x')
  )
  square, strip = load(32), load((32, 96))
  mirrored = square[:, :, ::-1]
  np.testing.assert_array_equal(
    strip, np.concatenate([square, mirrored, square], axis=2)
  )
  np.testing.assert_array_equal(load((96, 32)).shape, (1, 96, 32, 3))
  np.testing.assert_array_equal(load(32), square)  # From its own cache.


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
  folder = tmp_path_factory.mktemp('strip') / 'run'
  return Detector.load(write_workdir(folder, image_size=(32, 96)))


def test_a_detector_sees_strips(detector):
  images = strips(3)
  scored = detector.score_all(images)
  assert scored.anomaly_map.shape == (3, 32, 96)
  output = detector.model.apply(
    jax.device_put(detector.variables),
    jnp.asarray(images) / 255,
    train=False,
  )
  expected = jax.nn.softmax(output.logits)[..., 1]
  np.testing.assert_allclose(scored.anomaly_map, expected, atol=1e-5)
  found = detector(np.repeat(images, 2, axis=1))
  assert found.anomaly_map.shape == (3, 64, 96)


def test_the_fingerprint_of_a_square_is_as_before(tmp_path):
  runs = [
    Detector.load(write_workdir(tmp_path / str(number), image_size=size))
    for number, size in enumerate((32, (32, 32), (32, 64)))
  ]
  one, same, other = (run.fingerprint() for run in runs)
  assert one == same != other


def test_exported_files_are_the_detector(detector, tmp_path):
  lines = stablehlo.write(
    detector, tmp_path, channel_order='rgb', category='strip'
  )
  assert float(lines[-1].split()[-1]) < 1e-4
  described = json.loads((tmp_path / 'detector.json').read_text())
  assert described['image_size'] == [32, 96]
  pytest.importorskip('onnxruntime')
  serialized = onnx.serialize(detector, channel_order='rgb', category='strip')
  run = onnx.load_onnx_runtime(serialized)
  assert program.largest_difference(detector, run, channel_order='rgb') < 1e-5


def write_category(folder):
  rng = np.random.default_rng(0)
  for part, count in (('train/good', 5), ('test/good', 2), ('test/hole', 2)):
    (folder / part).mkdir(parents=True)
    for number, image in enumerate(strips(count, seed=len(part))):
      Image.fromarray(image).save(folder / part / f'{number}.png')
  (folder / 'ground_truth/hole').mkdir(parents=True)
  for number in range(2):
    mask = np.zeros((32, 96), np.uint8)
    left = int(rng.integers(0, 80))
    mask[8:20, left : left + 12] = 255
    Image.fromarray(mask).save(folder / f'ground_truth/hole/{number}_mask.png')


@pytest.mark.slow
def test_a_run_from_files_to_report(tmp_path):
  write_category(tmp_path / 'data/pens')
  (tmp_path / 'dtd').mkdir()
  Image.fromarray(random_images(1, 64)[0]).save(tmp_path / 'dtd/a.png')
  wanted = small_config(num_steps=2).to_dict()
  wanted['image_size'] = (32, 96)
  wanted['data'] |= {
    'dir': str(tmp_path / 'data'),
    'textures': str(tmp_path / 'dtd'),
    'tfds_dir': '',
  }
  row = experiment.train_and_evaluate(wanted, tmp_path / 'run')
  assert row['steps'] == 2 and 0 <= row['pixel_auroc'] <= 1
  report = (tmp_path / 'run/report.html').read_text()
  assert 'images of 32 × 96 pixels' in report
  # It is finished: the same config goes on, another is refused.
  experiment.train_and_evaluate(wanted, tmp_path / 'run')
  with pytest.raises(UserError, match='config.image_size'):
    experiment.train_and_evaluate(
      wanted | {'image_size': (96, 32)}, tmp_path / 'run'
    )


def test_strips_stand_close_in_a_sheet():
  tile = lambda height, width: np.zeros((height, width, 3), np.uint8)
  rows = 4
  flat, square = (
    panels.grid([('a', [tile(*size)] * rows)], tile=96)
    for size in ((32, 96), (96, 96))
  )
  assert len(square) - len(flat) == rows * (96 - 32)
  assert flat.shape[1] == square.shape[1]
