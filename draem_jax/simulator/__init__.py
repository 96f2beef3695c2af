"""The anomaly simulator: noise, texture operations, one training example."""
