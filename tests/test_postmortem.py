"""The postmortem: its numbers against the engines, its switches against runs of their own, its counts by hand."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xor_study import RunSpec, StudyError, train
from xor_study.analysis.statistics import wilson
from xor_study.autopsy import autopsy
from xor_study.engines import plain
from xor_study.model.data import CORNERS
from xor_study.model.gradients import AXON_EPSILON, exponential_sigmoid_gradient
from xor_study.model.losses import binary_cross_entropy_naive
from xor_study.postmortem import Postmortem, examine
from xor_study.postmortem.chain import climb
from xor_study.postmortem.cli import main
from xor_study.postmortem.explain import reason
from xor_study.postmortem.replay import Settings, replay_run, trained
from xor_study.training.cohorts import cohorts
from xor_study.training.outcome import Detail
from xor_study.training.table import table_of

AXON = RunSpec(loss="axon_0_6_1", seed=109)
ROOT = Path(__file__).resolve().parents[1]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def axon() -> Postmortem:
    return examine(AXON, "loss=axon_0_6_1 seed=109", seeds=20)


def links(story: Postmortem) -> dict[str, Any]:
    return {link.name: link for link in reversed(story.links)}


# --- a run of Axon's that goes to NaN --------------------------------------------------------------------------------


def test_the_replay_stops_being_finite_where_the_engine_does(axon: Postmortem) -> None:
    onset = int(train(AXON, engine="lanes").runs["first_nonfinite_step"].iloc[0])
    whole = train(AXON.replace(epochs=1, iterations=onset + 1), engine="plain").runs["first_nonfinite_step"].iloc[0]
    assert axon.replay is not None
    assert (axon.run.onset, axon.replay.onset, whole) == (onset, onset, onset)
    assert not axon.replay.from_start


def test_the_named_operation_is_the_exponential_of_the_sigmoids_gradient(axon: Postmortem) -> None:
    operation = links(axon)["operation"]
    assert operation.step == axon.run.onset
    assert (operation.values["operation"], operation.values["phase"]) == ("aten.exp.default", "backward")
    path, line, _ = operation.values["where"].split(":", 2)
    assert path == "xor_study/model/gradients.py"
    assert "torch.exp(-logit)" in (ROOT / path).read_text().splitlines()[int(line) - 1]
    logit = links(axon)["state"].values["logit"]["00"]
    assert f"exp({-logit:.4g}) = infinity" in operation.text
    assert -logit > math.log(torch.finfo(torch.float32).max)
    assert "infinity x 0 = NaN" in links(axon)["consequence"].text


def test_the_numbers_are_those_of_the_run(axon: Postmortem) -> None:
    onset = axon.run.onset
    assert onset is not None
    result = train(AXON.replace(epochs=1, iterations=onset + 1), every_step=True, snapshots=[onset, onset + 1])
    assert result.history is not None
    history, told = result.history.set_index("step"), links(axon)
    logits = result.snapshots[onset].logits[0]
    assert list(told["state"].values["logit"].values()) == pytest.approx(logits.tolist(), rel=1e-4)
    assert set(told["state"].values["prediction"].values()) == {0.0}
    assert told["start"].values["loss"] == history["loss"].iloc[0]
    assert told["jump"].step == onset - 1
    assert told["jump"].values["grad_norm"] == history.loc[onset - 1, "grad_norm"]
    assert told["mask"].values["corners"] == ["00", "01", "10", "11"]
    assert told["mask"].values["eps"] == AXON_EPSILON
    broken = torch.cat([value[0].flatten() for value in result.snapshots[onset].parameters.values()])
    assert int(broken.isnan().sum()) == told["parameters"].values["not_finite"][str(onset)] == 33
    assert f"The loss is not finite from step {onset + 1} on" in told["parameters"].text


def test_the_wrong_sign_is_that_of_the_squared_gradient(axon: Postmortem) -> None:
    """tests/data/axon/README.md: (g / n)^2 e^-z p p with g = -1 / (p + eps) for target 1; right is (p - 1) / n."""
    values = links(axon)["sign"].values
    p = values["prediction"]
    assert values["gradient"] == pytest.approx((1 / (p + 1e-7) / 32) ** 2 * p * (1 - p), rel=1e-4)
    assert values["correct_gradient"] == pytest.approx((p - 1) / 32, rel=1e-5)


def test_each_switch_has_the_outcome_of_a_run_of_its_own(axon: Postmortem) -> None:
    changes: dict[str, dict[str, Any]] = {
        "": {},
        "loss.logits_visible=true": {"loss_logits_visible": True},
        "loss.clip_gradient=correct": {"loss_clip_gradient": "correct"},
        "loss.sigmoid_gradient=stable": {"loss_sigmoid_gradient": "stable"},
        "dtype=float64": {"dtype": "float64"},
        "clip=norm": {"clip": "norm"},
        "lr=0.001": {"lr": 0.001},
        "optimizer=adam lr=0.001": {"optimizer": "adam"},
    }
    assert [cure.switch for cure in axon.cures] == list(changes)
    for cure in axon.cures:
        specs = [AXON.replace(**changes[cure.switch], seed=seed) for seed in (109, *range(20))]
        runs = train(specs).runs
        assert cure.outcome == runs["outcome"].iloc[0]
        assert cure.shares is not None
        for outcome, share in cure.shares.items():
            count = int((runs["outcome"].iloc[1:] == outcome).sum())
            assert (share.count, share.n, (share.low, share.high)) == (count, 20, wilson(count, 20))


def test_only_visible_logits_or_the_right_clip_gradient_prevent_the_failure(axon: Postmortem) -> None:
    """As in Axon itself (tests/data/axon/README.md); a stable sigmoid gradient only prevents NaN."""
    prevents = {cure.switch: cure.prevents for cure in axon.cures[1:]}
    assert [switch for switch, what in prevents.items() if what == "failure"] == [
        "loss.logits_visible=true",
        "loss.clip_gradient=correct",
    ]
    assert prevents["loss.sigmoid_gradient=stable"] == "NaN"


def test_the_story_tells_the_links_in_order_and_is_valid_json(axon: Postmortem) -> None:
    order = [link.name for link in axon.links]
    chain = ["start", "sign", "climb", "jump", "state", "mask", "operation", "consequence", "parameters"]
    assert order == chain
    assert [link.step for link in axon.links] == sorted(link.step for link in axon.links)
    for link in axon.links:
        assert " ".join(link.text.split()) in " ".join(axon.text.split())

    def refuse(token: str) -> None:
        raise AssertionError(token)

    again = json.loads(json.dumps(axon.as_dict(), allow_nan=False), parse_constant=refuse)
    assert again["first_nonfinite_step"] == again["replay"]["first_nonfinite_step"] == axon.run.onset
    assert [link["name"] for link in again["links"]] == order
    assert again["corners"][-1]["exponential"] == "inf"
    assert again["corners"][-1]["gradient"] == "nan"


# --- other failures --------------------------------------------------------------------------------------------------


def test_a_textbook_cross_entropy_meets_the_logarithm_of_0() -> None:
    story = examine(RunSpec(loss="binary_cross_entropy_naive", lr=10.0, epochs=1), seeds=0)
    told = links(story)
    assert (told["operation"].values["operation"], told["operation"].values["phase"]) == ("aten.log.default", "forward")
    assert "log(0) = -infinity" in told["operation"].text
    assert set(told["state"].values["prediction"].values()) == {1.0}
    logits = told["state"].values["logit"].values()
    assert min(logits) > 24 * math.log(2)  # where float32 rounds a sigmoid to 1
    outcomes = {cure.switch: cure.outcome for cure in story.cures}
    assert outcomes[""] == "nonfinite"
    assert outcomes["loss=binary_cross_entropy_with_logits"] != "nonfinite"
    assert outcomes["lr=1.0"] == "solved"


def test_a_squared_error_without_bounds_overflows() -> None:
    spec = RunSpec(loss="mean_squared_error", activation_output="identity", lr=1.0, seed=1, epochs=1)
    story = examine(spec, seeds=0)
    told, onset = links(story), story.run.onset
    assert onset is not None
    assert (told["operation"].step, told["operation"].values["kind"]) == (onset, "overflow")
    assert train(spec.replace(dtype="float64", iterations=onset)).runs["outcome"].iloc[0] != "nonfinite"
    counts = told["parameters"].values["not_finite"]
    assert counts[str(onset)] == 0
    assert max(counts.values()) == 33
    wider = next(cure for cure in story.cures if cure.switch == "dtype=float64")
    assert (wider.prevents, wider.first_nonfinite_step is not None) == ("nothing", True)


def test_adams_eps_is_nothing_in_float16() -> None:
    story = examine(RunSpec(optimizer="adam", dtype="float16", epochs=1, iterations=40), seeds=0)
    operation = links(story)["operation"]
    assert story.run.onset == operation.step == 1
    assert (operation.values["phase"], operation.values["operation"]) == ("optimizer", "aten.addcdiv_.default")
    assert "eps = 1e-08 is 0 there" in operation.text
    prevents = {cure.switch: cure.prevents for cure in story.cures}
    assert prevents["optimizer.eps=0.0001"] != "nothing"
    assert prevents["dtype=float32"] != "nothing"
    assert prevents["lr=0.0001"] == "nothing"


def test_an_optimizer_with_memory_is_replayed_from_the_start() -> None:
    spec = RunSpec(loss="axon_0_6_1", optimizer_momentum=0.9, lr=0.1, seed=2, epochs=1, iterations=2000)
    story = examine(spec, seeds=0)
    assert story.run.onset is not None
    assert story.replay is not None
    assert story.replay.from_start
    assert story.replay.first > 1
    assert story.replay.onset == story.run.onset
    assert "with plain from the start" in " ".join(story.text.split())


def test_where_trajectories_part_the_story_is_that_of_plain(axon: Postmortem) -> None:
    """An engine that is three steps off: the replay finds its own step, from the start, and says so."""
    run = examine(AXON.replace(epochs=1, iterations=600), seeds=0).run
    onset = run.onset
    assert onset is not None
    run.result.runs["first_nonfinite_step"] = onset + 3
    replay = replay_run(run, Settings())
    assert (replay.onset, replay.from_start) == (onset, True)
    story = Postmortem("x", run, replay, axon.links, [])
    assert f"it is not finite from step {onset}," in " ".join(story.text.split())
    assert "what follows is the replay" in " ".join(story.text.split())


def test_what_only_serves_the_noting_is_not_accused() -> None:
    """The norm of a gradient of 1e25 overflows in float32, but nothing in the training does."""
    spec = RunSpec(loss="mean_squared_error", activation_output="identity", lr=1.0, seed=1, epochs=1)
    story = examine(spec, seeds=0)
    assert all("norm" not in str(link.values.get("operation")) for link in story.links)


# --- runs that are finite to the end ---------------------------------------------------------------------------------


def test_dead_units_are_counted() -> None:
    spec = RunSpec(activation_hidden="relu", seed=40)
    story, network = examine(spec), train(spec).network(0)
    given = torch.tensor(CORNERS).float() @ network.hidden.weight.T + network.hidden.bias
    dead = int((given <= 0).all(0).sum())
    assert story.run.outcome == "unsolved"
    assert dead > 0
    assert links(story)["dead"].values["units"] == dead
    assert links(story)["wrong"].values["wrong"] == ["10"]
    cured = [cure for cure in story.cures if cure.prevents == "failure"]
    assert "activation.hidden=leaky_relu" in [cure.switch for cure in cured]
    assert all(cure.solved_step is not None for cure in cured)


def test_units_that_start_alike_stay_alike() -> None:
    told = links(examine(RunSpec(init="ones", epochs=1), seeds=0))
    assert told["identical"].values == {"distinct": 1, "width": 8}


def test_a_diverged_run_is_told_with_its_vanished_gradient() -> None:
    spec = RunSpec(loss="axon_0_6_1", seed=0)
    story = examine(spec, seeds=0)
    told = links(story)
    assert story.run.outcome == "diverged"
    assert told["diverged"].values["tail_loss"] > 2 * math.log(2)
    assert told["gradient"].values["norm"] == 0
    assert told["mask"].values["corners"] == ["00", "01", "10", "11"]
    assert "operation" not in told
    prevents = {cure.switch: cure.prevents for cure in story.cures}
    assert prevents["loss.clip_gradient=correct"] == "failure"


def test_saturated_units_are_counted() -> None:
    spec = RunSpec(bias=3.5, epochs=1, iterations=50)
    story, network = examine(spec, seeds=0), train(spec).network(0)
    with torch.no_grad():
        given = torch.tensor(CORNERS).float() @ network.hidden.weight.T + network.hidden.bias
    count = int((1 / torch.cosh(given) ** 2 < 0.01).all(0).sum())
    assert 0 < count < 8
    assert links(story)["saturated"].values["units"] == count


def test_a_solved_run_says_when_and_by_which_margin() -> None:
    spec = RunSpec(seed=1)
    story, result = examine(spec), train(spec)
    with torch.no_grad():
        p = result.network(0)(*torch.tensor(CORNERS).float().T[..., None])[:, 0]
    solved = links(story)["solved"]
    assert solved.step == result.runs["solved_step"].iloc[0]
    assert solved.values["margin"] == pytest.approx(float((p - 0.5).abs().min()), rel=1e-6)
    assert story.cures == []


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([1.0] * 100, None),
        ([1.0] * 50 + [10.0] * 50, 51),  # the mean of ten is 1.9 at once
        ([1.0] * 50 + [10.0] * 5 + [1.0] * 45, None),  # it comes back
        ([1.0] * 30 + [math.inf], 31),
        ([math.nan], None),
    ],
)
def test_a_climb_is_for_good(losses: list[float], step: int | None) -> None:
    assert climb(np.array(losses)) == step


# --- the pieces under it ---------------------------------------------------------------------------------------------


def test_plain_trains_the_same_step_by_step_as_in_one_go() -> None:
    spec = RunSpec(optimizer="adam", epochs=1, iterations=30)
    (cohort,) = cohorts(table_of([spec]))
    training = plain.Training(cohort, 0)
    losses = [float(noted.loss) for step in range(1, 31) for noted in training.take(range(step, step + 1))]
    whole = train(spec, engine="plain", every_step=True)
    assert whole.history is not None
    assert losses == whole.history["loss"].tolist()


def test_a_run_that_lanes_can_not_compile_is_found_with_plain() -> None:
    table = table_of([RunSpec(dtype="bfloat16", epochs=1, iterations=5)])
    assert trained(table, Settings(), Detail()).runs["engine"].tolist() == ["plain"]
    assert trained(table_of([RunSpec(epochs=1, iterations=5)]), Settings(), Detail()).runs["engine"].tolist() == [
        "lanes"
    ]


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(StudyError, match="keeps every step, of at most 1000000"):
        examine(RunSpec(epochs=11, iterations=100_000))


def test_the_lines_that_the_story_explains_are_known_by_their_functions() -> None:
    """A function that is renamed, wrapped or moved keeps its sentence, or this fails."""
    zero = torch.zeros(2)
    with autopsy() as report:
        exponential_sigmoid_gradient(torch.full((2,), -100.0), zero)
        binary_cross_entropy_naive(zero, zero, torch.ones(2))
    reasons = {event.operation: reason(event, RunSpec()) for event in report.events}
    assert "e^-z is infinite in float32 where -z > 88.72" in reasons["aten.exp.default"]
    assert "infinity times 0 is NaN" in reasons["aten.mul.Tensor"]
    assert "nothing guards the logarithm" in reasons["aten.log.default"]


def test_a_representation_is_short_and_says_how_the_run_ended(axon: Postmortem) -> None:
    text = repr(axon)
    assert text.startswith(f"<Postmortem of {axon.title}: not finite from step {axon.run.onset} of 10,000 steps, ")
    assert "first: aten.exp.default at xor_study/model/gradients.py:" in text
    assert len(text) < 240
    html = axon._repr_html_()
    assert html.startswith("<pre>loss=axon_0_6_1 seed=109: not finite")
    assert "-z &gt; 88.72" in html


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the command line in an empty folder: arguments -> (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


@pytest.mark.parametrize("arguments", [["--help"], ["--seeds", "-1"], ["--figure", "a.svg"], ["--figur"]])
def test_help_and_wrong_options_load_neither_torch_nor_hydra(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom xor_study.postmortem.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit:\n    print([name for name in ('torch', 'pandas', 'hydra', 'rich') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_prints_the_story_and_leaves_nothing(call: Call, tmp_path: Path, axon: Postmortem) -> None:
    code, out, err = call("loss=axon_0_6_1", "seed=109", "--seeds", "20")
    assert (code, err) == (0, "")
    assert out == axon.text + "\n"
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_shows_the_story_that_the_command_prints(axon: Postmortem) -> None:
    """But for its numbers: other processors round differently, and this run makes much of a rounding."""
    told = [axon.text, (ROOT / "docs/autopsy.md").read_text()]
    words = [" ".join(re.sub(r"\d[\d.,e+-]*", "#", text).split()) for text in told]
    assert words[0] in words[1]


def test_overrides_are_those_of_a_run(call: Call) -> None:
    code, out, _ = call("optimizer=adam", "loss.eps=1e-3", "loss=binary_cross_entropy_clipped", "epochs=1", "--json")
    assert code == 0
    told = json.loads(out)
    spec = RunSpec(optimizer="adam", loss="binary_cross_entropy_clipped", loss_eps=1e-3, epochs=1)
    assert told["run_id"] == spec.run_id
    assert told["outcome"] == train(spec).runs["outcome"].iloc[0]


@pytest.mark.parametrize(
    ("name", "left"),
    [("last.png", ["last.png"]), ("last.pdf", ["last.pdf"]), ("last", ["last.pdf", "last.png"])],
)
def test_draws_the_last_steps(
    call: Call, tmp_path: Path, name: str, left: list[str], axon: Postmortem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the run that is examined already."""
    monkeypatch.setattr("xor_study.postmortem.story.examine", lambda *_: axon)
    code, _, err = call("loss=axon_0_6_1", "seed=109", "--seeds", "0", "--figure", name)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all((tmp_path / file).read_bytes().startswith(starts[file[-3:]]) for file in left)


