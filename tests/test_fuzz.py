"""Any command line at all: it plans correctly, or ends with one clear line and leaves nothing behind."""

import contextlib
import io
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xor_study import run
from xor_study.sweeps.compose import CHOICES
from xor_study.sweeps.settings import SETTINGS, STUDY
from xor_study.training.spec import ALIASES, GROUPS, KEYS

KNOWN = [
    *KEYS,
    *CHOICES,
    *SETTINGS,
    *ALIASES,
    STUDY,
    "hydra.sweep.dir",
    "hydra.run.dir",
]
ODD_KEYS = ["", ".", "..", "../x", "/etc/passwd", "lr.", ".lr", "optimizer.", "optimizer.name", "optimizer._target_"]
ODD_KEYS += ["_target_", "+lr", "++lr", "~lr", "lr@x", "hydra", "hydra.job_logging", "+hydra.callbacks.a", "seed.seed"]
ODD_VALUES = [
    "",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-0",
    "9" * 400,
    "1_000",
    "0x10",
    "1e-400",
    "null",
    "none",
    "true",
    "?",
]
ODD_VALUES += [
    "[]",
    "{}",
    "[1,[2,[3]]]",
    "{a:{b:1}}",
    "{_target_:os.system}",
    "'",
    '"',
    "''",
    "\\",
    "${lr}",
    "${",
    "${.x}",
]
ODD_VALUES += [
    "${oc.env:HOME}",
    "${oc.decode:1}",
    "${now:%Y}",
    "../../x",
    "/etc/passwd",
    "~",
    "a/b",
    "...",
    "\x00",
    "\n",
    "é",
]
ODD_VALUES += [
    "range(0,3)",
    "range(3,0)",
    "range(0,3,0)",
    "range(0,1,0.1)",
    "range(a,b)",
    "choice()",
    "choice(1,1)",
    "1,1",
]
ODD_VALUES += [
    "glob(*)",
    "glob(z*)",
    "glob(*,exclude=a*)",
    "interval(0,1)",
    "sort(3,1,2)",
    "shuffle(1,2)",
    "int(3.0)",
    "tag(1)",
]
OPTIONS = ["-m", "--multirun", "--cfg", "--nonsense", "--config-name=../x", "--config-dir=/nowhere", "--resolve", "-c"]
OPTIONS += ["--package=x", "--info=plugins", "--", "-"]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.one_of(st.integers(), st.floats()).map(str)
names = st.sampled_from([name for catalogue in GROUPS.values() for name in catalogue])
values = st.one_of(st.sampled_from(ODD_VALUES), numbers, names, texts)
several = st.lists(values, min_size=1, max_size=4).map(",".join)
keys = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(ODD_KEYS), st.text(string.ascii_letters + "._@/+~", max_size=8)
)
assignments = st.builds("{}={}".format, keys, several)
arguments = st.one_of(assignments, assignments, assignments, st.sampled_from(OPTIONS), texts)
lines = st.lists(arguments, max_size=5).flatmap(
    lambda line: st.booleans().map(lambda many: [*(["-m"] if many else []), *line])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder deep inside another one, in which commands run."""
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "a/b/c"
    inner.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(inner)
    yield outer
    os.chdir(before)


def command(line: list[str]) -> tuple[int, str, str]:
    """Run a command line of ours here: (exit code, output, errors)."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["xor-study", *line]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


@settings(
    max_examples=int(os.environ.get("XOR_STUDY_FUZZ", "60")),
    derandomize="XOR_STUDY_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(line=["+hydra.callbacks.a._target_=os.system"])
@example(line=["-m", "hydra.launcher={_target_:os.system}"])
@example(line=["hydra.job_logging={version:1,handlers:{a:{(): os.system}}}"])
@example(line=["-m", "study=../../../etc/passwd", "optimizer=../x"])
@given(line=lines)
def test_any_line_plans_or_is_refused_in_one_line(line: list[str], folder: Path) -> None:
    code, out, err = command([*line, "dry_run=true"])
    if code == 0:
        assert err == ""
        assert "Nothing was run" in out or {"--info=plugins", "-c", "--cfg", "--resolve"} & set(line)
    elif code == 1:
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.strip() == err[:-1]
        assert err[:-1].isprintable()
    else:
        assert code == 2
        assert "usage: " in err
    assert [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))] == ["a", "a/b", "a/b/c"]


def test_dots_in_a_name_lead_nowhere(folder: Path) -> None:
    (folder / "a/b/evil.yaml").write_text("grids: [{lr: 1}]")
    for name in ("../evil", str(folder / "a/b/evil"), "..%2fevil"):
        code, _, err = command(["-m", f"study={name}", "dry_run=true"])
        assert code == 1
        assert "unknown" in err
    (folder / "a/b/evil.yaml").unlink()
