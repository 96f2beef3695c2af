"""Scores a picture with ONNX Runtime.

python onnxruntime_consumer.py detector.onnx photo.png heat_map.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, heat_map = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
metadata = session.get_modelmeta().custom_metadata_map

image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
images = np.asarray(image)[None]
anomaly_map, score = session.run(['anomaly_map', 'score'], {'images': images})

threshold = float(metadata['image_threshold'])
verdict = 'anomalous' if score[0] > threshold else 'good'
print(f'score {score[0]:.4f}, threshold {threshold:.4f}: {verdict}')
red = anomaly_map[0][..., None]
overlay = (1 - red) * images[0] + red * [255, 0, 0]
Image.fromarray(overlay.round().astype(np.uint8)).save(heat_map)
