"""All measurements, one after the other: `make bench`, `make bench-quick`.

    python -m tests.benchmarks [--quick]

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


async def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="one short pass of each")
    quick, began = parser.parse_args().quick, time.monotonic()
    print(f"{machine()}\n")
    for module in (fanout, recording, coming_late, workers):
        since = time.monotonic()
        print(f"## {module.__name__.rpartition('.')[2].replace('_', ' ')}\n", flush=True)
        await module.measure(module.QUICK if quick else module.FULL)
        print(f"({time.monotonic() - since:.0f} s, load average {os.getloadavg()[0]:.1f})\n", flush=True)
    print("## storage\n", flush=True)
    await storage.main()
    print(f"\nin {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    asyncio.run(main())
