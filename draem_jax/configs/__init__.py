"""The recipes that come with the package, one file each."""
