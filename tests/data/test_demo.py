"""Tests of the built-in demo category."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from draem_jax import errors
from draem_jax.data import demo

SIZE = demo.IMAGE_SIZE


def read_tree(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


@pytest.fixture(scope='module')
def category(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('data')
  demo.write_demo_category(folder)
  return folder / 'demo'


def load(path: pathlib.Path) -> np.ndarray:
  return np.asarray(Image.open(path))


def test_has_the_layout_of_mvtec_ad(category):
  assert len(list((category / 'train' / 'good').glob('*.png'))) == 100
  defects = {path.name for path in (category / 'test').iterdir()} - {'good'}
  assert defects == {'fibre', 'hole', 'misplaced', 'scratch', 'stain'}
  assert {p.name for p in (category / 'ground_truth').iterdir()} == defects
  for defect in defects:
    images = sorted((category / 'test' / defect).iterdir())
    masks = sorted((category / 'ground_truth' / defect).iterdir())
    assert len(images) == 8
    assert [f'{p.stem}_mask.png' for p in images] == [p.name for p in masks]


def test_images_are_rgb_and_masks_black_and_white(category):
  for path in category.rglob('*.png'):
    pixels = load(path)
    assert pixels.dtype == np.uint8
    if 'ground_truth' in path.parts:
      assert pixels.shape == (SIZE, SIZE)
      assert set(np.unique(pixels)) == {0, 255}
    else:
      assert pixels.shape == (SIZE, SIZE, 3)


def test_defects_cover_a_small_part_of_the_image(category):
  for path in (category / 'ground_truth').rglob('*.png'):
    assert 0.002 < (load(path) > 0).mean() < 0.13, path


def test_images_vary_in_place_and_in_light(category):
  images = np.stack(
    [load(path) / 255 for path in (category / 'train' / 'good').iterdir()]
  )
  assert images.mean(axis=(1, 2, 3)).std() > 0.02
  structure = images - images.mean(axis=(1, 2), keepdims=True)
  structure = structure.mean(axis=-1).reshape(len(images), -1)
  correlation = np.corrcoef(structure)
  assert np.median(correlation[np.triu_indices_from(correlation, 1)]) < 0.5


def seen_rows(joints: tuple[int, int]) -> tuple[float, float]:
  """First and last row of the wall that images on these joints may show."""
  largest = 3 * demo._COURSE * 1.02
  reach = largest / 2 * (1 + np.sin(np.deg2rad(1.2))) + 4
  return joints[0] * demo._COURSE - reach, joints[1] * demo._COURSE + reach


def test_parts_for_training_and_testing_lie_inside_the_photo_and_apart():
  train, test = seen_rows(demo._TRAIN_JOINTS), seen_rows(demo._TEST_JOINTS)
  assert test[1] < train[0]
  corners = [
    (x, y, 1) for x in (0, demo._SURFACE_WIDTH) for y in (*train, *test)
  ]
  x, y, depth = demo._photo_from_surface() @ np.transpose(corners)
  height, width, _ = demo._colored_photo().shape
  assert np.all((x / depth >= 0) & (x / depth <= width - 1))
  assert np.all((y / depth >= 0) & (y / depth <= height - 1))


def test_equal_seeds_give_equal_files_and_other_seeds_others(
  category, tmp_path
):
  demo.write_demo_category(tmp_path / 'same', seed=0)
  demo.write_demo_category(tmp_path / 'other', seed=1)
  expected = read_tree(category)
  assert read_tree(tmp_path / 'same' / 'demo') == expected
  other = read_tree(tmp_path / 'other' / 'demo')
  assert other.keys() == expected.keys()
  assert all(other[name] != expected[name] for name in expected)


def test_a_complete_category_is_left_as_it_is(tmp_path, monkeypatch):
  demo.write_demo_category(tmp_path)
  monkeypatch.setattr(demo, '_image_files', lambda seed: pytest.fail())
  demo.write_demo_category(tmp_path)


def test_an_incomplete_or_older_category_is_replaced(
  category, tmp_path, monkeypatch
):
  monkeypatch.setattr(demo, 'VERSION', 0)
  demo.write_demo_category(tmp_path)
  monkeypatch.undo()
  demo.write_demo_category(tmp_path)
  assert read_tree(tmp_path / 'demo') == read_tree(category)
  (tmp_path / 'demo' / 'train' / 'good' / '007.png').unlink()
  demo.write_demo_category(tmp_path)
  assert read_tree(tmp_path / 'demo') == read_tree(category)
  assert [path.name for path in tmp_path.iterdir()] == ['demo']


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
  files = demo._image_files(0)

  def interrupted(seed):
    yield next(files)
    raise KeyboardInterrupt

  monkeypatch.setattr(demo, '_image_files', interrupted)
  with pytest.raises(KeyboardInterrupt):
    demo.write_demo_category(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_refuses_to_replace_a_category_that_is_not_the_demo(tmp_path):
  kept = tmp_path / 'demo' / 'train' / 'good' / 'mine.png'
  kept.parent.mkdir(parents=True)
  kept.touch()
  with pytest.raises(errors.UserError, match='not the built-in demo'):
    demo.write_demo_category(tmp_path)
  assert kept.exists()


def test_says_so_when_the_folder_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.UserError, match='cannot write the demo'):
    demo.write_demo_category(tmp_path / 'file')
