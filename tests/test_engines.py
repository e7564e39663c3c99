"""The engines agree with each other, and a run's bits are its own."""

import dataclasses
import functools
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from devices import NEEDS_CUDA

from xor_study import Progress, Result, RunSpec, StudyError, engines, train
from xor_study.engines import ENGINES, FallbackWarning, vmap
from xor_study.engines.results import Blocks, span
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.data import Batches
from xor_study.model.losses import LOSSES
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.training.outcome import CHUNK


@functools.cache
def plain_result(specs: tuple[RunSpec, ...], device: str) -> Result:
    """Train some runs one after the other; the same for every engine that is held against them."""
    return train(specs, engine="plain", device=device, every_step=True)


SPREAD: list[dict[str, Any]] = [
    {},
    {"lr": 1.0, "batch": "full"},
    {"optimizer_momentum": 0.9, "lr": 0.1, "clip": "norm", "clip_bound": 0.1},
    {"optimizer_momentum": 0.5, "optimizer_nesterov": True, "optimizer_weight_decay": 0.01, "lr": 0.3},
    {"optimizer": "adam", "activation_hidden": "gelu", "loss": "binary_cross_entropy_with_logits"},
    {"optimizer": "adam", "lr": 0.1, "loss": "hinge", "activation_output": "identity", "init": "he_uniform"},
    {"optimizer": "adamw", "activation_hidden": "silu", "loss": "mean_squared_error", "batch": 5},
    {"optimizer": "nadam", "activation_hidden": "elu", "loss": "binary_cross_entropy_naive"},
    {"optimizer": "radam", "activation_hidden": "softplus", "loss": "huber", "loss_delta": 0.25},
    {
        "optimizer": "rmsprop",
        "activation_hidden": "celu",
        "loss": "binary_cross_entropy_clipped",
        "batch": 33,
        "lr": 0.003,
    },
    {"optimizer": "rmsprop", "optimizer_momentum": 0.5, "optimizer_centered": True, "activation_hidden": "mish"},
    {"optimizer": "adagrad", "activation_hidden": "softsign", "optimizer_initial_accumulator_value": 0.1},
    {"optimizer": "polaris_adam", "loss": "axon_0_6_1", "lr": 1e-3},
    {"loss": "axon_0_7_0", "optimizer_momentum": 0.5},
    {"loss": "axon_binary_cross_entropy", "loss_logits_visible": False, "loss_clip_gradient": "squared", "lr": 1e-3},
    {"activation_output": "nx_sigmoid", "loss": "binary_cross_entropy_clipped", "loss_clip_gradient": "squared"},
    {"optimizer": "adadelta", "activation_hidden": "selu", "clip": "value", "clip_bound": 0.01},
    {"activation_hidden": "relu", "init": "he_normal", "lr": 0.1},
    {"activation_hidden": "leaky_relu", "activation_output": "identity", "loss": "mean_squared_error", "lr": 0.05},
    {"activation_hidden": "hard_tanh", "activation_output": "hard_sigmoid", "lr": 0.1},
    {"activation_hidden": "sigmoid", "activation_output": "tanh", "loss": "mean_squared_error", "lr": 0.1},
    {"activation_hidden": "identity", "loss": "mean_absolute_error", "init": "orthogonal", "lr": 0.1},
    {"hidden": 1, "init": "torch_default", "gain": 2.0, "bias": 0.1, "lr": 0.1},
    {"hidden": 20, "init": "lecun_normal", "loss": "hinge", "clip": "norm", "lr": 0.05},
]


def test_the_spread_is_wide() -> None:
    specs = [RunSpec(**fields) for fields in SPREAD]
    for field, catalogue in (
        ("optimizer", OPTIMIZERS),
        ("loss", LOSSES),
        ("clip", CLIPPINGS),
        ("activation_hidden", HIDDEN_ACTIVATIONS),
        ("activation_output", OUTPUT_ACTIVATIONS),
    ):
        assert {getattr(spec, field) for spec in specs} == set(catalogue)


