"""The files that install the package agree with each other and with what is installed here."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = PROJECT["name"]
PINNED_ELSEWHERE = re.compile(r"(nvidia|cuda)-.*|triton")
"""Packages of a CUDA build of torch, which requires exact versions of them itself."""


def pins(name: str) -> dict[str, str]:
    """Return the versions in a file of requirements, by normalized name: exact, or the highest, which pip takes."""
    found = re.findall(r"^([\w.-]+)[=<]=([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {str(canonicalize_name(package)): version for package, version in found}


CONSTRAINTS = pins("constraints.txt")
PINNED = ("dev", "bench", "lightning", "transformers")
"""The extras whose packages have exact versions."""


def requirements(name: str, extras: set[str]) -> Iterator[Requirement]:
    """Yield what a package requires here, with some of its extras; nothing if it is not installed."""
    if name == NAME:
        optional = PROJECT["optional-dependencies"]
        texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    else:
        try:
            texts = distribution(name).requires or []
        except PackageNotFoundError:
            return
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(*extras: str) -> dict[str, str | None]:
    """Return everything that this package requires with some extras, by any way, with the installed versions."""
    found: dict[str, str | None] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(NAME, frozenset(extras))]
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen or PINNED_ELSEWHERE.fullmatch(name):
            continue
        seen.add((name, wanted))
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            found[name] = None
        todo += [(str(canonicalize_name(r.name)), frozenset(r.extras)) for r in requirements(name, set(wanted))]
    del found[NAME]
    return found


def test_constraints_have_all_that_is_installed_in_the_same_version() -> None:
    installed = closure(*PINNED)
    assert installed.keys() <= CONSTRAINTS.keys()
    different = {
        name: (version, CONSTRAINTS[name])
        for name, version in installed.items()
        if version is not None and Version(version).public != CONSTRAINTS[name]
    }
    assert not different, "made for the versions in constraints.txt: pip install -c constraints.txt ..."


def test_constraints_have_nothing_else() -> None:
    """Packages that only another system or Python needs are in the lock, which is for all of them."""
    assert CONSTRAINTS.keys() <= closure(*PINNED).keys() | pins("requirements.lock").keys()


def test_the_lock_has_the_constraints_with_hashes() -> None:
    lock = pins("requirements.lock")
    assert CONSTRAINTS.items() <= lock.items()
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))


def test_lower_bounds_are_not_above_the_constraints() -> None:
    optional = [text for extra in ("test", "docs", *PINNED) for text in PROJECT["optional-dependencies"][extra]]
    for text in [*PROJECT["dependencies"], *optional]:
        requirement = Requirement(text)
        if requirement.name != NAME:
            assert CONSTRAINTS[str(canonicalize_name(requirement.name))] in requirement.specifier, text


def test_the_constraints_leave_room_for_ray() -> None:
    """hydra-ray-launcher 1.2.2, and boto3 which it needs, refuse the versions that all others are tested with."""
    ranges = dict(re.findall(r"^([\w.-]+)(<=.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for text in ("cloudpickle==2.2.1", "python-dateutil==2.9.0.post0", "joblib==1.5.0"):
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.version in Requirement(requirement.name + ranges[requirement.name]).specifier
