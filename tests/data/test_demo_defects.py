"""Tests of the defects of the built-in demo."""

import numpy as np
import pytest
from scipy import ndimage

from draem_jax.data import demo, demo_defects

NUM_DRAWS = 12


@pytest.fixture(scope='module')
def scene() -> np.ndarray:
  return demo._scene(np.random.default_rng(0), demo._TEST_JOINTS)


def draw_several(defect: str, scene: np.ndarray):
  for seed in range(NUM_DRAWS):
    rng = np.random.default_rng(seed)
    yield demo_defects.DEFECTS[defect](rng, scene.copy())


@pytest.mark.parametrize('defect', demo_defects.DEFECTS)
def test_masks_hold_the_changed_pixels_and_no_others(defect, scene):
  changed_share = []
  for image, mask in draw_several(defect, scene):
    assert image.min() >= 0 and image.max() <= 1
    change = abs(image - scene).max(axis=-1)
    # Soft edges are all that may change outside the mask.
    assert np.all(change[ndimage.distance_transform_edt(~mask) > 4] == 0)
    changed_share.append((change[mask] > 0.02).mean())
  assert min(changed_share) > 0.5
  assert np.mean(changed_share) > 0.8


@pytest.mark.parametrize('defect', demo_defects.DEFECTS)
def test_contrast_varies_from_just_visible_to_plain(defect, scene):
  contrasts = [
    abs(image - scene).mean(axis=-1)[mask].mean()
    for image, mask in draw_several(defect, scene)
  ]
  assert min(contrasts) > 0.015
  assert max(contrasts) > 1.5 * min(contrasts)


@pytest.mark.parametrize('defect', demo_defects.DEFECTS)
def test_defects_differ_in_place_and_leave_their_scene_alone(defect, scene):
  before = scene.copy()
  masks = [mask for _, mask in draw_several(defect, scene)]
  assert np.array_equal(scene, before)
  centers = [ndimage.center_of_mass(mask) for mask in masks]
  assert np.all(np.std(centers, axis=0) > 8)
