import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from draem_jax.networks import convolution


def random_arrays(batch, height, width, channels, features):
  rng = np.random.default_rng(0)
  return (
    rng.standard_normal((batch, height, width, channels), np.float32),
    rng.standard_normal((batch, height, width, features), np.float32),
  )


def kernel_gradient_by_definition(x, y):
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return np.array(
    [
      [
        np.einsum('bhwc,bhwd->cd', x[:, i : i + height, j : j + width], y)
        for j in range(3)
      ]
      for i in range(3)
    ]
  )


@pytest.mark.parametrize(
  'shape',
  [(1, 8, 8, 3, 2), (2, 7, 5, 4, 6), (3, 1, 9, 2, 2), (2, 96, 64, 3, 5)],
)
def test_products_are_the_kernel_gradient(shape):
  x, y = random_arrays(*shape)
  expected = kernel_gradient_by_definition(x, y)
  found = jax.jit(convolution.by_products)(x, y)
  np.testing.assert_allclose(found, expected, 1e-4, 1e-3)


# Of few channels, from fewer to more and back; a width that is no multiple of
# the pixels that are taken at once; many channels.
SHAPES = [
  (2, 8, 8, 3, 16),
  (2, 8, 8, 16, 3),
  (2, 6, 8, 6, 8),
  (2, 4, 2, 16, 16),
  (2, 5, 12, 2, 2),
  (2, 5, 6, 4, 8),
  (3, 5, 7, 4, 16),
  (2, 4, 4, 24, 40),
]


def convolution_by_definition(x, kernel):
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(
    x[:, i : i + height, j : j + width] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


@pytest.mark.parametrize('shape', SHAPES)
def test_ways_of_a_cpu_are_exact(shape):
  x, y = (each.astype(np.float64) for each in random_arrays(*shape))
  kernel = np.random.default_rng(1).standard_normal((3, 3, *shape[3:]))

  def with_gradients(x, kernel, y):
    found, transpose = jax.vjp(convolution.conv3x3, x, kernel)
    return found, *transpose(y), convolution.by_channels(x, y)

  with jax.enable_x64(True):
    found = jax.jit(with_gradients)(x, kernel, y)
  expected = (
    convolution_by_definition(x, kernel),
    convolution_by_definition(y, kernel[::-1, ::-1].swapaxes(2, 3)),
    *2 * [kernel_gradient_by_definition(x, y)],
  )
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, 0, 1e-11)


@pytest.mark.parametrize(
  ('shape', 'pixels'),
  [
    ((1, 4, 8, 8, 2), 4),
    ((1, 4, 8, 2, 8), 4),
    ((1, 4, 8, 1, 1), 4),
    ((1, 4, 8, 16, 3), 2),
    ((1, 4, 6, 8, 8), 1),
    ((1, 4, 7, 16, 16), 1),
    ((1, 4, 8, 17, 3), 1),
  ],
)
def test_pixels_are_taken_at_once_where_channels_are_few(shape, pixels):
  x = jax.ShapeDtypeStruct(shape[:-1], jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, *shape[3:]), jnp.float32)
  traced = jax.jit(
    lambda x, kernel: jax.vjp(convolution.conv3x3, x, kernel)[0]
  ).trace(x, kernel)
  program = traced.lower(lowering_platforms=('cpu',)).as_text()
  features = pixels * shape[-1]
  assert f'tensor<1x4x{shape[2] // pixels}x{features}xf32>' in program
  assert ('stablehlo.pad' in program) == (pixels > 1)
  for platform in ('cuda', 'tpu'):
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert 'stablehlo.pad' not in program
    assert 'call' not in program.replace('custom_call', '')


def test_rows_are_taken_in_several_blocks():
  # Else the case above with the most pixels would not show a wrong border.
  assert 1 < convolution._block_rows(2, 96, 64) < 96
  assert convolution._block_rows(64, 96, 64) == 1


@pytest.mark.parametrize('shape', [(1, 32, 32, 3, 4), (1, 256, 256, 64, 2)])
def test_gradients_are_those_of_the_plain_convolution(shape):
  x, y = random_arrays(*shape)
  kernel = np.random.default_rng(1).standard_normal(
    (3, 3, x.shape[-1], y.shape[-1]), np.float32
  )
  plain = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  found, expected = (
    jax.jit(lambda x, kernel, y, f=f: jax.vjp(f, x, kernel)[1](y))(x, kernel, y)
    for f in (convolution.conv3x3, plain)
  )
  np.testing.assert_allclose(found[0], expected[0], 1e-4, 1e-3)
  scale = np.abs(expected[1]).max()
  np.testing.assert_allclose(found[1] / scale, expected[1] / scale, 0, 2e-5)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('shape', [(2, 8, 8, 3, 4), (2, 256, 128, 64, 2)])
def test_two_devices_agree_with_one(shape, axis_type):
  x, y = random_arrays(*shape)
  kernel = np.ones((3, 3, x.shape[-1], y.shape[-1]), np.float32)
  gradients = jax.jit(
    lambda x, kernel, y: jax.vjp(convolution.conv3x3, x, kernel)[1](y)
  )
  expected = gradients(x, kernel, y)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(axis_type,))
  batch, all_of_it = (
    NamedSharding(mesh, spec)
    for spec in (PartitionSpec('data'), PartitionSpec())
  )
  found = gradients(
    jax.device_put(x, batch),
    jax.device_put(kernel, all_of_it),
    jax.device_put(y, batch),
  )
  for a, b in zip(found, expected, strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a / scale, b / scale, 0, 2e-5)


def lowered(x, platform):
  kernel = jax.ShapeDtypeStruct((3, 3, *2 * x.shape[-1:]), x.dtype)
  traced = jax.jit(convolution.kernel_gradient).trace(x, kernel, x)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
  ('shape', 'dtype', 'platform', 'by_products'),
  [
    ((1, 256, 256, 64), jnp.float32, 'cpu', True),
    ((1, 256, 256, 64), jnp.float32, 'cuda', False),
    ((1, 256, 256, 64), jnp.bfloat16, 'cpu', False),
    ((1, 64, 64, 64), jnp.float32, 'cpu', False),
    ((8, 256, 256, 16), jnp.float32, 'cpu', False),
    ((8, 128, 128, 32), jnp.float32, 'cpu', True),
    ((8, 32, 32, 32), jnp.float32, 'cpu', False),
  ],
)
def test_way_is_chosen_by_size_and_platform(
  shape, dtype, platform, by_products
):
  x = jax.ShapeDtypeStruct(shape, dtype)
  program = lowered(x, platform)
  assert ('dot_general' in program) == by_products
  assert ('convolution' in program) != by_products
