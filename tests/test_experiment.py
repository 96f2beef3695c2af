import numpy as np
import pytest
from small import random_images

from draem_jax import experiment
from draem_jax.errors import UserError


def test_the_holdout_is_a_share_and_apart():
  images = random_images(20)
  kept, held_out = experiment.split_holdout(images, share=0.1, seed=3)
  assert len(kept) == 18 and len(held_out) == 2
  both = np.concatenate([kept, held_out])
  assert len(np.unique(both, axis=0)) == len(np.unique(images, axis=0)) == 20
  again = experiment.split_holdout(images, share=0.1, seed=3)
  np.testing.assert_array_equal(again[1], held_out)


def test_without_a_share_every_image_is_trained_on():
  images = random_images(5)
  kept, held_out = experiment.split_holdout(images, share=0.0, seed=0)
  assert len(kept) == 5 and len(held_out) == 0


def test_a_small_share_holds_out_one_and_never_all():
  kept, held_out = experiment.split_holdout(
    random_images(3), share=0.01, seed=0
  )
  assert len(kept) == 2 and len(held_out) == 1
  with pytest.raises(UserError, match='config.eval.holdout'):
    experiment.split_holdout(random_images(1), share=0.5, seed=0)
