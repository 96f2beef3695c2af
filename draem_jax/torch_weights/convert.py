"""The networks as the release's pair of state dicts, there and back.

A checkpoint is a pair of state dicts, one a network. PyTorch is needed for
neither way.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.torch_weights.pickle import short
from draem_jax.torch_weights.state_dict import read_state_dict, write_state_dict

ChannelOrder = Literal['bgr', 'rgb']
CHANNEL_ORDERS = ('bgr', 'rgb')


class Widths(NamedTuple):
  """Channels of the first block of either network."""

  reconstructive: int
  discriminative: int


class _Layer(NamedTuple):
  """A layer's name here, and those of its convolution and norm in PyTorch."""

  name: str
  conv: str
  norm: str | None


def _layers(
  encoder: str, blocks: int, decoder: str, stages: tuple[str, ...]
) -> tuple[_Layer, ...]:
  """Lists a network's layers from the prefixes that PyTorch's names have."""
  layers = []
  for i in range(1, blocks + 1):
    block, ours = f'{encoder}.block{i}', f'encoder_block{i}_conv'
    layers += [
      _Layer(f'{ours}1', f'{block}.0', f'{block}.1'),
      _Layer(f'{ours}2', f'{block}.3', f'{block}.4'),
    ]
  for i, stage in enumerate(stages, start=1):
    up, block = f'{decoder}.up{stage}', f'{decoder}.db{stage}'
    ours = f'decoder_block{i}_conv'
    layers += [
      _Layer(f'{ours}1', f'{up}.1', f'{up}.2'),
      _Layer(f'{ours}2', f'{block}.0', f'{block}.1'),
      _Layer(f'{ours}3', f'{block}.3', f'{block}.4'),
    ]
  return (*layers, _Layer('last_conv', f'{decoder}.fin_out.0', None))


_LAYERS = {
  'reconstructive': _layers('encoder', 5, 'decoder', ('1', '2', '3', '4')),
  'discriminative': _layers(
    'encoder_segment', 6, 'decoder_segment', ('_b', '1', '2', '3', '4')
  ),
}
_COUNTER = '.num_batches_tracked'  # Of training steps; nothing reads it.


def load_torch_checkpoint(
  reconstructive: str | os.PathLike,
  discriminative: str | os.PathLike,
  *,
  channel_order: ChannelOrder = 'bgr',
) -> dict[str, Any]:
  """Loads a pair of PyTorch state dicts, as the release writes them.

  Nothing in the files is executed.

  Args:
    reconstructive: File of the reconstructive network.
    discriminative: File of the discriminative network.
    channel_order: Of the images that the networks expect. The published ones
      expect 'bgr'; their first and last channels are swapped to make exact RGB
      networks of them. 'rgb' takes them as they are.

  Returns:
    Variables for `models.Draem` of the widths that `widths(variables)` tells:
    'params' and 'batch_stats', float32 on the host.

  Raises:
    UserError: A file is not such a state dict, or the two were swapped.
  """
  _check_channel_order(channel_order)
  paths = {'reconstructive': reconstructive, 'discriminative': discriminative}
  found = {network: read_state_dict(path) for network, path in paths.items()}
  for network, path in paths.items():
    _check_names(found[network], network, path)
  expected = _shapes(
    Widths(*(_read_width(found[n], n, path) for n, path in paths.items()))
  )
  for network, path in paths.items():
    _check_shapes(found[network], expected[network], path)
  variables = _variables(found)
  for network, path in paths.items():
    _check_values(variables, network, path)
  if channel_order == 'bgr':
    _swap_channels(variables['params'])
  return variables


def save_torch_checkpoint(
  variables: Mapping[str, Any],
  reconstructive: str | os.PathLike,
  discriminative: str | os.PathLike,
  *,
  channel_order: ChannelOrder = 'bgr',
) -> None:
  """Saves networks as a pair of state dicts that PyTorch loads.

  `load_torch_checkpoint` with the same order reads back the same bits.

  Args:
    variables: 'params' and 'batch_stats' of `models.Draem`.
    reconstructive: File to write for the reconstructive network.
    discriminative: File to write for the discriminative network.
    channel_order: Of the images that the saved networks shall expect.

  Raises:
    UserError: a file cannot be written, or these are other networks.
  """
  _check_channel_order(channel_order)
  if set(variables['params']) != set(_LAYERS):
    raise UserError(
      f'the networks are {" and ".join(sorted(variables["params"]))}: the'
      ' release knows only the pair of config.model.name=draem'
    )
  variables = jax.tree.map(np.asarray, flax.core.unfreeze(variables))
  if channel_order == 'bgr':
    _swap_channels(variables['params'])
  for network, path in (
    ('reconstructive', reconstructive),
    ('discriminative', discriminative),
  ):
    write_state_dict(path, torch_arrays(variables, network))


def torch_arrays(
  variables: Mapping[str, Any], network: str
) -> dict[str, Shaped[np.ndarray, '...']]:
  """Returns a network's arrays under PyTorch's names, in its order and layouts.

  Args:
    variables: 'params' and 'batch_stats' of `models.Draem`, on the host.
    network: 'reconstructive' or 'discriminative'.

  Returns:
    The state dict. The counters of training steps in it are 0.
  """
  arrays = {}
  for entry in _entries(network):
    if entry.name.endswith(_COUNTER):
      arrays[entry.name] = np.zeros((), np.int64)
    else:
      array = variables[entry.collection][network][entry.layer][entry.leaf]
      arrays[entry.name] = (
        array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
      )
  return arrays


