"""All measurements, one after the other, or those that are named: `make bench`, `make bench-quick`.

    python -m tests.benchmarks [--quick] [table …]

Everything runs on this machine, over loopback, and ends by itself. Speed is measured, not asserted; but an event that
is lost, doubled or out of order ends the run with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from tests.benchmarks import coming_late, fanout, recording, storage, workers
from tests.benchmarks.measuring import machine

# What prints it, and how much of it there is in a quick and in a full run.
TABLES = {
    table.__name__: (table, module.QUICK, module.FULL)
    for module in (fanout, recording, coming_late, workers)
    for table in module.TABLES
} | {"storage": (lambda _: storage.main(), None, None)}
# Those that `--quick` has when none is named.
QUICK = ("crowd", "room", "recording", "few_each", "idle_memory", "idle_cached", "late_joiners", "storms", "storage")


async def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="one short pass; without names, of the most important")
    parser.add_argument("tables", nargs="*", metavar="table", help=f"some of: {', '.join(TABLES)}")
    given = parser.parse_args()
    if unknown := set(given.tables) - TABLES.keys():
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    began = time.monotonic()
    print(f"{machine()}\n", flush=True)
    for name in given.tables or (QUICK if given.quick else TABLES):
        table, quick, full = TABLES[name]
        since = time.monotonic()
        await table(quick if given.quick else full)
        print(f"({name}: {time.monotonic() - since:.0f} s, load average {os.getloadavg()[0]:.1f})\n", flush=True)
    print(f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    asyncio.run(main())