def test_draws_a_run_that_is_finite_and_one_that_starts_with_nan(call: Call, tmp_path: Path) -> None:
    assert call("epochs=1", "iterations=30", "--seeds", "0", "--figure", "a.png")[0] == 0
    naive = ("loss=binary_cross_entropy_naive", "gain=10", "seed=1", "epochs=1", "iterations=30")
    assert call(*naive, "--seeds", "0", "--figure", "b.png")[0] == 0
    assert (tmp_path / "b.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=foo"], "loss=foo: unknown"),
        (["lr=abc"], "lr=abc: must be a number"),
        (["seed=1,2"], "seed=1,2: several runs; give one"),
        (["study=mechanism"], "study=mechanism: several runs; give one"),
        (["hydra.run.dir=x"], "nothing is to be set here"),
        (["log=axon"], "nothing is to be set here"),
        (["device=cuda:99"], "device=cuda:99"),
        (["engine=lanes", "dtype=float16"], "compiles only"),
        (["lr=${nothing}"], "lr: Interpolation key 'nothing' not found"),
        (["lr=[1"], "can't be read as key=value"),
        (["epochs=100000"], "keeps every step"),
        (["--figure", "no/such.png"], "no is not a folder"),
        (["--figure", "a.svg"], "must end in .png or .pdf"),
        (["--figure", ""], "--figure="),
        (["--seeds", "-1"], "--seeds=-1: must be in [0, 10000]"),
    ],
)
def test_wrong_input_gets_one_line(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []
