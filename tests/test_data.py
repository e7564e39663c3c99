"""Random numbers: known answers of SplitMix64, and what batches and draws are made of."""

import numpy as np
import pytest

from xor_study.errors import StudyError
from xor_study.model.data import BATCH_STREAM, CORNERS, TARGETS, Batches, batch_words, initial_draws, splitmix64

MASK = 2**64 - 1


def reference_splitmix64(state: int, count: int) -> list[int]:
    """Vigna's splitmix64.c, in Python's integers."""
    words = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        words.append(z ^ (z >> 31))
    return words


def test_known_answers() -> None:
    """Published outputs: seed 1234567 (Rosetta Code) and seed 0 (Java's SplittableRandom)."""
    assert splitmix64(1234567, np.arange(1, 6)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [hex(word) for word in splitmix64(0, np.arange(1, 4)).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_any_output_is_computed_from_its_number_alone(seed: int) -> None:
    assert splitmix64(seed, np.arange(1, 21)).tolist() == reference_splitmix64(seed, 20)
    assert int(splitmix64(seed, 17)) == reference_splitmix64(seed, 17)[-1]


def test_the_batch_of_a_step_is_one_word_of_the_seeds_stream() -> None:
    key = reference_splitmix64(42, BATCH_STREAM)[-1]
    assert batch_words([42], range(1, 6))[0, :, 0].tolist() == reference_splitmix64(key, 5)
    wide = batch_words([42], range(1, 4), batch=70)[0]
    assert wide.reshape(-1).tolist() == reference_splitmix64(key, 9)


def test_bits_are_the_samples() -> None:
    word = int(batch_words([3], range(7, 8))[0, 0, 0])
    x1, x2 = Batches.of(32, [3]).inputs(0, range(7, 8))
    assert x1[0].tolist() == [word >> i & 1 for i in range(32)]
    assert x2[0].tolist() == [word >> 32 + i & 1 for i in range(32)]


@pytest.mark.parametrize("size", [1, 5, 32, 33, 64, 100])
def test_counts_are_those_of_the_samples(size: int) -> None:
    seeds, steps = [0, 9, 2**63 - 1], range(11, 31)
    batches = Batches.of(size, seeds)
    counts = batches.counts(np.arange(3), steps)
    for run in range(3):
        x1, x2 = batches.inputs(run, steps)
        assert x1.shape == (20, size)
        for corner, (a, b) in enumerate(CORNERS):
            assert counts[:, run, corner].tolist() == ((x1 == a) & (x2 == b)).sum(1).tolist()


def test_a_full_batch_has_each_corner_once() -> None:
    batches = Batches.of("full", [5])
    assert batches.size == 4
    assert batches.counts(np.arange(1), range(1, 4)).tolist() == [[[1, 1, 1, 1]]] * 3
    x1, x2 = batches.inputs(0, range(1, 3))
    assert list(zip(x1[1].tolist(), x2[1].tolist(), strict=True)) == list(CORNERS)


def test_corners_are_equally_likely_and_steps_independent() -> None:
    """2000 batches of 32 in each of 8 seeds: frequencies within 5 deviations of 1/4, neighbours uncorrelated."""
    counts = Batches.of(32, range(8)).counts(np.arange(8), range(1, 2001)).astype(float)
    samples = 32 * 2000 * 8
    assert np.abs(counts.sum((0, 1)) / samples - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / samples)
    centred = counts - counts.mean((0, 1))
    for pair in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        correlation = (pair[0] * pair[1]).mean() / centred.var()
        assert abs(correlation) < 5 / np.sqrt(pair[0].size)


def test_initial_draws_lie_strictly_between_0_and_1_and_are_even() -> None:
    draws = initial_draws(range(1000), 33)
    assert draws.min() > 0
    assert draws.max() < 1
    shares = np.histogram(draws, bins=10, range=(0, 1))[0] / draws.size
    assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / draws.size)
    assert initial_draws([7], 5).tolist() == initial_draws([7], 33)[:, :5].tolist()


def test_targets_are_exclusive_or() -> None:
    assert [a != b for a, b in CORNERS] == list(TARGETS)


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        ([[0, 1]], [[0, 1, 1]], "must share one shape"),
        ([0, 1], [1, 1], "must share one shape"),
        ([[]], [[]], "must share one shape"),
        ([[0, 2]], [[0, 1]], "must be 0 or 1"),
    ],
)
def test_explicit_batches_are_checked(x1: object, x2: object, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Batches.explicit(x1, x2)


def test_explicit_batches_end() -> None:
    with pytest.raises(StudyError, match="2 steps are given, 3 are asked for"):
        Batches.explicit([[0], [1]], [[0], [1]]).check_steps(3)
