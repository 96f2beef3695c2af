"""What the docs name is there."""

import pathlib
import pkgutil
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_function_and_module_that_a_page_names_is_there(page):
  text = page.read_text(encoding='utf-8')
  names = re.findall(r'`(draem_jax(?:\.\w+)+)`', text)
  for name in names:
    assert pkgutil.resolve_name(name) is not None, name
  if page.name == 'fidelity.md':
    assert len(names) > 25


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page):
  text = page.read_text(encoding='utf-8')
  for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
    assert (page.parent / target).exists(), target
