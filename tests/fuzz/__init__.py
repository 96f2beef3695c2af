"""A fuzzer of the commands, and a script that kills them."""

import pathlib
import sys

# The tests' modules import each other by their bare names.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
