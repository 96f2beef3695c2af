"""A trained detector, and files in and predictions out."""

from draem_jax.detection.detector import Detector, Prediction

__all__ = ['Detector', 'Prediction']
