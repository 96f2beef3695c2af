import copy

import pytest
from small import small_config

from draem_jax import config
from draem_jax.configs import demo, mvtec
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


NAN, INF = float('nan'), float('inf')
# What means nothing in any field.
HOSTILE = (
  *(None, NAN, -INF, 1e300, 10**400, 10**5000, -1, -(10**30), b'x', object()),
  *('\0', 'x' * 5000, 'x' * 300, '\ud800', ['a', 1], (1, 'a'), (1,) * 9),
  *((NAN, 1), (0, INF), (1, 0), ((0, 1), (0, 1)), (True, True)),
)
# What means something in some fields only.
ODD = (
  *(
    True,
    0,
    1.5,
    8.0,
    10**8,
    2**63,
    2**64,
    '',
    'x',
    'a/b',
    '..',
    (),
    (0.5, 0.5),
    {},
  ),
)


def assign(name, value):
  values = copy.deepcopy(config.complete({}))
  *parents, last = name.split('.')
  place = values
  for parent in parents:
    place = place[parent]
  place[last] = value
  return values


@pytest.mark.parametrize('name', config.FIELDS)
def test_what_means_nothing_is_refused_in_one_line(name):
  meant = {'eval.holdout': [-1], 'learning_rate_milestones': [(1, 0)]}
  meant = meant.get(name, [])
  for value in HOSTILE:
    if value in meant:
      continue
    with pytest.raises(UserError) as error:
      config.check(assign(name, value))
    message = str(error.value)
    assert f'config.{name}' in message and '\n' not in message
    assert len(message) < 400
  for value in ODD:
    try:
      config.check(assign(name, value))
    except UserError as error:
      assert '\n' not in str(error) and len(str(error)) < 400
    else:
      # Of the kind of the default, and of a size that machines have.
      default = config.FIELDS[name].default
      if isinstance(default, float):
        assert type(value) in (int, float) and abs(value) < 3e38
      elif not isinstance(default, tuple):
        # Of this one, text stands for a number.
        assert type(value) is type(default) or name == 'data.resolution'
      if isinstance(default, int):
        assert value < 2**32


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('seed', 2**32, 'take 4294967295 or less'),
    ('image_size', 10**8, 'take 8192 or less'),
    ('model.discriminative_width', 10**8, 'take 4096 or less'),
    ('batch_size', 10**8, 'take 65536 or less'),
    ('batch_size', True, '1 or more, whole'),
    ('batch_size', 8.0, '1 or more, whole'),
    ('num_epochs', 10**30, 'or less'),
    ('score_window', 10**30 + 1, 'odd'),
    ('simulator.rotation_degrees', (-INF, INF), '-360 to 360'),
    ('simulator.rectangles', (1.5, 2.5), 'whole numbers'),
    ('learning_rate_milestones', (0.5, NAN), '0 to 1'),
    ('learning_rate_milestones', (0.5, 0.5), 'each once'),
    ('learning_rate', 1e-300, 'more than 0'),
    ('eval.mask_threshold', 0, 'more than 0'),
    ('data.dir', '', 'name of a folder'),
    ('category', 'a/b', 'without slashes'),
  ],
)
def test_values_that_look_like_some_are_refused(field, value, words):
  with pytest.raises(UserError) as error:
    config.check(assign(field, value))
  assert f'config.{field}=' in str(error.value) and words in str(error.value)


def test_what_can_be_meant_is_taken():
  for name, value in {
    'seed': 2**32 - 1,
    'learning_rate_milestones': (),
    'simulator.opacity': (0, 1),
    'data.tfds_dir': '',
    'learning_rate': 1,
    'eval.holdout': -1,
    'category': 'b\udcff',
  }.items():
    config.check(assign(name, value))


def test_one_image_of_one_cell_has_no_variance():
  with pytest.raises(UserError, match='config.batch_size=1 with'):
    config.check(small_config(batch_size=1).to_dict())


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'sede': 1}, 'config.sede is no field: did you mean config.seed?'),
    ({'model': 3}, 'config.model is no field'),
    ({'seed': {'a': 1}}, 'config.seed.a is no field'),
    ({'model': {}}, 'config.model.name is missing'),
    ({'study': {'name': 'x'}}, 'run it with draem_jax.study'),
  ],
)
def test_what_is_no_field_is_named(change, words):
  with pytest.raises(UserError) as error:
    config.check(config.complete({}) | change)
  assert words in str(error.value)


def test_the_light_preset_is_the_best_on_small_networks():
  light = mvtec.get_config('pens,light')
  assert light.to_dict() == mvtec.get_config('pens,best,small').to_dict()
  assert light.image_size == 64 and light.num_steps == 450
  assert light.loss.data_range == 'one' and light.eval.holdout == 0


@pytest.mark.parametrize('preset', ['paper', 'release', 'best'])
def test_small_networks_train_at_ten_times_the_rate(preset):
  whole = mvtec.get_config(f'pens,{preset}')
  small = mvtec.get_config(f'pens,{preset},small')
  assert small.learning_rate == pytest.approx(10 * whole.learning_rate)
  assert small.model.reconstructive_width == 16
  assert small.simulator.to_dict() == whole.simulator.to_dict()


@pytest.mark.parametrize(
  'arguments',
  ['pens,better', 'pens,paper,large', 'pens,paper,small,x', 'pens,small'],
)
def test_what_is_no_preset_is_refused(arguments):
  with pytest.raises(ValueError, match='preset'):
    mvtec.get_config(arguments)


def test_the_demo_is_trained_by_light_or_by_the_preset_that_is_named():
  light, own = mvtec.get_config('demo,light'), demo.get_config()
  assert demo.get_config('').to_dict() == own.to_dict()
  flat = config.flatten(light.to_dict()), config.flatten(own.to_dict())
  different = {name for name in flat[0] if flat[0][name] != flat[1][name]}
  assert {name for name in different if not name.startswith('data.')} == {
    'num_steps',
    'simulator.rotation_degrees',
    'simulator.good_textures',
    'eval.holdout',
    'checkpoint_every',
    'panel_every',
  }
  release = demo.get_config('release')
  assert (own.optimizer, release.optimizer) == ('muon', 'adam')
  both = own.model.to_dict(), release.model.to_dict()
  assert both[0] | {'reconstruction_gradient': 1.0} == both[1]
  assert own.image_size == release.image_size == light.image_size
  for each in (own, release):
    config.check(each.to_dict())
  with pytest.raises(ValueError, match='fast'):
    demo.get_config('fast')
