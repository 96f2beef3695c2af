"""The files of results, the table, and how one more metric gets there."""

import csv
import json

import numpy as np
import pytest
from splits import make_category, make_evaluation, make_scored

from draem_jax import metrics, paper, report
from draem_jax.errors import UserError
from draem_jax.report import results

TIMING = {'train_seconds': 2.5, 'images_per_second': 9.0, 'device': '1 x cpu'}


def row(category, value):
  return {'category': category} | dict.fromkeys(metrics.METRICS, value)


def cells(line):
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_metrics_stand_beside_the_papers():
  lines = results.format_table([row('bottle', 0.5)]).splitlines()
  assert cells(lines[0])[:2] == ['category', 'image AUROC']
  assert cells(lines[2]) == [
    *('bottle', '50.0 (99.2)', '50.0', '50.0 (99.1)', '50.0 (86.5)', '50.0')
  ]
  assert len(lines) == 3 and len({len(line) for line in lines}) == 1


def test_the_average_is_over_the_categories_that_have_the_metric(tmp_path):
  rows = [row('bottle', 0.5), row('cable', 0.9)]
  rows[1]['aupro'] = None
  results.write_table(tmp_path / 'results.md', rows)
  text = (tmp_path / 'results.md').read_text()
  lines = text.partition('\n\n## ')[0].splitlines()
  last = cells(lines[-1])
  assert last[0] == 'average'
  assert last[1] == '70.0 (95.5)' and last[5] == '50.0'
  assert cells(lines[-2])[5] == '-'


def test_no_published_average_where_a_category_has_none():
  table = results.format_table([row('bottle', 0.5), row('pens', 0.9)])
  assert cells(table.splitlines()[-1])[1] == '70.0'


def test_average_is_over_what_exists_and_the_papers_over_all():
  rows = [row('bottle', 0.9), row('cable', 0.7)]
  rows[1]['aupro'] = None
  ours, theirs = results.average(rows)
  assert ours['image_auroc'] == pytest.approx(0.8) and ours['aupro'] == 0.9
  assert theirs['pixel_ap'] == pytest.approx((0.865 + 0.524) / 2)
  assert ours['accuracy'] is None
  assert set(theirs) == {'image_auroc', 'pixel_auroc', 'pixel_ap'}
  assert results.average([*rows, row('pens', 0.9)])[1] == {}


def test_other_networks_are_not_compared_with_draem():
  rows = [row(name, 0.5) | {'networks': 'riad'} for name in ('bottle', 'cable')]
  table = results.format_table(rows).splitlines()
  # Table 1 of RIAD: 99.9 and 81.9.
  assert [cells(line)[1] for line in table[2:]] == [
    '50.0 (99.9)',
    '50.0 (81.9)',
    '50.0 (90.9)',
  ]
  rows[1]['networks'] = 'discriminative'
  assert results.published(rows[1]) == {}
  assert results.average(rows)[1] == {}


def systems_of(path):
  """The cells of the table of systems, by the system, and the note."""
  _, _, text = path.read_text().partition('## Published systems\n\n')
  note, _, table = text.partition('\n\n')
  return {row[0]: row[1:] for row in map(cells, table.splitlines())}, note


def test_the_systems_of_the_paper_stand_behind_the_table(tmp_path):
  path = tmp_path / 'results.md'
  rows = [row('bottle', 0.5), row('cable', 0.9)]
  rows[0]['pixel_ap'] = rows[1]['pixel_ap'] = None
  results.write_table(path, rows)
  table, note = systems_of(path)
  assert list(table) == [
    *('system', '----------', 'GANomaly', 'DAGAN', 'US', 'RIAD', 'MAD'),
    *('PaDiM', 'DRÆM', 'These runs'),
  ]
  assert table['system'] == ['image AUROC', 'pixel AUROC', 'pixel AP']
  # Of bottle and cable: 99.9 and 92.7; 98.2 and 96.7; 77.3 and 45.4.
  assert table['PaDiM'] == ['96.3', '97.5', '61.3']
  assert table['MAD'] == ['97.0', '-', '-']
  assert table['These runs'] == ['70.0', '70.0', '-']
  assert 'over these 2 of the paper’s 15 categories, computed' in note
  results.write_table(path, [row('bottle', 0.5), row('pens', 0.9)])
  assert 'Published' not in path.read_text()


