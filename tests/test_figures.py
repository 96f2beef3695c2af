"""The paper's figures: what their sheets show is what training sees."""

import dataclasses
import functools
import itertools
import json
import logging
import sys

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from skimage import data as pictures
from small import random_images, small_config
from untrained import write_workdir

from draem_jax import command, experiment, figures
from draem_jax.errors import UserError
from draem_jax.pictures import panels, sheets
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.training import sampling

# Few operations, which are soon compiled; one moves pixels.
_CHANGES = {
  'simulator.augmentations': ('color', 'rotate', 'posterize'),
  'simulator.num_augmentations': 1,
}
_CELL, _TOP = 128 + 12, 16 + 4 + 2 * 18


@functools.cache
def simulate_batch(options):
  return jax.jit(functools.partial(simulate.simulate_batch, options=options))


@functools.cache
def simulate_steps(options):
  return jax.jit(functools.partial(simulate.simulate_steps, options=options))


@pytest.fixture(scope='module')
def made():
  """Batches of a training, and the steps to each of their examples."""
  images, textures = (
    np.stack([picture[i : i + 32, i : i + 32] for i in range(0, 192, 8)])
    for picture in (pictures.coffee(), pictures.astronaut())
  )
  keys = jax.random.split(jax.random.key(0), 24)
  options = Options(**small_config(**_CHANGES).simulator.to_dict())
  batch, steps = simulate_batch(options), simulate_steps(options)
  inputs = (keys, images, textures)
  batches = [
    jax.device_get(batch(*(each[start : start + 4] for each in inputs)))
    for start in range(0, 24, 4)
  ]
  return (
    textures,
    jax.tree.map(lambda *parts: np.concatenate(parts), *batches),
    [jax.device_get(steps(*one)) for one in zip(*inputs, strict=True)],
  )


def test_the_steps_lead_to_the_example_of_the_training(made):
  _, examples, steps = made
  for index, one in enumerate(steps):
    for name in ('image', 'augmented', 'mask'):
      np.testing.assert_array_equal(
        getattr(one, name), getattr(examples, name)[index]
      )
  assert 5 < sum(one.mask.any() for one in steps) < 19
  changed = [np.any(one.anomaly != one.texture) for one in steps]
  assert sum(changed) > 5


def test_the_steps_follow_from_each_other(made):
  textures, _, steps = made
  for one, texture in zip(steps, textures, strict=True):
    inside = one.mask > 0
    if not inside.any():
      np.testing.assert_array_equal(one.augmented, one.image)
      assert not one.texture.any() and not one.anomaly.any()
      assert one.opacity == 0
      continue
    assert one.noise[inside].min() > one.noise[~inside].max()
    np.testing.assert_array_equal(one.texture, texture)
    assert 0.2 <= one.opacity <= 1
    # Eq. (4), term by term.
    mask = one.mask[..., None]
    expected = (1 - mask) * one.image + (1 - one.opacity) * mask * one.image
    expected += one.opacity * mask * (one.anomaly / np.float32(255))
    np.testing.assert_allclose(one.augmented, expected, atol=1e-6)
    np.testing.assert_array_equal(one.augmented[~inside], one.image[~inside])


def tiny_steps(count, *, size=32, noise=True):
  rng = np.random.default_rng(0)
  mask = np.zeros((size, size), np.float32)
  mask[8:16, 4:20] = 1
  shape = (*mask.shape, 3)
  return [
    simulate.Steps(
      image=rng.random(shape, np.float32),
      noise=rng.random(mask.shape, np.float32) if noise else None,
      mask=mask,
      texture=rng.integers(0, 256, shape, np.uint8),
      anomaly=rng.integers(0, 256, shape, np.uint8),
      opacity=np.array(0.5, np.float32),
      augmented=rng.random(shape, np.float32),
    )
    for _ in range(count)
  ]


def tile(sheet, row, column, *, left=16, top=_TOP):
  top, left = top + row * _CELL, left + column * _CELL
  return sheet[top : top + 128, left : left + 128]


def size(rows, columns):
  return _TOP + rows * _CELL - 12 + 16, 16 + columns * _CELL - 12 + 16, 3


def test_the_simulation_has_a_row_an_example_and_a_column_a_step():
  steps = tiny_steps(2)
  sheet = sheets.simulation(steps)
  assert sheet.shape == size(2, 6)
  for row, one in enumerate(steps):
    shown = (one.texture, one.anomaly, one.image, one.augmented)
    for column, picture in enumerate(shown, 2):
      np.testing.assert_array_equal(
        tile(sheet, row, column), panels.fit(picture, 128)
      )
    noise, mask = tile(sheet, row, 0), tile(sheet, row, 1)
    assert np.ptp(noise, axis=-1).max() == 0
    # Noise of 0 is middle gray.
    assert noise.min() >= 127 and noise.max() <= 255
    assert set(np.unique(mask)) == {0, 255}
    assert mask[48, 48].all() and not mask[100, 48].any()
  without = sheets.simulation(tiny_steps(2, noise=False))
  assert without.shape == size(2, 5)


