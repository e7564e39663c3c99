"""The lanes engine: functions within their error bounds, programs simplified exactly, every combination, the cache."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from torch.func import functional_call, grad_and_value

from xor_study import RunSpec, StudyError, XORNetwork, train
from xor_study.analysis.statistics import paired
from xor_study.engines import lanes, vmap
from xor_study.engines.lanes import cores, native, processors
from xor_study.engines.lanes.functions import EXPANSIONS
from xor_study.engines.lanes.llvm import LANES, Loop, NotCompilable, empty, lowered, text
from xor_study.engines.lanes.native import Kernel
from xor_study.engines.lanes.scalar import FUNCTIONS, OPERATIONS, Builder, ScalarProgram
from xor_study.engines.lanes.trace import trace
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.data import Batches
from xor_study.model.losses import LOSSES, check_pairing
from xor_study.model.optimizers import CLIPPINGS, OPTIMIZERS
from xor_study.training.cohorts import cohorts, initial_parameters
from xor_study.training.outcome import Detail
from xor_study.training.table import table_of

Map = Callable[[Any], np.ndarray]


def compiled(program: ScalarProgram, kind: str) -> Map:
    """Return a program from "x.0" to "x.0" as a function on arrays: a loop of one step."""
    loop = Loop(kind, {"x": (kind, 1)}, {"key": ("int64", 1)}, (), ("x",), (), 0)
    kernel = Kernel(text(loop, program))

    def apply(values: Any) -> np.ndarray:
        blocks = -(-len(values) // loop.lanes)
        states = empty(loop.state, blocks)
        flat = np.zeros(blocks * loop.lanes, kind)
        flat[: len(values)] = values
        states["x"] = flat.reshape(blocks, 1, loop.lanes)
        numbers, records = empty(loop.numbers, blocks), empty(loop.record, (blocks, 1))
        kernel(states, numbers, np.zeros(1, kind), np.array([1]), records, blocks=blocks, first=0, segments=1)
        return states["x"].reshape(-1)[: len(values)].copy()

    return apply


def function(name: str, kind: str) -> Map:
    builder = Builder()
    return compiled(builder.finish({"x.0": builder.emit(name, builder.input("x.0", kind))}), kind)


REFERENCES = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": special.erf,
}


def test_all_functions_are_tested() -> None:
    assert set(REFERENCES) == set(EXPANSIONS) == set(FUNCTIONS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", REFERENCES)
def test_float32_functions_are_within_two_and_a_half_units(name: str) -> None:
    """Against float64, for 8 million of all bit patterns: subnormals, infinities and NaN among them."""
    worst, apply = 0.0, function(name, "float32")
    for start in range(0, 2**32, 2**29):
        x = np.arange(start, start + 2**29, 521, dtype=np.uint64).astype(np.uint32).view(np.float32)
        edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-45, -1e-45, 1.1754942e-38, 3.4e38], np.float32)
        x = np.concatenate([x, edges])
        expected = REFERENCES[name](x.astype(np.float64))
        rounded = expected.astype(np.float32)
        found = apply(x)
        finite = np.isfinite(rounded)
        assert np.array_equal(found[~finite], rounded[~finite], equal_nan=True)
        assert np.isfinite(found[finite]).all()
        unit = np.spacing(np.abs(rounded[finite])).astype(np.float64)
        worst = max(worst, float((np.abs(found[finite].astype(np.float64) - expected[finite]) / unit).max()))
    assert worst <= 2.5


def test_tanh_near_its_largest_error() -> None:
    """All numbers of two octaves, where it is off by 2.42 units; beyond 9.02 it is 1."""
    apply = function("tanh", "float32")
    for low in (2.0**-8, 0.1875):
        x = np.arange(np.float32(low).view(np.uint32), np.float32(2 * low).view(np.uint32), dtype=np.uint32)
        x = x.view(np.float32)
        expected = np.tanh(x.astype(np.float64))
        assert (np.abs(apply(x) - expected) / np.spacing(expected.astype(np.float32))).max() <= 2.5
        assert np.array_equal(apply(-x), -apply(x))
    assert set(apply(np.array([9.02, 10, 1e30], np.float32))) == {1.0}


@pytest.mark.parametrize("name", REFERENCES)
def test_float64_functions_are_within_four_units(name: str) -> None:
    """Against 40 digits, on numbers of all sizes and on many near where the functions bend."""
    draw = np.random.default_rng(0)
    near = [draw.normal(size=400) * scale for scale in (1e-3, 0.1, 1, 5, 100)]
    x = np.concatenate([*near, draw.integers(0, 2**64, 800, dtype=np.uint64).view(np.float64)])
    lowest = {"log": 0.0, "log1p": -1.0}.get(name, -np.inf)
    x = x[np.isfinite(x) & (x > lowest) & (x < (709.0 if name.startswith("exp") else np.inf))]
    apply = function(name, "float64")
    found = apply(x)
    with mpmath.workdps(40):
        for argument, value in zip(x.tolist(), found.tolist(), strict=True):
            expected = getattr(mpmath, name)(mpmath.mpf(argument))
            unit = mpmath.mpf(float(np.spacing(abs(float(expected)))))
            assert abs(mpmath.mpf(value) - expected) <= 4 * unit, argument
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1, 710.0, -760.0])
    with np.errstate(all="ignore"):
        expected_edges = REFERENCES[name](edges)
    assert np.allclose(apply(edges), expected_edges, rtol=1e-15, atol=0, equal_nan=True)


def test_simplifications_are_exact() -> None:
    build = Builder()
    x = build.input("x", "float32")
    zero, one, minus_zero = (build.constant(value, "float32") for value in (0.0, 1.0, -0.0))
    assert build.emit("mul", x, one) == x == build.emit("div", x, one)
    assert build.emit("sub", x, zero) == x
    assert build.emit("neg", build.emit("neg", x)) == x
    assert build.emit("add", x, one) == build.emit("add", one, x)
    assert zero != minus_zero
    assert build.emit("sub", x, minus_zero) != x  # of -0.0 it is 0.0
    assert build.emit("add", x, zero) != x
    assert build.value_of(build.emit("mul", x, zero)) is None
    assert build.emit("sub", zero, x) != build.emit("neg", x)
    assert build.emit("div", x, build.constant(3.0, "float32")) not in (x, one)
    assert build.value_of(build.emit("div", one, build.constant(3.0, "float32"))) == np.float32(1) / np.float32(3)
    quarter = build.emit("div", x, build.constant(4.0, "float32"))
    assert build.statements[quarter].op == "mul"


@pytest.mark.parametrize("kind", LANES)
def test_arithmetic_keeps_its_sense_with_what_is_not_finite(kind: str) -> None:
    dtype = getattr(torch, kind)
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan, 1e-40], dtype=dtype)

    def odd(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = given["x"][0]
        clamped = torch.clamp(x, -1, 1) + torch.relu(x) * 0
        chosen = torch.where(x > 0, clamped, torch.where(x <= 0, x * 0.0, 7.0))
        return {"x": (chosen + torch.isfinite(x).to(dtype) * 100 + torch.sgn(x) * 10)[None]}

    apply = compiled(trace(odd, {"x": torch.ones(1, dtype=dtype)}), kind)
    expected = torch.stack([odd({"x": value[None]})["x"][0] for value in values])
    assert np.array_equal(apply(values.numpy()), expected.numpy(), equal_nan=True)


def test_a_program_can_be_read() -> None:
    (cohort,) = cohorts(table_of([RunSpec()]))
    program = lanes.program_of(cohort, Detail())
    lines = str(program).splitlines()
    assert sum(" tanh " in line for line in lines) == 32
    assert {statement.op for statement in program.statements} <= {*OPERATIONS, "constant", "input"}
    assert any(line.endswith("# parameter.0") for line in lines)
    assert lines[0].startswith("%0 = ")
    assert len(lowered(program).statements) > 2 * len(lines)


PAIRS = [(loss, output) for loss in LOSSES for output in OUTPUT_ACTIVATIONS if check_pairing(loss, output) is None]
HIDDEN = itertools.cycle(HIDDEN_ACTIVATIONS)
CLIPS = itertools.cycle(CLIPPINGS)
COMBINATIONS = [
    {
        "loss": loss,
        "activation_output": output,
        "activation_hidden": next(HIDDEN),
        "optimizer": optimizer,
        "clip": next(CLIPS),
    }
    for place, (loss, output) in enumerate(PAIRS)
    for optimizer in list(OPTIMIZERS)[place % 3 :: 3]
]
PRESETS = [{"loss": preset, "optimizer": optimizer} for preset in LOSSES.presets for optimizer in ("sgd", "adam")]


def test_the_combinations_are_wide() -> None:
    for name, known in (("optimizer", OPTIMIZERS), ("clip", CLIPPINGS), ("activation_hidden", HIDDEN_ACTIVATIONS)):
        assert {fields[name] for fields in COMBINATIONS} == set(known)
    assert {fields["loss"] for fields in COMBINATIONS} == set(LOSSES)


@pytest.mark.parametrize("fields", COMBINATIONS + PRESETS, ids=lambda fields: "-".join(fields.values()))
def test_combinations_agree_with_vmap(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loss with each output it goes with, optimizers, hidden activations and clippings in turn.

    `scripts/combinations.py` does all of them with each other. Networks of 3 units have every operation that wider ones
    have, and compile in a third of the time; test_engines trains widths of 1, 8 and 20.
    """
    monkeypatch.setattr(vmap, "BLOCK", 16)
    specs = [
        RunSpec(epochs=1, iterations=5, seed=seed, lr=0.01, hidden=3, dtype="float64", **fields) for seed in range(3)
    ]
    slow, fast = (train(specs, engine=engine) for engine in ("vmap", "lanes"))
    for name, expected in slow.parameters.items():
        assert (fast.parameters[name] - expected).abs().max().item() <= 1e-13, name
    for measure in ("initial_loss", "final_loss", "min_loss", "max_loss", "max_abs_logit", "max_grad_norm"):
        assert fast.runs[measure].to_numpy() == pytest.approx(slow.runs[measure].to_numpy(), rel=1e-12), measure
    for measure in ("outcome", "accuracy", "solved_step", "first_nonfinite_step"):
        assert list(fast.runs[measure].astype(str)) == list(slow.runs[measure].astype(str)), measure


