"""A compiled step whose state lies in memory as the step's program wants it.

A GPU convolves with kernels whose axes lie in memory in another order than
JAX's. In every step it would turn kernels, gradients and moments around; a
state that the compiler may lay out as it likes it takes as it is. Shapes and
values are the same, and programs of `jax.jit` take arrays in any layout.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from draem_jax import devices
from draem_jax.training.step import TrainState, abstract

_log = logging.getLogger(__name__)

# Where the compiler lays the state out; with none it does nowhere.
_PLATFORMS = ('gpu',)

# From the state, images and textures to the next state, and the losses.
_Step = Callable[[TrainState, Any, Any], tuple[TrainState, Any]]


def are_chosen(mesh: Mesh) -> bool:
  """Whether the compiler lays out the state on a mesh."""
  # Processes that failed at different places would wait for each other.
  alone = jax.process_count() == 1
  return alone and mesh.devices.flat[0].platform in _PLATFORMS


def compiled(step: _Step, mesh: Mesh) -> _Step:
  """The step as a program, which is compiled when it is called first.

  Args:
    step: what to compile; its state is donated.
    mesh: over whose devices the state is replicated.
  """
  if are_chosen(mesh):
    return _ChoosingStep(step, mesh)
  return jax.jit(step, donate_argnums=0)


def choosing(step: _Step, mesh: Mesh) -> Any:
  """The step under `jit`, to be lowered: its program lays the state out."""
  wanted = Format(Layout.AUTO, devices.replicated(mesh))
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(wanted, None, None),
    out_shardings=(wanted, None),
  )


def plain(state: TrainState, mesh: Mesh) -> TrainState:
  """The state for what knows of no layouts, such as orbax: as JAX has it."""
  if not are_chosen(mesh):
    return state
  return jax.jit(_copy, out_shardings=devices.replicated(mesh))(state)


class _ChoosingStep:
  """A step that puts the states it is given into the layouts of its program.

  It compiles once, with the first state. What fails until that step is done
  costs speed alone: the state is still there for a program without a choice.
  """

  def __init__(self, step: _Step, mesh: Mesh):
    self._plain = jax.jit(step, donate_argnums=0)
    self._choosing = choosing(step, mesh)
    # The program, what puts a state into its layouts, and what of a state
    # already lies in them.
    self._run = self._place = self._placed = None

  def __call__(
    self, state: TrainState, images: Any, textures: Any
  ) -> tuple[TrainState, Any]:
    if self._run is None:
      state, losses = self._begin(state, images, textures)
    else:
      if self._place and state.params is not self._placed:
        given, state = state, self._place(state)
        _delete(given)
      state, losses = self._run(state, images, textures)
    self._placed = state.params
    return state, losses

  def _begin(self, *arguments: Any) -> tuple[TrainState, Any]:
    """Compiles and takes the first step."""
    state, *others = arguments
    try:
      run = self._choosing.lower(*map(abstract, arguments)).compile()
      formats = run.input_formats[0][0]
      if formats != run.output_formats[0]:
        raise ValueError('the next state would have other layouts')
      place = jax.jit(_copy, out_shardings=formats)
      results = jax.block_until_ready(run(place(state), *others))
    except Exception as error:
      _log.warning(
        'the step is compiled anew, without layouts of its own, which may be'
        ' slower: %s',
        str(error).split('\n', 1)[0][:300],
      )
      self._run = self._plain
      return self._plain(*arguments)
    _delete(state)
    self._run, self._place = run, place
    return results


def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def _delete(tree: Any) -> None:
  for leaf in jax.tree.leaves(tree):
    leaf.delete()
