"""Changes the package one line at a time and asks whether the tests notice.

    python tests/mutants.py                  all of them, as a table in Markdown
    python tests/mutants.py --only=ssim      those whose name holds this word
    python tests/mutants.py --check          only whether each still applies

A mutant is a line that could have been written wrongly: swapped arguments, a
dropped term, an off-by-one, a wrong axis, a missing stop, a wrong sign, an
ignored option. Each is made in a copy of the checkout, where the tests run that
should fail. What survives is a hole in the tests. Run by hand; the table stands
in `docs/fidelity.md`.
"""

import argparse
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
COPIED = 'draem_jax', 'configs', 'tests', 'fidelity', 'benchmarks', 'setup.cfg'


class Mutant(NamedTuple):
  """A change of one line.

  Attributes:
    name: what is wrong then.
    file: the path in `draem_jax`.
    old: text that stands there exactly once.
    new: what it becomes.
    tests: the arguments of pytest that should fail.
  """

  name: str
  file: str
  old: str
  new: str
  tests: str


_SIMULATE = 'tests/simulator/test_simulate.py'
_AUGMENT = 'tests/simulator/test_augment.py'
_PERLIN = 'tests/simulator/test_perlin.py'
_ROTATION = 'tests/simulator/test_rotation.py'
_MODELS = 'tests/test_models.py'
_LOSSES = 'tests/test_losses.py'
_TRAIN = 'tests/test_train.py'
_METRICS = 'tests/test_metrics.py'
_DETECTOR = 'tests/test_detector.py'

