import pytest
from small import small_config

from draem_jax import config
from draem_jax.errors import UserError


@pytest.mark.parametrize('preset', ['paper', 'release'])
def test_the_presets_pass(preset):
  from configs import mvtec

  config.check(mvtec.get_config(f'bottle,{preset}').to_dict())


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('image_size', 100, 'take 96'),
    ('image_size', 0, 'take 32'),
    ('batch_size', 0, '1 or more'),
    ('num_steps', -1, '0 or more'),
    ('profile_steps', -1, '0 or more'),
    ('learning_rate', 0.0, 'more than 0'),
    ('score_window', 4, 'odd'),
    ('dtype', 'float16', 'float32, bfloat16'),
    ('sampling', 'shuffled', 'epochs, with_replacement'),
    ('loss.data_range', 'two', 'one, from_batch'),
    ('eval.holdout', 1.0, 'below 1'),
    ('eval.holdout', -0.5, 'or -1'),
    ('eval.threshold_quantile', 1.5, '0 to 1'),
    ('simulator.threshold', (0.7, 0.3), 'interval'),
    ('simulator.augmentations', ('blur',), "no 'blur'"),
    ('simulator.num_augmentations', 11, '0 to 10'),
    ('model.reconstructive_width', 0, '1 or more'),
  ],
)
def test_a_value_that_cannot_work_is_named(field, value, words):
  with pytest.raises(UserError) as error:
    config.check(small_config(**{field: value}).to_dict())
  message = str(error.value)
  assert f'config.{field}' in message and words in message
  assert '\n' not in message


def test_presets_differ_in_values_only():
  from configs import mvtec

  def fields(tree, prefix=''):
    for name, value in tree.items():
      if isinstance(value, dict):
        yield from fields(value, f'{prefix}{name}.')
      else:
        yield prefix + name

  paper = mvtec.get_config('bottle').to_dict()
  release = mvtec.get_config('bottle,release').to_dict()
  assert list(fields(paper)) == list(fields(release))
  assert paper['simulator']['rotation_probability'] == 1
  assert release['simulator']['rotation_probability'] == 0.3
  with pytest.raises(ValueError, match='unknown preset'):
    mvtec.get_config('bottle,fast')