FAST = [
    pytest.param("vmap", "cpu", id="vmap"),
    pytest.param("vmap", "cuda", id="vmap-cuda", marks=NEEDS_CUDA),
    pytest.param("lanes", "cpu", id="lanes"),
]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vmap train 16 networks at once: few runs need no more, and its default of 512 doubles the time of a step."""
    monkeypatch.setattr(vmap, "BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("engine", "device"), FAST)  # on top: tests that share a result of `plain` follow each other
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 3e-6)])
@pytest.mark.parametrize("fields", SPREAD, ids=lambda fields: "-".join(str(value) for value in fields.values()))
def test_fast_engines_equal_plain(
    fields: dict[str, Any], dtype: str, tolerance: float, engine: str, device: str
) -> None:
    """After 110 steps: beyond one chunk of `CHUNK` steps, and five epochs.

    In float64, networks have 4 units where no width is told: they compile in half the time. In float32 they have 8.
    """
    whole = {"dtype": dtype, "hidden": 4 if dtype == "float64" else 8, "epochs": 5, "iterations": 22, **fields}
    specs = tuple(RunSpec(seed=seed, **whole) for seed in (0, 7))
    assert specs[0].epochs * specs[0].iterations > CHUNK
    plain = plain_result(specs, device)
    fast = train(specs, engine=engine, device=device, every_step=True)
    for name, expected in plain.parameters.items():
        assert (fast.parameters[name] - expected).abs().max().item() <= tolerance, name
    assert plain.history is not None
    assert fast.history is not None
    for column in ("loss", "grad_norm", "max_abs_logit", "max_abs_grad", "max_abs_parameter"):
        size = np.maximum(1, plain.history[column].abs())
        assert ((fast.history[column] - plain.history[column]).abs() / size).max() <= tolerance, column
    assert list(fast.runs["outcome"]) == list(plain.runs["outcome"])


CHANGING = [
    {"optimizer_momentum": 0.3, "clip": "norm"},
    {"optimizer": "adam", "activation_hidden": "gelu", "loss": "binary_cross_entropy_with_logits"},
    {"optimizer": "rmsprop", "activation_hidden": "softplus", "init": "glorot_normal", "dtype": "float64"},
    {"optimizer": "nadam", "activation_hidden": "mish", "loss": "huber", "hidden": 3, "batch": 40},
]


@pytest.mark.parametrize("fields", CHANGING, ids=lambda fields: "-".join(str(value) for value in fields.values()))
@pytest.mark.parametrize(("engine", "device"), FAST)
def test_a_runs_bits_depend_on_nothing_else(fields: dict[str, Any], engine: str, device: str) -> None:
    """Alone, in a group of 7 or of 1,000, at any place in it, whatever the number of threads."""

    def finals(seeds: list[int], threads: int | None = None) -> list[list[torch.Tensor]]:
        """Return the losses and parameters of each run of seed 0."""
        specs = [RunSpec(seed=seed, lr=0.01 + seed % 5, epochs=2, iterations=10, **fields) for seed in seeds]
        result = train(specs, engine=engine, device=device, threads=threads)
        losses = torch.from_numpy(result.losses.to_numpy().copy())
        columns = [losses, *result.parameters.values()]
        return [[column[row] for column in columns] for row, seed in enumerate(seeds) if seed == 0]

    def crowd(size: int, *rows: int) -> list[int]:
        """Return seeds from 1 on, with 0 in some of the rows instead."""
        return [0 if row in rows else row + 1 for row in range(size)]

    (alone,) = finals([0])
    others = finals(crowd(7, 0, 3, 6)) + finals(crowd(1000, 0, 511, 512, 777, 999))
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    others += finals(crowd(1000, 100))
    torch.set_num_threads(threads)
    if engine == "lanes":
        others += [found for threads in (1, 2, 5) for found in finals(crowd(1000, 300), threads)]
    assert len(others) == (12 if engine == "lanes" else 9)
    for other in others:
        for expected, value in zip(alone, other, strict=True):
            assert torch.equal(expected, value)


def test_plain_runs_are_their_own_too() -> None:
    specs = [RunSpec(seed=seed, epochs=1, iterations=50) for seed in range(3)]
    together = train(specs, engine="plain")
    for place, spec in enumerate(specs):
        alone = train(spec, engine="plain")
        assert torch.equal(alone.parameters["hidden.weight"][0], together.parameters["hidden.weight"][place])


DIVERGING = [
    {"optimizer_momentum": 5.0, "activation_hidden": "relu", "lr": 1.0},
    {"loss": "binary_cross_entropy_naive", "lr": 10.0},
    {"loss": "binary_cross_entropy_naive", "lr": 1000.0},
    {
        "loss": "mean_squared_error",
        "lr": 1e3,
        "activation_hidden": "relu",
        "activation_output": "identity",
        "init": "he_uniform",
    },
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("engine", "device"), FAST)
@pytest.mark.parametrize("batch", [32, 3])
@pytest.mark.parametrize("fields", DIVERGING, ids=["momentum-5", "naive-10", "naive-1000", "relu-mse-1000"])
def test_the_onset_of_nan_is_the_same(fields: dict[str, Any], batch: int, engine: str, device: str) -> None:
    """A batch of 3 always lacks a corner, which must contribute nothing rather than 0 times infinity.

    The latest onset of these runs is step 58.
    """
    specs = tuple(RunSpec(seed=seed, epochs=1, iterations=60, batch=batch, **fields) for seed in range(12))
    plain, fast = plain_result(specs, device).runs, train(specs, engine=engine, device=device).runs
    onsets = plain["first_nonfinite_step"]
    assert list(plain["outcome"]) == list(fast["outcome"])
    assert onsets.notna().sum() >= 6
    assert onsets.fillna(0).tolist() == fast["first_nonfinite_step"].fillna(0).tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("last", "outcome"), [((0, 0), "unsolved"), ((1, 1), "nonfinite")])
def test_an_absent_corner_contributes_nothing(last: tuple[int, int], outcome: str, engine: str) -> None:
    """The prediction for (1, 1) is exactly 1, where the naive loss is not finite; that matters only if it is drawn."""
    initial = {
        "hidden.weight": torch.full((8, 2), 20.0),
        "hidden.bias": torch.full((8,), -30.0),  # so every unit is an "and": tanh(10), else tanh(-10) or less
        "output.weight": torch.full((1, 8), 3.0),
        "output.bias": torch.full((1,), 23.0),
    }
    batches = ([[0, 0, 1, last[0]]] * 2, [[0, 1, 0, last[1]]] * 2)
    spec = RunSpec(loss="binary_cross_entropy_naive", epochs=1, iterations=2, lr=1e-3)
    (run,) = train(spec, engine=engine, batches=batches, initial=initial).runs.to_dict("records")
    assert run["outcome"] == outcome
    assert run["max_abs_logit"] == pytest.approx(47, abs=0.1)


def test_given_batches_and_weights_are_used() -> None:
    """One step of gradient descent from known weights, by hand: d loss / d z = (p - y) / n."""
    initial = {
        "hidden.weight": np.arange(16).reshape(8, 2) / 10,
        "hidden.bias": np.zeros(8),
        "output.weight": np.linspace(-1, 1, 8)[None],
        "output.bias": np.array([0.1]),
    }
    x1, x2 = np.array([[1, 0, 1]]), np.array([[0, 0, 1]])
    x = np.stack([x1[0], x2[0]], 1)
    hidden = np.tanh(x @ initial["hidden.weight"].T)
    error = 1 / (1 + np.exp(-(hidden @ initial["output.weight"][0] + 0.1))) - (x1 != x2)[0]
    expected = initial["output.weight"][0] - 0.5 * error @ hidden / 3
    spec = RunSpec(epochs=1, iterations=1, lr=0.5, dtype="float64")
    for engine in ENGINES:
        result = train(spec, engine=engine, batches=(x1, x2), initial=initial)
        assert result.parameters["output.weight"][0, 0].numpy() == pytest.approx(expected, abs=1e-15)


@pytest.mark.usefixtures("small_blocks")
def test_initial_weights_may_differ_between_runs() -> None:
    specs = [RunSpec(epochs=1, iterations=1, lr=0.0, seed=seed) for seed in range(3)]
    wide = train(specs).parameters
    moved = {name: value + torch.arange(3.0).reshape(3, *[1] * (value.ndim - 1)) for name, value in wide.items()}
    result = train(specs, engine="vmap", initial=moved)
    for name, value in moved.items():
        assert torch.equal(result.parameters[name], value)


@pytest.mark.parametrize("engine", ENGINES)
def test_torchs_global_generator_is_left_alone(engine: str) -> None:
    before = torch.get_rng_state()
    train([RunSpec(epochs=1, iterations=2, seed=seed) for seed in range(2)], engine=engine).network(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("small_blocks")
def test_rows_keep_their_order_and_widths_may_mix() -> None:
    specs = [
        RunSpec(optimizer=optimizer, hidden=hidden, seed=seed, epochs=1, iterations=iterations)
        for seed, optimizer, hidden, iterations in [
            (3, "adam", 8, 10),
            (1, "sgd", 2, 30),
            (2, "adam", 8, 10),
            (0, "sgd", 8, 5),
        ]
    ]
    result = train(specs, engine="vmap")
    assert result.runs["run_id"].tolist() == [spec.run_id for spec in specs] == result.losses.index.tolist()
    for place, spec in enumerate(specs):
        alone = train(spec, engine="vmap")
        network = result.network(place)
        assert network.hidden.weight.shape == (spec.hidden, 2)
        assert torch.equal(network.hidden.weight, alone.network(0).hidden.weight)
        assert result.losses.iloc[place].dropna().tolist() == alone.losses.iloc[0].tolist()
    assert result.parameters["hidden.weight"].shape == (4, 8, 2)
    assert not result.parameters["hidden.weight"][1, 2:].any()


@pytest.mark.usefixtures("small_blocks")
def test_numbers_of_their_own_share_a_program() -> None:
    """Rates, momenta and bounds are inputs of one program: the numbers of one run don't reach another."""
    frame = pd.DataFrame(
        {
            "lr": [0.1, 0.2, 0.1],
            "optimizer.momentum": [0.5, 0.9, 0.1],
            "clip": "norm",
            "clip.bound": [1.0, 0.1, 0.01],
            "loss": "huber",
            "loss.delta": [1.0, 0.1, 0.2],
            "iterations": 50,
            "epochs": 1,
            "dtype": "float64",
        }
    )
    together = train(frame, engine="vmap")
    for place in range(3):
        alone = train(frame.iloc[[place]], engine="plain")
        torch.testing.assert_close(
            together.parameters["hidden.weight"][place], alone.parameters["hidden.weight"][0], rtol=0, atol=1e-13
        )