LATE = {"loss": "axon_0_6_1", "lr": 0.1, "epochs": 1, "iterations": 250}


def onsets(table: pd.DataFrame, batches: np.ndarray) -> np.ndarray:
    """Return the step at which each run stops being finite, or 0: as `plain` trains, but all networks at once.

    Args:
        table: runs of `LATE`.
        batches: both inputs of each sample, shape (2, steps, runs, samples).
    """
    network, loss = XORNetwork(), LOSSES["axon_binary_cross_entropy"]
    switches = LOSSES.presets["axon_0_6_1"].parameters

    def mean_loss(parameters: dict[str, torch.Tensor], x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        logit = functional_call(network, parameters, (x1, x2), {"return_logit": True})
        return loss.per_sample(logit, torch.sigmoid(logit), (x1 != x2).float(), **switches).mean()

    gradients_and_losses = torch.vmap(grad_and_value(mean_loss))
    parameters = {name: value.float() for name, value in initial_parameters(table_of(table)).items()}
    found = np.zeros(len(table), int)
    for step, (x1, x2) in enumerate(zip(*torch.from_numpy(batches)[..., None], strict=True), start=1):
        gradients, losses = gradients_and_losses(parameters, x1, x2)
        parameters = {name: value - LATE["lr"] * gradients[name] for name, value in parameters.items()}
        finite = losses.isfinite()
        for value in (*gradients.values(), *parameters.values()):
            finite &= value.isfinite().flatten(1).all(1)
        found[(found == 0) & ~finite.numpy()] = step
    return found


def test_late_onsets_differ_no_more_often_than_those_of_permuted_samples() -> None:
    """After a hundred steps on the edge, the step at which a run becomes NaN may hang on the order of a sum.

    So training sample by sample is held against itself with the samples of each batch in another order, and lanes
    against it, on more than 200 late onsets; McNemar's test tells whether one differs more often. The plain engine
    takes minutes for so many runs: it is held against it on the first ten.
    """
    fast = train(pd.DataFrame({"seed": np.arange(600), **LATE}), engine="lanes").runs["first_nonfinite_step"]
    late = (fast > 100).fillna(value=False).to_numpy(bool)
    table = pd.DataFrame({"seed": np.flatnonzero(late), **LATE})
    assert len(table) >= 200
    drawn, steps = Batches.of(32, table["seed"]), range(1, 251)
    batches = np.array([drawn.inputs(run, steps) for run in range(len(table))], np.float32)
    batches = batches.transpose(1, 2, 0, 3)  # (2, steps, runs, samples)
    order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(32), batches.shape[1:]), axis=-1)
    both = np.concatenate([batches, np.take_along_axis(batches, order[None], axis=-1)], axis=2)
    expected, permuted = np.split(onsets(pd.concat([table, table], ignore_index=True), both), 2)
    permuted_differ = expected != permuted
    plain = train(table.head(10), engine="plain").runs["first_nonfinite_step"].fillna(0).to_numpy()
    for found in (fast[late].to_numpy(), plain):
        differ, usual = found != expected[: len(found)], permuted_differ[: len(found)]
        assert differ.mean() <= usual.mean() or paired(differ, usual) > 0.01


