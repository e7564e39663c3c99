"""What the real Axon did: golden tables of its loss, and traces of its training, replayed on every engine."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xor_study import RunSpec, StudyError, conformance, train
from xor_study.engines import ENGINES, vmap
from xor_study.model.activations import OUTPUT_ACTIVATIONS, sigmoid
from xor_study.model.gradients import (
    clipped_gradient,
    exponential_sigmoid_gradient,
    nx_clip,
    nx_sigmoid,
    softplus_gradient,
)
from xor_study.model.losses import LOSSES
from xor_study.study.traces import floats, read_trace, replay
from xor_study.study.versions import VERSIONS
from xor_study.training.outcome import running_mean

DATA = Path(__file__).parent / "data/axon"
TRACES = sorted(DATA.glob("trace_*.json"))
GOLDEN = {version: json.loads((DATA / f"golden_bce_{version}.json").read_text()) for version in LOSSES.presets}


def column(version: str, name: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([floats(row[name]) for row in GOLDEN[version]["rows"]]))


def targets(version: str) -> torch.Tensor:
    return torch.tensor([float(row["y"]) for row in GOLDEN[version]["rows"]])


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal bit for bit, but that NaN is NaN and zeros may differ in sign."""
    both_nan = ours.isnan() & theirs.isnan()
    assert (both_nan | (ours == theirs)).all(), (
        ours[~both_nan & (ours != theirs)],
        theirs[~both_nan & (ours != theirs)],
    )


