"""Find the first operation that went wrong, in any torch code: `with autopsy() as report:` around it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xor_study.autopsy.report import Event, NearMiss, NonFiniteError, Report, Risk, StepSummary
    from xor_study.autopsy.session import autopsy

__all__ = ["Event", "NearMiss", "NonFiniteError", "Report", "Risk", "StepSummary", "autopsy"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xor_study.autopsy import (
        report,
        session,
    )  # loads torch, which `python -m xor_study.autopsy --help` doesn't need

    return getattr(session, name) if name == "autopsy" else getattr(report, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if os.environ.get("XOR_STUDY_AUTOPSY", "0") not in ("", "0"):
    from xor_study.autopsy.recording import follow_environment

    follow_environment()
