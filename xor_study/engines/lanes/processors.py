"""How many cores a process may use: those it may run on, and no more than its control groups' quotas pay for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux shows control groups, and which of them a process is in (cgroups(7))."""


def cores() -> int:
    """Return the number of cores that this process may use; a quota of one and a half counts as two."""
    # macOS and Windows have no affinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the quotas of the groups that this process is in, from its own to the root, in cores."""
    try:
        entries = [line.split(":", 2) for line in OWN.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = CGROUPS / controllers  # version 2 has one tree, without a name
        group = top / path.lstrip("/")
        # In a container the path may be one of the host, which is not there: its own group is at the top then.
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of a group if it has one: "max 100000" in version 2 means none, -1 in version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