def test_one_program_serves_all_numbers() -> None:
    lanes.loops._traced.cache_clear()
    rates = [RunSpec(lr=lr, optimizer_momentum=m, epochs=1, iterations=3) for lr in (0.1, 1.0) for m in (0.5, 0.9)]
    train(rates, engine="lanes")
    assert lanes.loops._traced.cache_info().misses == 1


def test_given_parameters_of_the_optimizer_are_lanes_of_their_own() -> None:
    frame = pd.DataFrame({"lr": [0.1, 0.2, 0.1], "optimizer.momentum": [0.5, 0.9, 0.1], "clip": "norm"})
    frame = frame.assign(**{"clip.bound": [1.0, 0.1, 0.01], "iterations": 50, "epochs": 1, "dtype": "float64"})
    together = train(frame, engine="lanes")
    for place in range(3):
        alone = train(frame.iloc[[place]], engine="plain")
        difference = together.parameters["hidden.weight"][place] - alone.parameters["hidden.weight"][0]
        assert difference.abs().max() < 1e-13


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 64, 100, 512, "full"])
def test_batches_are_drawn_as_elsewhere(batch: int | str) -> None:
    """By small networks: how a batch is drawn does not depend on their width, but the time to compile does."""
    fields = {"epochs": 1, "iterations": 20, "lr": 0.1, "hidden": 2, "dtype": "float64"}
    specs = [RunSpec(batch=batch, seed=seed, **fields) for seed in (0, 2**63 - 1)]
    plain, fast = (train(specs, engine=engine) for engine in ("plain", "lanes"))
    assert (plain.losses - fast.losses).abs().max().max() < 1e-13