def test_a_sheet_shows_large_images_pixel_by_pixel():
  (one,) = tiny_steps(1, size=160)
  sheet = sheets.kinds({'Kind\nof it': [one]})
  shown = sheet[_TOP : _TOP + 160, 16 : 16 + 160]
  np.testing.assert_allclose(shown / 255, one.image, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(('count', 'side', 'rows'), [(1, 1, 1), (5, 3, 2)])
def test_augmented_copies_and_anomalies_have_the_same_places(count, side, rows):
  steps = tiny_steps(count)
  sheet = sheets.augmentations(steps)
  assert sheet.shape == size(rows, 1 + 2 * side)
  for index, one in enumerate(steps):
    row, column = divmod(index, side)
    np.testing.assert_array_equal(
      tile(sheet, row, 1 + column), panels.fit(one.anomaly, 128)
    )
    np.testing.assert_array_equal(
      tile(sheet, row, 1 + side + column), panels.fit(one.augmented, 128)
    )


def test_qualitative_results_go_on_below_after_eight_columns():
  images = random_images(9)
  maps = np.zeros((9, 32, 32), np.float32)
  maps[0, :16] = 1
  sheet = sheets.qualitative(
    images=list(images),
    anomaly_maps=list(maps),
    masks=[maps[0] > 0, *[None] * 8],
    captions=['crack'] * 9,
  )
  top, left = _TOP - 18, 16 + 96
  band = top + 4 * _CELL - 12 + 16
  assert sheet.shape == (2 * band, left + 8 * _CELL - 12 + 16, 3)
  at = functools.partial(tile, sheet, left=left)
  image = panels.fit(images[0], 128)
  np.testing.assert_array_equal(at(0, 0, top=top), image)
  overlay = at(1, 0, top=top)
  np.testing.assert_array_equal(overlay[80:], image[80:])
  assert np.any(overlay[:40] != image[:40])
  truth = at(3, 0, top=top)
  assert (truth[:60] == 255).all() and not truth[70:].any()
  assert (at(3, 1, top=top) == 255).all()
  np.testing.assert_array_equal(
    at(0, 0, top=band + top), panels.fit(images[8], 128)
  )
  assert (sheet[band:, left + _CELL :] == 255).all()


KINDS = ['crack'] * 5 + ['good'] * 4 + ['hole'] * 2 + ['stain']
LABELS = np.array([kind != 'good' for kind in KINDS])


@pytest.mark.parametrize(
  ('count', 'kinds'),
  [
    (None, {'crack': 5, 'hole': 2, 'stain': 1}),
    (5, {'crack': 2, 'hole': 2, 'stain': 1}),
    (3, {'crack': 1, 'hole': 1, 'stain': 1}),
    (1, {'hole': 1}),
  ],
)
def test_test_images_are_chosen_of_every_kind(count, kinds):
  chosen = figures.choose(LABELS, KINDS, count)
  assert len(set(chosen)) == len(chosen)
  found = [KINDS[index] for index in chosen]
  assert {kind: found.count(kind) for kind in found} == kinds


def test_test_images_are_spread_over_their_kind():
  labels, kinds = np.ones(30, bool), ['crack'] * 30
  assert figures.choose(labels, kinds, 3) == [5, 15, 25]
  # Where nothing is anomalous there are good ones, and none of none.
  assert figures.choose(~labels, ['good'] * 30, 1) == [15]
  assert figures.choose(labels[:0], [], None) == []


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A category, its textures and, of it, a run that ended."""
  folder = tmp_path_factory.mktemp('figures')

  def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)

  category = folder / 'data' / 'pens'
  for index, image in enumerate(random_images(12)):
    if index < 6:
      save(category / f'train/good/{index}.png', image)
      save(folder / f'textures/{index}.png', image[::-1])
      continue
    kind = ('crack', 'good', 'hole')[index % 3]
    save(category / f'test/{kind}/{index}.png', image)
    if kind != 'good':
      mask = np.full((32, 32), 255, np.uint8)
      save(category / f'ground_truth/{kind}/{index}_mask.png', mask)
  save(folder / 'imagenet' / 'n01' / '0.png', np.full((32, 32, 3), 9, np.uint8))
  run = write_workdir(folder / 'runs' / 'pens', **settings(folder))
  (run / 'results.json').write_text('{}')
  unfinished = folder / 'runs' / 'pots'
  unfinished.mkdir()
  (unfinished / 'config.json').write_bytes((run / 'config.json').read_bytes())
  return folder


def settings(place):
  return {
    'data.dir': str(place / 'data'),
    'data.tfds_dir': str(place / 'tfds'),
    'data.textures': str(place / 'textures'),
    **_CHANGES,
  }


@pytest.fixture
def shown(monkeypatch):
  """What the sheets are made of, by the name of the sheet."""
  seen = {}

  def recording(name, make):
    def record(*arguments, **keywords):
      seen[name] = keywords or arguments[0]
      return make(*arguments, **keywords)

    return record

  for name in ('simulation', 'augmentations', 'kinds', 'qualitative'):
    monkeypatch.setattr(sheets, name, recording(name, getattr(sheets, name)))
  monkeypatch.setattr(figures, '_compiled', simulate_steps)
  return seen


def test_figure_4_shows_the_first_examples_of_a_training(place, shown):
  config = small_config(**settings(place)).to_dict()
  figures.simulation_sheet(config, place, 3)
  images, _ = experiment.split_holdout(
    experiment.load_category(config, place).train_images,
    share=config['eval']['holdout'],
    seed=config['seed'],
  )
  textures = experiment.load_textures(config, place)
  batch = simulate_batch(Options(**config['simulator']))
  expected = []
  for step in range(3):
    drawn = sampling.sample_batch(
      config['seed'],
      step,
      batch_size=config['batch_size'],
      num_images=len(images),
      num_textures=len(textures),
      sampling=config['sampling'],
    )
    chosen = images[drawn.images], textures[drawn.textures]
    example = batch(drawn.keys, *chosen)
    anomalous = np.asarray(example.mask).any((1, 2))
    expected += [*np.asarray(example.augmented)[anomalous]]
  assert len(expected) > 3
  for one, augmented in zip(shown['simulation'], expected, strict=False):
    np.testing.assert_array_equal(one.augmented, augmented)
  assert len(shown['simulation']) == 3


def test_figure_5_augments_one_texture_in_many_ways(place, shown):
  config = small_config(**settings(place)).to_dict()
  figures.augmentations_sheet(config, place, 4)
  first, *others = shown['augmentations']
  assert len(others) == 3
  for one in others:
    np.testing.assert_array_equal(one.texture, first.texture)
    assert np.any(one.mask != first.mask)
  assert len({one.anomaly.tobytes() for one in (first, *others)}) > 2


def test_figure_10_has_the_kinds_on_the_same_images(place, shown):
  # Of colors itself, which does not matter.
  config = small_config(**settings(place), **{'simulator.texture': 'color'})
  figures.kinds_sheet(
    config.to_dict(), place, 2, imagenet=str(place / 'imagenet')
  )
  kinds = shown['kinds']
  assert [caption.partition('\n')[0] for caption in kinds] == [
    'Textures',
    'Textures',
    'Colors',
    'Rectangles',
  ]
  assert [*kinds][0].endswith('in textures/')
  for images, imagenet, colors, rectangles in zip(*kinds.values(), strict=True):
    for other in (imagenet, colors, rectangles):
      np.testing.assert_array_equal(other.image, images.image)
      assert other.opacity == images.opacity
    np.testing.assert_array_equal(imagenet.mask, images.mask)
    np.testing.assert_array_equal(colors.mask, images.mask)
    assert np.any(rectangles.mask != images.mask)
    np.testing.assert_array_equal(rectangles.texture, images.texture)
    np.testing.assert_array_equal(rectangles.anomaly, images.anomaly)
    assert rectangles.noise is None
    assert (imagenet.texture == 9).all()
    assert np.ptp(colors.texture, axis=(0, 1)).max() == 0


def test_figure_8_shows_a_run_or_one_image_of_each(place, shown):
  figures.qualitative_sheet(place / 'runs' / 'pens', 3)
  seen = shown['qualitative']
  assert seen['captions'] == ('crack', 'crack', 'hole')
  assert all(mask.all() for mask in seen['masks'])
  assert (
    len({anomaly_map.tobytes() for anomaly_map in seen['anomaly_maps']}) > 1
  )
  figures.qualitative_sheet(place / 'runs')
  assert shown['qualitative']['captions'] == ('pens\nhole',)


@pytest.fixture
def start(monkeypatch, tmp_path):
  """Runs the command in this process, whose flags stay as they were."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(command, 'use_compilation_cache', lambda: None)
  logger = logging.getLogger('draem_jax')
  before = set(flags.FLAGS), logger.handlers, logger.level, logger.propagate
  figures.define_flags()

  def run(*arguments):
    argv = ['figures', *arguments]
    monkeypatch.setattr(sys, 'argv', argv)
    command.wrap(figures.main)(command.parse_flags(argv))

  yield run
  for name in set(flags.FLAGS) - before[0]:
    delattr(flags.FLAGS, name)
  logger.handlers, logger.level, logger.propagate = before[1:]


def test_the_command_writes_one_file(place, start, shown, tmp_path, capsys):
  start(
    *('--figure=4', '--examples=1', '--seed=3'),
    f'--workdir={place / "runs" / "pens"}',
  )
  path = tmp_path / 'figures' / 'figure4.png'
  assert 'figures/figure4.png' in capsys.readouterr().out
  assert [*path.parent.iterdir()] == [path]
  expected = sheets.simulation(shown['simulation'])
  np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


@pytest.mark.parametrize('count', [None, 2])
def test_figure_8_needs_no_config(count, start, monkeypatch, tmp_path):
  asked = []

  def sheet(workdir, count):
    asked.append((str(workdir), count))
    return np.zeros((8, 8, 3), np.uint8)

  monkeypatch.setattr(figures, 'qualitative_sheet', sheet)
  options = () if count is None else (f'--count={count}',)
  start('--figure=8', '--workdir=runs/a', *options)
  assert asked == [('runs/a', count)]
  assert (tmp_path / 'figures' / 'figure8.png').is_file()


def test_the_seed_and_assignments_reach_the_sheet(place, start, monkeypatch):
  found = {}

  def sheet(config, folder, count):
    found.update(config=config, folder=folder, count=count)
    return np.zeros((8, 8, 3), np.uint8)

  monkeypatch.setattr(figures, 'simulation_sheet', sheet)
  start(
    *('--figure=4', '--config=configs/demo.py', '--config.image_size=96'),
    *('--seed=5', '--examples=7', '--output=a/b.png'),
  )
  assert found['config']['image_size'] == 96 and found['config']['seed'] == 5
  assert found['count'] == 7
  assert not found['folder'].exists()  # It was passing.


_DEMO = '--config=configs/demo.py'


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), '--figure is missing'),
    (('--figure=7',), '4|5|8|10'),
    (('--figure=4',), 'give --config'),
    (('--figure=5', _DEMO, '--workdir=runs'), 'one config'),
    (('--figure=4', '--config=none.py'), 'none.py'),
    (('--figure=4', _DEMO, '--config.image_size=100'), 'take 96'),
    (('--figure=4', '--config=configs/mvtec.py:all'), 'config.category'),
    (('--figure=4', '--workdir=none'), 'none'),
    (('--figure=4', _DEMO, '--count=3'), '--count says nothing of figure 4'),
    (('--figure=8',), '--workdir is missing'),
    (('--figure=8', '--workdir=none'), 'none'),
    (('--figure=8', '--workdir=.'), 'config.json'),
    (('--figure=8', '--workdir=.', '--seed=1'), '--seed says nothing'),
    (('--figure=4', _DEMO, '--output=a.jpg'), 'a.jpg'),
    (('--figure=10', _DEMO, '--imagenet=none'), '--imagenet=none'),
    (('--figure=4', _DEMO, '--examples=0'), '--examples'),
    (('--figure=4', _DEMO, 'x'), "'x'"),
  ],
)
def test_a_mistake_is_one_line(arguments, words, start, capsys):
  with pytest.raises(SystemExit) as end:
    start(*arguments)
  assert end.value.code == 2
  out, err = capsys.readouterr()
  assert not out and len(err.splitlines()) == 1
  assert err.startswith('error: ') and words in err