def assert_within_ulps(ours: torch.Tensor, theirs: torch.Tensor, ulps: int) -> None:
    one, other = (tensor.numpy() for tensor in (ours, theirs))
    assert np.array_equal(np.isfinite(one), np.isfinite(other))
    finite = np.isfinite(one)
    distance = np.abs(one[finite].astype(np.float64) - other[finite]) / np.spacing(np.abs(other[finite]))
    assert distance.max() <= ulps


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_gradient_of_the_clip_branch_is_equal_bit_for_bit(version: str) -> None:
    """Additions, multiplications and divisions only, from the table's own sigmoid."""
    ours = clipped_gradient(column(version, "sigmoid"), targets(version), torch.tensor(1.0), squared=True)
    assert_same_bits(ours, column(version, "clip_path_grad_y_pred"))
    by_logit = ours * column(version, "sigmoid_grad")
    assert_same_bits(by_logit, column(version, "clip_path_grad_logit"))


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_sigmoid_gradient_is_within_2_ulps(version: str) -> None:
    """An exponential, from the table's own sigmoid."""
    ours = exponential_sigmoid_gradient(column(version, "logit_hex"), column(version, "sigmoid"))
    assert_within_ulps(ours, column(version, "sigmoid_grad"), 2)
    assert ours.isnan().any()
    assert ours.isinf().any()


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_values_are_within_2_ulps(version: str) -> None:
    """Logarithms, from the table's own sigmoid.

    Nx's log1p(x) on its binary backend is log(1 + x) in double precision, 0 for x below 2^-53, where torch's is x.
    """
    logit, prediction, target = column(version, "logit_hex"), column(version, "sigmoid"), targets(version)
    loss = LOSSES["axon_binary_cross_entropy"].per_sample
    for path, visible in (("logits", True), ("clip", False)):
        ours = loss(logit, prediction, target, logits_visible=visible)
        theirs = column(version, f"{path}_path_value")
        lost = (theirs == 0) & (torch.exp(-logit.double().abs()) < 2.0**-53)
        assert_within_ulps(ours[~lost], theirs[~lost], 2)
        assert (ours[lost] < 2.0**-53).all()


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_gradient_of_the_logits_branch_is_within_2_ulps(version: str) -> None:
    logit, target = column(version, "logit_hex"), targets(version)
    theirs = column(version, "logits_path_grad_logit")
    required = logit.clone().requires_grad_()
    value = LOSSES["axon_binary_cross_entropy"].per_sample(required, sigmoid(required), target, logits_visible=True)
    value.sum().backward()
    assert required.grad is not None
    assert_within_ulps(required.grad, theirs, 2)
    assert (required.grad[logit == 0] == 0).all()
    assert softplus_gradient(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_sigmoid_is_within_2_ulps_where_float32_can_hold_its_exponential(version: str) -> None:
    """Nx computed it in double precision and has subnormal values below -88.72, where torch has 0."""
    logit = column(version, "logit_hex")
    held = logit > -88.72
    assert_within_ulps(sigmoid(logit)[held], column(version, "sigmoid")[held], 2)
    assert (sigmoid(logit)[~held] == 0).all()


@pytest.mark.parametrize("version", GOLDEN)
def test_the_whole_gradient_breaks_where_axon_broke(version: str) -> None:
    """By way of torch's own sigmoid: the same logits give NaN, and no others."""
    logit = column(version, "logit_hex").requires_grad_()
    loss = LOSSES["axon_binary_cross_entropy"].per_sample(
        logit,
        sigmoid(logit),
        targets(version),
        logits_visible=False,
        clip_gradient="squared",
        sigmoid_gradient="exponential",
    )
    loss.sum().backward()
    assert logit.grad is not None
    assert torch.equal(logit.grad.isfinite(), column(version, "clip_path_grad_logit").isfinite())


@pytest.mark.parametrize("version", GOLDEN)
def test_golden_batch_of_four_has_the_square_of_each_sample_with_its_share_inside(version: str) -> None:
    """The table has no sigmoid of the batch: torch's may be off by one unit, which the squared quotient multiplies."""
    golden = GOLDEN[version]["batch4_mean"]
    target = torch.tensor(golden["y"], dtype=torch.float32)
    for path, visible in (("logits", True), ("clip", False)):
        logit = torch.from_numpy(floats(golden["logits"])).requires_grad_()
        value = LOSSES["axon_binary_cross_entropy"].per_sample(
            logit,
            sigmoid(logit),
            target,
            logits_visible=visible,
            clip_gradient="squared",
            sigmoid_gradient="exponential",
        )
        value.mean().backward()
        assert logit.grad is not None
        assert_within_ulps(value.mean().detach()[None], torch.from_numpy(floats(golden[f"{path}_path_value"])), 2)
        theirs = torch.from_numpy(floats(golden[f"{path}_path_grad_logit"]))
        torch.testing.assert_close(logit.grad, theirs, rtol=1e-6, atol=0)


NX_SIGMOID: dict[str, Any] = {"activation_output": "nx_sigmoid"}


def derivatives() -> tuple[torch.Tensor, torch.Tensor]:
    """Return d loss / d p and d p / d z of the clipped loss by autograd, for logits from -12 to 12."""
    target = (torch.arange(101) % 2).double()
    p = sigmoid(torch.linspace(-12, 12, 101, dtype=torch.float64)).requires_grad_()
    q = p.clamp(1e-7, 1 - 1e-7)
    (-(target * torch.log(q + 1e-7) + (1 - target) * torch.log(1 - q + 1e-7))).sum().backward()
    assert p.grad is not None
    return p.grad, p.detach() * (1 - p.detach())


@pytest.mark.parametrize("version", GOLDEN)
def test_nx_sigmoid_breaks_where_nx_broke(version: str) -> None:
    logit = column(version, "logit_hex").requires_grad_()
    nx_sigmoid(logit).sum().backward()
    assert logit.grad is not None
    theirs = column(version, "sigmoid_grad")
    # torch's sigmoid is 0 where Nx's is subnormal, so there infinity becomes NaN.
    assert torch.equal(logit.grad.isfinite(), theirs.isfinite())
    held = theirs.isfinite() & (logit.detach() > -88.72)
    torch.testing.assert_close(logit.grad[held], theirs[held], rtol=1e-6, atol=1e-43)


@pytest.mark.parametrize("version", GOLDEN)
def test_nx_clip_has_the_probed_gradient(version: str) -> None:
    probe = GOLDEN[version]["clip_grad_probe"]
    value, upstream, theirs = (torch.from_numpy(floats(probe[name])) for name in ("x", "upstream", "grad"))
    value.requires_grad_()
    nx_clip(value, probe["min"], probe["max"]).backward(upstream)
    assert value.grad is not None
    assert torch.equal(value.grad, theirs)


@pytest.mark.parametrize("output", ["sigmoid", "nx_sigmoid"])
@pytest.mark.parametrize("clip_gradient", ["correct", "squared"])
def test_nx_parts_compose_to_the_loss_of_axon(output: str, clip_gradient: str) -> None:
    """Keras's loss of a smaller eps with Nx's clip and sigmoid is Axon's loss on hidden logits."""
    target, gradients = (torch.arange(101) % 2).double(), []
    parts: list[tuple[str, dict[str, Any], str]] = [
        ("binary_cross_entropy_clipped", {"clip_gradient": clip_gradient}, output),
        (
            "axon_binary_cross_entropy",
            {
                "logits_visible": False,
                "clip_gradient": clip_gradient,
                "sigmoid_gradient": "exponential" if output == "nx_sigmoid" else "stable",
            },
            "sigmoid",
        ),
    ]
    for loss, parameters, activation in parts:
        logit = torch.linspace(-10, 10, 101, dtype=torch.float64).requires_grad_()
        prediction = OUTPUT_ACTIVATIONS[activation](logit)
        LOSSES[loss].per_sample(logit, prediction, target, **parameters).sum().backward()
        assert logit.grad is not None
        gradients.append(logit.grad)
    torch.testing.assert_close(*gradients, rtol=0.01, atol=0)  # Axon's adds eps to the clipped probability once more


def test_nx_sigmoid_with_the_loss_of_axon_is_the_run_with_its_switch() -> None:
    runs = [train([RunSpec(loss="axon_0_6_1", lr=1.0, seed=s, **nx) for s in range(8)]).runs for nx in ({}, NX_SIGMOID)]
    measures = runs[0].columns.difference(["run_id", "activation.output"])
    pd.testing.assert_frame_equal(runs[0][measures], runs[1][measures])
    assert set(runs[0]["outcome"]) == {"diverged", "nonfinite"}
    with pytest.raises(StudyError, match=r"loss\.sigmoid_gradient=exponential"):
        RunSpec(loss="axon_0_6_1", loss_sigmoid_gradient="stable", **NX_SIGMOID)


@pytest.mark.parametrize("loss", [name for name in LOSSES if "nx_sigmoid" in LOSSES[name].outputs])
def test_every_loss_goes_with_nx_sigmoid_on_lanes(loss: str) -> None:
    """Only the two that are computed from the logit stay finite where every prediction starts saturated."""
    specs = [RunSpec(loss=loss, gain=1000.0, seed=seed, iterations=20, **NX_SIGMOID) for seed in range(8)]
    runs = train(specs, engine="lanes").runs
    from_logit = ("binary_cross_entropy_with_logits", "hinge", "axon_binary_cross_entropy")
    assert (runs["outcome"] == "nonfinite").any() == (loss not in from_logit)


@pytest.mark.parametrize("sigmoid_gradient", ["stable", "exponential"])
@pytest.mark.parametrize("clip_gradient", ["correct", "squared"])
def test_each_switch_alone_has_its_closed_form(clip_gradient: str, sigmoid_gradient: str) -> None:
    """The product of two derivatives that autograd finds, the first of them squared where the clip is broken."""
    by_p, by_z = derivatives()
    logit = torch.linspace(-12, 12, 101, dtype=torch.float64).requires_grad_()
    loss = LOSSES["axon_binary_cross_entropy"].per_sample(
        logit,
        sigmoid(logit),
        (torch.arange(101) % 2).double(),
        logits_visible=False,
        clip_gradient=clip_gradient,
        sigmoid_gradient=sigmoid_gradient,
    )
    loss.sum().backward()
    assert logit.grad is not None
    expected = (by_p**2 if clip_gradient == "squared" else by_p) * by_z
    torch.testing.assert_close(logit.grad, expected, rtol=1e-9, atol=0)


def test_presets_are_stored_as_function_and_parameters() -> None:
    spec = RunSpec(loss="axon_0_6_1")
    assert spec.loss == "axon_binary_cross_entropy"
    switches = (spec.loss_logits_visible, spec.loss_clip_gradient, spec.loss_sigmoid_gradient)
    assert switches == (False, "squared", "exponential")
    told = {"loss_logits_visible": False, "loss_clip_gradient": "squared", "loss_sigmoid_gradient": "exponential"}
    assert spec == RunSpec(loss="axon_binary_cross_entropy", **told)
    assert RunSpec(loss="axon_0_7_0").loss_logits_visible is True
    assert RunSpec(loss="axon_0_6_1", loss_clip_gradient="correct").loss_clip_gradient == "correct"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_replay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmap, "BLOCK", 1)  # each run is trained alone; in a block of 512 a step takes longer
    found = list(replay(read_trace(path)))
    assert len(found) == 7 * len(ENGINES)
    for one in found:
        assert not one.exceeded, str(one)
    expected = {"sgd_0_1": True, "sgd_1_0": True} if "0_6_1" in path.stem else {}
    for one in found:
        assert (one.onset is not None) == expected.get(one.run, False)


def test_the_running_mean_is_that_of_axons_loop_bit_for_bit() -> None:
    for path in TRACES:
        for run in json.loads(path.read_text())["runs"].values():
            assert np.array_equal(running_mean(floats(run["loss_batch"])), floats(run["loss_running_mean"]))


def test_in_axon_no_rate_is_rate_0_01() -> None:
    """The two runs are equal bit for bit there, and one run here."""
    for path in TRACES:
        runs = json.loads(path.read_text())["runs"]
        assert runs["sgd_default"]["loss_batch"] == runs["sgd_0_01"]["loss_batch"]
    assert RunSpec(loss="axon_0_6_1").run_id == RunSpec(loss="axon_0_6_1", lr=0.01).run_id


def trace() -> dict[str, Any]:
    """A short trace: one run, ten steps."""
    whole = json.loads(TRACES[-1].read_text())
    run = whole["runs"]["sgd_0_1"]
    for part in ("params_after_step", "before_step"):
        run[part] = {step: value for step, value in run[part].items() if int(step) <= 10}
    for name in ("loss_batch", "loss_running_mean"):
        run[name] = run[name][:10]
    batches = {name: lines[:10] for name, lines in whole["batches"].items()}
    return whole | {"runs": {"sgd_0_1": run}, "batches": batches, "steps": 10}


