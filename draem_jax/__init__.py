"""DRÆM surface-anomaly detection in JAX and Flax."""
