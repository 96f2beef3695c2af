"""What validation images and a data set's own metrics come to in a run."""

import json
import types

import pytest
from small import small_config
from trees import TREES
from untrained import random_variables

from draem_jax import config as config_lib
from draem_jax import experiment
from draem_jax.errors import UserError
from draem_jax.training.writer import Writer


def make_config(root, category, **changes):
  config = small_config(
    **{
      'category': category,
      'data.dir': str(root),
      'data.tfds_dir': str(root.parent / 'tfds'),
      'simulator.texture': 'color',
      'eval.holdout': -1.0,
      'eval.mask_threshold': 0.5,
      'data.layout': 'auto',
      'num_steps': 2,
      **changes,
    }
  )
  return config.to_dict()


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  return folder


def run(config, workdir):
  """A run but for its training; random weights stand for what that gives."""

  def train(trainer, workdir, **_):
    variables = random_variables(trainer.config['model'], seed=0)
    writer = Writer(workdir, first_step=0, num_steps=2, batch_size=4)
    writer.close()
    state = types.SimpleNamespace(evaluated=variables, step=2, record=None)
    return state, writer

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment.train, 'train', train)
    return experiment.train_and_evaluate(config, workdir)


@pytest.mark.parametrize(
  ('layout', 'keys', 'count'),
  [
    ('mvtec_loco', ['spro_05'], 2),
    ('mvtec_ad_2', ['aupro_05', 'seg_f1'], 1),
  ],
)
def test_validation_chooses_and_own_metrics_are_reported(
  root, tmp_path, layout, keys, count
):
  name = TREES[layout](root)
  found = run(make_config(root, name), tmp_path / 'run')
  extra = [key for key in ('spro_05', 'aupro_05', 'seg_f1') if key in found]
  assert extra == keys
  assert all(0 <= found[key] <= 1 for key in keys)
  thresholds = json.loads((tmp_path / 'run/thresholds.json').read_text())
  assert (
    thresholds['source'] == f'the {count} validation images of the data set'
  )
  stored = json.loads((tmp_path / 'run/config.json').read_text())['config']
  assert stored['data']['layout'] == layout
  assert stored['eval']['holdout'] == 0
  text = (tmp_path / 'run/report.html').read_text()
  assert 'trained on these images' not in ' '.join(text.split())
  for key, title in (
    ('spro_05', 'SPRO 0.05'),
    ('aupro_05', 'AUPRO 0.05'),
    ('seg_f1', 'SegF1'),
  ):
    assert (title.lower() in text.lower()) == (key in keys)


def test_a_share_held_out_beside_validation_is_refused(root):
  name = TREES['mvtec_loco'](root)
  config = make_config(root, name, **{'eval.holdout': 0.2})
  with pytest.raises(UserError, match=r'holdout=0\.2: pushpins has validation'):
    experiment.decide(config)
  assert (
    experiment.decide(make_config(root, name, **{'eval.holdout': 0.0}))['eval'][
      'holdout'
    ]
    == 0
  )


def test_without_validation_a_tenth_is_held_out(root):
  name = TREES['btad'](root)
  decided = experiment.decide(make_config(root, name))
  assert decided['data']['layout'] == 'btad'
  assert decided['eval']['holdout'] == 0.1
  # Nothing is looked up that the config says.
  config = make_config(root / 'nowhere', name, **{'data.layout': 'mvtec'})
  assert experiment.decide(config)['data']['layout'] == 'mvtec'


def test_a_config_that_was_stored_before_means_what_it_meant(root):
  # By the name of its layout, or without one.
  name = TREES['mvtec'](root)
  for layout in ('mvtec', None):
    config = make_config(root, name, **{'data.layout': 'mvtec'})
    if layout is None:
      del config['data']['layout']
    decided = experiment.decide(config_lib.complete(config))
    assert decided['data']['layout'] == 'mvtec'


def test_all_categories_are_read_before_the_first_is_trained(root):
  TREES['mvtec'](root)
  TREES['ksdd2'](root)
  config = make_config(root, 'all')
  names = experiment.list_categories(config)
  assert names == ['KolektorSDD2', 'tubes']
  (root / 'KolektorSDD2/test/10001_GT.png').unlink()
  with pytest.raises(UserError, match='10001 has no mask'):
    experiment.list_categories(config)