def test_all_categories_have_the_averages_as_printed(tmp_path):
  rows = [row(category, 0.5) for category in reversed(paper.CATEGORIES)]
  results.write_table(tmp_path / 'results.md', rows)
  table, note = systems_of(tmp_path / 'results.md')
  # Its column gives 95.4.
  assert table['PaDiM'] == ['95.5', '97.4', '55.0'] and '95.4' in note
  assert table['DRÆM'] == ['98.0', '97.3', '68.4']
  assert results.average(rows)[1] == pytest.approx(
    {'image_auroc': 0.98, 'pixel_auroc': 0.973, 'pixel_ap': 0.684}
  )


def test_the_ten_classes_of_dagm_have_table_4(tmp_path):
  path = tmp_path / 'results.md'
  rates = ('true_positive_rate', 'true_negative_rate', 'accuracy')
  found = {key: 0.25 * place for place, key in enumerate(rates)}
  found |= {f'best_f1_{key}': 0.1 * place for place, key in enumerate(rates)}
  rows = [row(name, 0.5) | found for name in paper.DAGM_CLASSES]
  rows[0] |= {'accuracy': 0.0}
  results.write_table(path, rows)
  table, note = systems_of(path)
  assert table['system'] == ['image AUROC', 'TPR', 'TNR', 'CA']
  assert table['MAD'] == ['82.4', '78.7', '85.7', '66.2'] and '84.8' in note
  assert table['CADN'] == ['-', '-', '-', '89.1']
  assert table['These runs'] == ['50.0', '0.0', '25.0', '45.0']
  assert table['These runs, best F1'] == ['50.0', '0.0', '10.0', '20.0']
  assert results.average(rows)[1] == {'image_auroc': 0.99}
  assert results.published({'category': 'Class1'}) == {}
  # The rates are missing in what an older version evaluated.
  results.write_table(path, [row(name, 0.5) for name in paper.DAGM_CLASSES])
  assert list(systems_of(path)[0].values())[-1] == ['50.0', '-', '-', '-']
  # Averages over the ten are nothing to set beside nine.
  results.write_table(path, rows[1:])
  assert 'Published' not in path.read_text()
  assert results.average(rows[1:])[1] == {}


def test_what_is_equal_in_equal_runs_lies_apart_from_the_timing(tmp_path):
  category = make_category()
  evaluation = make_evaluation(category, make_scored(category))
  slower = TIMING | {'train_seconds': 99.0, 'device': '8 x other'}
  first = results.write(tmp_path / 'a', evaluation, steps=7, timing=TIMING)
  second = results.write(tmp_path / 'b', evaluation, steps=7, timing=slower)
  for name in ('results.json', 'predictions.csv'):
    one, other = (tmp_path / folder / name for folder in 'ab')
    assert one.read_bytes() == other.read_bytes()
  found = json.loads((tmp_path / 'b' / 'results.json').read_text())
  assert not found.keys() & TIMING.keys() and found['steps'] == 7
  assert first == found | TIMING and second == found | slower
  assert results.read(tmp_path / 'b') == second


