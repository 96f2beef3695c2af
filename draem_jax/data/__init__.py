"""Where images come from: a category, anomaly textures, the built-in demo."""
