"""Processes that others ask for: is it alive, and when may I end with it?"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WATCH = 1.0
"""Seconds between two looks at a process that another ends with."""


@dataclass(frozen=True)
class Process:
    """A process on a host, told from a later one of the same number.

    Attributes:
        host: its name.
        machine: tells hosts, their reboots, and containers with their own process numbers apart.
        pid: its number there.
        begun: when it began, in the kernel's clock ticks; empty if unknown.
    """

    host: str
    machine: str
    pid: int
    begun: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process of a number on this machine."""
        return cls(socket.gethostname(), _machine(), pid, "".join(_stat(pid)[19:20]))

    @property
    def state(self) -> str | None:
        """Return "running", "stopped" or "dead", or None for a process of another machine."""
        if self.machine != _machine():
            return None
        stat = _stat(self.pid)
        if not stat:
            return "running" if not Path("/proc/self/stat").exists() and _answers(self.pid) else "dead"
        if stat[0] in "ZX" or (self.begun and stat[19] != self.begun):
            return "dead"
        return "stopped" if stat[0] in "Tt" else "running"

    @property
    def ancestors(self) -> set[int]:
        """Return the numbers of the processes that it is a child of, by any way."""
        found: set[int] = set()
        pid = self.pid
        while (stat := _stat(pid)) and (pid := int(stat[1])):
            found.add(pid)
        return found


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process, from its state on (proc(5), field 3); nothing without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@cache
def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {namespace.stat().st_ino}"
    return socket.gethostname()


@cache  # one thread for all jobs that a process runs for a driver
def end_with(driver: Process) -> None:
    """End this process soon after `driver` has died, if it is a child of it by any way.

    A driver that is killed can't end its workers itself. One that a scheduler started, such as SLURM's or Ray's, is no
    child, and that scheduler decides.
    """

    def watch() -> None:
        while driver.state != "dead":
            time.sleep(WATCH)
        os._exit(1)

    own = Process.of(os.getpid())
    if driver.machine == own.machine and driver.pid in own.ancestors:
        threading.Thread(target=watch, daemon=True).start()