def test_progress_is_told_until_the_end() -> None:
    told: list[Progress] = []
    specs = [RunSpec(seed=seed, epochs=1, iterations=150) for seed in range(vmap.BLOCK + 10)]
    train(specs, progress=lambda progress: told.append(dataclasses.replace(progress)))
    steps = [progress.steps_done for progress in told]
    assert steps == sorted(steps)
    assert told[-1].steps_done == told[-1].steps == 150 * len(specs)
    assert told[-1].runs_done == sum(told[-1].outcomes.values()) == len(specs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": {"hidden.wait": torch.zeros(8, 2)}}, r"initial: hidden.wait: unknown parameter; did you mean"),
        ({"snapshots": [0]}, r"snapshots: step 0: must be in \[1, 10000\]"),
        ({"engine": "fast"}, r"engine=fast: unknown \(known: auto, plain, vmap, lanes\)"),
        ({"engine": "lanes", "device": "meta"}, "device=meta: must be cpu, cuda or cuda:N"),
        ({"engine": "lanes", "device": "cuda:0"}, "engine=lanes device=cuda:0: it runs on the CPU only"),
        ({"threads": 0}, r"threads=0: must be a whole number in \[1, 1024\]"),
        ({"threads": 2, "engine": "vmap"}, "threads=2 engine=vmap: it has one thread; only lanes has several"),
        ({"device": "tpu"}, "device=tpu: must be cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "device=cuda:99: torch .* CUDA devices here; use device=cpu"),
        ({"batches": ([[0]], [[1]])}, "1 steps are given, 10000 are asked for"),
        ({"initial": {"hidden.weight": torch.zeros(8, 2)}}, "initial: hidden.bias is missing"),
        (
            {"initial": {"hidden.weight": torch.zeros(2, 8)}},
            r"must have the shape \(8, 2\) or \(1, 8, 2\), not \(2, 8\)",
        ),
    ],
)
def test_what_cannot_be_done_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        train(RunSpec(), **arguments)


