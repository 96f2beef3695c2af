"""Every layout on a small tree, and what is said of one that is not whole."""

import json
import shutil

import numpy as np
import pytest
import trees
from trees import TREES, mask, picture, pictures, write

from draem_jax.data import layouts
from draem_jax.data.category import load_category
from draem_jax.errors import UserError


def load(root, category, layout='auto', size=(trees.HEIGHT)):
  return load_category(
    root,
    category,
    image_size=size,
    tfds_dir=root.parent / 'tfds',
    layout=layout,
  )


def read(root, category, layout='auto'):
  place = layouts.find(root, category, layout=layout)
  return layouts.get(place.layout).read(place.folder)


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  return folder


def test_there_is_a_tree_of_every_layout():
  assert set(TREES) == set(layouts.LAYOUTS) - {'mpdd'}
  assert layouts.LAYOUTS['mpdd'] is layouts.LAYOUTS['mvtec']


@pytest.mark.parametrize('layout', TREES)
def test_a_layout_is_found_by_itself(root, layout):
  name = TREES[layout](root)
  place = layouts.find(root, name, layout='auto')
  assert place.layout == layout
  assert place == layouts.find(root, name, layout=layout)
  # What else is named there is no folder of images.
  names = layouts.list_categories(root, layout=layout)
  assert name in names
  assert set(layouts.list_categories(root, layout='auto')) >= set(names)


