"""What became of one of our runs, link by link, and what would have prevented it: `python -m xor_study.autopsy`."""

from xor_study.postmortem.story import Postmortem, examine

__all__ = ["Postmortem", "examine"]
