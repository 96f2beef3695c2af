"""Small trees of files, each as the data set of its layout describes itself."""

import json

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32


def write(path, image, **options):
  """Saves an array as the image that the suffix says, folders included."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **options)


def picture(number):
  """An image unlike those of other numbers."""
  rng = np.random.default_rng(number)
  return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mask(value=255, top=4, left=8, height=8, width=12):
  """A rectangle of a value on 0."""
  image = np.zeros((HEIGHT, WIDTH), np.uint8)
  image[top : top + height, left : left + width] = value
  return image


def pictures(folder, *names, first=0):
  """Writes images, each its own."""
  for number, name in enumerate(names, first):
    write(folder / name, picture(number))


def mvtec(root):
  """Of MPDD, which has the same."""
  part = root / 'tubes'
  pictures(part / 'train/good', '000.png', '001.png')
  pictures(part / 'test/good', '000.png', first=10)
  pictures(part / 'test/anomalous', '000.png', first=20)
  write(part / 'ground_truth/anomalous/000_mask.png', mask())
  return 'tubes'


def dagm(root):
  """One class with a line each of good and defective."""
  for number, part in enumerate(('Train', 'Test')):
    folder = root / 'Class1' / part
    pictures(folder, '0001.PNG', '0002.PNG', first=10 * number)
    write(folder / 'Label/0002_label.PNG', mask())
    lines = [
      '1',
      '1\t0\t0001.PNG\t0\t0',
      '2\t1\t0002.PNG\t0\t0002_label.PNG',
    ]
    (folder / 'Label/Labels.txt').write_text('\r\n'.join(lines))
  return 'Class1'


def visa(root):
  """Two objects, of which one is looked at, and the other just named."""
  images = root / 'candle/Data/Images'
  pictures(images / 'Normal', '0000.JPG', '0001.JPG', '0002.JPG')
  pictures(images / 'Anomaly', '000.JPG', first=20)
  write(root / 'candle/Data/Masks/Anomaly/000.png', mask(value=3))
  (root / 'pcb1').mkdir()
  lines = [
    'object,split,label,image,mask',
    'candle,train,normal,candle/Data/Images/Normal/0000.JPG,',
    'candle,train,normal,candle/Data/Images/Normal/0002.JPG,',
    'candle,test,normal,candle/Data/Images/Normal/0001.JPG,',
    'candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,'
    'candle/Data/Masks/Anomaly/000.png',
    'pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,',
  ]
  (root / 'split_csv').mkdir()
  (root / 'split_csv/1cls.csv').write_text('\n'.join(lines) + '\n')
  return 'candle'


def btad(root):
  """Images as BMP, masks as PNG."""
  part = root / '01'
  pictures(part / 'train/ok', '0000.bmp', '0001.bmp')
  pictures(part / 'test/ok', '0000.bmp', first=10)
  pictures(part / 'test/ko', '0000.bmp', first=20)
  write(part / 'ground_truth/ko/0000.png', mask())
  return '01'


def ksdd(root):
  """Four items of two parts; of items 2 and 3 one part is defective."""
  for number in range(1, 5):
    folder = root / 'KolektorSDD' / f'kos{number:02}'
    for part in range(2):
      pictures(folder, f'Part{part}.jpg', first=10 * number + part)
      value = int(number in (2, 3) and part == 1)
      write(folder / f'Part{part}_label.bmp', mask(value))
  return 'KolektorSDD'


def ksdd2(root):
  """A defective image in each part."""
  for number, part in enumerate(('train', 'test')):
    folder = root / 'KolektorSDD2' / part
    for index in range(3):
      name = 10000 + index
      pictures(folder, f'{name}.png', first=10 * number + index)
      write(folder / f'{name}_GT.png', mask(255 * (index == 1)))
  return 'KolektorSDD2'


DEFECTS = [
  {
    'defect_name': 'missing_pin',
    'pixel_value': 240,
    'saturation_threshold': 1.0,
    'relative_saturation': True,
  },
  {
    'defect_name': 'extra_pin',
    'pixel_value': 255,
    'saturation_threshold': 12,
    'relative_saturation': False,
  },
]


def mvtec_loco(root):
  """Two defects in one image, which overlap, and one in another."""
  part = root / 'pushpins'
  pictures(part / 'train/good', '000.png', '001.png')
  pictures(part / 'validation/good', '000.png', '001.png', first=5)
  pictures(part / 'test/good', '000.png', first=10)
  pictures(part / 'test/logical_anomalies', '000.png', first=20)
  pictures(part / 'test/structural_anomalies', '000.png', first=30)
  truth = part / 'ground_truth'
  write(truth / 'logical_anomalies/000/000.png', mask(240))
  write(truth / 'logical_anomalies/000/001.png', mask(255, top=8, left=12))
  write(truth / 'structural_anomalies/000/000.png', mask(240, height=4))
  (part / 'defects_config.json').write_text(json.dumps(DEFECTS))
  return 'pushpins'


def mvtec_ad_2(root):
  """With images that have no labels."""
  part = root / 'can'
  pictures(part / 'train/good', '000_regular.png', '001_regular.png')
  pictures(part / 'validation/good', '000_regular.png', first=5)
  pictures(part / 'test_public/good', '000_regular.png', first=10)
  pictures(part / 'test_public/bad', '000_regular.png', first=20)
  truth = part / 'test_public/ground_truth/bad'
  write(truth / '000_regular_mask.png', mask())
  pictures(part / 'test_private', '000.png', '001.png', first=40)
  pictures(part / 'test_private_mixed', '000.png', first=50)
  return 'can'


def real_iad(root):
  """One category of two views."""
  part = root / 'realiad_1024' / 'audiojack'
  entries = {'train': [], 'test': []}
  for number, (split, kind) in enumerate(
    [('train', 'OK'), ('train', 'OK'), ('test', 'OK'), ('test', 'AK')]
  ):
    folder = 'OK' if kind == 'OK' else 'NG/AK'
    name = f'{folder}/S000{number}/audiojack_000{number}_{kind}_C1'
    write(part / f'{name}.jpg', picture(number))
    entry = {
      'category': 'audiojack',
      'anomaly_class': kind,
      'image_path': f'{name}.jpg',
      'mask_path': None,
    }
    if kind != 'OK':
      write(part / f'{name}_mask.png', mask())
      entry['mask_path'] = f'{name}_mask.png'
    entries[split].append(entry)
  content = {'meta': {'normal_class': 'OK', 'prefix': 'audiojack/'}} | entries
  (root / 'realiad_jsons').mkdir()
  path = root / 'realiad_jsons' / 'audiojack.json'
  path.write_text(json.dumps(content))
  return 'audiojack'


TABLE = """file,split,label,mask
photos/a.png,train,good,
photos/b.png,train,good,
photos/c.png,validation,good,
photos/d.png,test,good,
photos/e.png,test,scratch,masks/e.png
"""


def csv(root):
  """A table in the folder of categories."""
  pictures(root / 'photos', *(f'{name}.png' for name in 'abcde'))
  write(root / 'masks/e.png', mask())
  (root / 'parts.csv').write_text(TABLE)
  return 'parts'


# Of each the function that writes it and returns the category's name.
TREES = {
  'mvtec': mvtec,
  'dagm': dagm,
  'visa': visa,
  'btad': btad,
  'ksdd': ksdd,
  'ksdd2': ksdd2,
  'mvtec_loco': mvtec_loco,
  'mvtec_ad_2': mvtec_ad_2,
  'real_iad': real_iad,
  'csv': csv,
}
