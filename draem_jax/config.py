"""Checks of a config's values, each with the field's name and the remedy."""

from collections.abc import Mapping
from typing import Any

from draem_jax.errors import UserError
from draem_jax.simulator import augment


def check(config: Mapping[str, Any]) -> None:
  """Checks what can be checked before any file is read.

  Raises:
    UserError: for the first field whose value cannot work.
  """
  size = config['image_size']
  if size < 32 or size % 32:
    near = max(32, round(size / 32) * 32)
    raise UserError(
      f'config.image_size={size} is not a multiple of 32, which the pooling of'
      f' the networks needs: take {near}'
    )
  for name in (
    'batch_size',
    'checkpoint_every',
    'keep_checkpoints',
    'log_every',
    'panel_every',
    'eval.batch_size',
    'model.discriminative_width',
    'model.reconstructive_width',
  ):
    _demand(config, name, lambda value: value >= 1, 'take 1 or more')
  _demand(config, 'score_window', lambda v: v > 0 and v % 2, 'take an odd one')
  if config['num_steps'] < 0 or config['num_epochs'] < 0:
    raise UserError('config.num_steps and config.num_epochs: take 0 or more')
  _demand(config, 'profile_steps', lambda value: value >= 0, 'take 0 or more')
  _demand(config, 'learning_rate', lambda value: value > 0, 'take more than 0')
  for name in (
    'eval.mask_threshold',
    'eval.threshold_quantile',
    'eval.pixel_quantile',
    'simulator.anomaly_probability',
    'simulator.rotation_probability',
    'data.max_device_share',
  ):
    _demand(config, name, lambda value: 0 <= value <= 1, 'take 0 to 1')
  _demand(config, 'eval.holdout', lambda v: 0 <= v < 1, 'take 0 to below 1')
  _one_of(config, 'dtype', ('float32', 'bfloat16'))
  _one_of(config, 'sampling', ('epochs', 'with_replacement'))
  _one_of(config, 'loss.data_range', ('one', 'from_batch'))
  for name in (
    'simulator.opacity',
    'simulator.rotation_degrees',
    'simulator.threshold',
  ):
    _demand(
      config,
      name,
      lambda value: len(value) == 2 and value[0] <= value[1],
      'take an interval (low, high)',
    )
  simulator = config['simulator']
  for name in simulator['augmentations']:
    if name not in augment.AUGMENTATIONS:
      raise UserError(
        f'config.simulator.augmentations has no {name!r}: take some of'
        f' {", ".join(sorted(augment.AUGMENTATIONS))}'
      )
  if simulator['num_augmentations'] > len(simulator['augmentations']):
    raise UserError(
      f'config.simulator.num_augmentations={simulator["num_augmentations"]} is'
      ' more than config.simulator.augmentations has'
    )


def _get(config: Mapping[str, Any], name: str) -> Any:
  for part in name.split('.'):
    config = config[part]
  return config


def _demand(config, name, holds, remedy: str) -> None:
  value = _get(config, name)
  if not holds(value):
    raise UserError(f'config.{name}={value!r}: {remedy}')


def _one_of(config, name: str, choices: tuple[str, ...]) -> None:
  remedy = f'take one of {", ".join(choices)}'
  _demand(config, name, lambda value: value in choices, remedy)
