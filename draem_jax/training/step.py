"""The train state and the step that turns it into the next one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from draem_jax import devices, losses
from draem_jax.networks import draws, models
from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options
from draem_jax.training import sampling

# On the devices, on the host, or a shape that stands for it.
_Leaf = Array | np.ndarray | jax.ShapeDtypeStruct


@flax.struct.dataclass
class TrainState:
  """All that a step reads and writes, and all that a checkpoint holds."""

  step: Int[_Leaf, '']
  params: PyTree[Float[_Leaf, '...']]
  batch_stats: PyTree[Float[_Leaf, '...']]
  opt_state: optax.OptState
  # An average of the variables over the steps, if one is kept.
  ema: dict[str, PyTree[Float[_Leaf, '...']]] | None = None
  # The variables of the best evaluation so far, if they are kept, and that
  # evaluation: its `step` and its `pixel_ap`. A step leaves both as they are.
  best: dict[str, PyTree[Float[_Leaf, '...']]] | None = None
  record: dict[str, _Leaf] | None = None

  @property
  def variables(self) -> dict[str, Any]:
    """What the networks train with; `models.Networks.apply` takes it."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def current(self) -> dict[str, Any]:
    """The average of the variables, if there is one, or they themselves."""
    return self.variables if self.ema is None else self.ema

  @property
  def evaluated(self) -> dict[str, Any]:
    """What the networks are evaluated with: the best, if these are kept."""
    return self.current if self.best is None else self.best


def init_state(
  model: models.Networks,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  mesh: Mesh,
  ema: float = 0.0,
) -> TrainState:
  """Initializes the state under `jit`, straight into its sharding.

  Args:
    model: the networks.
    optimizer: whose state belongs to it.
    seed: of the parameters.
    mesh: over whose devices the state is replicated.
    ema: what the average of the variables keeps in a step; 0: there is none.
  """

  is_cpu = mesh.devices.flat[0].platform == 'cpu'

  def init(key: Key[Array, '']) -> TrainState:
    # No parameter depends on the size, and a small image compiles sooner.
    image = jnp.zeros((1, 32, 32, 3))
    initialize = lambda key: model.init(key, image, train=False)
    if is_cpu and model.draws_together and model.param_dtype == jnp.float32:
      drawn = draws.together(initialize, key)
    else:
      drawn = initialize(key)
    # Networks may have no running statistics.
    variables = {'batch_stats': {}, **drawn}
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=optimizer.init(variables['params']),
      ema=variables if ema else None,
    )

  # Threefry, drawn once for each of 150 arrays, takes XLA most of a minute to
  # compile on a CPU.
  key = jax.random.key(seed, impl='unsafe_rbg')
  # It runs once: unoptimized code is there sooner.
  quick = {'xla_backend_optimization_level': 0}
  return jax.jit(
    init,
    out_shardings=devices.replicated(mesh),
    compiler_options=quick if is_cpu else None,
  )(key)


