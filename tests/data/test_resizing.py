import numpy as np
import pytest
import skimage.transform
from PIL import Image
from small import small_config
from untrained import write_workdir

from draem_jax import experiment
from draem_jax.configs import mvtec, riad
from draem_jax.data import encoded, resizing
from draem_jax.detection.detector import Detector
from draem_jax.export import onnx, program, stablehlo
from draem_jax.workdir import claim


def noise(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def area(image, size):
  return resizing.resize(image, size, 'area')


@pytest.mark.parametrize('factors', [(2, 2), (3, 5), (1, 4), (7, 1)])
def test_whole_factors_give_the_mean_half_a_level_up(factors):
  image = noise(42 * 5, 40 * 4)
  size = tuple(n // f for n, f in zip(image.shape, factors, strict=False))
  image = image[: size[0] * factors[0], : size[1] * factors[1]]
  means = skimage.transform.downscale_local_mean(
    image.astype(np.float64), (*factors, 1)
  )
  # Of so few values a mean that is no half is far from one.
  expected = np.floor(means + 0.5 + 1e-9)
  np.testing.assert_array_equal(area(image, size), expected)


@pytest.mark.parametrize('size', [(8, 16), (25, 9), (1, 1), (29, 42)])
def test_broken_factors_give_the_mean_of_what_is_covered(size):
  image = noise(30, 43)
  # Each pixel cut into so many that the new ones consist of whole ones.
  cut = image.repeat(size[0], axis=0).repeat(size[1], axis=1)
  means = skimage.transform.downscale_local_mean(
    cut.astype(np.float64), (*image.shape[:2], 1)
  )
  expected = np.floor(means + 0.5 + 1e-9)
  np.testing.assert_array_equal(area(image, size), expected)


def test_a_longer_axis_is_interpolated():
  image = noise(40, 90)
  assert resizing.resize(image, (80, 180), 'area').shape == (80, 180, 3)
  np.testing.assert_array_equal(
    area(image, (80, 180)), resizing.resize(image, (80, 180), 'bilinear')
  )
  np.testing.assert_array_equal(
    area(image, (80, 30)),
    resizing.resize(area(image, (40, 30)), (80, 30), 'bilinear'),
  )
  np.testing.assert_array_equal(area(image, (40, 90)), image)


def test_what_is_small_does_not_vanish():
  image = np.full((1024, 1024, 3), 128, np.uint8)
  image[514:517, 514:517] = 0  # Between the places that bilinear looks at.
  assert (resizing.resize(image, (64, 64), 'bilinear') == 128).all()
  assert area(image, (64, 64)).min() == 128 - 4  # 9 pixels of 256.


@pytest.mark.parametrize('way', resizing.WAYS)
def test_strips_of_a_file_give_the_same_bits(tmp_path, way, monkeypatch):
  image = noise(201, 150)
  Image.fromarray(image).save(tmp_path / 'a.png')
  monkeypatch.setattr(encoded, '_STRIP', 150 * 13)
  for size in ((32, 64), (64, 160), (224, 32), (201, 150)):
    expected = resizing.resize(image, size, way)
    found = resizing.read_image(tmp_path / 'a.png', size, way)
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
  folder = tmp_path_factory.mktemp('area') / 'run'
  return Detector.load(write_workdir(folder, **{'data.resize': 'area'}))


def test_a_detector_knows_its_way(detector, tmp_path):
  image = noise(80, 100)
  np.testing.assert_array_equal(detector.prepare(image), area(image, (32, 32)))
  other = Detector.load(write_workdir(tmp_path / 'run'))
  assert other.resize == 'bilinear'
  assert other.fingerprint() != detector.fingerprint()
  assert (
    program.describe(detector, channel_order='rgb', category='a')['resize']
    == 'area'
  )


# Smaller, larger, and one of each; with factors that leave halves.
SIZES = (64, 96), (192, 32), (20, 200), (48, 33), (31, 31)


@pytest.mark.parametrize('name', ['stablehlo', *onnx.RUNTIMES])
def test_exported_files_resize_as_the_detector(detector, name, monkeypatch):
  monkeypatch.setenv('CI', 'true')  # Keeps OpenVINO's report at home.
  if name == 'stablehlo':
    run = stablehlo.trace(detector, channel_order='rgb').call
  else:
    pytest.importorskip(name.replace(' ', '').lower())
    serialized = onnx.serialize(detector, channel_order='rgb', category='a')
    run = onnx.RUNTIMES[name](serialized)
  for number, size in enumerate(SIZES):
    image = noise(*size, seed=number)
    anomaly_map, score = run(image[None])
    expected = detector(image)
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, atol=1e-4)
    np.testing.assert_allclose(score, expected.score, atol=1e-4)


def test_the_category_decides(tmp_path):
  def decided(config, workdir=None):
    return experiment.decide(config.to_dict(), workdir)['data']['resize']

  for get_config in (mvtec.get_config, riad.get_config):
    for category, way in (('bottle', 'bilinear'), ('pens', 'area')):
      config = get_config(category)
      config.data.layout = 'mvtec'
      assert config.data.resize == 'auto' and decided(config) == way
  for preset in ('pens,paper', 'pens,release'):
    assert mvtec.get_config(preset).data.resize == 'bilinear'


def test_a_run_of_before_goes_on_as_it_was(tmp_path):
  config = small_config(**{'data.resize': 'auto', 'data.layout': 'mvtec'})
  before = small_config().to_dict()
  del before['data']['resize']
  claim.claim(tmp_path / 'old', before, {})
  decided = experiment.decide(config.to_dict(), tmp_path / 'old')
  assert decided['data']['resize'] == 'bilinear'
  new = experiment.decide(config.to_dict(), tmp_path / 'new')
  assert new['data']['resize'] == 'area'
  claim.claim(tmp_path / 'new', new, {})
  again = experiment.decide(config.to_dict(), tmp_path / 'new')
  assert again['data']['resize'] == 'area'
