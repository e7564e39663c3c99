"""The paper: its text follows from the tables, and Markdown, LaTeX and BibTeX say the same."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xor_study.errors import StudyError
from xor_study.study import causes, monitors, paper, remedies, robustness
from xor_study.study.claims import CLAIMS, VERDICTS
from xor_study.study.document import Document, Table, as_bibtex, as_latex, as_markdown, cited, latex, latex_table
from xor_study.study.paper_tables import REPAIRS, prose
from xor_study.study.versions import VERSIONS

TEMPLATE = Path(paper.__file__).with_name("paper.txt").read_text()

RECORD: dict[str, Any] = {
    "command": "python -m xor_study.reproduce",
    "runs": 7200,
    "cells": 72,
    "seconds": 86.4,
    "cores": 2,
    "environment": {"python": "3.11.7", "torch": "2.13.0", "processor": "znver4", "instruction_set": "AVX512"},
    "package_version": "0.1.0",
    "git_commit": "56e98ceb26205a198c0f28cf08c247d3d3fac603",
}


def shares(rng: np.random.Generator, seed: int, *names: str, n: int = 100) -> dict[str, Any]:
    """Return shares with intervals and numbers of pairs; those of even and odd seeds differ in their third digit."""
    row: dict[str, Any] = {}
    for name in names:
        value = (2 * int(rng.integers(100, 400)) + seed % 2) / 1000
        row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1, f"{name}_of": n}
    return row


def made(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Return made-up tables of a reproduction; other seeds give other numbers and verdicts."""
    rng = np.random.default_rng(seed)
    levels = [("Axon's defects", level) for level in REPAIRS]
    levels += [
        (name, f"key_{name[0]}={value}") for name in causes.SUSPECTS if name != "Axon's defects" for value in (1, 2)
    ]
    names = ("pn", "pns", "cure", "ps", "ps_pytorch")
    claims = []
    for name, claim in CLAIMS.items():
        low, value, high = sorted(rng.uniform(0.1, 0.9, 3))
        verdict = str(rng.choice(VERDICTS[claim.kind]))
        same = int(rng.integers(0, 8))
        claims.append(
            {"claim": name, "verdict": verdict, "effect": value, "low": low, "high": high, "test": "", "n": 100}
            | {"sentence": f"it is {rng.uniform():.6f} with init=lecun_normal, e^-z & 5 % of lr.", "depends": ""}
            | {"robust": f"{same} of 7", "least": low - 0.05, "most": high + 0.05}
        )
    listed = [("as reported", ""), *((name, remedy.claim) for name, remedy in remedies.REMEDIES.items())]
    yardstick = [
        {"remedy": name, "claim": claim, "n": 100, "sound_steps": float(rng.integers(-900, 900))}
        | {"word": rng.choice(remedies.FAILING_WORDS), "sound_word": rng.choice(remedies.SOUND_WORDS)}
        | shares(rng, seed, "nan", "solved", "sound_nan", "sound_solved")
        for name, claim in listed[: len(listed) - seed]
    ]
    subgrids = [
        {
            "claim": row["claim"],
            "subgrid": f"without init=kind_{i}",
            "verdict": "undecided",
            "effect": 0.5,
            "same": i < same,
        }
        for row in claims
        for same in [int(row["robust"].split()[0])]
        for i in range(7)
    ]
    factorial = [
        {"term": term, "share": value, "low": value - 0.1, "high": value + 0.1, "n": 960 + seed}
        | {"kind": "total", "outcome": outcome}
        for outcome in ("nonfinite", "solved")
        for term, value in zip(("version", "loss", "lr"), rng.uniform(0.2, 0.8, 3), strict=True)
    ]
    watched = [
        {"tuned_on": study, "study": study, "setting": np.nan, "monitor": monitor, "target": target}
        | {"false_rate": float(rng.uniform()), "lead_median": float(rng.integers(1, 90))}
        | shares(rng, seed, "precision", "recall", "specificity")
        for study in ("mechanism", "loss", "all")
        for monitor in monitors.MONITORS
        for target in monitors.TARGETS
    ]
    rates = [
        {"optimizer": "sgd", "lr": 0.01, "variant": "061", "what": what, "here_n": 400 + seed, "there_n": 200 + seed}
        | shares(rng, seed, "here", "there")
        | {"p_holm": float(rng.uniform(0.001, 1))}
        for what in ("nan by step 1000", "solved")
    ]
    cells = {"n": [20 + seed, 100 + seed], "hidden": [1 + seed, 32 + seed], "lr": [1e-4, 1e3 + seed], "epochs": [1, 10]}
    cells |= {"iterations": [500 + seed, 1000 + seed], "dtype": ["float16", "float32"]}
    theory = [
        {"lr": lr, "dtype": dtype, "hidden": 8, "batch": "32", "n": 1000, "carried": float(rng.uniform())}
        | {"measured": (m := float(rng.uniform())), "low": m - 0.03, "high": m + 0.03}
        for dtype in ("float32", "float64")
        for lr in (0.01, 0.1)
    ]
    return {
        "suspects": pd.DataFrame(
            [{"suspect": s, "level": level, "n": 100} | shares(rng, seed, *names) for s, level in levels]
        ),
        "claims": pd.DataFrame(claims),
        "remedies": pd.DataFrame(yardstick),
        "robustness": pd.DataFrame(subgrids),
        "factorial": pd.DataFrame(factorial),
        "monitors": pd.DataFrame(watched),
        "mechanism_rates": pd.DataFrame(rates),
        "cells": pd.DataFrame(cells),
        "runs": pd.DataFrame({"seed": range(20 + seed)}),
        "theory": pd.DataFrame(theory),
    }


