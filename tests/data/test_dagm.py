"""DAGM 2007: what its layout says is good, and what a run makes of it."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest
from PIL import Image
from small import small_config
from splits import make_category, make_evaluation, make_report, make_scored
from untrained import random_variables

from configs import dagm as dagm_config
from draem_jax import config as config_lib
from draem_jax import experiment, report
from draem_jax.data import builder, layouts
from draem_jax.data.category import load_category
from draem_jax.data.layouts import dagm
from draem_jax.errors import UserError
from draem_jax.pictures import panels
from draem_jax.report import results
from draem_jax.training.writer import Writer

COARSE = 'the ground truth is coarse and counts for images only'
SIZE = 48


def write_gray(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def ellipse():
  y, x = np.mgrid[:SIZE, :SIZE]
  inside = ((y - 12) / 6) ** 2 + ((x - 30) / 12) ** 2 <= 1
  return np.where(inside, np.uint8(255), np.uint8(0))


def write_part(part, *defective, level=0):
  """Images 1 to n of `Train` or `Test`, each of its own gray."""
  lines = ['1']
  for number, is_defective in enumerate(defective, 1):
    gray = np.full((SIZE, SIZE), level + 10 * number, np.uint8)
    gray[:, ::4] = 200
    write_gray(part / f'{number:04}.PNG', gray)
    picture = '0'
    if is_defective:
      picture = f'{number:04}_label.PNG'
      write_gray(part / 'Label' / picture, ellipse())
    name, flag = f'{number:04}', int(is_defective)
    # Each ends in a tab, as those of the data set do.
    lines.append(f'{name}\t{flag}\t{name}.PNG\t0\t{picture}\t')
  (part / 'Label').mkdir(exist_ok=True)
  (part / 'Label' / 'Labels.txt').write_text('\r\n'.join(lines) + '\r\n')


@pytest.fixture
def data_dir(tmp_path):
  root = tmp_path / 'data'
  write_part(root / 'Class1' / 'Train', False, True, False, False)
  write_part(root / 'Class1' / 'Test', True, False, False, True, level=100)
  # Left there by systems.
  (root / 'Class1' / 'Train' / 'Thumbs.db').write_bytes(b'x')
  return root


def load(data_dir, category='Class1', size=SIZE):
  return load_category(
    data_dir,
    category,
    image_size=size,
    tfds_dir=data_dir.parent / 'tfds',
    layout='dagm',
  )


def test_labels_txt_says_what_is_good(data_dir):
  one = load(data_dir)
  assert one.train_files == [f'Train/000{number}.PNG' for number in (1, 3, 4)]
  assert one.test_files == [f'Test/000{number}.PNG' for number in (1, 2, 3, 4)]
  assert one.labels.tolist() == [True, False, False, True]
  assert one.test_defects == ['defective', 'good', 'good', 'defective']
  assert one.coarse_masks
  for mask, label in zip(one.test_masks, one.labels, strict=True):
    np.testing.assert_array_equal(mask, label * (ellipse() / 255))


def test_gray_becomes_three_equal_channels(data_dir):
  one = load(data_dir)
  for number, image in zip((1, 3, 4), one.train_images, strict=True):
    gray = np.full((SIZE, SIZE), 10 * number, np.uint8)
    gray[:, ::4] = 200
    np.testing.assert_array_equal(image, np.stack([gray] * 3, axis=-1))


def test_what_is_left_out_is_said_once(data_dir, caplog, monkeypatch):
  monkeypatch.setattr(builder._log, 'handlers', [])
  caplog.set_level('INFO', logger=builder._log.name)
  load(data_dir)
  said = [record.getMessage() for record in caplog.records]
  said = [text for text in said if text.startswith('left out')]
  assert said == [
    'left out 1 defective images among those to train on in'
    f' {data_dir / "Class1"}'
  ]


def test_names_in_lower_case(data_dir):
  upper = load(data_dir)
  one = data_dir / 'Class1'
  for path in sorted(one.rglob('*'), key=lambda path: -len(path.parts)):
    path.rename(path.with_name(path.name.lower()))
  # The lines of Labels.txt go on naming them in upper case.
  lower = load(data_dir)
  assert lower.test_files[0] == 'test/0001.png'
  np.testing.assert_array_equal(lower.train_images, upper.train_images)
  np.testing.assert_array_equal(lower.test_masks, upper.test_masks)
  assert lower.labels.tolist() == upper.labels.tolist()


def test_train_alone_is_enough_to_train(data_dir):
  (data_dir / 'Class1' / 'Test').rename(data_dir / 'elsewhere')
  one = load(data_dir)
  assert len(one.train_images) == 3 and len(one.test_images) == 0


def test_what_is_prepared_is_read_and_keeps_its_coarse_truth(
  data_dir, monkeypatch
):
  first = load(data_dir)
  monkeypatch.setattr(builder, '_encode', None)
  again = load(data_dir, size=32)
  assert first.coarse_masks and again.coarse_masks


def test_a_class_of_two_digits_stands_behind_those_of_one(tmp_path):
  for number in (10, 9, 1, 2):
    write_part(tmp_path / f'Class{number}' / 'Train', False)
  # Another layout's.
  (tmp_path / 'bottle' / 'train' / 'good').mkdir(parents=True)
  names = layouts.list_categories(tmp_path, layout='dagm')
  assert names == ['Class1', 'Class2', 'Class9', 'Class10']


def rewrite(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


def edit(old, new, part='Test'):
  """Changes a `Labels.txt`."""
  return lambda one: rewrite(one / part / 'Label' / 'Labels.txt', old, new)


def remove(name):
  return lambda one: (one / name).unlink()


def add(name):
  return lambda one: write_gray(one / name, ellipse())


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (
      remove('Train/Label/Labels.txt'),
      'Train/Label/Labels.txt is missing: copy it',
    ),
    (
      remove('Test/Label/Labels.txt'),
      'Test/Label/Labels.txt is missing: copy it',
    ),
    (
      remove('Test/0002.PNG'),
      'Test/Label/Labels.txt names 0002.PNG on line 3, which is not in {}/Test:'
      ' add the image, or remove the line',
    ),
    (
      edit('0002.PNG', '0001.PNG'),
      'names 0001.PNG on line 3, which has a line already: remove the line',
    ),
    (
      edit('0003\t0\t0003.PNG\t0\t0', '0003 0 0003.PNG 0 0'),
      "cannot be understood on line 4, '0003 0 0003.PNG 0 0': write it as",
    ),
    (edit('0003\t0\t', '0003\t2\t'), 'cannot be understood on line 4'),
    (edit('0003\t0\t', '0003\t'), 'cannot be understood on line 4'),
    (
      edit('0002\t1\t', '0002\t0\t', part='Train'),
      'Train/Label/Labels.txt cannot be understood on line 3',
    ),
    (
      add('Test/0005.PNG'),
      'Test/0005.PNG is on no line of {}/Test/Label/Labels.txt: add one',
    ),
    (
      remove('Test/Label/0004_label.PNG'),
      'Test/0004.PNG is defective, as line 5 of {}/Test/Label/Labels.txt says,'
      ' and has no label picture: add {}/Test/Label/0004_label.PNG',
    ),
    (
      edit('0004_label.PNG', '0'),
      'has no label picture: add {}/Test/Label/0004_label.PNG',
    ),
    (
      edit('0004\t1\t0004.PNG\t0\t0004_label.PNG', '0004\t0\t0004.PNG\t0\t0'),
      'Test/Label/0004_label.PNG is a label picture without a defective image',
    ),
  ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
  data_dir, tmp_path, damage, words
):
  damage(data_dir / 'Class1')
  config = small_config(
    **{
      'category': 'Class1',
      'data.layout': 'dagm',
      'data.dir': str(data_dir),
      'data.tfds_dir': str(tmp_path / 'tfds'),
      'data.textures': 'builtin',
    }
  )
  with pytest.raises(UserError) as error:
    experiment.train_and_evaluate(config.to_dict(), tmp_path / 'run')
  text = str(error.value)
  assert words.replace('{}', str(data_dir / 'Class1')) in text
  assert '\n' not in text
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_no_good_image_to_train_on(tmp_path):
  write_part(tmp_path / 'data' / 'Class1' / 'Train', True, True)
  with pytest.raises(UserError, match='Train holds no good images: put some'):
    load(tmp_path / 'data')


def test_a_class_without_labels_is_named_and_not_passed_over(data_dir):
  for number in (1, 2):
    write_gray(data_dir / 'Class2' / 'Train' / f'{number}.PNG', ellipse())
  assert layouts.list_categories(data_dir, layout='dagm')[1] == 'Class2'
  with pytest.raises(UserError, match=r'Class2/.*Labels\.txt is missing'):
    load(data_dir, 'Class2')
  # Of all classes before the first of them is trained.
  config = dagm_config.get_config('all')
  config.data.dir = str(data_dir)
  with pytest.raises(UserError, match=r'Class2/.*Labels\.txt is missing'):
    experiment.list_categories(config.to_dict())


@pytest.mark.parametrize(
  ('arguments', 'category', 'share'),
  [
    ('Class1', 'Class1', 0),
    ('all', 'Class10', 0),
    ('all', 'Class11', 0.1),
    ('Class11,paper', 'Class11', 0),
    ('Class3,release', 'Class3', 0),
  ],
)
def test_the_config_is_the_papers_and_trains_on_every_good_image(
  arguments, category, share
):
  config = dagm_config.get_config(arguments)
  config.category = category
  values = config.to_dict()
  config_lib.check(values)
  assert values['data']['layout'] == 'dagm'
  assert experiment.holdout_share(values) == share
  # In another layout the name alone means nothing.
  values['data']['layout'] = 'mvtec'
  assert experiment.holdout_share(values) == (
    0.1 if ',' not in arguments else 0
  )
  is_release = arguments.endswith('release')
  assert (values['sampling'] == 'with_replacement') == is_release


def test_coarse_truth_is_drawn_and_no_pixel_is_compared(tmp_path):
  category = make_category()
  scored = make_scored(category)
  exact = make_evaluation(category, scored)
  category = dataclasses.replace(category, coarse_masks=True)
  coarse = make_evaluation(category, scored)
  for key in ('pixel_auroc', 'pixel_ap', 'aupro'):
    assert exact.metrics[key] is not None and coarse.metrics[key] is None
    assert coarse.reasons[key] == COARSE
  assert coarse.metrics['image_auroc'] == exact.metrics['image_auroc']
  assert list(exact.curves) == ['images', 'pixels']
  assert list(coarse.curves) == ['images']

  path, _ = make_report(tmp_path, category, scored)
  text = path.read_text()
  assert COARSE in text and 'coarse outlines, which are shown' in text
  entries = json.loads(re.search('<script id="data"[^>]*>(.*?)</', text)[1])
  outlined = ['outline' in entry for entry in entries['images']]
  assert outlined == category.labels.tolist()


def row(category, value, **others):
  keys = ('image_auroc', 'image_ap', *results.AT_THRESHOLDS)
  return {'category': category} | dict.fromkeys(keys, value) | others


def cells(line):
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_the_table_has_rates_in_the_place_of_pixels(tmp_path):
  rows = [row('Class1', 0.5), row('Class10', 1.0, accuracy=0.9)]
  results.write_table(tmp_path / 'results.md', rows)
  lines = (tmp_path / 'results.md').read_text().splitlines()
  assert cells(lines[-5]) == [
    *('category', 'image AUROC', 'image AP', 'TPR', 'TNR', 'CA'),
    *('TPR at best F1', 'TNR at best F1', 'CA at best F1'),
  ]
  # Unweighted over the classes.
  assert cells(lines[-1]) == [
    *('average', '75.0', '75.0', '75.0', '75.0', '70.0', *3 * ['75.0'])
  ]
  assert 'chosen on the test images' in ' '.join(lines)
  report.write_comparison(tmp_path / 'report.html', rows)
  text = (tmp_path / 'report.html').read_text().replace('\n', ' ')
  runs = text[text.index('<table class="runs">') :]
  averages = re.findall(
    '<td class="number">(.*?)</td>', runs.split('<tfoot>')[1]
  )
  # TPR, FPR, TNR, CA, F1, best F1, and three rates at that one.
  assert averages[:9] == [
    *('75.0', '–', '75.0', '70.0', '–', '–', '75.0', '75.0', '75.0')
  ]
  # With a single pixel metric it is the table of MVTec AD.
  rows[1]['pixel_ap'] = 0.5
  assert 'TPR' not in results.format_table(rows)
  # And where nothing is known of the rates.
  assert 'TPR' not in results.format_table([{'category': 'Class1'}])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A class from its files to its report: the workdir and its row.

  The training is left out: it knows nothing of layouts, and takes long to
  compile. Random weights stand for what it gives.
  """
  folder = tmp_path_factory.mktemp('dagm')
  write_part(folder / 'data' / 'Class1' / 'Train', *12 * [False], True)
  write_part(folder / 'data' / 'Class1' / 'Test', *4 * [False, True])
  small = config_lib.flatten(small_config().to_dict())
  config = dagm_config.get_config('Class1,paper')
  config.update_from_flattened_dict(
    {name: small[name] for name in small if name.startswith('model.')}
    | {
      'image_size': 32,
      'batch_size': 4,
      'num_steps': 2,
      'score_window': 5,
      'data.dir': str(folder / 'data'),
      'data.tfds_dir': str(folder / 'tfds'),
      'simulator.texture': 'color',
    }
  )
  values = config.to_dict()

  def train(trainer, workdir):
    variables = random_variables(trainer.config['model'], seed=0)
    writer = Writer(workdir, first_step=0, num_steps=2, batch_size=4)
    writer.close()
    state = types.SimpleNamespace(evaluated=variables, step=2, record=None)
    return state, writer

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment.train, 'train', train)
    found = experiment.train_and_evaluate(values, folder / 'run')
  return folder / 'run', found