MUTANTS = (
  # The simulator.
  Mutant(
    'blend: image and texture swapped',
    'simulator/simulate.py',
    'return image + opacity * mask[..., None] * (anomaly - image)',
    'return anomaly + opacity * mask[..., None] * (image - anomaly)',
    f'{_SIMULATE} -k nothing_changes',
  ),
  Mutant(
    'blend: the opacity is ignored',
    'simulator/simulate.py',
    'return image + opacity * mask[..., None] * (anomaly - image)',
    'return image + mask[..., None] * (anomaly - image)',
    f'{_SIMULATE} -k options_reach',
  ),
  Mutant(
    'opacity: its interval is ignored',
    'simulator/simulate.py',
    "      options.opacity, jax.random.uniform(keys['opacity'])",
    "      (0.0, 1.0), jax.random.uniform(keys['opacity'])",
    f'{_SIMULATE} -k as_often',
  ),
  Mutant(
    'presence: the wrong side of the probability',
    'simulator/simulate.py',
    'presence < options.anomaly_probability',
    'presence > options.anomaly_probability',
    f'{_SIMULATE} -k options_reach',
  ),
  Mutant(
    'rotation: its probability is ignored',
    'simulator/simulate.py',
    "numbers['is_rotated'] < options.rotation_probability",
    "numbers['is_rotated'] < 0.5",
    f'{_SIMULATE} -k as_often',
  ),
  Mutant(
    'rotation: target and input differ',
    'simulator/simulate.py',
    'Example(image=made.image, augmented',
    'Example(image=made.image[::-1], augmented',
    f'{_SIMULATE} -k nothing_changes',
  ),
  Mutant(
    'parts: two share a key',
    'simulator/simulate.py',
    'jax.random.fold_in(key, i) for i, part',
    'jax.random.fold_in(key, i // 2) for i, part',
    f'{_SIMULATE} -k "as_often or any_order or uniform"',
  ),
  Mutant(
    'mask: below the threshold instead of above',
    'simulator/masks.py',
    'mask = noise > threshold',
    'mask = noise < threshold',
    f'{_SIMULATE} -k options_reach',
  ),
  Mutant(
    'mask: one resolution for both axes',
    'simulator/masks.py',
    '2 ** exponent.astype(jnp.int32),',
    '2 ** exponent[:1].astype(jnp.int32).repeat(2),',
    f'{_SIMULATE} -k independently',
  ),
  Mutant(
    'mask: the noise is not rotated',
    'simulator/masks.py',
    "noise, degrees=sample.within(_NOISE_DEGREES, numbers['degrees'])",
    "noise, degrees=0.0 * numbers['degrees']",
    f'{_SIMULATE} -k independently',
  ),
  Mutant(
    'rectangles: one too few',
    'simulator/masks.py',
    'sample.within((low, high + 1), numbers',
    'sample.within((low, high), numbers',
    f'{_SIMULATE} -k as_many',
  ),
  Mutant(
    'rectangles: only squares',
    'simulator/masks.py',
    "numbers['sides'][:, axis]",
    "numbers['sides'][:, 0]",
    f'{_SIMULATE} -k told_size',
  ),
  Mutant(
    'augmentation: with replacement',
    'simulator/random_augment.py',
    "jnp.argsort(numbers['order'])[: options.num_augmentations]",
    "jnp.floor(numbers['order'] * 9)[: options.num_augmentations].astype(int)",
    f'{_SIMULATE} -k any_order',
  ),
  Mutant(
    'augmentation: solarize always',
    'simulator/random_augment.py',
    'jnp.where(numbers[0] < 0.5, threshold, above_all)',
    'jnp.where(numbers[0] < 1.5, threshold, above_all)',
    f'{_AUGMENT} -k every_other',
  ),
  Mutant(
    'noise: no fade',
    'simulator/perlin.py',
    'fade = offset**3 * (offset * (offset * 6 - 15) + 10)',
    'fade = offset',
    _PERLIN,
  ),
  Mutant(
    'noise: angles from the other axis',
    'simulator/perlin.py',
    '_matmul(jnp.cos(angles), columns.T)',
    '_matmul(jnp.sin(angles), columns.T)',
    _PERLIN,
  ),
  Mutant(
    'rotation: the other way round',
    'simulator/rotation.py',
    'return place(cos, -sin, center_row), place(sin, cos, center_column)',
    'return place(cos, sin, center_row), place(-sin, cos, center_column)',
    _ROTATION,
  ),
  Mutant(
    'rotation: half a pixel off',
    'simulator/rotation.py',
    'center_row, center_column = (height - 1) / 2, (width - 1) / 2',
    'center_row, center_column = height / 2, width / 2',
    _ROTATION,
  ),
  Mutant(
    'equalize: white pixels count for the steps',
    'simulator/augment.py',
    'step = (num_pixels - histogram[-1]) // 255',
    'step = num_pixels // 255',
    f'{_AUGMENT} -k equalize',
  ),
  Mutant(
    'hue: red and blue swapped',
    'simulator/augment.py',
    'shift = jnp.array([5.0, 3.0, 1.0], hue.dtype)',
    'shift = jnp.array([1.0, 3.0, 5.0], hue.dtype)',
    f'{_AUGMENT} -k hue',
  ),
  # Sampling.
  Mutant(
    'sampling: every step the same',
    'training/sampling.py',
    'jax.random.fold_in(jax.random.fold_in(run_key, _STEP_STREAM), step)',
    'jax.random.fold_in(jax.random.fold_in(run_key, _STEP_STREAM), 0)',
    f'{_TRAIN} -k "draws or epochs"',
  ),
  Mutant(
    'sampling: every epoch in the same order',
    'training/sampling.py',
    'jax.random.fold_in(epoch_key, position // num_images)',
    'jax.random.fold_in(epoch_key, position * 0)',
    f'{_TRAIN} -k "draws or epochs"',
  ),
  Mutant(
    'sampling: the last image never',
    'training/sampling.py',
    'lambda key: uniform_index(key, num_images))(image_keys)',
    'lambda key: uniform_index(key, num_images - 1))(image_keys)',
    f'{_TRAIN} -k "draws or epochs"',
  ),
  Mutant(
    'sampling: examples of a batch share a key',
    'training/sampling.py',
    'lambda i: jax.random.fold_in(step_key, i))(places)',
    'lambda i: jax.random.fold_in(step_key, i // 2))(places)',
    f'{_TRAIN} -k "draws or epochs"',
  ),
  # Networks.
  Mutant(
    'networks: image before reconstruction',
    'networks/models.py',
    'joined = jnp.concatenate([seen, image], axis=-1)',
    'joined = jnp.concatenate([image, seen], axis=-1)',
    f'{_MODELS} -k evaluation_agrees',
  ),
  Mutant(
    'networks: a gradient is stopped between the two',
    'networks/models.py',
    'seen = _scale_gradient(reconstruction, self.reconstruction_gradient)',
    'seen = jax.lax.stop_gradient(reconstruction)',
    f'{_MODELS} -k gradients_agree',
  ),
  Mutant(
    'networks: the share that is stopped is the one that passes',
    'networks/models.py',
    'return share * x + (1 - share) * stopped',
    'return (1 - share) * x + share * stopped',
    f'{_MODELS} -k share_of_its_gradient',
  ),
  Mutant(
    'networks: the skip before the upsampled',
    'networks/models.py',
    'parts = [x, skips.pop()] if j == 2 else [x]',
    'parts = [skips.pop(), x] if j == 2 else [x]',
    f'{_MODELS} -k evaluation_agrees',
  ),
  Mutant(
    'batch norm: the biased variance is kept',
    'networks/blocks.py',
    'var * (n / (n - 1))',
    'var * 1.0',
    f'{_MODELS} -k statistics',
  ),
  Mutant(
    'batch norm: the average keeps 0.99',
    'networks/blocks.py',
    '_KEEP = 0.9  #',
    '_KEEP = 0.99  #',
    f'{_MODELS} -k statistics',
  ),
  Mutant(
    'batch norm: the backward pass lacks the mean',
    'networks/layers.py',
    '- spread(bias_gradient / count)',
    '- 0 * spread(bias_gradient / count)',
    'tests/test_layers.py',
  ),
  Mutant(
    'upsampling: the weights of another grid',
    'networks/scaling.py',
    'weight = target * (size - 1) / (2 * size - 1) - low',
    'weight = target * (size - 1) / (2 * size) - low',
    f'{_MODELS} -k upsampling',
  ),
  Mutant(
    'upsampling: gradient of the other axis',
    'networks/scaling.py',
    'y = _resample(y, 2, *_upsample_transpose_taps(y.shape[2] // 2))',
    'y = _resample(y, 2, *_upsample_transpose_taps(y.shape[2] // 2)) * 0.99',
    f'{_MODELS} -k upsampling',
  ),
  Mutant(
    'folding: epsilon forgotten',
    'networks/folding.py',
    'np.sqrt(np.float64(var) + layers.EPSILON)',
    'np.sqrt(np.float64(var))',
    'tests/test_folding.py',
  ),
  # Losses.
  Mutant(
    'loss: SSIM with the wrong sign',
    'losses.py',
    'return 1 - similarity.mean(axis=(1, 2, 3))',
    'return 1 + similarity.mean(axis=(1, 2, 3))',
    _LOSSES,
  ),
  Mutant(
    'loss: the weights are ignored',
    'losses.py',
    'weights[name] * factors.get(name, 1) * value',
    'factors.get(name, 1) * value',
    _LOSSES,
  ),
  Mutant(
    'SSIM: the constants swapped',
    'losses.py',
    'c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2',
    'c2, c1 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2',
    _LOSSES,
  ),
  Mutant(
    'SSIM: the data range is ignored',
    'losses.py',
    'level_range = ssim_data_range(output.reconstruction)',
    'level_range = 1.0',
    _LOSSES,
  ),
  Mutant(
    'focal loss: gamma 1',
    'losses.py',
    'focus = missing**2',
    'focus = missing',
    _LOSSES,
  ),
  Mutant(
    'focal loss: mask and its inverse swapped',
    'losses.py',
    'difference = logits[..., 1] - logits[..., 0]',
    'difference = logits[..., 0] - logits[..., 1]',
    _LOSSES,
  ),
  Mutant(
    'MSGMS: one scale too few',
    'losses.py',
    '  for scale in range(_MSGMS_SCALES):',
    '  for scale in range(_MSGMS_SCALES - 1):',
    _LOSSES,
  ),
  # The step.
  Mutant(
    'step: the networks see the clean image',
    'training/step.py',
    '      example.augmented,\n      train=True,',
    '      example.image,\n      train=True,',
    f'{_MODELS} -k three_steps',
  ),
  Mutant(
    'step: the target is the augmented image',
    'training/step.py',
    '      example.image,\n      example.mask,',
    '      example.augmented,\n      example.mask,',
    f'{_MODELS} -k three_steps',
  ),
  Mutant(
    'step: the running statistics are lost',
    'training/step.py',
    'batch_stats=seen.batch_stats,',
    'batch_stats=state.batch_stats,',
    f'{_MODELS} -k statistics',
  ),
  Mutant(
    'step: the average does not warm up',
    'training/step.py',
    'keep = jnp.minimum(decay, step / (9 + step))',
    'keep = decay + 0 * step',
    f'{_TRAIN} -k average',
  ),
  Mutant(
    'optimizer: another beta',
    'training/optimizer.py',
    'b2=0.999',
    'b2=0.99',
    f'{_MODELS} -k three_steps',
  ),
  # Schedule.
  Mutant(
    'schedule: the rate grows at milestones',
    'training/optimizer.py',
    "int(share * num_steps): config['learning_rate_factor']",
    "int(share * num_steps): 1 / config['learning_rate_factor']",
    f'{_TRAIN} -k schedule',
  ),
  Mutant(
    'schedule: epochs are rounded down',
    'training/trainer.py',
    "steps = -(-config['num_epochs'] * num_images // config['batch_size'])",
    "steps = config['num_epochs'] * num_images // config['batch_size']",
    f'{_TRAIN} -k epochs',
  ),
  # Score and thresholds.
  Mutant(
    'score: the mean of the map instead of the maximum',
    'score.py',
    'local_means(anomaly_map, window=window).max(axis=(-2, -1))',
    'local_means(anomaly_map, window=window).mean(axis=(-2, -1))',
    f'{_MODELS} -k score',
  ),
  Mutant(
    'score: the window is one pixel wider',
    'score.py',
    '(distance <= window // 2) / window',
    '(distance <= window // 2 + 1) / window',
    f'{_MODELS} -k score',
  ),
  Mutant(
    'map: the probability of being normal',
    'score.py',
    'nn.sigmoid(logits[..., 1] - logits[..., 0])',
    'nn.sigmoid(logits[..., 0] - logits[..., 1])',
    f'{_MODELS} -k anomaly_map',
  ),
  Mutant(
    'threshold: as anomalous as the threshold is anomalous',
    'detection/detector.py',
    'np.asarray(score, np.float64) > self.thresholds.image',
    'np.asarray(score, np.float64) >= self.thresholds.image',
    _DETECTOR,
  ),
  Mutant(
    'threshold: the quantile is ignored',
    'detection/detector.py',
    'float(np.quantile(np.concatenate(scores), quantile))',
    'float(np.quantile(np.concatenate(scores), 0.5))',
    _DETECTOR,
  ),
  # Metrics.
  Mutant(
    'metrics: ties count whole',
    'curves.py',
    "below = np.searchsorted(negatives, thresholds, 'left')",
    "below = np.searchsorted(negatives, thresholds, 'right')",
    _METRICS,
  ),
  Mutant(
    'metrics: regions by edges alone',
    'curves.py',
    'connectivity=2',
    'connectivity=1',
    _METRICS,
  ),
  Mutant(
    'metrics: AUPRO is not divided by its limit',
    'curves.py',
    'AUPRO_LIMIT = 0.3',
    'AUPRO_LIMIT = 0.2',
    _METRICS,
  ),
  Mutant(
    'metrics: F1 of another threshold',
    'metrics.py',
    'f1 = 2 * sweep.true_positives / (called + sweep.num_positives)',
    'f1 = 2 * sweep.true_positives / called',
    _METRICS,
  ),
)