def abstract(tree: PyTree[Array]) -> PyTree[jax.ShapeDtypeStruct]:
  """The shapes, types and shardings of a state, say, without its values."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


class Recipe(NamedTuple):
  """What a step does beside the networks and the optimizer.

  Attributes:
    weights: the weights of the loss's terms, see `losses.training_loss`.
    data_range: L of SSIM, see there.
    gamma: of the focal loss, see there.
    ema: what the average of the variables keeps in a step; 0: there is none.
    schedule: how the weights shift, a key of `losses.SCHEDULES`.
    num_steps: how many there are, for the schedule.
    seed: of the run, for networks that sample masks.
  """

  weights: Mapping[str, float]
  data_range: losses.DataRange
  gamma: float = 2.0
  ema: float = 0.0
  schedule: str = 'constant'
  num_steps: int = 1
  seed: int = 0


def make_train_step(
  model: models.Networks,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
  options: Options,
  *,
  mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, '']]]]:
  """The step from sampled uint8 images and textures to the next state.

  Args:
    model: the networks.
    optimizer: turns gradients into updates.
    recipe: the loss and the average.
    options: what the simulator is told to do.
    mesh: over whose axis `'data'` the batch is split.

  Returns:
    A function of (state, images uint8 [b h w c], textures uint8 [b h w 3],
    keys [b]) that returns the next state and the losses as scalars. The images
    may have a margin, and a region as a fourth channel, see
    `simulate.simulate`. It is not compiled yet.
  """
  split = devices.batch_sharded(mesh)
  update = make_update(model, optimizer, recipe)

  def train_step(
    state: TrainState,
    images: UInt8[Array, 'b h2 w2 c'],
    textures: UInt8[Array, 'b h w 3'],
    keys: Key[Array, 'b'],
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    images, textures, keys = jax.lax.with_sharding_constraint(
      (images, textures, keys), split
    )
    example = simulate.simulate_batch(keys, images, textures, options)
    return update(state, jax.lax.with_sharding_constraint(example, split))

  return train_step


def make_update(
  model: models.Networks,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, '']]]]:
  """The part of the step behind the simulator: networks, loss, optimizer.

  Args:
    model: the networks.
    optimizer: turns gradients into updates.
    recipe: the loss and the average.

  Returns:
    A function of (state, `simulate.Example` with a batch axis) that returns the
    next state, and the loss and its terms as scalars. It is not compiled yet.
  """

  def update(
    state: TrainState, example: simulate.Example
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    key = None
    if model.samples_masks:
      key = sampling.masks_key(recipe.seed, state.step)
    seen, gradients = loss_and_gradients(
      model,
      state.variables,
      example,
      recipe,
      progress=state.step / recipe.num_steps,
      key=key,
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=seen.batch_stats,
      opt_state=opt_state,
    )
    if recipe.ema:
      state = state.replace(ema=_average(state, recipe.ema))
    return state, {'loss': seen.loss, **seen.terms}

  return update


def _average(state: TrainState, decay: float) -> dict[str, Any]:
  """The average with the variables of a new step in it.

  It begins with a short memory, so that the first values are soon forgotten.
  """
  step = state.step.astype(jnp.float32)
  keep = jnp.minimum(decay, step / (9 + step))
  return jax.tree.map(
    lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
    state.ema,
    state.variables,
  )


class Seen(NamedTuple):
  """What the networks made of a batch in training mode.

  Attributes:
    output: the networks' output.
    batch_stats: the running statistics behind it.
    loss: the training loss.
    terms: its terms by name, unweighted.
  """

  output: models.Output
  batch_stats: PyTree[Float[Array, '...']]
  loss: Float[Array, '']
  terms: dict[str, Float[Array, '']]


def loss_and_gradients(
  model: models.Networks,
  variables: Mapping[str, Any],
  example: simulate.Example,
  recipe: Recipe,
  progress: Float[Array, ''] | float = 0.0,
  key: Key[Array, ''] | None = None,
) -> tuple[Seen, PyTree[Float[Array, '...']]]:
  """Differentiates the loss of a batch by the parameters.

  The networks see the augmented images; the images without the anomaly are what
  they shall restore.

  Args:
    model: the networks.
    variables: their parameters and running statistics.
    example: the batch.
    recipe: the loss.
    progress: the share of the training that is done.
    key: of the networks' masks; None for networks that sample none.

  Returns:
    What the networks made of the batch, and the gradients.
  """

  def loss_fn(params: PyTree) -> tuple[Float[Array, ''], Seen]:
    output, updates = model.apply(
      {**variables, 'params': params},
      example.augmented,
      train=True,
      mutable=['batch_stats'],
      rngs=None if key is None else {'masks': key},
    )
    loss, terms = losses.training_loss(
      output,
      example.image,
      example.mask,
      weights=recipe.weights,
      data_range=recipe.data_range,
      gamma=recipe.gamma,
      factors=losses.SCHEDULES[recipe.schedule](progress),
    )
    batch_stats = updates.get('batch_stats', {})
    return loss, Seen(output, batch_stats, loss, terms)

  gradients, seen = jax.grad(loss_fn, has_aux=True)(variables['params'])
  return seen, gradients