@pytest.mark.parametrize("iterations", [1, 2, 7, 130])
def test_epochs_of_any_length_are_cut_right(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmap, "BLOCK", 16)
    specs = [RunSpec(epochs=3, iterations=iterations, lr=0.1, seed=seed, dtype="float64") for seed in range(2)]
    slow, fast = (train(specs, engine=engine) for engine in ("vmap", "lanes"))
    assert fast.epoch_losses.to_numpy() == pytest.approx(slow.epoch_losses.to_numpy(), rel=1e-12)
    assert list(fast.losses.columns) == list(slow.losses.columns)
    assert list(fast.runs["outcome"]) == list(slow.runs["outcome"])


def test_long_runs_and_many_blocks_are_cut_into_calls_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [RunSpec(optimizer="adam", epochs=2, iterations=350, seed=seed) for seed in range(100)]
    whole = train(specs, engine="lanes")
    monkeypatch.setattr(lanes.blocks, "LONGEST", 64)
    monkeypatch.setattr(lanes.blocks, "CALL", 2000)
    monkeypatch.setattr(lanes.blocks, "GROUP", 100_000)
    cut = train(specs, engine="lanes", threads=3)
    assert torch.equal(whole.parameters["hidden.weight"], cut.parameters["hidden.weight"])
    assert whole.losses.equals(cut.losses)
    pd.testing.assert_frame_equal(whole.runs, cut.runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 65}, "engine=lanes: a network of 261 parameters is too wide to compile"),
        ({"batch": 513}, "engine=lanes: batch=513 is too large to compile"),
    ],
)
def test_what_cannot_be_compiled_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(NotCompilable, match=message):
        train(RunSpec(epochs=1, iterations=1, **change), engine="lanes")
    assert issubclass(NotCompilable, StudyError)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.cumsum(x, 0), "can't compile the operation aten.cumsum.default"),
        (lambda x: x.half().float(), "can't compile float16"),
        (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "gelu's approximation 'tanh'"),
        (lambda x: torch.linalg.vector_norm(x, 3), "can't compile the norm of order 3"),
        (lambda x: torch.nn.functional.mse_loss(x, x + 1), "a loss that is reduced by itself"),
        (lambda x: x * x.sum().item(), "aten._local_scalar_dense.default, whose result is no tensor"),
        (lambda x: x if x.sum() > 0 else -x, "aten._local_scalar_dense.default, whose result is no tensor"),
        (lambda x: x if torch.equal(x, x * 1) else -x, "aten.equal.default, whose result is no tensor"),
    ],
)
def test_unknown_operations_are_named(function: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(NotCompilable, match=message):
        trace(lambda given: {"y": function(given["x"])}, {"x": torch.ones(3)})


def test_machine_code_is_kept_and_what_is_spoilt_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    builder = Builder()
    x = builder.input("x.0", "float32")
    module = text_of(builder.finish({"x.0": builder.emit("add", x, x)}))
    first = native.object_code(module)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()

    def refuse(*_: Any) -> None:
        raise AssertionError("compiled although it was kept")

    with monkeypatch.context() as patched:
        patched.setattr(native.llvm, "parse_assembly", refuse)
        assert native.object_code(module) == first
    for spoilt in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"something else"):
        kept.write_bytes(spoilt)
        assert native.object_code(module) == first
        assert kept.read_bytes() == whole
    monkeypatch.setattr(native, "target", lambda: ("another processor", ""))
    assert native.read(native.code_path(module)) is None


