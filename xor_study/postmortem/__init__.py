"""How one of our runs ended, link by link, and what would have prevented it: `xor-study postmortem key=value ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xor_study.postmortem.story import Postmortem, examine

__all__ = ["Postmortem", "examine"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xor_study.postmortem import story  # loads torch and the engines, which `cli` does without for --help

    return getattr(story, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
