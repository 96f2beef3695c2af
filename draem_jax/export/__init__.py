"""Writers of a trained detector for other programs, one for each format."""
