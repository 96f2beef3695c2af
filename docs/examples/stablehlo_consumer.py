"""Scores a picture with JAX alone.

python stablehlo_consumer.py detector.stablehlo photo.png heat_map.png
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps

program, photo, heat_map = map(pathlib.Path, sys.argv[1:])
exported = jax.export.deserialize(bytearray(program.read_bytes()))
detector = jax.jit(exported.call)  # Compiled once for each shape of images.

image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
images = np.asarray(image)[None]
anomaly_map, score = jax.device_get(detector(images))

description = json.loads(program.with_suffix('.json').read_text())
threshold = description['image_threshold']
verdict = 'anomalous' if score[0] > threshold else 'good'
print(f'score {score[0]:.4f}, threshold {threshold:.4f}: {verdict}')
red = anomaly_map[0][..., None]
overlay = (1 - red) * images[0] + red * [255, 0, 0]
Image.fromarray(overlay.round().astype(np.uint8)).save(heat_map)
