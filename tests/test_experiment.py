import types
import zlib

import numpy as np
import pytest
from PIL import Image
from small import random_images, small_config
from splits import make_category, make_evaluation, make_scored

from configs import mvtec
from draem_jax import command, evaluate, experiment, main
from draem_jax.data.category import Category
from draem_jax.data.on_demand import OnDemand
from draem_jax.errors import UserError
from draem_jax.report import results


def test_the_holdout_is_a_share_and_apart():
  images = random_images(20)
  kept, held_out = experiment.split_holdout(images, share=0.1, seed=3)
  assert len(kept) == 18 and len(held_out) == 2
  both = np.concatenate([kept, held_out])
  assert len(np.unique(both, axis=0)) == len(np.unique(images, axis=0)) == 20
  again = experiment.split_holdout(images, share=0.1, seed=3)
  np.testing.assert_array_equal(again[1], held_out)


def test_without_a_share_every_image_is_trained_on():
  images = random_images(5)
  kept, held_out = experiment.split_holdout(images, share=0.0, seed=0)
  assert len(kept) == 5 and len(held_out) == 0


def test_a_small_share_holds_out_one_and_never_all():
  kept, held_out = experiment.split_holdout(
    random_images(3), share=0.01, seed=0
  )
  assert len(kept) == 2 and len(held_out) == 1
  with pytest.raises(UserError, match='config.eval.holdout'):
    experiment.split_holdout(random_images(1), share=0.5, seed=0)


@pytest.mark.parametrize(
  ('arguments', 'category', 'share'),
  [
    ('bottle', 'bottle', 0),
    ('widgets', 'widgets', 0.1),
    ('all', 'bottle', 0),
    ('all', 'widgets', 0.1),
    ('all,paper', 'widgets', 0),
    ('widgets,paper', 'widgets', 0),
    ('widgets,release', 'widgets', 0),
  ],
)
def test_only_a_category_without_published_figures_holds_out(
  arguments, category, share
):
  config = mvtec.get_config(arguments)
  config.category = category
  assert experiment.holdout_share(config.to_dict()) == share
  config.eval.holdout = 0.25
  assert experiment.holdout_share(config.to_dict()) == 0.25


class Claimed(Exception):
  """Raised in place of what comes after a claim."""


@pytest.mark.parametrize(('holdout', 'stored'), [(-1.0, 0.1), (0.25, 0.25)])
def test_what_was_decided_is_what_is_stored(
  tmp_path, monkeypatch, holdout, stored
):
  def claim(workdir, config, fingerprint):
    raise Claimed(config['eval']['holdout'])

  monkeypatch.setattr(experiment.claim, 'claim', claim)
  good = tmp_path / 'data' / 'pens' / 'train' / 'good'
  good.mkdir(parents=True)
  for index, image in enumerate(random_images(4)):
    Image.fromarray(image).save(good / f'{index}.png')
  config = small_config(
    **{
      'data.dir': str(tmp_path / 'data'),
      'data.tfds_dir': str(tmp_path / 'tfds'),
      'data.textures': 'builtin',
      'eval.holdout': holdout,
    }
  ).to_dict()
  with pytest.raises(Claimed, match=f'^{stored}$'):
    experiment.train_and_evaluate(config, tmp_path / 'run')
  # The caller's config is as it was.
  assert config['eval']['holdout'] == holdout


def test_the_fingerprint_decodes_nothing_and_stays_what_it_was():
  config = small_config().to_dict()
  images, array = random_images(3), random_images(5, seed=1)
  one = experiment._fingerprint(config, images, array)
  assert one == {
    'training images': f'{zlib.crc32(images.tobytes()):08x}',
    'textures': f'{zlib.crc32(array.tobytes()):08x}',
  }
  reads = []
  bank = OnDemand(
    lambda place: reads.append(place) or array[place], list('abcde'), 32
  )
  reads.clear()
  lazy = experiment._fingerprint(config, images, bank)
  assert not reads
  # Neither is compared with the other.
  assert lazy.keys() & one.keys() == {'training images'}


@pytest.mark.parametrize(
  'changes',
  [
    {'simulator.texture': 'color'},
    {'simulator.anomaly_probability': 0.0},
  ],
)
def test_textures_that_nobody_looks_at_are_not_read(
  tmp_path, monkeypatch, changes
):
  def fail(*args, **options):
    raise AssertionError('read')

  category = Category(
    name='pens',
    train_images=random_images(3),
    train_files=[],
    test_images=random_images(3)[:0],
    test_masks=None,
    test_files=[],
    test_defects=[],
    labels=np.zeros(0, bool),
  )
  monkeypatch.setattr(experiment.textures, 'load_textures', fail)
  monkeypatch.setattr(experiment, 'load_category', lambda *a, **k: category)
  config = small_config(**changes).to_dict()
  _, images = experiment._load(config, tmp_path)
  assert images.shape == (1, 32, 32, 3)
  fingerprint = experiment._fingerprint(config, random_images(3), images)
  assert fingerprint.keys() == {'training images'}


def evaluation_of(score, labels=None):
  """An evaluation in which every image has this score."""
  category = make_category(count=6)
  if labels is not None:
    category.labels[:] = labels
  scored = make_scored(category)
  scored.score[:] = score
  return make_evaluation(category, scored)


@pytest.mark.parametrize(
  ('score', 'labels', 'steps', 'fails'),
  [
    (0.0, None, 6, True),
    (1.0, None, 6, True),
    # Trained for a moment, small networks see nothing yet.
    (0.41, None, 6, False),
    (0.41, None, 1000, True),
    # Of what was only evaluated, no training is to blame.
    (0.0, None, 0, False),
    # That all is good may be so.
    (0.0, False, 6, False),
    (np.linspace(0, 1e-6, 6, dtype=np.float32), None, 1000, False),
  ],
)
def test_networks_that_see_no_difference_are_a_failure(
  score, labels, steps, fails
):
  evaluation = evaluation_of(score, labels)
  found = evaluate.find_blindness(evaluation, steps=steps)
  assert (found is not None) is fails
  if fails:
    assert f'each of 6 test images has the score {score:.3g}' in found


def test_images_that_are_the_same_have_the_same_score():
  evaluation = evaluation_of(0.0)
  evaluation.category.test_images[:] = 7
  assert evaluate.find_blindness(evaluation, steps=6) is None


def test_a_failure_is_written_and_ends_in_another_status(
  tmp_path, monkeypatch, capsys
):
  evaluation = evaluation_of(0.0)
  timing = {'train_seconds': 1.0, 'images_per_second': 1.0, 'device': 'x'}
  row = results.write(
    tmp_path, evaluation, steps=6, timing=timing, failure='it came to nothing'
  )
  assert results.read(tmp_path)['failure'] == 'it came to nothing'
  monkeypatch.setattr(
    main.flags,
    'FLAGS',
    types.SimpleNamespace(
      config='', workdir=str(tmp_path), processes=1, only=None
    ),
  )
  monkeypatch.setattr(main, '_check_flags', lambda *_: None)
  monkeypatch.setattr(main.command, 'read_config', lambda: small_config())
  monkeypatch.setattr(main.command, 'use_compilation_cache', lambda: None)
  monkeypatch.setattr(experiment, 'list_categories', lambda _: ['pens'])
  monkeypatch.setattr(experiment, 'train_and_evaluate', lambda *_: row)
  with pytest.raises(command.Stopped, match='^bottle: it came to') as stop:
    main.main([])
  assert stop.value.status == 1 and 'report:' in capsys.readouterr().out
