"""How near networks, losses and training come to the release's golden arrays.

What is compared is the code that trains: `train_step.make_update`.

Each `..._cases` yields what was computed here beside what the release computed;
tests bound the differences and `python -m fidelity` tabulates them.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from draem_jax import losses, score
from draem_jax.networks import models
from draem_jax.simulator.simulate import Example
from draem_jax.torch_weights import convert
from draem_jax.training import optimizer as optimizer_lib
from draem_jax.training import step as train_step

GOLDEN = pathlib.Path(__file__).parents[1] / 'tests' / 'golden'
WIDTHS = convert.Widths(4, 2)
NUM_STEPS = 3
# Of the release.
RECIPE = train_step.Recipe(
  weights={'l2': 1.0, 'ssim': 1.0, 'focal': 1.0}, data_range='from_batch'
)


class Case(NamedTuple):
  """A quantity computed here and by the release."""

  name: str
  found: np.ndarray
  expected: np.ndarray


class Step(NamedTuple):
  """What a training step saw, and the variables it left behind."""

  seen: train_step.Seen
  batch_stats: Mapping[str, Any]
  gradients: Mapping[str, Any]
  params: Mapping[str, Any]


def load_golden(name: str) -> dict[str, np.ndarray]:
  """The golden arrays of one file, by name."""
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    return dict(arrays)


def load_variables() -> dict[str, Any]:
  """The networks of the golden checkpoint, float32."""
  return convert.load_torch_checkpoint(
    GOLDEN / 'DRAEM_golden_part_.pckl',
    GOLDEN / 'DRAEM_golden_part__seg.pckl',
    channel_order='rgb',  # The golden networks ran on the arrays as they are.
  )


@functools.partial(jax.jit, static_argnames='dtype')
def evaluate(variables, image, dtype=None) -> models.Output:
  """Runs the networks on running statistics."""
  model = models.Draem(*WIDTHS, dtype=dtype)
  return model.apply(variables, image, train=False)


def golden_example(golden: Mapping[str, np.ndarray], step: int) -> Example:
  """The batch of a golden training step, float32."""
  return Example(
    augmented=jnp.asarray(golden['train/augmented'][step]),
    image=jnp.asarray(golden['train/image'][step]),
    mask=jnp.asarray(golden['train/mask'][step, ..., 0], jnp.float32),
  )


def train_in_float64(
  golden: Mapping[str, np.ndarray], variables: Mapping[str, Any]
) -> list[Step]:
  """Takes the golden steps of Adam in float64, by the step that trains."""
  steps = []
  model = models.Draem(*WIDTHS, param_dtype=jnp.float64)
  optimizer = optimizer_lib.make_optimizer(lambda step: 1e-3)
  look = jax.jit(
    functools.partial(train_step.loss_and_gradients, model, recipe=RECIPE)
  )
  update = jax.jit(train_step.make_update(model, optimizer, RECIPE))
  with jax.enable_x64(True):
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
    state = train_step.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=optimizer.init(variables['params']),
    )
    for number in range(NUM_STEPS):
      example = jax.tree.map(np.float64, golden_example(golden, number))
      seen, gradients = look(state.variables, example)
      state, logged = update(state, example)
      steps.append(
        Step(
          *jax.device_get((seen, state.batch_stats, gradients, state.params))
        )
      )
      if logged['loss'] != seen.loss:
        raise ValueError('the step that trains reports another loss')
  return steps


def evaluation_cases(
  golden: Mapping[str, np.ndarray], variables: Mapping[str, Any]
) -> Iterator[Case]:
  """Reconstruction, logits, map and image score in evaluation, float32."""
  output = evaluate(variables, golden['image'])
  anomaly_map = score.anomaly_map(output.logits)
  for name, found in (
    ('reconstruction', output.reconstruction),
    ('logits', output.logits),
    ('anomaly_map', anomaly_map[..., None]),
    ('image_score', score.image_score(anomaly_map)),
  ):
    yield Case(name, np.asarray(found), golden[f'eval/{name}'])


def training_output_cases(
  golden: Mapping[str, np.ndarray], steps: list[Step]
) -> Iterator[Case]:
  """Reconstruction and logits of the first step, in training mode."""
  for name in ('reconstruction', 'logits'):
    found = getattr(steps[0].seen.output, name)
    yield Case(name, found, golden[f'train/{name}0'])


def loss_cases(
  golden: Mapping[str, np.ndarray], steps: list[Step]
) -> Iterator[Case]:
  """The four losses of each step: l2, 1 - SSIM, focal and their sum."""
  for number, step in enumerate(steps):
    terms = step.seen.terms
    found = np.array(
      [*(terms[n] for n in ('l2', 'ssim', 'focal')), step.seen.loss]
    )
    yield Case(f'step {number + 1}', found, golden[f'train/losses{number}'])


def gradient_cases(
  golden: Mapping[str, np.ndarray], steps: list[Step]
) -> Iterator[Case]:
  """The gradient of each array in the first step."""
  return _array_cases(golden, 'grad0', steps[0].gradients, steps[0].batch_stats)


def statistics_cases(
  golden: Mapping[str, np.ndarray], steps: list[Step]
) -> Iterator[Case]:
  """The running statistics after the first step."""
  return _array_cases(golden, 'stats1', steps[0].params, steps[0].batch_stats)


def parameter_cases(
  golden: Mapping[str, np.ndarray], steps: list[Step]
) -> Iterator[Case]:
  """The parameters after the last step."""
  step = steps[-1]
  return _array_cases(golden, 'params3', step.params, step.batch_stats)


def _array_cases(golden, prefix, params, batch_stats) -> Iterator[Case]:
  """Every array that the golden ones have under a prefix."""
  variables = {'params': params, 'batch_stats': batch_stats}
  names = {name for name in golden if name.startswith(f'{prefix}/')}
  for network in ('reconstructive', 'discriminative'):
    for name, array in convert.torch_arrays(variables, network).items():
      full_name = f'{prefix}/{network}/{name}'
      if full_name in names:
        names.remove(full_name)
        yield Case(name, array, golden[full_name])
  if names:
    raise ValueError(f'nothing to compare with {sorted(names)}')


def ssim_cases(
  golden: Mapping[str, np.ndarray],
) -> Iterator[tuple[float, Case, Case]]:
  """The chosen data range, the map and the loss, for each kind of range."""
  for number in range(3):
    data_range, expected_map, loss, reconstruction, image = (
      golden[f'ssim{number}/{name}']
      for name in ('data_range', 'map', 'loss', 'reconstruction', 'image')
    )
    reconstruction, image = jnp.asarray(reconstruction), jnp.asarray(image)
    chosen = float(losses.ssim_data_range(reconstruction))
    if chosen != data_range:
      raise ValueError(f'the data range is {chosen}; the release: {data_range}')
    found = np.asarray(losses.ssim(reconstruction, image, data_range=chosen))
    yield (
      chosen,
      Case('SSIM map', found, expected_map),
      Case('1 - SSIM', 1 - found.mean(), loss),
    )


def focal_case(golden: Mapping[str, np.ndarray]) -> Case:
  """The focal loss of a batch."""
  logits = jnp.asarray(golden['focal/logits'])
  mask = jnp.asarray(golden['focal/mask'][..., 0])
  found = losses.focal_loss(logits, mask).mean()
  return Case('focal loss', np.asarray(found), golden['focal/loss'])


def upsample_case(golden: Mapping[str, np.ndarray]) -> Case:
  """Bilinear upsampling that keeps the corners."""
  found = np.asarray(models.upsample(jnp.asarray(golden['upsample/input'])))
  return Case('upsampling', found, golden['upsample/output'])


def score_case(golden: Mapping[str, np.ndarray]) -> Case:
  """Image scores: the maximum of the map's 21x21 means."""
  found = np.asarray(score.image_score(golden['score/map'][..., 0]))
  return Case('image score', found, golden['score/score'])