def document(tables: dict[str, pd.DataFrame], **changed: Any) -> Document:
    def read(name: str) -> pd.DataFrame:
        if name not in tables:
            raise StudyError(name)
        return tables[name]

    return paper.paper(read, RECORD | changed)


@pytest.fixture(scope="module")
def whole() -> Document:
    return document(made())


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)*", text))


def test_every_placeholder_is_filled_and_all_that_is_made_is_used(whole: Document) -> None:
    tables = made()
    words = paper._words(tables.__getitem__, RECORD)
    assert set(re.findall(r"\{\{(\w+)\}\}", TEMPLATE)) == set(words)
    assert "{{" not in whole.source


DESIGN = {"2025", "0.6.1", "0.7.0", "1779", "1", "2", "3", "4", "0", "10", "7", "95", "1999", "121"}
"""Numbers that the template may have: versions, formulas, lists and names of what is cited."""


def test_the_template_has_no_results() -> None:
    text = re.sub(r"\[@[^\]]*\]|`[^`]*`|!\w+ \w+|\]\([^)]*\)", "", TEMPLATE)
    assert numbers(text) <= DESIGN


def test_numbers_of_the_text_follow_the_tables() -> None:
    """Other data and another record leave no number but those of rules, names and the design."""
    changed = {
        "runs": 9150,
        "cells": 83,
        "seconds": 431.0,
        "cores": 6,
        "git_commit": "abcdef",
        "package_version": "9.9.9",
    }
    environment = {"python": "3.13.9", "torch": "8.8.8", "processor": "other", "instruction_set": "none"}
    records, tables = (RECORD, RECORD | changed | {"environment": environment}), (made(), made(1))
    rules = paper._rules() | paper._article()
    static = [TEMPLATE, *rules.values(), *REPAIRS, *remedies.REMEDIES, *paper.CAPTIONS.values()]
    static += [str(claim.judge.__doc__) for claim in CLAIMS.values()]
    static += [f"{version.axon} {version.nx}" for version in VERSIONS]
    # The article's design, how many claims there are, small counts, and what both made-up studies share.
    design = {*"0123456789", "32", "88.72", "1,000", str(len(CLAIMS)), "100", "0.0001"}
    allowed = set().union(*map(numbers, static)) | design
    words = [paper._words(of.__getitem__, record) for of, record in zip(tables, records, strict=True)]
    for name in words[0]:
        assert numbers(words[0][name]) & numbers(words[1][name]) <= allowed, name
    one, other = (as_markdown(document(of, **record)) for of, record in zip(tables, records, strict=True))
    for line in set(one.partition("## References")[0].splitlines()) & set(other.splitlines()):
        found = numbers(re.sub(r"\*\*(Table|Figure) \d+\.\*\*|(Table|Figure) \d+|\[[\d, ]+\]|!\[.*", "", line))
        assert found <= allowed, line
    for text in ("7,200", "72 cells", "86 seconds", "2 cores", "56e98ceb2620", "0.1.0", "3.11.7", "znver4", "AVX512"):
        assert text in one
        assert text not in other