@pytest.mark.usefixtures("small_blocks")
def test_auto_is_lanes_and_falls_back_to_vmap_saying_so_once() -> None:
    short = {"epochs": 1, "iterations": 2}
    specs = [RunSpec(**short), RunSpec(hidden=100, **short), RunSpec(hidden=100, batch=600, **short)]
    assert set(train(specs[0]).runs["engine"]) == {"lanes"}
    with pytest.warns(
        FallbackWarning, match="401 parameters is too wide to compile .*; engine=vmap for 2 runs"
    ) as told:
        result = train(specs)
    assert list(result.runs["engine"]) == ["lanes", "vmap", "vmap"]
    assert len(told) == 1
    assert result.runs["initial_loss"].between(0.5, 1).all()


def test_explicit_batches_are_counted() -> None:
    batches = Batches.explicit([[0, 1, 1, 1, 0]], [[0, 0, 1, 0, 0]])
    assert batches.counts(np.arange(1), range(1, 2)).tolist() == [[[2, 0, 2, 1]]]


def test_blocks_are_put_into_the_order_of_the_table() -> None:
    rows = [np.array([4, 0]), np.array([1, 2]), np.array([3])]
    steps = [np.array([1, 2, 5]), np.array([1, 2]), np.array([2, 5])]
    blocks = [np.arange(6.0).reshape(2, 3), np.ones((2, 2), np.float32), np.full((1, 2), np.nan)]
    table = Blocks(6, steps, [block.dtype for block in blocks])
    for block in zip(rows, steps, blocks, strict=True):
        table.put(*block)
    nan = np.nan
    expected = [[3, 4, 5], [1, 1, nan], [1, 1, nan], [nan, nan, nan], [0, 1, 2], [nan, nan, nan]]
    assert np.array_equal(table.values, expected, equal_nan=True)
    assert table.columns.tolist() == [1, 2, 5]
    assert table.values.dtype == np.float64
    assert Blocks(2, [], []).values.shape == (2, 0)


