"""The versions of Axon that were run, and which are affected; imports nothing, so that a command can answer at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """A version of Axon that was run.

    Attributes:
        axon: its version or commit.
        nx: the version of Nx that it ran with.
        loss: the preset of `axon_binary_cross_entropy` with its semantics.
    """

    axon: str
    nx: str
    loss: str

    @property
    def affected(self) -> bool:
        """Whether training the XOR example diverges."""
        return self.loss == "axon_0_6_1"


VERSIONS = (
    Version("0.4.1", "0.4.2", "axon_0_7_0"),
    Version("0.5.1", "0.5.3", "axon_0_7_0"),
    Version("0.6.0", "0.6.4", "axon_0_7_0"),
    Version("0.6.1", "0.6.4", "axon_0_6_1"),
    Version("0.6.1", "0.7.3", "axon_0_6_1"),
    Version("parent of 0473cf92", "0.7.2", "axon_0_6_1"),
    Version("0473cf92", "0.7.2", "axon_0_7_0"),
    Version("0.7.0", "0.9.0", "axon_0_7_0"),
)
"""Measured on the real Axon; see tests/data/axon/README.md."""

HEADER = """\
| Axon | Nx | sigmoid's logits reach the loss | gradient of Nx.clip | `:sgd` on XOR | what to do |
|---|---|---|---|---|---|"""


def versions_table() -> str:
    """Return which Axon with which Nx is affected by which defect, and what to do, as Markdown."""
    affected = ["**no**", "**squared, and used**", "**diverges, NaN in half of the runs**", "update Axon to 0.7.0"]
    sound = ["yes", "squared, but not used", "trains", "nothing"]
    lines = [[version.axon, version.nx, *(affected if version.affected else sound)] for version in VERSIONS]
    return "\n".join([HEADER, *(f"| {' | '.join(line)} |" for line in lines)])
