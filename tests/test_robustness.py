"""Robustness: verdicts on sub-grids, on made-up outcomes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import made_up

from xor_study.analysis.axon import BROKEN, NEWEST
from xor_study.analysis.cells import Study
from xor_study.study import robustness
from xor_study.study.claims import CLAIMS, Claim, Evidence, Verdict

RATES = (0.001, 0.01, 0.1, 1.0, 10.0)


def grid(**outcomes: str) -> Study:
    """Return a study of SGD and Adam at some rates; `sgd_10` gives the outcome of SGD at 10."""
    cells: list[tuple[dict[str, Any], Any]] = [(BROKEN, "diverged"), (NEWEST, "solved")]
    cells += [
        ({"optimizer": optimizer, "lr": lr}, outcomes.get(f"{optimizer}_{lr:g}", "solved"))
        for optimizer in ("sgd", "adam")
        for lr in RATES
    ]
    return made_up(cells, seeds=20)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge two claims only: one on all rates, one on the rate of 0.1."""

    def all_rates(evidence: Evidence) -> Verdict:
        cells = evidence.study.where("lr")
        share = float(cells["solved"].mean())
        return Verdict("supported" if share == 1 else "refuted", share, share, share, "", len(cells), "")

    def one_rate(evidence: Evidence) -> Verdict:
        share = evidence.study.row(lr=0.1)["solved"]
        return Verdict("supported", share, share, share, "", 1, "")

    for name in list(CLAIMS):
        monkeypatch.delitem(CLAIMS, name)
    for judge in (all_rates, one_rate):
        monkeypatch.setitem(CLAIMS, judge.__name__, Claim("premise", "learning_rate", judge))


@pytest.mark.usefixtures("only")
def test_a_verdict_that_hangs_on_one_rate_says_so() -> None:
    table = robustness.robustness(Evidence(grid(sgd_10="diverged")))
    rows = table[table["claim"] == "all_rates"].set_index("subgrid")
    assert rows["verdict"].to_dict() == {
        "rates from 0.01": "refuted",
        "rates from 0.1": "refuted",
        "rates up to 1": "supported",
        "rates from 0.001 to 1": "supported",
    }
    claims = pd.DataFrame({"claim": ["all_rates", "one_rate"], "effect": [0.8, 1.0]})
    summary = robustness.summary(claims, table).set_index("claim")
    assert summary["robust"].to_dict() == {"all_rates": "2 of 4", "one_rate": ""}
    assert summary["depends"]["all_rates"] == "supported: rates up to 1, rates from 0.001 to 1"
    assert (summary["least"]["all_rates"], summary["most"]["all_rates"]) == (pytest.approx(2 / 3), 1.0)


def test_of_no_sub_grid_nothing_is_said() -> None:
    """A quick check judges no sub-grids, but its table has the same columns."""
    claims = pd.DataFrame({"claim": ["capacity"], "effect": [0.5]})
    summary = robustness.summary(claims, pd.DataFrame(columns=robustness.COLUMNS))
    assert summary[["robust", "depends", "least", "most"]].to_numpy().tolist() == [["", "", 0.5, 0.5]]


@pytest.mark.usefixtures("only")
def test_a_sub_grid_counts_only_where_it_lacks_a_cell_that_is_read_and_leaves_what_is_needed() -> None:
    table = robustness.robustness(Evidence(grid()))
    assert set(table["claim"]) == {"all_rates"}  # the other can't be judged without its only cell
    assert not table["subgrid"].str.contains("adam").any()
    assert table["same"].all()


def test_the_family_covers_every_level_and_both_ends() -> None:
    study = grid()
    family = {subgrid.name: subgrid.kept for subgrid in robustness.family(study)}
    lr = study.cells["lr"].to_numpy(float)
    assert (family["rates from 0.1"] == (lr >= 0.1)).all()
    assert (family["rates up to 1"] == (lr <= 1)).all()
    assert (study.cells["optimizer"][family["without optimizer=adam"]] != "adam").all()
    assert not all(kept.all() for kept in family.values())


def test_restrictions_keep_indices_and_share_what_is_computed() -> None:
    study = grid()
    part = study.restricted((study.cells["lr"] < 1).to_numpy())
    assert list(part.where("lr")["lr"]) == [0.001, 0.01, 0.1]
    assert part.read == set(part.where("lr").index)
    assert part.runs_of(part.one(lr=0.1)).equals(study.runs_of(study.one(lr=0.1)))
    assert part.once("answer", lambda: 42) == study.once("answer", lambda: 43) == 42
    assert len(part.restricted(np.zeros(len(study.cells), bool)).where("lr")) == 0
