"""Scores a picture with OpenVINO.

python openvino_consumer.py detector.onnx photo.png heat_map.png
"""

import sys

import numpy as np
import openvino
from PIL import Image, ImageOps

model, photo, heat_map = sys.argv[1:]
model = openvino.Core().read_model(model)
threshold = float(model.get_rt_info(['framework', 'image_threshold']).value)
options = {'INFERENCE_PRECISION_HINT': 'f32'}
detector = openvino.Core().compile_model(model, 'CPU', options)

image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
images = np.asarray(image)[None]
results = detector(images)
anomaly_map, score = results['anomaly_map'], results['score']

verdict = 'anomalous' if score[0] > threshold else 'good'
print(f'score {score[0]:.4f}, threshold {threshold:.4f}: {verdict}')
red = anomaly_map[0][..., None]
overlay = (1 - red) * images[0] + red * [255, 0, 0]
Image.fromarray(overlay.round().astype(np.uint8)).save(heat_map)
