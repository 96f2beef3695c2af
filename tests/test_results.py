import pytest

from draem_jax import results


def row(category, value):
  metrics = ('image_auroc', 'image_ap', 'pixel_auroc', 'pixel_ap', 'aupro')
  return {'category': category} | dict.fromkeys(metrics, value)


def cells(line):
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_figures_stand_beside_the_papers():
  lines = results.format_table([row('bottle', 0.5)]).splitlines()
  assert cells(lines[0])[:2] == ['category', 'image AUROC']
  assert cells(lines[2]) == [
    *('bottle', '50.0 (99.2)', '50.0', '50.0 (99.1)', '50.0 (86.5)', '50.0')
  ]
  assert len(lines) == 3 and len({len(line) for line in lines}) == 1


def test_the_average_is_over_the_categories_that_have_the_figure(tmp_path):
  rows = [row('bottle', 0.5), row('cable', 0.9)]
  rows[1]['aupro'] = None
  results.write_table(tmp_path / 'results.md', rows)
  text = (tmp_path / 'results.md').read_text()
  last = cells(text.splitlines()[-1])
  assert last[0] == 'average'
  assert last[1] == '70.0 (95.5)' and last[5] == '50.0'
  assert cells(text.splitlines()[-2])[5] == '-'


def test_no_published_average_where_a_category_has_none():
  table = results.format_table([row('bottle', 0.5), row('pens', 0.9)])
  assert cells(table.splitlines()[-1])[1] == '70.0'


def test_the_published_averages_are_those_of_the_paper():
  columns = zip(*results.PAPER.values(), strict=True)
  averages = [sum(column) / 15 for column in columns]
  assert averages == pytest.approx([98.0, 97.3, 68.4], abs=0.06)