def widths(variables: Mapping[str, Any]) -> Widths:
  """Reads the widths of both networks off their parameters."""
  return Widths(
    *(
      variables['params'][network][layers[0].name]['kernel'].shape[-1]
      for network, layers in _LAYERS.items()
    )
  )


class _Entry(NamedTuple):
  """An array of a state dict and where it stands in our variables."""

  name: str
  collection: str = ''
  layer: str = ''
  leaf: str = ''


def _entries(network: str) -> Iterator[_Entry]:
  for layer, conv, norm in _LAYERS[network]:
    yield _Entry(f'{conv}.weight', 'params', layer, 'kernel')
    yield _Entry(f'{conv}.bias', 'params', layer, 'bias')
    if norm:
      yield _Entry(f'{norm}.weight', 'params', layer, 'norm_scale')
      yield _Entry(f'{norm}.bias', 'params', layer, 'norm_bias')
      yield _Entry(f'{norm}.running_mean', 'batch_stats', layer, 'mean')
      yield _Entry(f'{norm}.running_var', 'batch_stats', layer, 'var')
      yield _Entry(f'{norm}{_COUNTER}')


def _array_entries(network: str) -> Iterator[_Entry]:
  return (e for e in _entries(network) if not e.name.endswith(_COUNTER))


def _variables(
  arrays: Mapping[str, Mapping[str, Shaped[np.ndarray, '...']]],
) -> dict[str, Any]:
  """Builds our variables, float32, from the two state dicts."""
  variables = {'params': {}, 'batch_stats': {}}
  for network in _LAYERS:
    for name, collection, layer, leaf in _array_entries(network):
      array = arrays[network][name].astype(np.float32)
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
      layers = variables[collection].setdefault(network, {})
      layers.setdefault(layer, {})[leaf] = np.ascontiguousarray(array)
  return variables


def _swap_channels(params: dict[str, Any]) -> None:
  """Turns networks for BGR images into the same for RGB images, or back."""
  for network, layers in _LAYERS.items():
    first = params[network][layers[0].name]
    # The discriminative network sees two images, each with three channels.
    inputs = first['kernel'].shape[2]
    swapped = np.arange(inputs).reshape(-1, 3)[:, ::-1].ravel()
    first['kernel'] = first['kernel'][:, :, swapped]
  last = params['reconstructive']['last_conv']
  last['kernel'] = last['kernel'][..., ::-1]
  last['bias'] = last['bias'][::-1]


def _check_channel_order(channel_order: str) -> None:
  if channel_order not in CHANNEL_ORDERS:
    raise ValueError(
      f'channel_order is {channel_order!r}; it must be one of {CHANNEL_ORDERS}'
    )


def _check_names(
  arrays: Mapping[str, Shaped[np.ndarray, '...']],
  network: str,
  path: str | os.PathLike,
) -> None:
  found = {name for name in arrays if not name.endswith(_COUNTER)}
  for other in _LAYERS:
    if other != network and found == {e.name for e in _array_entries(other)}:
      raise UserError(
        f'{path}: expected the {network} network, found the {other} one; swap '
        'the two files'
      )
  expected = {entry.name for entry in _array_entries(network)}
  for what, names in (
    ('lacks', sorted(expected - found)),
    ('has the unknown', sorted(found - expected)),
  ):
    if names:
      raise UserError(
        f'{path}: expected the {network} network with {len(expected)} arrays, '
        f'found {len(found)}: it {what} {short(names[0])}'
        + (f' and {len(names) - 1} more' if names[1:] else '')
      )


def _read_width(
  arrays: Mapping[str, Shaped[np.ndarray, '...']],
  network: str,
  path: str | os.PathLike,
) -> int:
  name = next(_entries(network)).name
  shape = arrays[name].shape
  if len(shape) != 4 or not shape[0]:
    raise UserError(
      f'{path}: {name} has shape {list(shape)}; expected '
      '[width, channels, 3, 3]'
    )
  return shape[0]


def _shapes(widths: Widths) -> dict[str, dict[str, tuple[int, ...]]]:
  """Returns the shapes of both state dicts at these widths."""
  model = models.Draem(*widths)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda image: model.init(jax.random.key(0), image, train=False), image
  )
  ours = {
    network: [
      (name, shapes[collection][network][layer][leaf].shape)
      for name, collection, layer, leaf in _array_entries(network)
    ]
    for network in _LAYERS
  }
  return {
    network: {
      name: (s[3], s[2], s[0], s[1]) if len(s) == 4 else s for name, s in items
    }
    for network, items in ours.items()
  }


def _check_shapes(
  arrays: Mapping[str, Shaped[np.ndarray, '...']],
  expected: Mapping[str, tuple[int, ...]],
  path: str | os.PathLike,
) -> None:
  for name, shape in expected.items():
    if arrays[name].shape != shape:
      raise UserError(
        f'{path}: {name} has shape {list(arrays[name].shape)}; expected '
        f'{list(shape)}, judging by the width of the first convolution'
      )


def _check_values(
  variables: Mapping[str, Any], network: str, path: str | os.PathLike
) -> None:
  for name, collection, layer, leaf in _array_entries(network):
    array = variables[collection][network][layer][leaf]
    if not np.isfinite(array).all() or (leaf == 'var' and array.min() < 0):
      raise UserError(
        f'{path}: {name} has values that no network works with (NaN, infinite '
        'or a negative variance); expected a checkpoint of a sound training'
      )
