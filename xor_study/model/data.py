"""XOR's four corners, and random numbers as functions of a seed: batches and initial draws.

The generator is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): output i of a
stream with key s is mix(s + i G), with G = 0x9E3779B97F4A7C15, so any word is computed from (key, i) alone. The key of
a seed's stream of batches is the first output of SplitMix64 seeded with it, that of its initial draws the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xor_study.errors import StudyError

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""The inputs (x1, x2), in the order of all arrays with an entry for each corner."""

TARGETS = (False, True, True, False)
"""The exclusive or of each corner."""

BATCH_STREAM, INITIAL_STREAM = 1, 2
"""Which output of a seed's SplitMix64 is the key of its batches, and of its initial draws."""

_GAMMA = 0x9E3779B97F4A7C15
_FULL = "full"

Words = NDArray[np.uint64]


def splitmix64(key: ArrayLike, index: ArrayLike) -> Words:
    """Return output `index` of SplitMix64 seeded with `key`, elementwise, as 64-bit words.

    Args:
        key: seeds, of any shape that broadcasts with `index`.
        index: from 1.

    Example:
        >>> hex(splitmix64(0, 1))  # as Java's SplittableRandom and Vigna's splitmix64.c give it
        '0xe220a8397b1dcdaf'
    """
    with np.errstate(over="ignore"):  # all arithmetic is modulo 2^64
        z = np.asarray(key, np.uint64) + np.asarray(index, np.uint64) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def batch_words(seeds: ArrayLike, steps: range, batch: int = 32) -> Words:
    """Return the random words that contain the batches of some steps.

    Bit i of the low half of a word is x1 of sample i, bit i of its high half is x2. A batch of n samples takes
    ceil(n / 32) words, and the lowest bits of the last one.

    Args:
        seeds: shape (runs,).
        steps: consecutive step numbers, from 1.
        batch: samples in a batch.

    Returns:
        shape (runs, steps, words of a batch).
    """
    words = -(-batch // 32)
    first = (np.arange(steps.start, steps.stop, dtype=np.uint64) - np.uint64(1)) * np.uint64(words)
    index = first[:, None] + np.arange(1, words + 1, dtype=np.uint64)
    keys = splitmix64(np.asarray(seeds, np.uint64), BATCH_STREAM)
    return splitmix64(keys[:, None, None], index)


def initial_draws(seeds: ArrayLike, count: int) -> NDArray[np.float64]:
    """Return `count` uniform draws from (0, 1) for each seed, shape (runs, count).

    A draw is (53 high bits of a word + 1/2) / 2^53, so it is never 0 or 1, whose quantiles are infinite.
    """
    keys = splitmix64(np.asarray(seeds, np.uint64), INITIAL_STREAM)
    words = splitmix64(keys[:, None], np.arange(1, count + 1, dtype=np.uint64))
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


@dataclass(frozen=True)
class Batches:
    """The batches of many runs, computed from their seeds or given.

    Attributes:
        size: samples in a batch.
        seeds: shape (runs,), or None where the batches don't depend on a seed.
        given: inputs x1 and x2 of all steps, shape (steps, size) each, the same for all runs; or None.

    Example:
        >>> batches = Batches.of(32, seeds=[0, 1])
        >>> x1, x2 = batches.inputs(0, range(1, 4))
        >>> x1.shape
        (3, 32)
        >>> batches.counts(np.array([0, 1]), range(1, 4)).sum(-1)
        array([[32, 32],
               [32, 32],
               [32, 32]], dtype=uint64)
    """

    size: int
    seeds: Words | None = None
    given: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    @classmethod
    def of(cls, batch: int | str, seeds: ArrayLike) -> Batches:
        """Return the batches of runs with these seeds.

        Args:
            batch: samples in a batch, or "full": every batch has each of the four corners once.
            seeds: shape (runs,).
        """
        if batch == _FULL:
            return cls(len(CORNERS))
        return cls(int(batch), seeds=np.asarray(seeds, np.uint64))

    @classmethod
    def explicit(cls, x1: ArrayLike, x2: ArrayLike) -> Batches:
        """Return recorded batches.

        Args:
            x1: the first inputs, shape (steps, samples), each 0 or 1.
            x2: the second inputs, likewise.

        Raises:
            StudyError: if the shapes differ or are empty, or an entry is neither 0 nor 1.
        """
        first, second = np.asarray(x1), np.asarray(x2)
        if first.ndim != 2 or first.shape != second.shape or first.size == 0:
            raise StudyError(
                f"batches: x1 and x2 must share one shape (steps, samples), not {first.shape}, {second.shape}"
            )
        if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
            raise StudyError("batches: every input must be 0 or 1")
        return cls(first.shape[1], given=(first.astype(np.uint8), second.astype(np.uint8)))

    def check_steps(self, steps: int) -> None:
        """Raise StudyError if there are no batches for that many steps."""
        if self.given is not None and len(self.given[0]) < steps:
            raise StudyError(f"batches: {len(self.given[0])} steps are given, {steps} are asked for")

    def inputs(self, run: int, steps: range) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return x1 and x2 of one run's batches, shape (len(steps), size) each.

        Args:
            run: index of the run.
            steps: consecutive step numbers, from 1.
        """
        if self.given is not None:
            x1, x2 = self.given
            return x1[steps.start - 1 : steps.stop - 1], x2[steps.start - 1 : steps.stop - 1]
        if self.seeds is None:
            corners = np.array(CORNERS, np.uint8)
            x1, x2 = np.repeat(corners.T[:, None], len(steps), axis=1)
            return x1, x2
        words = batch_words(self.seeds[run : run + 1], steps, self.size)[0]  # (steps, words)
        bits = (words[..., None] >> np.arange(64, dtype=np.uint64)).astype(np.uint8) & np.uint8(1)
        x1, x2 = (half.reshape(len(steps), -1)[:, : self.size] for half in np.split(bits, 2, axis=-1))
        return x1, x2

    def counts(self, runs: NDArray[np.intp], steps: range) -> NDArray[np.uint32]:
        """Return the number of samples at each corner in the batches of some steps.

        Args:
            runs: indices of the runs.
            steps: consecutive step numbers, from 1.

        Returns:
            shape (steps, runs, 4), or (steps, 1, 4) where all runs have the same.
        """
        if self.given is not None:
            x1, x2 = (half[steps.start - 1 : steps.stop - 1] for half in self.given)
            corner = 2 * x1 + x2
            return np.stack([(corner == i).sum(1, dtype=np.uint32) for i in range(len(CORNERS))], axis=1)[:, None]
        if self.seeds is None:
            return np.ones((len(steps), 1, len(CORNERS)), np.uint32)
        # No sample is made: with the bits of all samples side by side, a count is the number of ones in a word.
        words = batch_words(self.seeds[runs], steps, self.size)
        x1, x2 = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
        if last := self.size % 32:  # the last word has more bits than the batch has samples
            x1[..., -1] &= np.uint64((1 << last) - 1)
            x2[..., -1] &= np.uint64((1 << last) - 1)
        both, one, two = (np.bitwise_count(bits).sum(-1, dtype=np.uint32) for bits in (x1 & x2, x1, x2))
        return np.stack([self.size - one - two + both, two - both, one - both, both], axis=-1).swapaxes(0, 1)
