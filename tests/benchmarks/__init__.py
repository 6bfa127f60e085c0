"""Measurements: `python -m tests.benchmarks.<name>` from the top of the repository; each prints a table."""

import sys
from pathlib import Path

# As under pytest, where `support` is a package of its own.
sys.path.insert(0, str(Path(__file__).parents[1]))
