"""A fuzzer of the commands, and a script that kills them."""

import os
import pathlib
import sys

# A thread of numpy's would not be there in the processes that are forked.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
# The tests' modules import each other by their bare names.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
