"""The train state and the step that turns it into the next one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from draem_jax import losses, models, sharding
from draem_jax.simulator import simulate


@flax.struct.dataclass
class TrainState:
  """All that a step reads and writes, and all that a checkpoint holds."""

  step: Int[Array, '']
  params: PyTree[Float[Array, '...']]
  batch_stats: PyTree[Float[Array, '...']]
  opt_state: optax.OptState

  @property
  def variables(self) -> dict[str, Any]:
    """What `models.Draem.apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


def init_state(
  model: models.Draem,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  mesh: Mesh,
) -> TrainState:
  """Initialises the state under `jit`, straight into its sharding."""

  def init(key: Key[Array, '']) -> TrainState:
    # No parameter depends on the size, and a small image compiles sooner.
    image = jnp.zeros((1, 32, 32, 3))
    variables = model.init(key, image, train=False)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables['params'],
      batch_stats=variables['batch_stats'],
      opt_state=optimizer.init(variables['params']),
    )

  # Threefry, drawn once for each of 150 arrays, takes XLA most of a minute to
  # compile on a CPU.
  key = jax.random.key(seed, impl='unsafe_rbg')
  # It runs once: unoptimised code is there sooner.
  quick = {'xla_backend_optimization_level': 0}
  return jax.jit(
    init,
    out_shardings=sharding.replicated(mesh),
    compiler_options=quick if mesh.devices.flat[0].platform == 'cpu' else None,
  )(key)


def abstract(state: TrainState) -> TrainState:
  """The shapes, types and shardings of a state, without its values."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def make_train_step(
  model: models.Draem,
  optimizer: optax.GradientTransformation,
  *,
  mesh: Mesh,
  data_range: str,
  simulator: Mapping[str, Any],
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, '']]]]:
  """The step from drawn uint8 images and textures to the next state.

  Args:
    model: the networks.
    optimizer: turns gradients into updates.
    mesh: over whose axis `'data'` the batch is split.
    data_range: see `losses.draem_loss`.
    simulator: the options of `simulate.simulate`.

  Returns:
    A function of (state, images uint8 [b h w 3], textures uint8 [b h w 3],
    keys [b]) that returns the next state and the losses as scalars. It is not
    compiled yet.
  """
  split = sharding.batch_sharded(mesh)
  update = make_update(model, optimizer, data_range=data_range)

  def train_step(
    state: TrainState,
    images: UInt8[Array, 'b h w 3'],
    textures: UInt8[Array, 'b h w 3'],
    keys: Key[Array, 'b'],
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    images, textures, keys = jax.lax.with_sharding_constraint(
      (images, textures, keys), split
    )
    example = simulate.simulate_batch(keys, images, textures, **simulator)
    return update(state, jax.lax.with_sharding_constraint(example, split))

  return train_step


def make_update(
  model: models.Draem,
  optimizer: optax.GradientTransformation,
  *,
  data_range: str,
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, '']]]]:
  """The part of the step behind the simulator: networks, loss, optimizer.

  Args:
    model: the networks.
    optimizer: turns gradients into updates.
    data_range: see `losses.draem_loss`.

  Returns:
    A function of (state, `simulate.Example` with a batch axis) that returns the
    next state and the losses as scalars. It is not compiled yet.
  """

  def update(
    state: TrainState, example: simulate.Example
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    loss, seen, gradients = loss_and_gradients(
      model, state.variables, example, data_range=data_range
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=seen.batch_stats,
      opt_state=opt_state,
    )
    return state, {
      'loss': loss.total,
      'l2': loss.l2,
      'ssim': loss.ssim,
      'focal': loss.focal,
    }

  return update


class Seen(NamedTuple):
  """What the networks made of a batch in training mode."""

  output: models.DraemOutput
  batch_stats: PyTree[Float[Array, '...']]


def loss_and_gradients(
  model: models.Draem,
  variables: Mapping[str, Any],
  example: simulate.Example,
  *,
  data_range: str,
) -> tuple[losses.Losses, Seen, PyTree[Float[Array, '...']]]:
  """Differentiates the loss of a batch by the parameters.

  The networks see the augmented images; the images without the anomaly are what
  they shall restore.

  Args:
    model: the networks.
    variables: their parameters and running statistics.
    example: the batch.
    data_range: see `losses.draem_loss`.

  Returns:
    The losses, what the networks made of the batch, and the gradients.
  """

  def loss_fn(params: PyTree) -> tuple[Float[Array, ''], Any]:
    output, updates = model.apply(
      {**variables, 'params': params},
      example.augmented,
      train=True,
      mutable=['batch_stats'],
    )
    loss = losses.draem_loss(
      output, example.image, example.mask, data_range=data_range
    )
    return loss.total, (loss, Seen(output, updates['batch_stats']))

  gradients, (loss, seen) = jax.grad(loss_fn, has_aux=True)(variables['params'])
  return loss, seen, gradients
