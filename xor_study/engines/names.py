"""Names of the engines and what can be checked of them without loading torch."""

from __future__ import annotations

from xor_study.errors import StudyError, show, suggestion

ENGINES = ("plain", "vmap", "lanes")
"""The engines; `xor_study.engines.NAME.train` is the function of each."""

AUTO = "auto"
"""Stands for the fastest engine that can train a run: lanes, or else vmap."""

MOST_THREADS = 1024


class FallbackWarning(UserWarning):
    """Some runs can't be compiled by the lanes engine and are trained by another one."""


def check_engine(name: str, device: str = "cpu", threads: int | None = None) -> str:
    """Return the name of an engine, or "auto".

    Args:
        name: one of `ENGINES`, or "auto".
        device: a name of a device; whether there is such a device is for `check_device` to find out.
        threads: see `xor_study.train`.

    Raises:
        StudyError: if there is no such engine, or if it can't use the device or several threads.

    Example:
        >>> check_engine("lanes", threads=2)
        'lanes'
        >>> check_engine("lanes", device="cuda:1")
        Traceback (most recent call last):
        xor_study.errors.StudyError: engine=lanes device=cuda:1: it runs on the CPU only; use engine=vmap
    """
    if name != AUTO and name not in ENGINES:
        raise StudyError(f"engine={show(name)}: unknown{suggestion(str(name), [AUTO, *ENGINES])}")
    if name == "lanes" and str(device).startswith("cuda"):
        raise StudyError(f"engine=lanes device={show(device)}: it runs on the CPU only; use engine=vmap")
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise StudyError(f"threads={show(threads)}: must be a whole number in [1, {MOST_THREADS}]")
        if name not in (AUTO, "lanes"):
            raise StudyError(f"threads={threads} engine={name}: it has one thread; only lanes has several")
    return name
