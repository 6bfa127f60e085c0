"""Measurements, run from the top of the repository: `python -m tests.benchmarks`, and what has a main of its own."""

import sys
from pathlib import Path

# As under pytest, where `support` is a package of its own.
sys.path.insert(0, str(Path(__file__).parents[1]))
