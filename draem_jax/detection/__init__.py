"""A trained detector, and files in and predictions out."""