def mutated(table: str, change: Callable[[pd.DataFrame], object]) -> dict[str, str]:
    """Return the words of the paper after a change of a table."""
    tables = made()
    change(tables[table])
    return paper._words(tables.__getitem__, RECORD)


def set_claim(name: str, **values: Any) -> Callable[[pd.DataFrame], None]:
    def change(claims: pd.DataFrame) -> None:
        for column, value in values.items():
            claims.loc[claims["claim"] == name, column] = value

    return change


@pytest.mark.parametrize(("verdict", "words"), causes.MEANINGS.items())
def test_the_abstract_says_the_verdict_on_each_suspect(verdict: str, words: str) -> None:
    said = mutated("claims", set_claim("cause_loss", verdict=verdict))
    summary = said["suspects_summary"].removeprefix("Of the article's 4 suspects: ").rstrip(".")
    (group,) = (part for part in summary.split("; ") if part.endswith(f": {words}"))
    assert "loss" in group
    assert f"**Loss**: {words}." in said["suspects_sentences"]


def test_the_verdict_on_the_defects_decides_the_abstract() -> None:
    words = {"yes": "they are the cause", "no": "not both", "undecided": "Whether"}
    for verdict, sentence in words.items():
        said = mutated("claims", set_claim("defects_are_the_cause", verdict=verdict))
        for name in ("defects_summary", "defects"):
            assert [word for word in words.values() if word in said[name]] == [sentence]


@pytest.mark.parametrize("word", remedies.FAILING_WORDS)
def test_a_remedy_is_listed_by_its_word(word: str) -> None:
    tables = made()
    adam = tables["remedies"]["remedy"] == "Adam at 0.001"
    tables["remedies"].loc[adam, ["word", "solved"]] = [word, 0.125]
    said = paper._of_remedies(tables["remedies"], tables["claims"].set_index("claim"))
    (line,) = (line for line in said["remedies"].splitlines() if "Adam at 0.001" in line)
    assert line.startswith(f"- {word}: ")
    assert f"Adam at 0.001 ({word}; 12.5 % solve XOR)" in said["fixes_summary"]
    (row,) = (row for row in paper.paper_tables.remedies(tables["remedies"]).rows if row[0] == "Adam at 0.001")
    assert row[3] == word


def test_robust_verdicts_are_counted_and_others_named() -> None:
    claims = made()["claims"].assign(robust="7 of 7")
    said = paper._of_robustness(claims.set_index("claim"))
    assert said["robust_summary"].startswith(f"All {len(CLAIMS)} verdicts that a part of the grid could change are")
    assert "on the grid for" not in said["robustness"]
    set_claim("capacity", robust="")(claims)
    set_claim("practice_relu", robust="5 of 7")(claims)
    said = paper._of_robustness(claims.set_index("claim"))
    assert f"{len(CLAIMS) - 2} of {len(CLAIMS) - 1} are the same" in said["robustness"]
    assert said["robustness"].endswith("The verdict depends on the grid for `practice_relu` (5 of 7).")


def test_the_comparison_with_xla_counts_significant_differences() -> None:
    rates = made()["mechanism_rates"]
    assert "Of 2 shares none differs" in paper._of_emulation(rates.assign(p_holm=0.5))["emulation"]
    assert "Of 2 shares all 2 differ" in paper._of_emulation(rates.assign(p_holm=0.001))["emulation"]


def test_the_theory_is_left_out_where_there_is_none_and_counted_where_it_is() -> None:
    tables = made()
    tables["theory"]["carried"] = tables["theory"]["measured"] + [0.012, 0.046, 0.0, 0.0]
    page = document(tables)
    said = "in float32 it is off by 2.9 percentage points on average and 4.6 at most, and within 3 in 1 of 2 cells"
    assert said in page.source
    assert [row[-1] for row in page.tables["theory"].rows] == ["+1.2", "+4.6", "+0", "+0"]
    del tables["theory"]
    page = document(tables)
    assert "no table of predictions" in page.source
    assert "theory" not in page.tables
    assert "[#theory]" not in page.source