@pytest.mark.slow
def test_a_run_has_the_numbers_of_table_4(run):
  workdir, found = run
  written = json.loads((workdir / 'results.json').read_text())
  assert written['category'] == 'Class1' and 0 <= written['image_auroc'] <= 1
  assert written['pixel_auroc'] is written['pixel_ap'] is None
  assert written['aupro'] is None
  for prefix in ('', 'best_f1_'):
    tpr, tnr, accuracy = (
      written[f'{prefix}{key}']
      for key in ('true_positive_rate', 'true_negative_rate', 'accuracy')
    )
    assert accuracy == pytest.approx((tpr + tnr) / 2)  # Four of each kind.
  assert written['false_positive_rate'] == 1 - written['true_negative_rate']
  assert 'CA at best F1' in results.format_table([found])
  config = json.loads((workdir / 'config.json').read_text())
  assert config['config']['eval']['holdout'] == 0


@pytest.mark.slow
def test_a_run_shows_the_ellipses(run):
  workdir, _ = run
  color = np.array([0x56, 0xE0, 0xFF])
  assert panels.OUTLINE_COLOR == '#56E0FF'
  outlined = []
  for number in range(1, 9):
    with Image.open(workdir / f'figures/panels/{number:04}.PNG.png') as panel:
      outlined.append(bool((np.asarray(panel) == color).all(-1).any()))
  assert outlined == 4 * [False, True]
  text = (workdir / 'report.html').read_text()
  assert text.count('"outline"') == 4 and COARSE in text


def test_the_split_of_class_1_beside_the_checkout(example_data, tmp_path):
  folder = example_data / 'dagm'
  if not folder.is_dir():
    pytest.skip(f'{folder} is not there')
  assert layouts.list_categories(folder, layout='dagm') == ['Class1']
  read = dagm.read(folder / 'Class1')
  assert len(read.train) == 220 and len(read.test) == 171
  left_out = len(list((folder / 'Class1' / 'Train').glob('*.PNG'))) - 220
  assert left_out == 20
  assert sum(member.is_anomalous for member in read.test) == 51
  one = load_category(
    folder, 'Class1', image_size=32, tfds_dir=tmp_path, layout='dagm'
  )
  np.testing.assert_array_equal(one.test_masks.any(axis=(1, 2)), one.labels)
  assert (one.train_images == one.train_images[..., :1]).all()
