"""The comparison with the release, which tests and docs share."""
