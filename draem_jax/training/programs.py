"""The programs of a run that know no image: its first state and its step."""

from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from draem_jax import devices, sizes
from draem_jax.networks import models
from draem_jax.simulator.options import Options
from draem_jax.training import step as step_lib
from draem_jax.training.step import TrainState


class Programs:
  """The program of the first state and that of a step.

  They may be compiled in threads, while something else is done. What comes of
  it JAX keeps: a call that is no different takes it from there. What fails in a
  thread fails again in the call, where somebody hears of it.

  Attributes:
    model: the networks.
    optimizer: turns gradients into updates.
    options: what the simulator is told to do.
  """

  def __init__(
    self,
    model: models.Networks,
    optimizer: optax.GradientTransformation,
    recipe: step_lib.Recipe,
    options: Options,
    *,
    mesh: Mesh,
  ):
    """Compiles nothing yet.

    Args:
      model: the networks.
      optimizer: turns gradients into updates.
      recipe: the loss and the average.
      options: what the simulator is told to do.
      mesh: the devices.
    """
    self.model, self.optimizer, self.options = model, optimizer, options
    self._mesh = mesh
    self._init = step_lib.make_init(model, optimizer, mesh=mesh, ema=recipe.ema)
    self._step = jax.jit(
      step_lib.make_train_step(model, optimizer, recipe, options, mesh=mesh),
      donate_argnums=0,
    )
    self._compiling: dict[str, futures.Future] = {}

  def init(self, key: Key[Array, '']) -> TrainState:
    """The state before the first step, from a `step.initial_key`."""
    self._wait('init')
    return self._init(key)

  def abstract_state(self) -> TrainState:
    """The shapes, types and shardings of a state, without its values."""
    return step_lib.abstract(
      jax.eval_shape(self._init, step_lib.initial_key(0)),
      devices.replicated(self._mesh),
    )

  def step(
    self, state: TrainState, *batch: Array
  ) -> tuple[TrainState, dict[str, Float[Array, '']]]:
    """Runs the function of `step.make_train_step`; `state` is donated."""
    self._wait('step')
    return self._step(state, *batch)

  def compile_init(self) -> None:
    """Begins to compile `init`, or to read it from the cache."""
    self._begin('init', self._init, step_lib.initial_key(0))

  def compile_step(
    self, batch_size: int, size: sizes.Size, channels: int = 3
  ) -> None:
    """Begins to compile `step`, or to read it from the cache.

    Args:
      batch_size: examples of the global batch.
      size: of the images: one number, or height and width.
      channels: of the images: 4 with a region.
    """
    split = devices.batch_sharded(self._mesh)
    images, textures = (
      jax.ShapeDtypeStruct(
        (batch_size, *sizes.pair(size), number), jnp.uint8, sharding=split
      )
      for number in (channels, 3)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.ShapeDtypeStruct((batch_size,), key.dtype, sharding=split)
    self._begin(
      'step', self._step, self.abstract_state(), images, textures, keys
    )

  def _begin(self, name: str, program: Any, *shapes: Any) -> None:
    pool = futures.ThreadPoolExecutor(1)
    self._compiling[name] = pool.submit(
      lambda: program.lower(*shapes).compile()
    )
    # The thread ends by itself.
    pool.shutdown(wait=False)

  def _wait(self, name: str) -> None:
    if name in self._compiling:
      futures.wait([self._compiling.pop(name)])
