"""One more of each named part is one entry of a table, and nothing else."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_images, small_config

from draem_jax import config as config_lib
from draem_jax import losses, score
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.training import trainer as trainer_lib
from draem_jax.workdir import claim


class Edges(models.Networks):
  """Networks of one layer that only give logits."""

  outputs = ('logits',)

  def setup(self):
    self.layer = nn.Conv(2, (3, 3))
    self.mean = self.variable('batch_stats', 'mean', jnp.zeros, (1,))

  def run(self, image, *, train):
    if train and not self.is_initializing():
      self.mean.value = image.mean()[None]
    return models.Output(None, self.layer(image))


def make_trainer(**overrides):
  config = small_config(**overrides).to_dict()
  config_lib.check(config)
  images = random_images(6)
  return trainer_lib.Trainer(config, images=images, textures=images)


def take_step(trainer):
  state, metrics = trainer.step(trainer.init_state(), 0)
  assert jnp.isfinite(metrics['loss'])
  return state, metrics


ALONE = {
  'discriminative': {'loss.weights.l2': 0.0, 'loss.weights.ssim': 0.0},
  'reconstructive': {'loss.weights.focal': 0.0, 'score.map': 'ssim'},
}


def detector_of(trainer, state):
  return Detector(
    trainer.model,
    state.evaluated,
    image_size=32,
    score_window=5,
    score_map=trainer.config['score']['map'],
    batch_size=2,
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ALONE)
@pytest.mark.parametrize('term', ['plain', 'msgms'])
def test_networks_alone_train_score_and_show(name, term):
  overrides = {'model.name': name, **ALONE[name]}
  if term == 'msgms':
    if name == 'discriminative':
      pytest.skip('there is no reconstruction to compare')
    overrides |= {'loss.weights.msgms': 1.0, 'score.map': 'msgms'}
  trainer = make_trainer(**overrides)
  state, metrics = take_step(trainer)
  used = {
    term for term, weight in trainer.config['loss']['weights'].items() if weight
  }
  assert set(metrics) == {'loss', *used}
  assert set(state.params) == {name}
  scored = detector_of(trainer, state).score_all(random_images(3))
  assert (scored.reconstruction is None) == (name == 'discriminative')
  assert scored.anomaly_map.shape == (3, 32, 32)
  assert 0 <= scored.anomaly_map.min() <= scored.anomaly_map.max() <= 1
  preview = trainer.preview(state, 0)
  assert (preview.reconstruction is None) == (name == 'discriminative')


@pytest.mark.slow
def test_networks_alone_are_those_of_the_pair():
  """The same weights give the same reconstruction, alone and in the pair."""
  pair, alone = models.Draem(4, 2), models.Reconstructive(4, 2)
  image = jnp.asarray(random_images(2) / 255, jnp.float32)
  variables = pair.init(jax.random.key(0), image, train=False)
  part = {
    kind: {'reconstructive': arrays['reconstructive']}
    for kind, arrays in variables.items()
  }
  np.testing.assert_array_equal(
    alone.apply(part, image, train=False).reconstruction,
    pair.apply(variables, image, train=False).reconstruction,
  )
  segmenter = models.Discriminative(4, 2)
  shapes = models.abstract_variables(segmenter)['params']['discriminative']
  assert shapes['encoder_block1_conv1']['kernel'].shape == (3, 3, 3, 2)


def test_more_networks_are_one_entry(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'edges', Edges)
  monkeypatch.setitem(
    config_lib.FIELDS,
    'model.name',
    dataclasses.replace(
      config_lib.FIELDS['model.name'], holds=models.MODELS.__contains__
    ),
  )
  trainer = make_trainer(**{'model.name': 'edges', **ALONE['discriminative']})
  state, _ = take_step(trainer)
  assert set(state.params) == {'layer'}
  assert detector_of(trainer, state).score_all(random_images(2)).score.any()


@pytest.mark.slow
def test_one_more_loss_is_one_entry(monkeypatch):
  term = losses.Term(
    lambda output, image, mask, **_: jnp.abs(
      output.reconstruction - image
    ).mean((1, 2, 3)),
    'reconstruction',
  )
  monkeypatch.setitem(losses.TERMS, 'l1', term)
  config = small_config().to_dict()
  config['loss']['weights']['l1'] = 2.0
  config_lib.check(config)
  images = random_images(6)
  trainer = trainer_lib.Trainer(config, images=images, textures=images)
  _, metrics = take_step(trainer)
  plain = sum(metrics[name] for name in ('l2', 'ssim', 'focal'))
  np.testing.assert_allclose(
    metrics['loss'], plain + 2 * metrics['l1'], rtol=1e-5
  )


def test_one_more_map_is_one_entry(monkeypatch):
  red = score.Map(lambda output, image: image[..., 0], 'logits')
  monkeypatch.setitem(score.MAPS, 'red', red)
  trainer = make_trainer()
  detector = Detector(
    trainer.model,
    jax.device_get(trainer.init_state().variables),
    image_size=32,
    score_window=5,
    score_map='red',
    batch_size=2,
  )
  images = random_images(2)
  np.testing.assert_allclose(
    detector.score_all(images).anomaly_map, images[..., 0] / 255, atol=1e-6
  )


def test_one_more_field_is_one_entry(monkeypatch, tmp_path):
  old = small_config().to_dict()
  data = {'training images': '0', 'textures': '0'}
  claim.claim(tmp_path, old, data)
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  field = config_lib.Field(3, lambda value: value > 2, 'take more than 2')
  monkeypatch.setitem(config_lib.FIELDS, 'data.magnification', field)
  # The default is what the older run had; its check and remedy hold at once.
  assert config_lib.default().data.magnification == 3
  assert claim.read_config(tmp_path)['data']['magnification'] == 3
  new = config_lib.complete(old)
  claim.claim(tmp_path, new, data)
  with pytest.raises(UserError, match='magnification=1: take more than 2'):
    new['data']['magnification'] = 1
    config_lib.check(new)
  new['data']['magnification'] = 4
  with pytest.raises(UserError, match='config.data.magnification=4'):
    claim.claim(tmp_path, new, data)


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'model.name': 'unet'}, 'draem, discriminative, reconstructive'),
    (
      {'model.name': 'discriminative'},
      "config.loss.weights.l2=1: the networks 'discriminative' give no",
    ),
    (
      {'model.name': 'reconstructive', 'loss.weights.focal': 0.0},
      "config.score.map='softmax': .* take one of ssim, msgms",
    ),
    (
      {f'loss.weights.{name}': 0.0 for name in ('l2', 'ssim', 'focal')},
      'are all 0',
    ),
    ({'simulator.mask': 'circles'}, 'perlin, rectangles'),
    ({'ema': 1.0}, 'below 1'),
    ({'loss.weights.l2': float('nan')}, '0 or more'),
  ],
)
def test_parts_that_do_not_fit_are_named(overrides, words):
  with pytest.raises(UserError, match=words):
    config_lib.check(small_config(**overrides).to_dict())
