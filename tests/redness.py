"""Networks without weights, whose anomaly map is the red channel."""

import jax.numpy as jnp

from draem_jax.networks import models


class Redness(models.Networks):
  """They reconstruct the image as it is."""

  outputs = ('reconstruction', 'logits')

  def setup(self):
    pass

  def run(self, image, *, train):
    assert not train
    red = jnp.clip(image[..., 0], 1e-6, 1 - 1e-6)
    logits = jnp.stack([jnp.log1p(-red), jnp.log(red)], axis=-1)
    return models.Output(reconstruction=image, logits=logits)