def test_results_are_the_metrics_and_what_the_threshold_does(tmp_path):
  category = make_category()
  evaluation = make_evaluation(category, make_scored(category))
  found = evaluation.results()
  assert list(found) == [
    *('category', 'image_auroc', 'image_ap', 'pixel_auroc', 'pixel_ap'),
    *('aupro', 'threshold', 'threshold_source', 'true_positive_rate'),
    *('false_positive_rate', 'true_negative_rate', 'accuracy', 'f1'),
    *('best_f1', 'best_f1_threshold', 'best_f1_true_positive_rate'),
    *('best_f1_true_negative_rate', 'best_f1_accuracy'),
  ]
  labels, scores = evaluation.labels, evaluation.scored.score
  assert found['image_auroc'] == metrics.auroc(scores, labels)
  assert found['aupro'] == metrics.aupro(
    evaluation.scored.anomaly_map, category.test_masks >= 0.5
  )
  called = scores > found['threshold']
  assert found['true_positive_rate'] == np.mean(called[labels])
  assert found['false_positive_rate'] == np.mean(called[~labels])
  assert found['true_negative_rate'] == np.mean(~called[~labels])
  assert found['accuracy'] == np.mean(called == labels)
  assert found['best_f1'] >= found['f1']
  best = scores > found['best_f1_threshold']
  assert found['best_f1_true_positive_rate'] == np.mean(best[labels])
  assert found['best_f1_true_negative_rate'] == np.mean(~best[~labels])
  assert found['best_f1_accuracy'] == np.mean(best == labels)

  results.write(tmp_path, evaluation, steps=1, timing=TIMING)
  with (tmp_path / 'predictions.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [each['file'] for each in rows] == category.test_files
  assert [each['defect'] for each in rows] == category.test_defects
  assert [np.float32(each['score']) for each in rows] == scores.tolist()
  assert [each['is_anomalous'] == 'true' for each in rows] == called.tolist()


def test_older_results_are_read(tmp_path):
  # As they were before the timing had a file, and before AUPRO.
  old = row('bottle', 0.5) | TIMING | {'steps': 600, 'f1': 0.75}
  del old['aupro']
  (tmp_path / 'results.json').write_text(json.dumps(old))
  found = results.read(tmp_path)
  assert found == old | {'aupro': None}
  assert '| -' in results.format_table([old])
  for each in (old, found):
    path = tmp_path / 'report.html'
    report.write_comparison(path, [each, row('cable', 0.75) | TIMING])
    text = path.read_text()
    assert '600' in text and '1 x cpu' in text and '2.5 s' in text
    assert 'data-value="0.625"' in text  # The average image AUROC.


@pytest.mark.parametrize(
  ('content', 'word'), [(None, 'does not exist'), ('{"a', 'damaged')]
)
def test_a_folder_without_results_says_so(tmp_path, content, word):
  if content is not None:
    (tmp_path / 'results.json').write_text(content)
  with pytest.raises(UserError, match=f'results.json.*{word}'):
    results.read(tmp_path)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('results.json', {'image_auroc': float('nan')}),
    ('results.json', {'image_auroc': 1.5}),
    ('results.json', {'pixel_ap': '0.5'}),
    ('results.json', {'aupro': True}),
    ('results.json', {'threshold': float('inf')}),
    ('results.json', {'category': 3}),
    ('results.json', {'category': None}),
    ('results.json', {'steps': []}),
    ('timing.json', {'train_seconds': float('nan')}),
    ('timing.json', {'device': {}}),
  ],
)
def test_results_that_mean_nothing_are_named(tmp_path, name, change):
  for file, content in (
    ('results.json', row('bottle', 0.5)),
    ('timing.json', TIMING),
  ):
    more = change if file == name else {}
    (tmp_path / file).write_text(json.dumps(content | more))
  with pytest.raises(UserError) as error:
    results.read(tmp_path)
  message, (field,) = str(error.value), change
  assert message.startswith(f'{tmp_path / name} is damaged ({field!r} is ')
  assert 'run draem_jax.main in this workdir again' in message


def test_a_metric_is_one_entry(tmp_path, monkeypatch):
  monkeypatch.setitem(
    metrics.METRICS,
    'low_aupro',
    metrics.Metric(
      name='AUROC <squared>',
      meaning='a made-up number',
      level='pixel',
      compute=lambda split: split.pixel.auroc**2,
      paper='pixel_auroc',
    ),
  )
  category = make_category()
  evaluation = make_evaluation(category, make_scored(category))
  results.write(tmp_path / 'bottle', evaluation, steps=1, timing=TIMING)
  content = json.loads((tmp_path / 'bottle' / 'results.json').read_text())
  value = content['low_aupro']
  assert value == content['pixel_auroc'] ** 2
  shown = f'{100 * value:.1f}'

  head, _, line = results.format_table([content]).splitlines()
  assert cells(head)[-1] == 'AUROC <squared>'
  assert cells(line)[-1] == f'{shown} (99.1)'

  path = report.write_report(tmp_path / 'bottle', evaluation, content)
  text = path.read_text()
  _, _, rest = text.partition('AUROC &lt;squared&gt;<small>a made-up number')
  assert rest.partition('</tr>')[0].count(f'>{shown}<') == 1
  report.write_comparison(tmp_path / 'report.html', [content])
  text = (tmp_path / 'report.html').read_text()
  assert 'AUROC &lt;squared&gt;' in text
  assert f'data-metric="low_aupro" data-value="{value:.9g}"' in text
