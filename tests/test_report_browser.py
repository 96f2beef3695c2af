"""What a user does with a report, in headless Chromium where there is one."""

import shutil

import numpy as np
import pytest
from splits import make_category, make_report, make_scored

from draem_jax import metrics, report
from draem_jax.pictures import panels

webdriver = pytest.importorskip('selenium.webdriver')
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

_FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
)
PHONE, DESKTOP = (360, 740), (1400, 900)
HOSTILE = 'test/</script><img src=x onerror=alert(1)>&"\'/000.png'


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  """A browser that looks nothing up."""
  names = ('chromium', 'chromium-browser', 'google-chrome')
  binary = next(filter(None, map(shutil.which, names)), None)
  driver = shutil.which('chromedriver')
  if binary is None or driver is None:
    pytest.skip('chromium and chromedriver are not installed')
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for flag in _FLAGS:
    options.add_argument(flag)
  profile = tmp_path_factory.mktemp('profile')
  options.add_argument(f'--user-data-dir={profile}')
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  browser = webdriver.Chrome(
    options=options, service=webdriver.ChromeService(driver)
  )
  yield browser
  browser.quit()


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  """Reports, and what they are made of."""
  folder = tmp_path_factory.mktemp('reports')
  category = make_category()
  # So long a name that it must break, so hostile that it must be escaped.
  category.test_files[1] = HOSTILE
  category.test_files[2] = f'test/scratch/{"x" * 80}.png'
  scored = make_scored(category)
  path, results = make_report(folder / 'bottle', category, scored)
  rows = [results, results | {'category': 'c' * 60}]
  rows += [results | {'category': 'cable', 'image_auroc': 0.25}]
  report.write_comparison(folder / 'report.html', rows)
  labels = np.array([kind != 'good' for kind in category.test_defects])
  files = [file.removeprefix('test/') for file in category.test_files]
  return {
    'path': path,
    'comparison': folder / 'report.html',
    'results': results,
    'scores': scored.score.astype(float),
    'labels': labels,
    'defects': category.test_defects,
    'files': files,
  }


