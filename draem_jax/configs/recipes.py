"""The recipes beside each other, and the best one without each of its parts.

  python -m draem_jax.study --config=configs/recipes.py:small \
    --workdir=studies/recipes --config.data.dir=DATA \
    --categories=bottle,sawn_timber --seeds=0,1,2

The rows `paper`, `release` and `best` are the presets of `configs/mvtec.py`,
and each other row is `best` with the release's way in one respect.
docs/recipes.md has what came of it. Behind a colon stands `small`, the small
setting of the README.
"""

from typing import Any

from ml_collections import config_dict

from draem_jax import config as config_lib
from draem_jax import paper
from draem_jax.configs import mvtec
from draem_jax.studies import plan

# The fields that make a part of the best recipe.
PARTS = {
  'without_muon': ('optimizer', 'learning_rate'),
  'without_warmup': ('learning_rate_warmup',),
  'without_fewer_steps': ('num_epochs', 'num_steps'),
  'without_ema': ('ema',),
  'without_stopped_gradient': ('model.reconstruction_gradient',),
  'without_range': ('loss.data_range',),
  'without_gamma': ('loss.gamma', 'loss.weights.focal'),
  'without_cells': ('simulator.cells',),
  'without_sets': ('simulator.unions', 'simulator.intersections'),
  'without_plain': ('simulator.augmentation_probability',),
  'without_good': ('simulator.good_textures',),
  'without_more': ('simulator.anomaly_probability',),
  'without_noise': ('simulator.noise',),
}


def get_config(setting: str = '') -> config_dict.ConfigDict:
  """The study at full size, or in the setting `'small'`."""
  shared = mvtec.shared(setting)
  base = config_lib.flatten(shared.to_dict())
  presets = {
    name: mvtec.get_config(f'bottle,{name},{setting}')
    for name in ('paper', 'release', 'best')
  }
  rows = {
    name: config_lib.flatten(preset.to_dict())
    for name, preset in presets.items()
  }
  for name, fields in PARTS.items():
    way = {field: rows['release'][field] for field in fields}
    rows[name] = rows['best'] | way
  return plan.make(
    shared,
    name='recipes',
    tables=('recipes',),
    rows={name: _differences(values, base) for name, values in rows.items()},
    categories=paper.CATEGORIES,
  )


def _differences(
  values: dict[str, Any], base: dict[str, Any]
) -> dict[str, Any]:
  """Nested assignments that make the one of the other."""
  nested = {}
  for name, value in values.items():
    # What counts as anomalous is the same for all.
    if value != base[name] and name != 'eval.mask_threshold':
      *parents, last = name.split('.')
      place = nested
      for parent in parents:
        place = place.setdefault(parent, {})
      place[last] = value
  return nested