def test_a_cache_that_cannot_be_written_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert native.object_code(text_of(Builder().finish({})))


def text_of(program: ScalarProgram) -> str:
    return text(Loop("float32", {"x": ("float32", 1)}, {"key": ("int64", 1)}, (), ("x",), (), 0), program)


def test_an_empty_variable_turns_the_cache_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CACHE_VARIABLE, "")
    assert native.cache_folder() is None
    monkeypatch.delenv(native.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert native.cache_folder() == Path("/somewhere/xor_study")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "400000 100000"}, 4),
        ("0::/of/the/host", {"cpu.max": "50000 100000"}, 1),
        ("0::/a", {"a/cpu.max": "6400000 100000"}, 8),
        ("5:cpu,cpuacct:/a\n3:memory:/a", {"cpu,cpuacct/a": (300000, 100000), "memory/a": (1, 1)}, 3),
        ("5:cpu,cpuacct:/a/b", {"cpu,cpuacct/a": (200000, 100000), "cpu,cpuacct/a/b": (-1, 100000)}, 2),
        ("0::/\n5:cpu:/", {"cpu": (100000, 100000)}, 1),
        ("nonsense", {}, 8),
    ],
)
def test_a_quota_counts_as_cores(
    own: str, files: dict[str, str | tuple[int, int]], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest of a group and those above it counts."""
    (tmp_path / "own").write_text(own + "\n")
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        if isinstance(content, str):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        else:
            path.mkdir(parents=True, exist_ok=True)
            for kind, value in zip(("quota", "period"), content, strict=True):
                (path / f"cpu.cfs_{kind}_us").write_text(f"{value}\n")
    monkeypatch.setattr(processors, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cores() == expected
