"""The reports: what they say, and that nothing leaves them.

What a user does with them is tested in `test_report_browser.py`.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from flax import traverse_util
from matplotlib.path import Path
from PIL import Image
from splits import make_category, make_report, make_scored

from draem_jax import config, paper, report
from draem_jax.configs import mvtec
from draem_jax.curves import of_scores
from draem_jax.pictures import panels
from draem_jax.report import charts, details, numbers, pictures

HOSTILE = 'test/</script><img src=x onerror=alert(1)>&"\'/000.png'
VOID = {'meta', 'link', 'input', 'img', 'br'}


class Page(HTMLParser):
  """Checks the nesting of the elements and keeps what a test asks for."""

  def __init__(self, text):
    super().__init__()
    self.open, self.attributes, self.ids, self.text = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, name, value) for name, value in attrs]
    self.ids += [value for name, value in attrs if name == 'id']
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('script', 'style'):
      self.text.append(data)


def read(path):
  text = path.read_text(encoding='utf-8')
  page = Page(text)
  assert len(page.ids) == len(set(page.ids))
  data = re.search('<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
  return text, page, json.loads(data[1])


def cells_of(text, name):
  """The numbers of one metric in the table."""
  row = re.search(f'<th scope="row">{name}<small>.*?</tr>', text)[0]
  return re.findall('<td class="number[^"]*">([^<]*)</td>', row)


def test_nothing_leaves_the_file(tmp_path):
  category = make_category()
  path, row = make_report(tmp_path / 'bottle', category, make_scored(category))
  report.write_comparison(tmp_path / 'report.html', [row, row])
  for file in (path, tmp_path / 'report.html'):
    text, page, _ = read(file)
    assert "default-src 'none'" in text
    assert not re.search(r'https?:|//\w+\.|@import|url\(', text)
    for tag, name, value in page.attributes:
      assert not name.startswith('on'), tag
      if name in ('src', 'srcset', 'data', 'action', 'href'):
        assert value.startswith(('data:', '#', 'bottle/')), (tag, value)


def test_metrics_stand_beside_the_papers(tmp_path):
  category = make_category()
  path, row = make_report(tmp_path, category, make_scored(category))
  text, _, _ = read(path)
  ours = round(100 * row['image_auroc'], 1)
  theirs = paper.DRAEM['bottle'].image_auroc
  shown = cells_of(text, 'Image AUROC')
  assert shown[:2] == [f'{ours:.1f}', f'{theirs:.1f}']
  assert float(shown[2].replace('−', '-')) == pytest.approx(ours - theirs)
  assert cells_of(text, 'AUPRO')[1:] == ['–', '–']
  assert '12 &lt;good&gt; images held out' in text
  assert '1 h 6 min' in text and '1,200 steps' in text


def systems_of(text):
  """The cells of the published systems, by system, and the classes of rows."""
  table = re.search('<table class="systems">.*?</table>', text, re.DOTALL)[0]
  cells, kinds = {}, {}
  for kind, label, rest in re.findall(
    '<tr(?: class="(.*?)")?><th scope="row">(.*?)</th>(.*?)</tr>', table
  ):
    name = label.partition(' <small>')[0]
    cells[name] = re.findall('<td class="number">([^<]*)</td>', rest)
    kinds[name] = kind
  return cells, kinds


def test_the_systems_of_the_paper_stand_beside_the_run(tmp_path):
  category = make_category()
  path, row = make_report(tmp_path, category, make_scored(category))
  text = path.read_text()
  cells, kinds = systems_of(text)
  assert list(cells) == [*paper.TABLE1, 'This run']
  assert [name for name, kind in kinds.items() if kind == 'ours'] == [
    'This run'
  ]
  keys = ('image_auroc', 'pixel_auroc', 'pixel_ap')
  assert cells['This run'] == [numbers.percent(row[key]) for key in keys]
  assert cells['PaDiM'] == ['99.9', '98.2', '77.3']
  assert cells['MAD'] == ['100.0', '–', '–']
  assert 'The paper’s numbers on bottle, tables 1 and 2;' in text
  assert 'table 2 has no GANomaly, no DAGAN and no MAD.' in text
  category.name = 'pens'
  path, _ = make_report(tmp_path, category, make_scored(category))
  assert 'class="systems"' not in path.read_text()


def test_the_comparison_has_the_systems_averages(tmp_path):
  category = make_category()
  _, row = make_report(tmp_path, category, make_scored(category))
  path = tmp_path / 'all.html'
  report.write_comparison(path, [row, row | {'category': 'cable'}])
  text, _, _ = read(path)
  cells, _ = systems_of(text)
  assert cells['PaDiM'] == ['96.3', '97.5', '61.3']
  assert list(cells)[-1] == 'These runs'
  assert cells['These runs'][0] == numbers.percent(row['image_auroc'])
  assert 'over these 2 of the paper’s 15 categories' in text
  report.write_comparison(path, [row, row | {'category': 'pens'}])
  assert 'class="systems"' not in path.read_text()

  classes = [row | {'category': name} for name in paper.DAGM_CLASSES]
  report.write_comparison(path, classes)
  text, _, _ = read(path)
  cells, kinds = systems_of(text)
  assert list(cells)[:-2] == list(paper.TABLE4)
  assert list(kinds.values())[-2:] == ['ours', 'ours']
  assert cells['CADN'] == ['–', '–', '–', '89.1']
  assert 'where the paper has 99.0' in text
  report.write_comparison(path, classes[1:])
  assert 'class="systems"' not in path.read_text()


def recipe_note(tmp_path, changed):
  """What the report says of the recipe of a run with these fields changed."""
  fields = {name: field.default for name, field in config.FIELDS.items()}
  nested = traverse_util.unflatten_dict(fields | changed, sep='.')
  (tmp_path / 'config.json').write_text(json.dumps({'config': nested}))
  category = make_category()
  path, _ = make_report(tmp_path, category, make_scored(category))
  return re.search('AUPRO\\.(?: This run (.*?))?</p>', path.read_text())[1]


def test_says_in_what_a_run_differs_from_the_papers(tmp_path):
  changed = {'image_size': 32, 'num_steps': 5, 'model.reconstructive_width': 4}
  assert recipe_note(tmp_path, changed) == (
    'is not the paper’s recipe: image size 32 (paper: 256); model'
    ' reconstructive width 4 (paper: 128); 1,200 steps (paper: 700 epochs).'
  )
  category = make_category()
  category.name = 'pens'
  path, _ = make_report(tmp_path, category, make_scored(category))
  assert 'recipe' not in path.read_text()


RELEASE = details.release_recipe()


@pytest.mark.parametrize(
  ('changed', 'expected'),
  [
    # None of these makes another recipe.
    ({'seed': 3, 'data.dir': 'elsewhere', 'log_every': 1}, None),
    (
      {'num_epochs': 300, 'learning_rate_milestones': (0.8, 0.9)},
      'is not the paper’s recipe: 300 epochs (paper: 700); learning rate'
      ' milestones 0.8, 0.9 (paper: 0.5714, 0.8571).',
    ),
    # These shape no weights, and the metrics all the same.
    (
      {'score.map': 'ssim', 'data.textures': 'builtin'},
      'is not the paper’s recipe: data textures builtin (paper: dtd); score'
      ' map ssim (paper: softmax).',
    ),
    (
      {'data.textures': '/home/somebody/dtd'},
      'is not the paper’s recipe: textures from a folder of images (paper:'
      ' dtd).',
    ),
    (
      RELEASE,
      'follows the recipe of the authors’ PyTorch release, not the paper’s.',
    ),
    (
      RELEASE | {'loss.weights.ssim': 0.0, 'num_steps': 9, 'num_epochs': 1},
      'follows the recipe of the authors’ PyTorch release, but for: loss'
      ' weights ssim 0 (paper: 1); 1,200 steps (paper: 700 epochs).',
    ),
  ],
)
def test_the_whole_recipe_is_compared(tmp_path, changed, expected):
  assert recipe_note(tmp_path, changed) == expected


def test_a_run_of_the_preset_is_called_the_release(tmp_path):
  preset = config.flatten(mvtec.get_config('bottle,release').to_dict())
  assert 'follows the recipe of the authors’' in recipe_note(tmp_path, preset)
  assert recipe_note(tmp_path, {}) is None


@pytest.mark.parametrize('name', RELEASE)
def test_what_is_not_all_that_the_release_does_is_not_called_so(tmp_path, name):
  others = {key: value for key, value in RELEASE.items() if key != name}
  note = recipe_note(tmp_path, others)
  assert note.startswith('is not the paper’s recipe: ')
  assert note.count('(paper: ') == len(others)


def test_what_an_older_config_lacks_is_as_in_the_paper(tmp_path):
  older = {'config': {'batch_size': 8, 'image_size': 256}}
  (tmp_path / 'config.json').write_text(json.dumps(older))
  category = make_category()
  path, _ = make_report(tmp_path, category, make_scored(category))
  assert 'recipe' not in path.read_text()


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    ({}, 'draem, images of 32 × 32 pixels, width 4 (reconstructive) and width'),
    ({'name': 'discriminative'}, 'width 2 (discriminative), float32'),
    ({'name': 'reconstructive'}, 'pixels, width 4 (reconstructive), float32'),
    ({'name': 'other'}, 'other, images of 32 × 32 pixels, float32'),
  ],
)
def test_names_the_networks_that_there_are(tmp_path, model, expected):
  widths = {'reconstructive_width': 4, 'discriminative_width': 2}
  fields = {'image_size': 32, 'dtype': 'float32', 'model': widths | model}
  (tmp_path / 'config.json').write_text(json.dumps({'config': fields}))
  category = make_category()
  path, _ = make_report(tmp_path, category, make_scored(category))
  assert expected in re.search('<dt>Networks</dt>.*', path.read_text())[0]


def test_networks_without_a_reconstruction_have_no_tile_of_it(tmp_path):
  category = make_category(count=3)
  tiles = {}
  for kind in (True, False):
    scored = make_scored(category, reconstruction=kind)
    path, _ = make_report(tmp_path, category, scored)
    text, page, data = read(path)
    assert ('Reconstruction' in page.text) == kind
    assert all(('reconstruction' in each) == kind for each in data['images'])
    assert all(
      {'input', 'heat', 'map'} <= each.keys() for each in data['images']
    )
    tiles[kind] = text.count('<div class="picture" data-layers=')
    assert f'style="--tiles: {tiles[kind]}"' in text
  assert tiles == {True: 4, False: 3}


def test_labels_are_not_read_off_the_names(tmp_path):
  category = make_category()
  scored = make_scored(category)
  # A layout may call its good images anything.
  category.labels = np.array([kind != 'good' for kind in category.test_defects])
  category.test_defects = [
    {'good': 'OK', 'crack': 'good'}.get(kind, kind)
    for kind in category.test_defects
  ]
  path, row = make_report(tmp_path, category, scored)
  text, _, data = read(path)
  assert [image['anomalous'] for image in data['images']] == (
    category.labels.tolist()
  )
  assert 'on 8 good images' in text and 'of 16 anomalous images' in text
  assert '24: 8 OK, 8 good, 8 scratch' in text
  assert row['image_auroc'] > 0.6


def test_data_holds_every_image_exactly(tmp_path):
  category = make_category()
  scored = make_scored(category)
  path, row = make_report(tmp_path, category, scored)
  _, _, data = read(path)
  assert [image['file'] for image in data['images']] == category.test_files
  assert [image['score'] for image in data['images']] == scored.score.tolist()
  assert data['threshold'] == row['threshold']
  assert data['bestThreshold'] == row['best_f1_threshold']
  for image in data['images']:
    assert ('outline' in image) == (image['defect'] != 'good')
    assert image['anomalous'] == (image['defect'] != 'good')


def test_text_of_files_and_folders_stays_text(tmp_path):
  category = make_category(count=3)
  category.test_files[1] = HOSTILE
  category.test_defects[1] = '</option><script>alert(1)</script>'
  category.name = '<b>"bottle'
  path, row = make_report(tmp_path, category, make_scored(category))
  report.write_comparison(tmp_path / 'all.html', [row, row])
  for file in (path, tmp_path / 'all.html'):
    text, page, data = read(file)
    assert text.count('<script') == 2
    assert not any(tag == 'img' for tag, *_ in page.attributes)
    assert category.name in ''.join(page.text)
  _, _, data = read(path)
  assert data['images'][1]['file'] == HOSTILE


@pytest.mark.parametrize('kept', ['good', 'anomalous', 'no masks', 'nothing'])
def test_what_a_split_does_not_define_is_a_dash_with_its_reason(tmp_path, kept):
  category = make_category(masks=kept != 'no masks')
  chosen = {
    'good': [0, 3, 6],
    'anomalous': [1, 2, 4],
    'no masks': range(24),
    'nothing': [],
  }[kept]
  category.test_images = category.test_images[list(chosen)]
  if category.test_masks is not None:
    category.test_masks = category.test_masks[list(chosen)]
  category.test_files = [category.test_files[index] for index in chosen]
  category.test_defects = [category.test_defects[index] for index in chosen]
  category.labels = category.labels[list(chosen)]
  path, _ = make_report(tmp_path, category, make_scored(category))
  text, _, data = read(path)
  assert len(data['images']) == len(chosen)
  is_missing = {
    name: cells_of(text, name)[0] == '–' for name in ('Image AP', 'Pixel AP')
  }
  assert is_missing['Image AP'] == (kept != 'no masks')
  assert is_missing['Pixel AP'] == (kept != 'anomalous')
  reason = {
    'good': 'the test split has no anomalous image',
    'anomalous': 'the test split has no good image',
    'no masks': 'the test split has no ground truth masks',
    'nothing': 'there are no test images',
  }[kept]
  assert reason in text


def decode(text):
  """RGB in [0, 1] of an embedded picture."""
  image = Image.open(io.BytesIO(base64.b64decode(text)))
  return np.asarray(image.convert('RGB')) / 255


def test_pictures_are_those_of_the_figures(tmp_path):
  category = make_category(count=3)
  scored = make_scored(category)
  path, _ = make_report(tmp_path, category, scored)
  _, _, data = read(path)
  image, anomaly_map = category.test_images[1], scored.anomaly_map[1]
  for name, expected in (
    ('input', image),
    ('reconstruction', image),
    ('heat', panels.heat_map_overlay(image, anomaly_map)),
    ('map', panels.colorize(anomaly_map)),
  ):
    error = np.abs(decode(data['images'][1][name]) - expected / 255)
    assert error.mean() < 0.06, name


def test_pictures_keep_their_shape_and_range():
  wild = np.linspace(-1, 2, 64)[:, None, None].repeat(48, 1).repeat(3, 2)
  found = decode(pictures.encode(wild, 64))
  np.testing.assert_allclose(found, np.clip(wild, 0, 1), atol=0.05)
  assert decode(pictures.encode(wild, 32)).shape == (32, 24, 3)


def test_many_pictures_are_smaller_but_never_tiny():
  assert pictures.picture_side(64, 64, 83) == 64
  assert pictures.picture_side(256, 256, 167) == 256
  assert pictures.picture_side(512, 384, 50) == 256
  assert 96 < pictures.picture_side(256, 256, 800) < 256
  assert pictures.picture_side(256, 256, 10**6) == 96


def test_outline_encloses_the_mask():
  mask = np.zeros((20, 30), bool)
  mask[0:6, 24:30] = True  # Reaches the image's border.
  mask[10:16, 4:12] = True
  mask[12:14, 6:9] = False  # A hole.
  loops = re.findall('M([^Z]*)Z', pictures.outline(mask))
  assert len(loops) == 3
  x, y = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
  centers = np.stack([x.reshape(-1), y.reshape(-1)], axis=-1)
  inside = np.zeros(20 * 30, bool)
  for loop in loops:
    corners = [tuple(map(float, pair.split())) for pair in loop.split('L')]
    inside ^= Path(corners).contains_points(centers)
  np.testing.assert_array_equal(inside.reshape(20, 30), mask)


def test_curves_in_numbers_are_those_of_the_curves():
  rng = np.random.default_rng(0)
  labels = rng.random(300) < 0.5
  scored = rng.normal(labels, 1.0)
  curves = charts.thin({'images': of_scores(scored, labels), 'pixels': None})
  assert curves['pixels'] is None
  rows = re.findall(
    '<th scope="row">(.*?)</th><td class="number">(.*?)</td>',
    charts.curve_tables(curves),
  )
  rates, recalls = rows[:7], rows[7:]
  for rate, found in rates:
    allowed = np.quantile(
      scored[~labels], 1 - float(rate) / 100, method='higher'
    )
    share = np.mean(scored[labels] > allowed)
    # Between two corners the curve is drawn, and read, as a straight line.
    assert float(found) / 100 == pytest.approx(share, abs=0.02)
  for recall, found in recalls:
    needed = np.quantile(
      scored[labels], 1 - float(recall) / 100, method='lower'
    )
    precision = np.mean(labels[scored >= needed])
    assert float(found) / 100 == pytest.approx(precision, abs=0.01)


@pytest.mark.parametrize('end', [1e-6, 0.0123, 0.446, 1.0])
def test_histogram_counts_every_image(end):
  rng = np.random.default_rng(0)
  values = rng.uniform(0, end, 200)
  labels = rng.random(200) < 0.7
  plot = charts.histogram(values, labels, end)
  top = max(map(int, re.findall(r'class="y tick"[^>]*>(\d+)<', plot)))
  assert 0 < top <= 200
  for kind, chosen in (('anomalous', labels), ('good', ~labels)):
    bars = re.search(f'<path class="{kind}" d="([^"]*)"', plot)[1]
    heights = [abs(float(bar)) for bar in re.findall(' 50v(.*?)h', bars)]
    one = 50 / np.histogram(values[labels], 40, (0, end))[0].max()
    assert sum(heights) / one == pytest.approx(chosen.sum(), abs=0.5)
  assert 3 <= len(re.findall('class="x tick"', plot)) <= 11


@pytest.mark.parametrize(
  'value, published, expected',
  [(0.99649, 0.992, '+0.4'), (0.9921, 0.992, '±0.0'), (0.5, 0.992, '−49.2')],
)
def test_difference_agrees_with_the_rounded_values(value, published, expected):
  assert numbers.difference(value, published) == expected


def test_comparison_links_to_the_reports_that_are_there(tmp_path):
  category = make_category()
  _, row = make_report(tmp_path / 'bottle', category, make_scored(category))
  gone = row | {'category': 'pens', 'aupro': None}
  report.write_comparison(tmp_path / 'report.html', [row, gone])
  text, page, _ = read(tmp_path / 'report.html')
  links = [value for tag, name, value in page.attributes if name == 'href']
  assert links == ['data:,', 'bottle/report.html']
  average = re.search('<tfoot>(.*?)</tfoot>', text)[1]
  shown = numbers.percent(row['aupro'])
  assert f'data-metric="aupro" data-value="{row["aupro"]:.9g}"' in average
  assert f'<b>{shown}</b>' in average and 'theirs' not in average