@pytest.mark.parametrize('output', ['file/a.png', 'folder.png'])
def test_an_output_that_cannot_be_written_is_one_line(
  output, start, tmp_path, monkeypatch, capsys
):
  (tmp_path / 'file').touch()
  (tmp_path / 'folder.png').mkdir()
  sheet = np.zeros((8, 8, 3), np.uint8)
  monkeypatch.setattr(figures, 'simulation_sheet', lambda *_: sheet)
  with pytest.raises(SystemExit) as end:
    start('--figure=4', _DEMO, f'--output={output}')
  assert end.value.code == 2
  assert f'--output={output} cannot be written' in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'file',
    'folder.png',
  ]


@pytest.mark.parametrize('workdir', ['pots', '.'])
def test_what_is_not_finished_is_not_shown(workdir, place, start, capsys):
  finished = place / 'runs' / 'pens' / 'results.json'
  content = json.loads(finished.read_text())
  finished.unlink()
  try:
    with pytest.raises(SystemExit):
      start('--figure=8', f'--workdir={place / "runs" / workdir}')
  finally:
    finished.write_text(json.dumps(content))
  assert 'holds no finished run' in capsys.readouterr().err


def test_without_anomalies_there_is_nothing_to_show():
  (empty,) = tiny_steps(1)
  empty = dataclasses.replace(empty, mask=np.zeros_like(empty.mask))
  candidates = itertools.repeat((*tiny_steps(1), empty))
  with pytest.raises(UserError, match='anomaly_probability'):
    figures._anomalous(1, candidates)
