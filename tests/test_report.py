"""The page: complete, self-contained, and alive in a browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xor_study.analysis.axon import BROKEN, NEWEST, SETTINGS
from xor_study.analysis.cells import Cells
from xor_study.figures import FIGURES
from xor_study.study.claims import CLAIMS
from xor_study.study.reference import REFERENCE, read_table
from xor_study.study.report import CAPTIONS, MARKDOWN, PAGE, answer, chain

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package chromium)")


def test_both_pages_say_every_claim_with_its_verdict_and_command() -> None:
    claims = read_table(REFERENCE, "claims").set_index("claim")
    page, markdown = (html.unescape((REFERENCE / name).read_text()) for name in (PAGE, MARKDOWN))
    for name, claim in CLAIMS.items():
        for text in (name, claims["sentence"][name], f"python -m xor_study.run -m study={claim.studies}"):
            assert text in page
            assert text in markdown
        assert f"`{name}`" in markdown
        assert f"**{claims['verdict'][name]}**" in markdown


def test_every_figure_stands_in_both_pages() -> None:
    assert CAPTIONS.keys() == FIGURES.keys()
    page, markdown = ((REFERENCE / name).read_text() for name in (PAGE, MARKDOWN))
    for name in FIGURES:
        assert f'<figure id="{name}"><img alt="{name}" src="data:image/png;base64,' in page
        assert f"![{name}](figures/{name}.png)" in markdown
        assert (REFERENCE / "figures" / f"{name}.png").is_file()


def test_the_page_asks_for_nothing_outside_itself() -> None:
    page = (REFERENCE / PAGE).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|<!--", page)


def test_the_picker_has_the_counts_of_the_cells() -> None:
    page = (REFERENCE / PAGE).read_text()
    (found,) = re.findall(r"const data = (.*);\n", page)
    data = json.loads(found)
    cells = read_table(REFERENCE, "cells")
    (chosen,) = (
        cell for cell in data["cells"] if cell[:5] == ["sgd", "0.1", "glorot_uniform", "axon 0.6.1", "tanh, sigmoid"]
    )
    found = Cells(cells).where(**BROKEN, lr=0.1)
    assert len(found) == 1
    assert chosen[5] == [int(found[f"{outcome}_runs"].iloc[0]) for outcome in data["outcomes"]]


def test_the_answer_is_decided_by_the_verdicts_and_cells() -> None:
    cells = Cells(read_table(REFERENCE, "cells"))
    verdicts = read_table(REFERENCE, "claims").set_index("claim")["verdict"]
    suspects, failure, fixes = answer(verdicts, cells, 7)
    assert suspects.startswith("In 7 runs, Axon's defects are necessary and sufficient for the failure.")
    assert "necessary but not sufficient (another choice cures, this one alone does not fail): loss" in suspects
    assert "neither necessary nor sufficient: initialization" in suspects
    assert "46 % of runs go to NaN and 54 % diverge" in failure
    assert fixes.startswith("Axon 0.7.0: cures (100 % solve XOR). SGD at 0.01: no effect. Adam: masks (0 % go to NaN")
    verdicts = verdicts.copy()
    verdicts[["cause_loss", "cause_initialization"]], verdicts["fix_newest_version"] = "cause", "undecided"
    verdicts["defects_are_the_cause"] = "no"
    table = cells.cells.copy()
    adam, newest = cells.one(**BROKEN, **SETTINGS["Adam 0.001"]), cells.one(**NEWEST)
    table.loc[adam, ["diverged", "solved"]] = [0.0, 1.0]
    table.loc[newest, "solved"] = 0.25
    suspects, failure, fixes = answer(verdicts, Cells(table), 7)
    assert "defects are not both necessary and sufficient" in suspects
    assert "; necessary and sufficient, so a cause: initialization and loss" in suspects
    assert "Axon 0.7.0: undecided (25 % solve XOR)" in fixes
    assert fixes.endswith("(0 % go to NaN, 100 % solve XOR).")


def test_the_readme_has_the_verdicts_and_words_of_the_tables() -> None:
    text = (REFERENCE.parents[1] / "README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line.startswith("| ")]
    by_name = {row[0]: row for row in rows if len(row) > 2}
    claims = read_table(REFERENCE, "claims").set_index("claim")["verdict"]
    suspects = {
        "learning rate": claims["cause_learning_rate"],
        "initialization": claims["cause_initialization"],
        "loss": claims["cause_loss"],
        "pairing of activations": claims["cause_activation_pairing"],
        "defects of Axon and Nx": {"yes": "cause"}.get(claims["defects_are_the_cause"]),
    }
    assert {name: by_name[name][-1] for name in suspects} == suspects
    assert {by_name[name][2] for name in list(suspects)[:4]} == {"no NaN"}
    assert not read_table(REFERENCE, "suspects").query('suspect != "Axon\'s defects"')[["ps", "ps_pytorch"]].max().max()
    changes = read_table(REFERENCE, "suspects").dropna(subset="nan").groupby("suspect")
    for name in ("learning rate", "initialization"):
        rows = changes.get_group(name)
        assert f"NaN in {100 * rows['nan'].min():.0f} to {100 * rows['nan'].max():.0f} % of runs" in by_name[name][1]
        assert f"at most {100 * rows['solved'].max():.0f} % train" in by_name[name][1]
    loss = changes.get_group("loss").set_index("level")["solved"]["loss=mean_squared_error"]
    assert f"with mean squared error {100 * loss:.0f} % solve XOR" in by_name["loss"][1]
    remedies = read_table(REFERENCE, "remedies").set_index("remedy")
    told = {name.partition(",")[0]: row for name, row in by_name.items() if name.partition(",")[0] in remedies.index}
    assert len(told) == 8
    for name, (_, failing, sound) in told.items():
        assert failing.startswith(remedies["word"][name])
        assert sound.startswith(remedies["sound_word"][name])


def test_the_yardstick_is_the_table_of_remedies() -> None:
    remedies, markdown = read_table(REFERENCE, "remedies"), (REFERENCE / MARKDOWN).read_text()
    for row in remedies.to_dict("records"):
        (line,) = [line for line in markdown.split("\n") if line.startswith(f"| {row['remedy']} | ") and "%" in line]
        assert line.endswith(f" | {row['word']} | {row['sound_word']} |")
        assert f"| {100 * row['nan']:.1f} % (" in line


def test_the_chain_is_decided_by_repairs_and_the_last_step() -> None:
    cells = Cells(read_table(REFERENCE, "cells"))
    repairs, anatomy = read_table(REFERENCE, "mechanism_repairs"), read_table(REFERENCE, "anatomy")
    texts = [text for text, _ in chain(cells, repairs, anatomy)]
    assert [text.rpartition("alone removes ")[2] for text in texts] == [
        "NaN and divergence.",
        "NaN and divergence.",
        "NaN but not divergence.",
    ]
    assert "ends at 7.71 in the median, near 7.71 = -log(2e-7) / 2" in texts[1]
    lowest = -anatomy.loc[anatomy["gradient"].isna(), "logit"].min()
    assert f"-z is {lowest:,.0f}, the gradient that the clip passes on is 0, and infinity times 0 is NaN" in texts[2]
    table = cells.cells.copy()
    table.loc[cells.one(**BROKEN | {"loss.sigmoid_gradient": "stable"}), "final_loss_median"] = 0.3
    texts = [text for text, _ in chain(Cells(table), repairs.assign(cures_nan="no"), anatomy.assign(exponential=1.0))]
    assert [text.rpartition("alone removes ")[2] for text in texts] == [
        "divergence but not NaN.",
        "divergence but not NaN.",
        "neither.",
    ]
    assert "ends at 0.3 in the median, not near 7.71" in texts[1]
    assert "infinity times 0" not in texts[2]


@needs_chromium
def test_the_picker_works_in_a_browser(tmp_path: Path) -> None:
    """A copy of the page tells, in its own title, what it showed before and after a choice, and any error."""
    listener = (
        "<script>window.errors=[];onerror=message=>errors.push(message);"
        "console.error=(...said)=>errors.push(said.join(' '))</script>"
    )
    act = """<script>
      const seen = () => [document.getElementById("legend").textContent, document.getElementById("told").textContent,
        document.getElementById("command").textContent,
        document.querySelector("#curve polyline").getAttribute("points")];
      const pick = (key, value) => { const select = document.getElementById("choose-" + key); select.value = value;
        select.dispatchEvent(new Event("change")); return seen(); };
      const states = [seen(), pick("loss", "binary_cross_entropy"), pick("lr", "10"), pick("init", "ones")];
      document.body.innerHTML = ""; document.body.append(JSON.stringify({ states, errors }));
    </script>"""
    page = (REFERENCE / PAGE).read_text()
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("<head>", f"<head>{listener}", 1).replace("</body>", f"{act}</body>", 1))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (body,) = re.findall(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    found = json.loads(html.unescape(body))
    assert found["errors"] == []
    first, loss, rate, init = found["states"]
    failing = Cells(read_table(REFERENCE, "cells")).row(**BROKEN)
    assert f"diverged {failing['diverged_runs']}NaN {failing['nonfinite_runs']}" in first[0]
    assert "loss=axon_0_6_1" in first[2]
    assert "solved 1000" in loss[0]
    assert "diverged 1000" in rate[0]
    assert len({state[3] for state in (first, loss, rate)}) == 3
    assert init[1].startswith("This combination was not studied; here is the nearest that was.")
    assert "init=ones" in init[2]