class Window:
  """The browser with a page open, and words for what a user does there."""

  def __init__(self, browser, path, size, scheme='light'):
    self.browser = browser
    width, height = size
    browser.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride',
      {
        'width': width,
        'height': height,
        'deviceScaleFactor': 1,
        'mobile': width < 600,
      },
    )
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    browser.execute_cdp_cmd(
      'Emulation.setEmulatedMedia', {'features': [feature]}
    )
    browser.get_log('browser')
    browser.get(path.as_uri())

  def run(self, script, *args):
    return self.browser.execute_script(f'return {script}', *args)

  def find(self, selector):
    return self.browser.find_element(By.CSS_SELECTOR, selector)

  def all(self, selector):
    return self.browser.find_elements(By.CSS_SELECTOR, selector)

  def text(self, selector):
    return self.run('document.querySelector(arguments[0]).innerText', selector)

  def wait(self, condition):
    WebDriverWait(self.browser, 10).until(lambda _: condition())

  def press(self, *keys):
    for key in keys:
      self.browser.switch_to.active_element.send_keys(key)

  def type_threshold(self, value):
    field = self.find('#threshold')
    field.send_keys(Keys.CONTROL + 'a')
    field.send_keys(repr(value))

  def check(self, name, value):
    self.find(f'[name={name}][value={value}] + span').click()

  def shown(self):
    """Names in the gallery, in their order."""
    return self.run(
      "[...document.querySelectorAll('#gallery .name')]"
      '.map((name) => name.textContent)'
    )

  def numbers(self):
    ids = ('tp', 'fp', 'tn', 'fn', 'tpr', 'fpr', 'precision', 'f1')
    return {name: self.text(f'#{name}') for name in ids}

  def overflow(self):
    return self.run('document.documentElement.scrollWidth - innerWidth')

  def assert_quiet(self):
    assert self.browser.get_log('browser') == []
    assert self.run("performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def window(chromium, split):
  window = Window(chromium, split['path'], DESKTOP)
  yield window
  window.assert_quiet()


def percent(value):
  return '–' if value is None else f'{100 * value:.1f} %'


def expected_numbers(split, threshold):
  rates = metrics.rates_at_threshold(
    split['scores'], split['labels'], threshold
  )
  called = rates.true_positives + rates.false_positives
  return {
    'tp': str(rates.true_positives),
    'fp': str(rates.false_positives),
    'tn': str(rates.true_negatives),
    'fn': str(rates.false_negatives),
    'tpr': percent(rates.true_positive_rate),
    'fpr': percent(rates.false_positive_rate),
    'precision': percent(rates.true_positives / called if called else None),
    'f1': percent(rates.f1),
  }


def by_score(split, chosen=None, *, ascending=False):
  order = np.argsort(split['scores'])
  if not ascending:
    order = order[::-1]
  return [
    split['files'][index] for index in order if chosen is None or chosen[index]
  ]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', [PHONE, DESKTOP])
def test_layout_holds(chromium, split, size, scheme):
  for name in ('path', 'comparison'):
    window = Window(chromium, split[name], size, scheme)
    assert window.run('innerWidth') == size[0]
    window.run("document.querySelectorAll('details').forEach(d => d.open = 1)")
    assert window.overflow() <= 0
    color = window.run(
      'getComputedStyle(document.documentElement).backgroundColor'
    )
    levels = [int(level) for level in color[4:-1].split(',')]
    assert all(level > 200 for level in levels) == (scheme == 'light')
    if name == 'path':
      window.check('view', 'table')
      assert window.overflow() <= 0
      window.run("document.querySelector('#table button').click()")
      assert window.overflow() <= 0
      panel = window.find('#panel')
      assert panel.rect['width'] <= size[0]
      assert panel.rect['height'] <= size[1]
      assert window.run(
        'arguments[0].scrollWidth <= arguments[0].clientWidth', panel
      )
    window.assert_quiet()


@pytest.mark.parametrize('threshold', [0.0, 0.2, 0.3751, 0.62, 5.0])
def test_typed_threshold_moves_the_numbers(window, split, threshold):
  window.type_threshold(threshold)
  assert window.numbers() == expected_numbers(split, threshold)


def test_thresholds_of_detector_and_best_f1(window, split):
  results = split['results']
  detector = expected_numbers(split, results['threshold'])
  assert window.numbers() == detector
  window.find('#use-best').click()
  best = window.numbers()
  assert best == expected_numbers(split, results['best_f1_threshold'])
  assert best['f1'] == percent(results['best_f1'])
  window.find('#use-detector').click()
  assert window.numbers() == detector


def test_keys_and_pointer_move_the_slider(window, split):
  slider = window.find('#slider')
  window.run('arguments[0].focus()', slider)
  window.press(Keys.HOME)
  assert window.numbers() == expected_numbers(split, 0)
  window.press(*[Keys.PAGE_UP] * 8, *[Keys.ARROW_RIGHT] * 3, Keys.ARROW_LEFT)
  value = float(window.run('arguments[0].value', slider))
  end = split['scores'].max()
  assert value == pytest.approx(end * (8 * 20 + 2) / 500)
  assert window.numbers() == expected_numbers(split, value)
  announced = window.numbers()['tp'] + ' found'
  window.wait(
    lambda: announced in window.run("document.all['announcement'].textContent")
  )

  webdriver.ActionChains(window.browser).click(slider).perform()
  value = float(window.run('arguments[0].value', slider))
  assert value == pytest.approx(end / 2, rel=0.02)
  plot = window.find('#histogram .plot')
  offset = plot.rect['width'] // 4
  actions = webdriver.ActionChains(window.browser)
  actions.move_to_element_with_offset(plot, offset, 0).click().perform()
  value = float(window.run('arguments[0].value', slider))
  assert value == pytest.approx(end * 3 / 4, rel=0.02)
  assert window.numbers() == expected_numbers(split, value)
  # The line, the thumb and the bars share one axis.
  line = window.find('#histogram .line').rect
  place = (line['x'] + line['width'] / 2 - plot.rect['x']) / plot.rect['width']
  assert place == pytest.approx(value / end, abs=0.01)


def test_marks_stand_on_the_curves(window, split):
  window.type_threshold(0.5)
  rates = metrics.rates_at_threshold(split['scores'], split['labels'], 0.5)
  for chart, x, y in (
    ('roc', rates.false_positive_rate, rates.true_positive_rate),
    (
      'precision-recall',
      rates.true_positive_rate,
      rates.true_positives / (rates.true_positives + rates.false_positives),
    ),
  ):
    plot = window.find(f'#{chart} .plot').rect
    mark = window.find(f'#{chart} .mark').rect
    middle = mark['x'] + mark['width'] / 2, mark['y'] + mark['height'] / 2
    assert (middle[0] - plot['x']) / plot['width'] == pytest.approx(x, abs=0.01)
    height = (middle[1] - plot['y']) / plot['height']
    assert 1 - height == pytest.approx(y, abs=0.01)
  window.type_threshold(5.0)  # Nothing is called: there is no precision.
  assert not window.find('#precision-recall .mark').is_displayed()


def test_gallery_sorts(window, split):
  assert window.shown() == by_score(split)
  sort = Select(window.find('#sort'))
  sort.select_by_value('low')
  assert window.shown() == by_score(split, ascending=True)
  sort.select_by_value('wrong')
  threshold = split['results']['threshold']
  sign = np.where(split['labels'], 1, -1)
  order = np.argsort((split['scores'] - threshold) * sign)
  assert window.shown() == [split['files'][index] for index in order]
  sort.select_by_value('file')
  names = window.shown()
  assert names.index('crack/004.png') < names.index('crack/010.png')
  assert sorted(names) == sorted(split['files'])


def test_gallery_filters_by_defect_and_by_mistake(window, split):
  window.type_threshold(0.5)
  called, labels = split['scores'] > 0.5, split['labels']
  chosen = {
    'missed': labels & ~called,
    'false-alarm': ~labels & called,
    'found': labels & called,
    'passed': ~labels & ~called,
    'mistakes': labels != called,
    'all': np.full(len(labels), True),
  }
  assert all(mask.any() for mask in chosen.values())
  for outcome, mask in chosen.items():
    window.check('outcome', outcome)
    assert window.shown() == by_score(split, mask)
    assert window.text('#shown') == f'{mask.sum()} of {len(labels)} images'
    chip = window.find(f'[name=outcome][value={outcome}] + span')
    assert chip.text.split()[-1] == str(mask.sum())
  is_crack = np.array([defect == 'crack' for defect in split['defects']])
  Select(window.find('#defect')).select_by_value('crack')
  assert window.shown() == by_score(split, is_crack)
  window.find('[data-show=missed]').click()
  assert window.shown() == by_score(split, is_crack & chosen['missed'])
  # The gallery follows the threshold.
  window.type_threshold(0.0)
  assert window.shown() == []
  assert window.text('#shown') == 'No image is like that.'


def test_table_shows_what_the_gallery_shows(window, split):
  window.check('view', 'table')
  assert not window.find('#gallery').is_displayed()
  threshold = split['results']['threshold']
  rows = [
    [cell.text for cell in row.find_elements(By.CSS_SELECTOR, 'th, td')]
    for row in window.all('#table tbody tr')
  ]
  order = np.argsort(split['scores'])[::-1]
  for row, index in zip(rows, order, strict=True):
    score = split['scores'][index]
    assert row[:3] == [
      split['files'][index],
      split['defects'][index],
      panels.number(score),
    ]
    assert row[3] == ('anomalous' if score > threshold else 'good')
    is_right = (score > threshold) == split['labels'][index]
    assert (row[4] in ('found', 'passed')) == is_right


def test_panel_opens_turns_and_closes_by_keyboard(window, split):
  names = by_score(split)
  title = lambda: window.text('#panel-title')
  cards = window.all('#gallery .card')
  window.run('arguments[0].focus()', cards[1])
  window.press(Keys.ENTER)
  panel = window.find('#panel')
  assert panel.is_displayed() and title() == names[1]
  captions = [caption.text for caption in window.all('#panel figcaption')]
  assert captions[:3] == ['Input', 'Reconstruction', 'Heat map']
  assert captions[3].startswith('Anomaly map')
  window.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
  assert title() == names[3] and window.text('#place') == '4 of 24'
  window.press(Keys.ARROW_LEFT)
  assert title() == names[2]
  window.press(Keys.HOME, Keys.ARROW_LEFT)
  assert title() == names[-1]
  window.find('#next').click()
  assert title() == names[0]
  window.press(Keys.ESCAPE)
  assert not panel.is_displayed()
  # The browser hands the focus back only after the panel is out of sight.
  window.wait(
    lambda: (
      window.run("document.activeElement.querySelector('.name')?.innerText")
      == names[0]
    )
  )
  window.press(Keys.ENTER)
  window.find('#close').click()
  assert not panel.is_displayed()


def test_panel_shows_the_pictures_and_the_outline(window, split):
  index = split['files'].index('crack/004.png')
  card = window.all('#gallery .card')[
    by_score(split).index(split['files'][index])
  ]
  card.click()
  window.wait(
    lambda: window.run(
      "[...document.querySelectorAll('#panel img')]"
      '.every((image) => image.complete && image.naturalWidth === 32)'
    )
  )
  assert len(window.all('#panel img')) == 4
  assert all(
    'crack/004.png' in image.accessible_name
    for image in window.all('#panel img')
  )
  outline = window.find('#panel .outline path').rect
  frame = window.find('#panel [data-layers="map outline"]').rect
  # The defect of image 4 covers rows 4 to 16 and columns 6 to 14 of 32.
  left = (outline['x'] - frame['x']) / frame['width'] * 32
  top = (outline['y'] - frame['y']) / frame['height'] * 32
  assert (left, top) == pytest.approx((6, 4), abs=0.3)
  assert outline['width'] / frame['width'] * 32 == pytest.approx(8, abs=0.6)
  assert outline['height'] / frame['height'] * 32 == pytest.approx(12, abs=0.6)


@pytest.mark.parametrize('size', [PHONE, DESKTOP])
def test_panel_without_a_reconstruction_has_no_gap(chromium, tmp_path, size):
  category = make_category(count=6)
  scored = make_scored(category, reconstruction=False)
  path, _ = make_report(tmp_path, category, scored)
  window = Window(chromium, path, size)
  window.run("document.querySelector('#gallery .card').click()")
  captions = [caption.text for caption in window.all('#panel figcaption')]
  assert captions[:2] == ['Input', 'Heat map'] and len(captions) == 3
  tiles = window.find('#panel .tiles').rect
  last = window.all('#panel figure')[-1].rect
  if size == DESKTOP:
    end = tiles['x'] + tiles['width'] - (last['x'] + last['width'])
    assert end == pytest.approx(28, abs=1)  # The padding alone.
  assert window.overflow() <= 0
  window.assert_quiet()


def test_pictures_are_decoded_when_they_come_near(chromium, split):
  window = Window(chromium, split['path'], PHONE)
  count = lambda: len(window.all('#gallery img'))
  assert count() == 0
  window.run("document.getElementById('pictures').scrollIntoView()")
  window.wait(lambda: count() > 0)
  assert count() < 2 * len(split['files'])
  window.check('view', 'input')
  assert not window.find('#gallery .heat').is_displayed()
  assert window.find('#gallery .input').is_displayed()


def test_everything_to_operate_has_a_name(window):
  window.browser.execute_cdp_cmd('Accessibility.enable', {})
  nodes = window.browser.execute_cdp_cmd('Accessibility.getFullAXTree', {})
  roles = {'button', 'slider', 'radio', 'combobox', 'spinbutton', 'checkbox'}
  roles |= {'image', 'table', 'region', 'dialog', 'heading'}
  seen = set()
  for node in nodes['nodes']:
    role = node.get('role', {}).get('value')
    if not node['ignored'] and role in roles:
      seen.add(role)
      assert node['name']['value'].strip(), (role, node['properties'])
  assert seen >= roles - {'dialog'}
  headings = [heading.tag_name for heading in window.all('h1, h2, h3')]
  assert headings[0] == 'h1' and headings.count('h1') == 1


def test_comparison_sorts_and_chooses_a_metric(chromium, split):
  window = Window(chromium, split['comparison'], PHONE)
  names = lambda: [cell.text for cell in window.all('#comparison tbody th')]
  assert names() == ['bottle', 'c' * 60, 'cable']
  window.find('[data-metric=image_auroc] button').click()
  assert names()[-1] == 'cable'
  window.find('[data-metric=image_auroc] button').click()
  assert names()[0] == 'cable'
  head = window.find('th[data-metric=image_auroc]')
  assert head.get_attribute('aria-sort') == 'ascending'
  assert not window.find('td[data-metric=aupro]').is_displayed()
  window.check('metric', 'aupro')
  assert window.find('td[data-metric=aupro]').is_displayed()
  assert not window.find('td[data-metric=image_auroc]').is_displayed()
  assert window.overflow() <= 0
  window.assert_quiet()
  window.find('#comparison a').click()
  assert window.text('h1') == 'bottle'
