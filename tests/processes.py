"""Commands in processes of their own that start at once: forked from one that has imported everything."""

import fcntl
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from xor_study import run
from xor_study.sweeps import chunks as batches

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])

RUNS_OF_A_BATCH = 16


def _main(
    arguments: Sequence[str],
    folder: Path,
    name: str,
    most_runs: int | None,
    largest_file: int | None,
    clock: float,
    flock: int | None,
) -> None:
    """Run the command line in a folder, its output in files; for the arguments see `start`."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    for stream, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    torch.set_num_threads(1)  # more would wait for each other where cores are few
    if most_runs is not None:
        batches.MOST_RUNS = most_runs
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if flock is not None:

        def refuse(*given: object) -> None:
            raise OSError(flock, os.strerror(flock))

        fcntl.flock = refuse
    now = time.time
    time.time = lambda: now() + clock
    sys.argv = ["xor-study", *arguments]
    run.main()


@dataclass
class Command:
    """A command that was started."""

    process: BaseProcess
    folder: Path
    name: str

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        self.process.join(120)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    @property
    def out(self) -> str:
        """What it printed."""
        return (self.folder / f"{self.name}.out").read_text()

    @property
    def err(self) -> str:
        """What it printed as errors."""
        return (self.folder / f"{self.name}.err").read_text()

    @property
    def complaints(self) -> str:
        """What it printed as errors, except how far it was and what it waited for, which a slow machine decides."""
        return re.sub(r"^(waiting for |\d+/\d+ runs; ).*\n", "", self.err, flags=re.MULTILINE)


def start(
    arguments: Sequence[str],
    folder: Path,
    *,
    name: str = "printed",
    most_runs: int | None = RUNS_OF_A_BATCH,
    largest_file: int | None = None,
    clock: float = 0,
    flock: int | None = None,
) -> Command:
    """Start a command line in a folder.

    Args:
        arguments: after the program's name.
        folder: to run in, and to leave what it prints in.
        name: of the files that hold what it prints.
        most_runs: of a batch; None for as many as usual.
        largest_file: that it can write, in bytes.
        clock: seconds by which the time of day is wrong.
        flock: the error's number with which the file system answers to it.
    """
    process = CONTEXT.Process(target=_main, args=(arguments, folder, name, most_runs, largest_file, clock, flock))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server, once started, looks for `preloaded`
        process.start()
    return Command(process, folder, name)
