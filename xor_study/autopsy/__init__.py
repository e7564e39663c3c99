"""Find the first operation that went wrong, in any torch code: `with autopsy() as report:` around it."""

from xor_study.autopsy.report import Event, NearMiss, NonFiniteError, Report, StepSummary
from xor_study.autopsy.session import autopsy

__all__ = ["Event", "NearMiss", "NonFiniteError", "Report", "StepSummary", "autopsy"]
