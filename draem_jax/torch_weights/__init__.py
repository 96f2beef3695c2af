"""The release's files, in and out."""
