"""What a user does on the service's page, in headless Chromium."""

import csv
import json

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('selenium.webdriver')

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from serving import make_detector, picture, running
from test_report_browser import DESKTOP, PHONE, chromium  # noqa: F401

from draem_jax.data import images
from draem_jax.pictures import panels

FILES = {
  'spot.png': picture(square=(10, 20, 20)),
  'clean.jpg': picture((60, 40), format='JPEG'),
  'scan.tif': picture((90, 50), (5, 6, 30), format='TIFF'),
  'broken.png': picture(square=(10, 20, 20))[:-30],
}


@pytest.fixture(scope='module')
def client():
  with running(title='bottle <b>&') as client:
    yield client


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photos')
  for name, content in FILES.items():
    (folder / name).write_bytes(content)
  return folder


class Page:
  """The page open in a browser."""

  def __init__(self, browser, client, downloads, size, scheme='light'):
    self.browser = browser
    width, height = size
    metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1}
    browser.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride', metrics | {'mobile': width < 600}
    )
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    browser.execute_cdp_cmd(
      'Emulation.setEmulatedMedia', {'features': [feature]}
    )
    browser.execute_cdp_cmd(
      'Browser.setDownloadBehavior',
      {'behavior': 'allow', 'downloadPath': str(downloads)},
    )
    browser.get_log('browser')
    browser.get(f'http://127.0.0.1:{client.port}/')

  def run(self, script, *args):
    return self.browser.execute_script(f'return {script}', *args)

  def find(self, selector):
    return self.browser.find_element(By.CSS_SELECTOR, selector)

  def wait(self, condition):
    WebDriverWait(self.browser, 20).until(lambda _: condition())

  def choose(self, folder, *names):
    paths = '\n'.join(str(folder / name) for name in names)
    self.find('#files').send_keys(paths)
    self.wait(lambda: 'under way' not in self.find('#shown').text)

  def cards(self):
    return {
      card.find_element(By.CSS_SELECTOR, '.name').text: card
      for card in self.browser.find_elements(By.CSS_SELECTOR, '.result')
    }

  def verdicts(self):
    return {
      name: card.find_element(By.CSS_SELECTOR, '.verdict').text
      for name, card in self.cards().items()
    }

  def type_threshold(self, value):
    field = self.find('#threshold')
    field.send_keys(Keys.CONTROL + 'a')
    field.send_keys(repr(value))
    self.run('new Promise((done) => requestAnimationFrame(done))')

  def pixel(self, name, x, y):
    """Color of a place of a picture on the page."""
    canvas = self.cards()[name].find_element(By.CSS_SELECTOR, 'canvas')
    return self.run(
      'Array.from(arguments[0].getContext("2d")'
      '.getImageData(arguments[1], arguments[2], 1, 1).data)',
      *(canvas, x, y),
    )[:3]


def test_pictures_are_scored_shown_and_saved(
  chromium,  # noqa: F811
  client,
  photos,
  tmp_path,
):
  page = Page(chromium, client, tmp_path, DESKTOP)
  assert page.find('h1').text == 'bottle <b>&'
  assert not page.find('#results').is_displayed()
  page.choose(photos, *FILES)
  expected = {
    'spot.png': 'anomalous',
    'clean.jpg': 'good',
    'scan.tif': 'anomalous',
    'broken.png': 'not scored',
  }
  assert page.verdicts() == expected
  assert page.find('#shown').text == '4 pictures, 2 anomalous, 1 not scored'
  broken = page.cards()['broken.png']
  assert 'broken.png cannot be read as an image' in broken.text
  # The heat map over the square, the picture beside it, and a box around.
  image = images.decode_image(FILES['spot.png'], '')
  found = make_detector()(image)
  ((left, top, width, height),) = [region.box for region in found.regions[0]]
  overlay = panels.heat_map_overlay(image, found.anomaly_map[0])
  for x, y in ((left + 10, top + 10), (5, 35)):
    color = page.pixel('spot.png', x, y)
    assert color == pytest.approx(overlay[y, x].tolist(), abs=3)
  box = [0, 158, 115]
  frame = (left + width // 2, top - 2)
  assert page.pixel('spot.png', *frame) == box
  page.find('#boxes').click()
  assert page.pixel('spot.png', *frame) != box
  page.find('#heat').click()
  assert page.pixel('spot.png', left + 10, top + 10) == [255, 0, 0]
  page.find('#heat').click()
  page.find('#boxes').click()

  # The threshold moves verdicts and boxes.
  page.type_threshold(1)
  assert page.verdicts()['spot.png'] == 'good'
  assert page.pixel('spot.png', *frame) != box
  page.type_threshold(0.1)
  assert set(page.verdicts().values()) == {'anomalous', 'not scored'}
  page.type_threshold(0.45)
  assert page.verdicts() == expected
  assert page.pixel('spot.png', *frame) == box
  page.find('#use-detector').click()
  page.wait(lambda: page.find('#slider').get_attribute('value') == '0.5')

  page.find('#save-table').click()
  table = tmp_path / 'predictions.csv'
  page.wait(table.exists)
  with table.open(newline='') as file:
    rows = {row['file']: row for row in csv.DictReader(file)}
  assert set(rows) == set(FILES) - {'broken.png'}
  assert float(rows['spot.png']['score']) == float(found.score[0])
  assert rows['spot.png']['is_anomalous'] == 'true'
  assert float(rows['spot.png']['area']) == pytest.approx(
    found.mask.mean(), abs=1e-6
  )
  page.cards()['spot.png'].find_element(By.CSS_SELECTOR, '.save').click()
  saved = tmp_path / 'spot-anomalies.png'
  page.wait(saved.exists)
  assert images.read_image(saved).shape == (40, 60, 3)
  assert list(images.read_image(saved)[frame[1], frame[0]]) == box

  page.find('#clear').click()
  assert not page.cards() and not page.find('#results').is_displayed()
  # The browser tells of the one that was refused, and, as `pixel` reads the
  # canvas, that this is slow.
  log = [
    entry
    for entry in page.browser.get_log('browser')
    if 'getImageData' not in entry['message']
  ]
  assert len(log) == 1 and '422' in log[0]['message'], json.dumps(log)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('size', [PHONE, DESKTOP])
def test_layout_holds(chromium, client, photos, tmp_path, size, scheme):  # noqa: F811
  page = Page(chromium, client, tmp_path, size, scheme)
  page.choose(photos, 'spot.png', 'clean.jpg')
  overflow = 'document.documentElement.scrollWidth - innerWidth'
  assert page.run(overflow) <= 0
  color = page.run('getComputedStyle(document.documentElement).backgroundColor')
  levels = [int(level) for level in color[4:-1].split(',')]
  assert all(level > 200 for level in levels) == (scheme == 'light')
  names = page.run(
    "performance.getEntriesByType('resource').map((entry) => entry.name)"
  )
  assert {name.partition('?')[0] for name in names} <= {
    f'http://127.0.0.1:{client.port}/predict'
  } | {name for name in names if name.startswith('blob:')}
  assert page.browser.get_log('browser') == []
