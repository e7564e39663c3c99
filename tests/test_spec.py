"""RunSpec and tables of runs: what is checked, what is resolved, and identities that never change."""

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xor_study import RunSpec, StudyError, train
from xor_study.training import spec as spec_module
from xor_study.training.spec import DECLARED, FIELDS, GROUPS, KEYS, key_of
from xor_study.training.table import run_ids, table_of

FROZEN = {
    "article": (RunSpec(), "3e78bafa301a00577265"),
    "adam": (RunSpec(optimizer="adam"), "67cd5d3996e9271a466f"),
    "momentum": (RunSpec(optimizer_momentum=0.9, lr=0.1, seed=7), "9129c2a573907b2078a2"),
    "idle parameter": (RunSpec(optimizer="adam", optimizer_momentum=0.9), "fbbcaa3aa152b05e5152"),
    "much": (
        RunSpec(
            optimizer="rmsprop",
            optimizer_centered=True,
            init="variance_scaling",
            init_mode="fan_avg",
            loss="binary_cross_entropy_clipped",
            loss_eps=1e-6,
            activation_hidden="relu",
            clip="norm",
            clip_bound=0.5,
            hidden=3,
            batch="full",
            dtype="float64",
            seed=2**63 - 1,
        ),
        "7140cfd336fe539f2e40",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_identities_never_change(name: str) -> None:
    """If this fails, results that people have kept can no longer be matched to their runs."""
    spec, known = FROZEN[name]
    assert spec.run_id == known
    assert run_ids(table_of([spec])).tolist() == [known]


def test_identities_do_not_depend_on_the_order_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a new optimizer above the old ones, with another default of a parameter that others lack."""
    reversed_order = {field: dict(reversed(choices.items())) for field, choices in DECLARED.items()}
    assert next(iter(reversed_order["optimizer_eps"].values())).default != 1e-8
    monkeypatch.setattr(spec_module, "DECLARED", reversed_order)
    for spec, known in FROZEN.values():
        assert spec.run_id == known
    assert RunSpec(optimizer_eps=1e-8).run_id == RunSpec().run_id


def test_defaults_are_omitted_from_the_identity() -> None:
    assert RunSpec(lr=0.01, optimizer_momentum=0, optimizer_nesterov=False, init_scale=1).run_id == RunSpec().run_id
    assert RunSpec(optimizer="adam", optimizer_momentum=0.0).run_id == RunSpec(optimizer="adam").run_id


CHANGED = {
    "optimizer": "adam",
    "lr": 0.3,
    "init": "zeros",
    "gain": 0.3,
    "bias": 0.3,
    "loss": "huber",
    "activation_hidden": "relu",
    "activation_output": "hard_sigmoid",
    "clip": "norm",
    "hidden": 3,
    "batch": "full",
    "epochs": 3,
    "iterations": 3,
    "dtype": "float64",
    "seed": 3,
    "optimizer_nesterov": True,
    "optimizer_centered": True,
    "loss_logits_visible": False,
    "loss_clip_gradient": "squared",
    "loss_sigmoid_gradient": "exponential",
    "init_mode": "fan_out",
    "init_distribution": "uniform",
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_part_of_the_identity(field: str) -> None:
    """Also a parameter that the chosen function does not have."""
    other = RunSpec(**({"optimizer_momentum": 0.5} | {field: CHANGED.get(field, 0.3)}))
    assert other.run_id != RunSpec(optimizer_momentum=0.5).run_id


def test_rates_are_resolved() -> None:
    assert (RunSpec().lr, RunSpec(optimizer="adam").lr, RunSpec(lr=3).lr) == (0.01, 0.001, 3.0)
    assert RunSpec(optimizer="adamw").optimizer_weight_decay == 0.01
    assert RunSpec(optimizer="adagrad").optimizer_eps == 1e-10
    assert RunSpec().optimizer_beta1 is None


def test_replace_goes_back_to_the_defaults_of_another_choice() -> None:
    spec = RunSpec(optimizer_momentum=0.9, seed=4, loss_eps=1e-3)
    assert spec.replace(optimizer="adam") == RunSpec(optimizer="adam", seed=4, loss_eps=1e-3)
    assert spec.replace(lr=0.5).optimizer_momentum == 0.9


def test_it_is_a_frozen_value() -> None:
    spec = RunSpec()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.lr = 1.0  # type: ignore[misc]  # that it is refused is the point
    assert spec == RunSpec()
    assert hash(spec) == hash(RunSpec())
    assert {type(RunSpec(lr=1).lr), type(RunSpec(gain=2).gain)} == {float}


WRONG = [
    ({"lr": -1}, "lr=-1: must be finite and >= 0"),
    ({"lr": math.inf}, "lr=inf: must be finite and >= 0"),
    ({"lr": "fast"}, "lr=fast: must be a number"),
    ({"lr": True}, "lr=true: must be a number"),
    ({"seed": 2**63}, r"seed=9223372036854775808: must be in \[0, 2\^63 - 1\]"),
    ({"seed": -1}, r"seed=-1: must be in \[0, 2\^63 - 1\]"),
    ({"seed": 1.5}, "seed=1.5: must be a whole number"),
    ({"hidden": 0}, r"hidden=0: must be in \[1, 1024\]"),
    ({"hidden": 1025}, r"hidden=1025: must be in \[1, 1024\]"),
    ({"batch": "half"}, r"batch=half: must be a whole number, in \[1, 65536\] or full"),
    ({"batch": 0}, r"batch=0: must be in \[1, 65536\] or full"),
    ({"dtype": "float3"}, "dtype=float3: unknown; did you mean float32?"),
    ({"optimizer": "sdg"}, "optimizer=sdg: unknown; did you mean sgd?"),
    ({"optimizer_momentum": -0.1}, "optimizer.momentum=-0.1: must be finite and >= 0"),
    ({"optimizer": "adam", "optimizer_beta1": 1.0}, r"optimizer.beta1=1.0: must be in \[0, 1\)"),
    ({"optimizer_nesterov": True}, "optimizer.nesterov=true: needs optimizer.momentum > 0"),
    ({"loss": "binary_cross_entropy_clipped", "loss_eps": 0.5}, r"loss.eps=0.5: must be in \(0, 0.5\)"),
    ({"activation_output": "tanh"}, "cannot go with the output activation tanh"),
    ({"epochs": 10**5, "iterations": 10**5}, "10000000000 steps, must be at most 100000000"),
    ({"gain": "x\ny"}, "gain=x y: must be a number"),
    ({"lr": 1e39}, r"lr=1e\+39: beyond float32"),
    ({"clip": "value", "clip_bound": 1e300}, r"clip.bound=1e\+300: beyond float32"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_wrong_values_are_refused_in_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        RunSpec(**fields)
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError) as in_table:
        table_of(pd.DataFrame([{"seed": 1}, fields], dtype=object))
    assert str(in_table.value) == str(caught.value)


UNKNOWN = [
    ("sede", "seed"),
    ("learning_rate", "lr"),
    ("optimizer_lr", "lr"),
    ("momentum", "optimizer_momentum"),
    ("activation", "activation_hidden or activation_output"),
    ("batch_size", "batch"),
]


@pytest.mark.parametrize(("name", "meant"), UNKNOWN)
def test_an_unknown_field_gets_the_nearest(name: str, meant: str) -> None:
    fields: dict[str, Any] = {name: 1}
    with pytest.raises(StudyError) as caught:
        RunSpec(**fields)
    assert str(caught.value) == f"{name}: unknown field; did you mean {meant}?"
    with pytest.raises(StudyError, match=f"{name}: unknown column; did you mean {meant}"):
        table_of(pd.DataFrame([fields]))
    with pytest.raises(StudyError, match=f"{name}: unknown field; did you mean {meant}"):
        train([fields])


def test_what_is_not_a_field_or_a_run_is_said() -> None:
    with pytest.raises(StudyError, match=r"known: optimizer, lr"):
        RunSpec(nothing_like_it=1)
    with pytest.raises(StudyError, match="given by name"):
        RunSpec("adam")  # type: ignore[misc]  # that it is refused is the point
    with pytest.raises(StudyError, match="3: a run is a RunSpec, a mapping"):
        table_of([3])  # type: ignore[list-item]  # likewise
    assert RunSpec(lr=1e39, dtype="float64").lr == 1e39
    with pytest.raises(StudyError, match="lr=true: must be a number"):
        table_of(pd.DataFrame({"lr": [1, True]}, dtype=object))


def test_every_parameter_of_a_function_is_a_field() -> None:
    """The one list that is written twice: a type checker and help() know the fields only where they are written."""
    declared = {
        f"{group}_{name}" for group in GROUPS for choice in GROUPS[group] for name in GROUPS[group].parameters(choice)
    }
    assert set(DECLARED) == declared, "declare it in RunSpec too, with the default that identities omit"
    for field, choices in DECLARED.items():
        (kind,) = {parameter.type for parameter in choices.values()}
        assert len({parameter.structural for parameter in choices.values()}) == 1, field
        assert RunSpec.__annotations__[field] == f"{kind.__name__} | None"


def test_the_signature_has_all_fields() -> None:
    assert list(inspect.signature(RunSpec).parameters) == FIELDS
    assert inspect.signature(RunSpec).parameters["gain"].default == 1.0


def test_it_shows_what_is_not_the_default() -> None:
    assert repr(RunSpec()) == "RunSpec()"
    for spec in (
        RunSpec(optimizer="adam", seed=3),
        RunSpec(loss="axon_0_6_1", lr=0.01, batch="full"),
        FROZEN["much"][0],
    ):
        assert eval(repr(spec)) == spec
        assert len(repr(spec)) < 400


def test_runs_may_be_mappings() -> None:
    mappings = [{"lr": 0.1, "optimizer.momentum": 0.9}, {"loss": "axon_0_6_1", "seed": 2}]
    specs = [RunSpec(lr=0.1, optimizer_momentum=0.9), RunSpec(loss="axon_0_6_1", seed=2)]
    assert table_of(mappings).equals(table_of(specs))


def test_a_row_of_a_table_is_its_run() -> None:
    spec = RunSpec(loss="axon_0_6_1", optimizer="adam", batch="full", seed=2**63 - 1)
    assert RunSpec.from_row(train([spec.replace(epochs=1, iterations=1)]).runs.iloc[0]) == spec.replace(
        epochs=1, iterations=1
    )


def test_nan_is_no_rate() -> None:
    with pytest.raises(StudyError, match="lr=nan: must be finite"):
        RunSpec(lr=math.nan)


def test_a_table_says_the_same_as_its_specs() -> None:
    specs = [
        RunSpec(seed=1),
        RunSpec(optimizer="adam", seed=2, loss="huber", batch="full"),
        RunSpec(optimizer="sgd", optimizer_momentum=0.5, optimizer_nesterov=True, hidden=3),
        RunSpec(init="uniform", clip="value", dtype="float64", seed=2**63 - 1),
    ]
    table = table_of(specs)
    assert list(table.columns) == FIELDS
    assert run_ids(table).tolist() == [spec.run_id for spec in specs]
    for place, spec in enumerate(specs):
        for field in FIELDS:
            value, expected = table[field].iloc[place], getattr(spec, field)
            assert (pd.isna(value) and expected is None) or value == expected, field
    columns = {"optimizer": ["adam", "sgd"], "optimizer.momentum": [None, 0.5], "seed": np.array([3, 4])}
    assert table_of(pd.DataFrame({"seed": [5, 3, 5]}))["seed"].tolist() == [5, 3, 5]
    named = table_of(pd.DataFrame(columns))
    assert run_ids(named).tolist() == [
        RunSpec(optimizer="adam", seed=3).run_id,
        RunSpec(optimizer_momentum=0.5, seed=4).run_id,
    ]


def test_tables_are_checked() -> None:
    with pytest.raises(StudyError, match=r"sede: unknown column; did you mean seed\?"):
        table_of(pd.DataFrame({"sede": [1]}))
    with pytest.raises(StudyError, match="no runs"):
        table_of([])


def test_names_with_a_dot() -> None:
    assert key_of("optimizer_weight_decay") == "optimizer.weight_decay"
    assert key_of("activation_hidden") == "activation.hidden"
    assert key_of("init") == "init"
    assert len(KEYS) == len(FIELDS)