@pytest.mark.parametrize('layout', TREES)
def test_loads_good_and_bad(root, layout):
  name = TREES[layout](root)
  loaded = load(root, name)
  contents = read(root, name)
  assert len(loaded.train_images) == len(contents.train) > 0
  assert loaded.labels.any() and not loaded.labels.all()
  # The masks are where the defects are, and nowhere else.
  covered = loaded.test_masks.any(axis=(1, 2))
  np.testing.assert_array_equal(covered, loaded.labels)
  inside = loaded.test_masks[loaded.labels][:, 6, trees.HEIGHT // 2]
  assert (inside == 1).all()
  # Good ones are called so, whatever their folder is.
  kinds = np.array(loaded.test_defects)
  np.testing.assert_array_equal(kinds == 'good', ~loaded.labels)


def test_several_layouts_side_by_side(root):
  names = {TREES[layout](root): layout for layout in ('mvtec', 'btad', 'ksdd')}
  assert layouts.list_categories(root, layout='auto') == sorted(names)
  for name, layout in names.items():
    assert layouts.find(root, name, layout='auto').layout == layout


def message(root, category, layout='auto'):
  with pytest.raises(UserError) as error:
    read(root, category, layout)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_what_could_be_two_layouts_is_an_error_that_names_both(root):
  name = TREES['mvtec'](root)
  (root / f'{name}.csv').write_text('file,split,label\n')
  assert 'could have the layout csv or mvtec: set' in message(root, name)
  assert read(root, name, 'mvtec').train


@pytest.mark.parametrize(
  ('layout', 'wrong', 'right'),
  [
    ('mvtec_loco', 'test/Good', 'test/good'),
    ('mvtec_loco', 'Validation', 'validation'),
    ('mvtec_loco', 'Ground Truth', 'ground_truth'),
    ('mvtec_ad_2', 'test_public/ok', 'test_public/good'),
    ('mvtec_ad_2', 'validation/ok', 'validation/good'),
  ],
)
def test_misnamed_folders_are_not_taken_for_defects_or_nothing(
  root, layout, wrong, right
):
  part = root / TREES[layout](root)
  (part / right).rename(part / wrong)
  text = message(root, part.name)
  assert str(part / wrong) in text
  assert f'rename it to {part / right}' in text


def test_a_category_that_holds_one_is_no_folder_of_categories(root):
  TREES['mvtec'](root / 'tubes')
  TREES['mvtec'](root)
  for layout in ('auto', 'mvtec'):
    with pytest.raises(UserError, match='is itself a category'):
      layouts.list_categories(root / 'tubes', layout=layout)


def test_of_many_names_the_nearest_are_told(root):
  for number in range(30):
    pictures(root / f'part{number:02}' / 'train/good', '0.png')
  (root / 'screw' / 'train/good').mkdir(parents=True)
  text = message(root, 'scrw')
  assert 'of the 31 that there are, near it are screw' in text


def test_labels_beside_images_are_read_as_all_masks(root):
  # What a lossy file leaves on black is no defect.
  part = root / TREES['ksdd2'](root)
  noise = mask(0)
  noise[::8, ::8] = 9
  (good,) = part.glob('train/10000_GT.png')
  good.unlink()
  write(good.with_suffix('.jpg'), noise, quality=95)
  contents = read(root, part.name)
  assert f'train/{good.stem[:5]}.png' in [one.file for one in contents.train]


def test_what_is_in_no_layout(root):
  TREES['mvtec'](root)
  (root / 'heap').mkdir()
  write(root / 'heap/a.png', picture(0))
  text = message(root, 'heap')
  assert 'heap is in no layout' in text and 'file, split, label, mask' in text
  assert 'there are tubes' in message(root, 'tube')
  # A part of MVTec AD with a stray image is not taken for DAGM.
  write(root / 'tubes/train/stray.png', picture(1))
  assert layouts.find(root, 'tubes', layout='auto').layout == 'mvtec'
  # Somebody's own names are not those of BTAD.
  TREES['ksdd'](root)
  (root / 'tubes/train/good').rename(root / 'tubes/train/ok')
  text = message(root, 'tubes')
  assert 'good images belong in' in text and 'tubes/train/ok' in text
  with pytest.raises(UserError, match='is itself a category'):
    layouts.list_categories(root / 'KolektorSDD', layout='auto')


def test_a_layout_may_say_what_keeps_a_folder_from_being_a_category(
  root, monkeypatch
):
  TREES['btad'](root)
  mvtec = layouts.LAYOUTS['mvtec']
  say = lambda folder: f'rename {folder / "ok"}'
  monkeypatch.setattr(mvtec, 'misnamed', say, raising=False)
  (root / 'heap').mkdir()
  assert message(root, 'heap') == f'rename {root / "heap/ok"}'
  with pytest.raises(UserError, match='rename .*heap/ok'):
    layouts.list_categories(root, layout='auto')
  assert 'there are 01' in message(root, '02')
  assert layouts.find(root, '01', layout='auto').layout == 'btad'
  shutil.rmtree(root / 'heap')
  assert message(root, '01', 'mvtec') == f'rename {root / "ok"}'


def test_visa_takes_the_split_of_its_table(root):
  TREES['visa'](root)
  contents = read(root, 'candle')
  files = [member.file for member in contents.train]
  assert files == [f'Data/Images/Normal/000{n}.JPG' for n in (0, 2)]
  assert [member.defect for member in contents.test] == ['anomaly', 'good']
  assert layouts.list_categories(root, layout='visa') == ['candle', 'pcb1']
  missing = root / 'candle/Data/Images/Normal/0001.JPG'
  missing.unlink()
  text = message(root, 'candle')
  assert '1cls.csv line 4, field image' in text and str(missing) in text


def test_ksdd_splits_by_folder(root):
  TREES['ksdd'](root)
  contents = read(root, 'KolektorSDD')
  assert {member.file[:5] for member in contents.test} == {'kos03'}
  assert [member.is_anomalous for member in contents.test] == [False, True]
  assert {member.file[:5] for member in contents.train} == {
    'kos01',
    'kos02',
    'kos04',
  }
  assert contents.left_out == 1
  (root / 'KolektorSDD/kos01/Part0_label.bmp').unlink()
  assert 'kos01/Part0 has no mask: add' in message(root, 'KolektorSDD')


def test_ksdd2_leaves_out_what_is_defective(root):
  TREES['ksdd2'](root)
  contents = read(root, 'KolektorSDD2')
  files = [member.file for member in contents.train]
  assert files == ['train/10000.png', 'train/10002.png']
  assert contents.left_out == 1
  # A change of a label is seen, though the layout was read before.
  write(root / 'KolektorSDD2/train/10000_GT.png', mask(255, top=0))
  assert read(root, 'KolektorSDD2').left_out == 2
  (root / 'KolektorSDD2/test/10001.png').unlink()
  text = message(root, 'KolektorSDD2')
  assert '10001_GT.png is a mask without an image' in text


def test_loco_unites_masks_and_keeps_defects_apart(root):
  name = TREES['mvtec_loco'](root)
  loaded = load(root, name, size=64)
  assert len(loaded.validation_images) == 2
  assert loaded.metrics == ('spro_05',)
  kinds = ['good', 'logical_anomalies', 'structural_anomalies']
  assert loaded.test_defects == kinds
  regions = loaded.test_regions
  assert [len(own) for own in regions] == [0, 2, 1]
  # The one saturates at all of its pixels, the other at 12 of 96.
  assert [region.saturation for region in regions[1]] == [1.0, 12 / 96]
  union = np.zeros(64 * 64)
  for region in regions[1]:
    np.maximum.at(union, region.pixels, region.coverage / 255)
  united = loaded.test_masks[1].reshape(-1)
  assert (union <= united + 1e-6).all()
  np.testing.assert_array_equal(union == 1, united == 1)
  np.testing.assert_array_equal(union > 0, united > 0)
  part = root / name
  write(part / 'ground_truth/logical_anomalies/000/001.png', mask(17))
  with pytest.raises(UserError, match=r'001\.png has pixels of the value 17'):
    load(root, name)
  shutil.rmtree(part / 'ground_truth/structural_anomalies/000')
  text = message(root, name)
  assert 'structural_anomalies/000.png has no mask: add' in text


@pytest.mark.parametrize(
  'text', ['', '{', '[1]', '[{"pixel_value": 1}]', '{"a": {}}']
)
def test_loco_says_what_is_wrong_with_its_kinds(root, text):
  name = TREES['mvtec_loco'](root)
  path = root / name / 'defects_config.json'
  path.write_text(text)
  assert f'{path} cannot be understood' in message(root, name)
  for threshold in (0, 1.5, 'x'):
    entry = trees.DEFECTS[0] | {'saturation_threshold': threshold}
    path.write_text(json.dumps([entry]))
    assert 'cannot be understood' in message(root, name)


def test_ad_2_says_what_it_passes_over(root):
  name = TREES['mvtec_ad_2'](root)
  contents = read(root, name)
  assert [member.file for member in contents.validation] == [
    'validation/good/000_regular.png'
  ]
  assert len(contents.notes) == 2 and 'over 2 images' in contents.notes[0]
  assert load(root, name).metrics == ('aupro_05', 'seg_f1')


def test_real_iad_in_two_sizes(root):
  name = TREES['real_iad'](root)
  assert read(root, name).test[0].defect == 'AK'
  # From the folder of images it is found as well.
  assert layouts.find(root / 'realiad_1024', name, layout='auto').folder
  shutil.copytree(root / 'realiad_1024', root / 'realiad_256')
  text = message(root, name)
  assert 'set config.data.dir to' in text and str(root / 'realiad_256') in text
  shutil.rmtree(root / 'realiad_256')
  path = root / 'realiad_jsons/audiojack.json'
  content = json.loads(path.read_text())
  content['test'][0]['image_path'] = 'OK/none.jpg'
  path.write_text(json.dumps(content))
  assert 'audiojack.json names OK/none.jpg, which is not in' in message(
    root, name
  )
  for text in ('', '[]', '{"train": [1]}', '{"train": [{}]}', '{"test": 3}'):
    path.write_text(text)
    assert 'audiojack.json ' in message(root, name)


def test_btad_masks_need_their_images(root):
  name = TREES['btad'](root)
  (root / '01/test/ko/0000.bmp').unlink()
  assert '0000.png is a mask without an image' in message(root, name)


@pytest.mark.parametrize(
  'change',
  [
    lambda text: text.replace(',', ';'),
    lambda text: text.replace(',', '\t'),
    lambda text: text.replace('\n', '\r\n'),
    lambda text: '\ufeff' + text,
    lambda text: text.replace('/', '\\'),
    lambda text: text.replace('file,split', 'File , SPLIT'),
    lambda text: text.replace('\n', ',,\n').replace(',,', ',remark,', 1),
    lambda text: text.replace('good', 'OK').replace('validation', 'val'),
    lambda text: text.rstrip() + '\n\n,,,\n',
  ],
)
def test_a_table_however_it_was_saved(root, change):
  name = TREES['csv'](root)
  expected = read(root, name)
  (root / 'parts.csv').write_text(change(trees.TABLE), newline='')
  assert read(root, name) == expected


@pytest.mark.parametrize(
  ('old', 'new', 'words'),
  [
    ('c.png,validation', 'c.png,valdation', "line 4, field split: 'valdation'"),
    ('b.png,train,good', 'b.png,train,', "line 3, field label: '' is empty"),
    (
      'photos/d.png',
      'photos/x.png',
      "line 5, field file: 'photos/x.png' is no",
    ),
    ('photos/d.png', '', "line 5, field file: '' is empty"),
    ('photos/d.png', 'photos/a.png', 'line 5, field file: .* that of line 2'),
    ('masks/e.png', 'masks/x.png', "line 6, field mask: 'masks/x.png' is no"),
    ('masks/e.png', '', None),
    ('test,good,', 'test,dent,', 'line 5, field mask: .* others? .*have one'),
    ('label', 'labels', "line 1 names 0 columns 'label': begin"),
    ('train,good', 'train,bad', 'names no good image to train on'),
    ('test,good,', 'test,good,,,x', 'line 5 has 6 fields and the first line 4'),
    ('good,\nphotos/e', 'g\xff,\nphotos/e', 'line 5 is no UTF-8: save'),
  ],
)
def test_a_wrong_line_is_one_error(root, old, new, words):
  name = TREES['csv'](root)
  text = trees.TABLE.replace(old, new)
  assert text != trees.TABLE
  (root / 'parts.csv').write_text(text, encoding='latin-1')
  if words is None:
    assert load(root, name, 'csv').test_masks is None
    return
  with pytest.raises(UserError, match=words) as error:
    read(root, name, 'csv')
  assert '\n' not in str(error.value)
  assert str(root / 'parts.csv') in str(error.value)


def test_a_table_in_the_folder_of_its_category(root):
  TREES['csv'](root)
  part = root / 'own'
  part.mkdir()
  # What it names may lie elsewhere.
  (root / 'parts.csv').rename(part / 'list.csv')
  text = trees.TABLE.replace('photos', '../photos').replace(
    'masks', str(root / 'masks')
  )
  (part / 'list.csv').write_text(text)
  loaded = load(root, 'own')
  assert loaded.train_files == ['photos/a.png', 'photos/b.png']
  assert len(loaded.validation_images) == 1
  (part / 'more.csv').write_text(text)
  assert 'both say what own is' in message(root, 'own')
  (part / 'list.csv').rename(part / 'data.csv')
  assert len(read(root, 'own').train) == 2
  # Another table that lies there is none of images.
  (part / 'predictions.csv').write_text('file,defect,score\n')
  assert len(read(root, 'own').train) == 2


def test_a_good_image_with_a_defect_in_its_mask_is_an_error(root):
  name = TREES['csv'](root)
  table = root / 'parts.csv'
  text = trees.TABLE.replace('test,good,', 'test,good,masks/d.png')
  write(root / 'masks/d.png', mask(0))
  table.write_text(text)
  assert not load(root, name).labels[0]
  write(root / 'masks/d.png', mask(255))
  with pytest.raises(UserError, match=r'd\.png is said to be good, and its'):
    load(root, name)


def test_a_change_of_the_table_is_prepared_anew(root):
  name = TREES['csv'](root)
  assert load(root, name).test_defects == ['good', 'scratch']
  text = trees.TABLE.replace('scratch', 'dent')
  (root / 'parts.csv').write_text(text)
  assert load(root, name).test_defects == ['good', 'dent']
