"""Time of the metrics of a test split of bottle's size, beside scikit-learn's.

    python benchmarks/evaluation.py

The split is synthetic: 20 good and 63 anomalous images of 256×256 with smooth
maps, once as they are, hardly a tie among them, and once with all that is
under 0.01 set to zero, which ties most pixels. Ours and scikit-learn's run in
alternation on the same arrays; the best round of each counts. Prints a table
and one JSON line.
"""

import argparse
import time

import numpy as np
import skimage
import sklearn
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import record
from draem_jax import metrics
from draem_jax.curves import of_scores, thin

METRICS = ('image_auroc', 'image_ap', 'pixel_auroc', 'pixel_ap')
FLOORS = {'hardly a tie': 0.0, 'most pixels tied at 0': 0.01}


def synthetic_split(num_good, num_anomalous, size, *, floor, seed=0):
  """Scores, maps, labels and masks of a detector that is good, not perfect."""
  rng = np.random.default_rng(seed)
  num_images = num_good + num_anomalous
  labels = np.arange(num_images) >= num_good
  shape = (num_images, size, size)
  scale = size / 256

  def smooth(sigma):
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, sigma * scale, sigma * scale))
    return noise / noise.std()

  defects = smooth(16)
  cut = np.quantile(defects, 0.94)
  masks = (defects > cut) & labels[:, None, None]
  logits = 8 * (defects - cut) * labels[:, None, None] + 2 * smooth(3) - 4
  maps = 1 / (1 + np.exp(-logits))
  maps = np.where(maps < floor, 0, maps).astype(np.float32)
  scores = ndimage.uniform_filter(maps, (0, 21, 21)).max(axis=(1, 2))
  return {'scores': scores, 'maps': maps, 'labels': labels, 'masks': masks}


def scikit_learn(*, scores, maps, labels, masks):
  """The four metrics that scikit-learn has, by its own functions."""
  pixels = masks.ravel(), maps.ravel()
  return {
    'image_auroc': roc_auc_score(labels, scores),
    'image_ap': average_precision_score(labels, scores),
    'pixel_auroc': roc_auc_score(*pixels),
    'pixel_ap': average_precision_score(*pixels),
  }


def ours(**split):
  """All metrics, and the curves that pictures are drawn of."""
  measured = metrics.measure(**split)
  values, _ = metrics.compute(measured)
  return values


def curves(*, scores, maps, labels, masks):
  """The curves alone, as many points as are drawn, and the best F1."""
  thin(of_scores(scores, labels), 1000)
  thin(of_scores(maps, masks), 1000)
  return metrics.best_f1(scores, labels)


def measure(contenders, split, rounds):
  """Best seconds of each contender, in alternation, and its last result."""
  best, results = {}, {}
  for _ in range(rounds):
    for name, function in contenders.items():
      start = time.perf_counter()
      results[name] = function(**split)
      seconds = time.perf_counter() - start
      best[name] = min(seconds, best.get(name, seconds))
  return best, results


def print_table(cases):
  """The seconds of all cases as a Markdown table."""
  rows = {
    'metrics': 'draem_jax: AUROC, AP, AUPRO and their curves',
    'scikit_learn': 'scikit-learn: AUROC, AP (it has no AUPRO)',
    'curves': 'draem_jax: curves alone, best F1',
  }
  print(f'| seconds | {" | ".join(cases)} |')
  print('|---|' + '---:|' * len(cases))
  for name, title in rows.items():
    cells = [f'{case["seconds"][name]:.3f}' for case in cases.values()]
    print(f'| {title} | {" | ".join(cells)} |')
  cells = [f'{case["largest_difference"]:.0e}' for case in cases.values()]
  print(f'| largest difference to scikit-learn | {" | ".join(cells)} |\n')


def make_parser() -> argparse.ArgumentParser:
  """The options of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--good', type=int, default=20)
  parser.add_argument('--anomalous', type=int, default=63)
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=5)
  return parser


def main():
  """Measure, print the table, print the JSON line."""
  options = make_parser().parse_args()

  contenders = {
    'metrics': ours,
    'scikit_learn': scikit_learn,
    'curves': curves,
  }
  cases = {}
  for case, floor in FLOORS.items():
    split = synthetic_split(
      options.good, options.anomalous, options.size, floor=floor
    )
    seconds, results = measure(contenders, split, options.rounds)
    found, theirs = results['metrics'], results['scikit_learn']
    cases[case] = {
      'seconds': {name: round(value, 4) for name, value in seconds.items()},
      'metrics': {name: round(found[name], 4) for name in (*METRICS, 'aupro')},
      'largest_difference': max(
        abs(found[name] - theirs[name]) for name in METRICS
      ),
    }
  print_table(cases)
  record.print_record(
    'evaluation',
    {
      'images': options.good + options.anomalous,
      'size': options.size,
      'cases': cases,
    },
    versions={
      'numpy': np.__version__,
      'scikit-image': skimage.__version__,
      'scikit-learn': sklearn.__version__,
    },
  )


if __name__ == '__main__':
  main()