def occurrences(mutant: Mutant) -> int:
  """How often the text to change stands in the file."""
  path = ROOT / 'draem_jax' / mutant.file
  return path.read_text(encoding='utf-8').count(mutant.old)


def is_caught(mutant: Mutant) -> bool:
  """Whether a test fails in a copy of the checkout that has the mutant."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary, 'checkout')
    for name in COPIED:
      source = ROOT / name
      copy = shutil.copytree if source.is_dir() else shutil.copy
      folder.mkdir(exist_ok=True)
      copy(source, folder / name)
    path = folder / 'draem_jax' / mutant.file
    text = path.read_text(encoding='utf-8')
    path.write_text(text.replace(mutant.old, mutant.new), encoding='utf-8')
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'pytest', '-x', '-q', '-n0'),
        *('-p', 'no:cacheprovider', *shlex.split(mutant.tests)),
      ],
      cwd=folder,
      env=os.environ | {'PYTHONPATH': str(folder)},
      capture_output=True,
    )
  # 2: a mutant so broken that no test could be collected.
  if done.returncode not in (0, 1, 2):
    raise RuntimeError(f'{mutant.name}: pytest ends with {done.returncode}')
  return done.returncode != 0


def main() -> int:
  """Makes the mutants that the options name; prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='a word of the names')
  parser.add_argument('--check', action='store_true', help='run no test')
  options = parser.parse_args()
  chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
  wrong = [mutant.name for mutant in chosen if occurrences(mutant) != 1]
  if wrong or options.check:
    print(f'{len(chosen)} mutants; do not apply: {", ".join(wrong) or "none"}')
    return bool(wrong)
  print('| mutant | file | caught | seconds |\n|---|---|---|---:|')
  survivors = 0
  for mutant in chosen:
    start = time.monotonic()
    caught = is_caught(mutant)
    survivors += not caught
    print(
      f'| {mutant.name} | `{mutant.file}` | {"yes" if caught else "**no**"} |'
      f' {time.monotonic() - start:.0f} |',
      flush=True,
    )
  print(f'\n{len(chosen) - survivors} of {len(chosen)} are caught.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
