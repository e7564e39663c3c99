"""Training code with a planted failure, and healthy training code that only looks suspicious.

Each function is one case: it trains as anybody's script would. In a failing one the culprit line ends in a comment
with its phase, such as `# culprit: backward`; for a backward operation it is the line of the forward call that it
belongs to, except where the code's own Python (a custom function's backward, a hook) is at fault.
`FAILURES`, `HEALTHY` and `DRIFTING` (failures after many steps) hold them by name. `scripts/autopsy.py` runs them, and
so do the tests.
"""

from planted import backward, drifting, forward, healthy, losses, masks, programs, updates  # noqa: F401  # they enter their cases
from planted.case import DRIFTING, FAILURES, HEALTHY, Culprit, Training, culprit

__all__ = ["DRIFTING", "FAILURES", "HEALTHY", "Culprit", "Training", "culprit"]
