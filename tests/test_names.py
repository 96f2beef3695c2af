"""Names: their bytes are kept, a person sees one line, a disk takes them."""

import os
import unicodedata

import pytest

from draem_jax import names
from draem_jax.pictures.naming import picture_name

GBK = os.fsdecode('瓶子'.encode('gbk'))


@pytest.mark.parametrize('name', ['a.png', 'dræm', GBK, 'two\nlines', ''])
def test_bytes_come_back(name):
  assert names.from_bytes(names.to_bytes(name)) == name
  assert names.to_bytes(name) == name.encode('utf-8', 'surrogateescape')


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('a b/dræm 瓶 👩\u200d🔧.png', 'a b/dræm 瓶 👩\u200d🔧.png'),
    ('two\nlines\r\t', r'two\nlines\r\t'),
    ('\x1b[31mred\x7f\x85', r'\x1b[31mred\x7f\x85'),
    ('\u2028\u202egpj.exe', r'\u2028\u202egpj.exe'),
    (os.fsdecode(b'caf\xe9'), r'caf\xe9'),
    # A UTF-8 name where the locale knows ASCII only.
    ('瓶'.encode().decode('ascii', 'surrogateescape'), '瓶'),
    ('\ud800', r'\ud800'),
  ],
)
def test_a_person_sees_one_line(name, shown):
  assert names.shown(name) == shown
  shown.encode()


def test_what_looks_the_same_is_the_same():
  one, other = (unicodedata.normalize(form, 'é') for form in ('NFC', 'NFD'))
  assert one != other
  assert names.canonical(one) == names.canonical(other)


@pytest.mark.parametrize('letter', ['x', '瓶', '\udcff'])
def test_a_shortened_name_fits_and_is_its_own(tmp_path, letter):
  part = letter * (255 // len(names.to_bytes(letter)))
  assert names.shorten(part) == part
  longer = [names.shorten(part + more, '.png') for more in ('', 'a', 'b')]
  assert len(set(longer)) == 3
  for name in longer:
    assert name.endswith('.png')
    (tmp_path / name).touch()


def test_a_folder_has_a_name_that_libraries_take(tmp_path):
  assert names.folder('metal nut_2 ü') == 'metal nut_2 ü'
  odd = [
    GBK,
    'a\nb',
    'a_b',
    'a[b',
    'a\\b',
    'a*b',
    'x' * 255,
    'x' * 250 + '\n' * 5,
  ]
  folders = [names.folder(name) for name in odd]
  assert len(set(folders)) == len(odd)
  for folder in folders:
    folder.encode()
    assert not set(names.MISTAKEN) & set(folder)
    assert names.shown(folder) == folder
    (tmp_path / folder).mkdir()


def test_no_two_images_share_a_picture():
  images = [
    'a.png',
    'a.jpg',
    'a.jpeg',
    'a.PNG',
    'a.png.png',
    'a.jpg.png',
    'a.jpg.png.png',
    'x/a.png',
    'x.png/a.tif',
    'a.b.png',
    'x' * 251 + '.png',
    'x' * 251 + '.jpg',
    'x' * 250 + 'y.jpg',
  ]
  pictures = [picture_name(name) for name in images]
  assert len(set(pictures)) == len(images)
  assert all(name.endswith('.png') for name in pictures)
  assert all(len(name) <= 255 for name in pictures)
  assert pictures[:2] == ['a.png', 'a.jpg.png']