def test_limits_follow_from_what_was_run() -> None:
    tables = made()
    cells, runs = tables["cells"], tables["runs"]
    said = paper._design(cells, runs, RECORD)
    assert said["seeds_kept"].startswith("Of 7,200 runs 20 are kept row by row, those of the first 20 seeds of each")
    assert said["half_precision"].startswith("Half precisions (float16) were trained for at most 500 steps in 1 cell")
    assert paper._design(cells, runs, RECORD | {"runs": 20})["seeds_kept"].startswith("All runs are kept")
    assert paper._design(cells.assign(dtype="float32"), runs, RECORD)["half_precision"].startswith("No half precision")


def test_rows_of_tables_equal_the_data(whole: Document) -> None:
    tables = made()
    assert [row[0] for row in whole.tables["verdicts"].rows] == [f"`{name}`" for name in tables["claims"]["claim"]]
    assert [row[2] for row in whole.tables["verdicts"].rows] == list(tables["claims"]["verdict"])
    assert [row[3] for row in whole.tables["remedies"].rows] == list(tables["remedies"]["word"])
    for row, data in zip(whole.tables["changes"].rows, tables["suspects"].to_dict("records"), strict=True):
        assert row[:2] == [data["suspect"], f"`{data['level']}`"]
        low, high = (f"{100 * data[f'pn_{end}']:.3g}" for end in ("low", "high"))
        assert row[2] == f"{100 * data['pn']:.3g} % ({low} to {high})"
    for row in whole.tables["suspects"].rows:
        members = tables["suspects"][tables["suspects"]["suspect"] == row[0]]
        assert row[-1] == causes.judge(members).verdict
        assert row[6].startswith(f"{100 * members['ps'].max():.3g} % ")
    first = tables["factorial"].query("outcome == 'nonfinite'").sort_values("share").iloc[-1]
    assert whole.tables["factorial"].rows[0][1].startswith(f"{100 * first['share']:.3g} % ")


def test_rules_come_before_results_and_from_the_code(whole: Document) -> None:
    text = " ".join(whole.source.split())
    results = text.index("## Results")
    for module in (causes, remedies, robustness, monitors):
        sentence = str(module.__doc__).split("\n\n")[1].replace("\n", " ").split("`")[0].strip()
        assert text.index(prose(sentence)) < results
    assert len(whole.tables["rules"].rows) == len(CLAIMS)
    assert whole.source.index("!table rules") < whole.source.index("## Results")


def words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text))


def as_plain(tex: str) -> str:
    """Return a document in LaTeX without its commands."""
    tex = re.sub(r"\\(?:begin|end|label|ref|cite|includegraphics|input)(?:\[[^\]]*\])?\{[^}]*\}", " ", tex)
    return re.sub(r"\\href\{[^}]*\}|\\[a-zA-Z]+", " ", tex.replace(r"\allowbreak{}", ""))


def as_bare(markdown: str) -> str:
    """Return a line of Markdown without citations, numbers of tables, addresses and commands of formulas."""
    line = re.sub(r"^\d+\. ", "", re.sub(r"\*\*(Table|Figure) \d+\.\*\*|\[\d[\d, ]*\]|\]\([^)]*\)", " ", markdown))
    return re.sub(r"\\[a-z]+", " ", re.sub(r"(Table|Figure) \d+", r"\1", line))


def test_markdown_and_latex_have_the_same_sentences(whole: Document) -> None:
    tables = [latex_table(name, table) for name, table in whole.tables.items()]
    tex = words(as_plain("\n".join([as_latex(whole), *tables])))
    lines = as_markdown(whole).partition("## References")[0].splitlines()
    assert len(lines) > 200
    for line in lines:
        if not line.startswith(("|", "![")):
            assert words(as_bare(line)) in tex or line == "## Abstract", line
    for table, text in zip(whole.tables.values(), tables, strict=True):
        assert all(" & ".join(map(latex, row)) in text for row in table.rows)


