"""The way of one token and of one `Last-Event-ID` through the package, told from a run: `python -m tests.walk`."""

import sys
from pathlib import Path

# As under pytest, where `support` and this are packages of their own.
sys.path.insert(0, str(Path(__file__).parents[1]))