def test_a_version_maps_to_its_semantics_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace() | {"label": "axon_0_4_1", "seed": 77}))
    (found,) = replay(read_trace(path), ["plain"])
    assert not found.exceeded
    assert found.spec.loss_logits_visible is True
    path.write_text(json.dumps(trace() | {"label": "axon_0_9_9"}))
    with pytest.raises(StudyError, match=r"label axon_0_9_9: unknown version.*axon_0_6_1"):
        read_trace(path)


@pytest.mark.parametrize("what", ["loss", "running_mean", "gradient", "logit", "parameter", "onset"])
def test_a_doctored_trace_is_found_out(what: str) -> None:
    """One number in the trace is moved by about 1e-4, or the step of the failure by one."""
    doctored = copy.deepcopy(trace())
    run = doctored["runs"]["sgd_0_1"]
    places = {
        "loss": (run["loss_batch"], 4),
        "running_mean": (run["loss_running_mean"], 9),
        "gradient": (run["before_step"]["10"]["grads"]["dense_1.kernel"], 3),
        "logit": (run["before_step"]["2"]["logits"], 7),
        "parameter": (run["params_after_step"]["10"]["dense_0.kernel"], 5),
    }
    if what == "onset":
        run["first_step_with_nonfinite_params"] = 10
    else:
        numbers, place = places[what]
        numbers[place] = f"{np.float32(floats([numbers[place]])[0] + 1e-4).view(np.uint32):08x}"
    (found,) = replay(doctored, ["vmap"])
    assert found.exceeded == [what]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        conformance.main(arguments)
    return int(ended.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(trace()))
    doctored = trace()
    doctored["runs"]["sgd_0_1"]["loss_batch"][3] = "3f800000"
    bad.write_text(json.dumps(doctored))
    assert call(str(good)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ENGINES)
    assert all(line.startswith("axon_0_7_0 seed 2") and line.endswith("ok") for line in lines)
    assert call(str(good), str(bad), "--engine", "vmap") == 1
    assert "EXCEEDED: loss" in capsys.readouterr().out
    torn = trace()
    del torn["runs"]["sgd_0_1"]["init"]["dense_1.kernel"]
    for text in ("no json", "{}", "[]", json.dumps(torn), json.dumps(trace() | {"runs": {"lion_default": {}}})):
        bad.write_text(text)
        assert call(str(bad)) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert call() == 1
    assert call(str(good), "--engine", "lane") == 1
    assert "--engine lane: unknown; did you mean lanes?" in capsys.readouterr().err


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """The table in the documentation is the one the package prints, and says what the measured table says."""
    assert call("--versions") == 0
    table = capsys.readouterr().out
    assert table.strip() in (Path(__file__).parents[1] / "docs/axon.md").read_text()
    rows = [line.split("|") for line in (DATA / "README.md").read_text().splitlines() if line.startswith("| ")]
    measured = {pair.strip(): "diverges" in row[3] for row in rows for pair in row[1].split(",")}
    for version in VERSIONS:
        assert version.affected == measured[f"{version.axon} / {version.nx}"]
        assert version.affected == (not LOSSES.presets[version.loss].parameters["logits_visible"])