def test_only_positions_without_a_gap_are_a_slice() -> None:
    assert span(np.array([3, 4, 5])) == slice(3, 6)
    for positions in ([], [3, 5], [5, 4, 3], [0, 2, 1, 3], [1, 1, 3]):
        assert isinstance(span(np.array(positions, np.intp)), np.ndarray)


@pytest.mark.usefixtures("small_blocks")
def test_a_result_shows_its_outcomes() -> None:
    """In one line, and as a table in which seeds are counted together."""
    specs = [RunSpec(lr=lr, seed=seed, epochs=1, iterations=100) for lr in (1.0, 0.001) for seed in range(2)]
    specs.append(RunSpec(loss="binary_cross_entropy_naive", lr=1000.0, epochs=1, iterations=100))
    result = train(specs, engine="vmap")
    assert repr(result) == "<Result of 5 runs: 2 solved, 2 unsolved, 1 nonfinite; engine vmap>"
    cells = [int(text) for text in re.findall(r"<td>(\d+)</td>", result._repr_html_())]
    assert np.reshape(cells, (3, 5)).tolist() == [[2, 2, 0, 0, 0], [2, 0, 2, 0, 0], [1, 0, 0, 0, 1]]
    assert repr(train(specs[0], engine="vmap")) == "<Result of 1 run: 1 solved; engine vmap>"
    assert ">all<" in train(specs[:2], engine="vmap")._repr_html_()
    many = train(pd.DataFrame({"lr": np.linspace(0.1, 0.2, 25), "epochs": 1, "iterations": 1}), engine="vmap")
    assert "and 5 more settings" in many._repr_html_()


def test_progress_is_shown_in_one_line() -> None:
    progress = Progress(1000, 20000)
    assert repr(progress) == "<Progress: 0 of 1,000 runs, 0 of 20,000 steps>"
    progress.finished(pd.DataFrame({"outcome": ["solved", "nonfinite", "solved"]}))
    assert repr(progress) == "<Progress: 3 of 1,000 runs, 0 of 20,000 steps; 2 solved, 1 nonfinite>"


def test_names_are_checked_without_torch() -> None:
    check = "from xor_study.engines import AUTO, check_engine; check_engine(AUTO, 'cuda:1', 3); import sys"
    script = f"{check}; assert not {{'torch', 'pandas', 'numpy', 'llvmlite'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_engine_is_loaded_when_it_trains() -> None:
    script = """
import sys
from xor_study import RunSpec, train
loaded = lambda: {"llvmlite", "xor_study.engines.lanes", "xor_study.engines.vmap"} & set(sys.modules)
assert not loaded(), loaded()
train(RunSpec(epochs=1, iterations=1), engine="plain")
assert not loaded(), loaded()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_public_names_are_found_by_completion() -> None:
    assert set(engines.__all__) <= set(dir(engines))
    for name in engines.__all__:
        assert getattr(engines, name) is not None
    with pytest.raises(AttributeError, match=r"module 'xor_study.engines' has no attribute 'trian'"):
        engines.trian  # noqa: B018