def test_text_is_escaped() -> None:
    assert latex("50 % of a_b & #1 {x} ~ ^ < \\") == (
        r"50 \% of a\_b \& \#1 \{x\} \textasciitilde{} \textasciicircum{} \textless{} \textbackslash{}"
    )
    assert latex('say "so" with `a_b=1`') == r"say ``so'' with \texttt{a\_\allowbreak{}b=\allowbreak{}1}"
    assert latex("$e^{-z}_1$ and **b & c**") == r"$e^{-z}_1$ and \textbf{b \& c}"
    assert latex("[a_b](https://x.org/a) [c](d.md)") == r"\href{https://x.org/a}{a\_b} c"
    assert (
        latex("[@one, @two] [#rows] [#figure curve]") == r"\cite{one,two} Table~\ref{tab:rows} Figure~\ref{fig:curve}"
    )


def test_latex_is_well_formed(whole: Document) -> None:
    for tex in (as_latex(whole), *(latex_table(name, table) for name, table in whole.tables.items())):
        stack = []
        for command, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
            if command == "begin":
                stack.append(name)
            else:
                assert stack.pop() == name
        assert not stack
        bare = re.sub(r"\\\\|\\[{}%&$#_]", "", tex)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert "%" not in bare
        assert "#" not in bare
        assert tex.isascii()
    for table in whole.tables.values():
        assert {len(row) for row in (table.header, *table.rows)} == {len(table.columns)}
        assert r"\toprule" in latex_table("x", table)


def test_every_reference_is_cited_and_every_citation_known(whole: Document) -> None:
    assert set(cited(whole)) == set(whole.references)
    assert re.findall(r"^@\w+\{(\w+),$", as_bibtex(whole), re.MULTILINE) == cited(whole)
    assert len(re.findall(r"^\d+\. ", as_markdown(whole).partition("## References")[2], re.MULTILINE)) == len(
        cited(whole)
    )
    for reference in whole.references.values():
        assert reference.fields["title"]
        assert reference.text.count("{") == reference.text.count("}")
        required = {"article": ("author", "journal", "year"), "inproceedings": ("author", "booktitle", "year")}
        assert all(reference.fields.get(name) for name in required.get(reference.kind, ()))
    for upstream in ("axon/issues/567", "axon/issues/592", "nx/pull/1779", "Axon神经网络框架中XOR训练问题的分析与解决"):
        assert upstream in as_markdown(whole)
    for render in (as_markdown, as_latex):
        with pytest.raises(KeyError, match="unknown"):
            render(whole._replace(source="# a\n\n[@unknown]"))


def test_prose_has_no_identifiers_outside_of_code(whole: Document) -> None:
    text = as_markdown(whole).partition("## References")[0]
    text = re.sub(r"`[^`]*`|\$[^$]*\$|!\[.*|\]\([^)]*\)", "", text)
    assert not re.findall(r"\w+_\w+|\blr\b|\binit\b|\w+=\w+|e\^-z", text)


def test_settings_become_code_or_words() -> None:
    assert prose("x: lr=0.1 init=lecun_normal, lr x init.") == "x: `lr=0.1` `init=lecun_normal`, rate x initialization."
    assert prose("norm 1.17e+04, `a_b` e^-z p p") == r"norm $1.17 \times 10^{4}$, `a_b` $e^{-z}$ p p"


def test_files_are_written_as_they_refer_to_each_other(tmp_path: Path) -> None:
    tables = made()
    paper.write(tmp_path, tables.__getitem__, RECORD)
    tex = (tmp_path / "paper.tex").read_text()
    inputs = re.findall(r"\\input\{([^}]+)\}", tex)
    assert set(inputs) == {f"tables/{name}" for name in document(tables).tables}
    assert all((tmp_path / f"{name}.tex").is_file() and (tmp_path / f"{name}.md").is_file() for name in inputs)
    assert r"\bibliography{references}" in tex
    assert (tmp_path / "references.bib").is_file()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    paper.write(tmp_path, tables.__getitem__, RECORD)
    assert before == {path: path.read_bytes() for path in before}


def test_figures_of_the_text_are_drawn_and_have_captions(whole: Document) -> None:
    names = re.findall(r"!figure (\w+)", whole.source)
    assert set(names) <= set(paper.CAPTIONS)
    assert {"symptom", "mechanism", "monitors"} <= set(names)
    with pytest.raises(KeyError):
        as_latex(whole._replace(source="# a\n\n!figure nothing"))


def test_a_table_with_a_bar_stays_a_table() -> None:
    table = Table("c", ["a"], [["x | y"]], ["l"])
    page = Document("!table t", {"t": table}, {}, {})
    assert r"| x \| y |" in as_markdown(page)
