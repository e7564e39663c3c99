"""pytest plugin: with `--autopsy`, a test whose torch code makes inf or NaN that has an effect fails with the story.

A test is watched from its first fixture to the end of its body; the teardown of fixtures is not. Without `--autopsy`
(or `autopsy = true` in pytest's configuration) the plugin imports nothing beside pytest.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xor_study.autopsy.decorator import Block
    from xor_study.autopsy.report import Report

_MARKER = (
    "autopsy(off=False, allow=[], **options): with --autopsy, leave the test alone (off=True), exempt operations such "
    'as "aten.log" (allow), or give other options of xor_study.autopsy.autopsy'
)
_PLUGIN = "xor_study.autopsy tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--autopsy` and the setting `autopsy`."""
    text = "fail tests whose torch code makes inf or NaN that has an effect, and show where"
    parser.getgroup("autopsy").addoption("--autopsy", action="store_true", help=text)
    parser.addini("autopsy", f"{text}, as --autopsy", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker, and watch the tests if that is asked for."""
    config.addinivalue_line("markers", _MARKER)
    if config.getoption("autopsy") or config.getini("autopsy"):
        config.pluginmanager.register(_Tests(), _PLUGIN)


class _Tests:
    """Opens a block before a test's fixtures and closes it after its body."""

    def __init__(self) -> None:
        self._block: Block | None = None
        self._report: Report | None = None
        self._failure: BaseException | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse markers with arguments that `autopsy` doesn't have."""
        for item in items:
            _options(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Begin to watch; stop if a fixture fails."""
        self._report = None
        options = _options(item)
        if options is None:
            return (yield)
        from xor_study.autopsy import autopsy  # loads torch

        self._block = autopsy(**options)
        self._report = self._block.__enter__()
        try:
            return (yield)
        except BaseException as error:
            self._close(error)
            raise

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Stop watching after the test's body, and fail if there is an event."""
        try:
            result = yield
        except BaseException as error:
            self._close(error)
            raise
        self._close(None)
        if self._report is not None and self._report.first is not None:
            self._failure = pytest.fail.Exception(self._report.story, pytrace=False)
            raise self._failure
        return result

    def pytest_runtest_teardown(self) -> None:
        """Stop watching a test whose body was not run, as with --setup-only."""
        self._close(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the story to the report of a test that failed for another reason."""
        report = yield
        if self._report is not None and self._report.first is not None and call.when != "teardown" and call.excinfo:
            from xor_study.autopsy import NonFiniteError  # its message is the story

            error = call.excinfo.value
            if report.failed and error is not self._failure and not isinstance(error, NonFiniteError):
                report.sections.append(("Autopsy", self._report.story))
        return report

    def _close(self, error: BaseException | None) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.leave(error)


def _options(item: pytest.Item) -> dict[str, Any] | None:
    """Return the arguments of `autopsy` for a test, from its markers; None where it is not to be watched.

    Of several markers (on the function, its class, its module) the nearest counts, and what each allows.

    Raises:
        pytest.UsageError: if `autopsy` has no such argument.
    """
    from xor_study.autopsy import autopsy

    options: dict[str, Any] = {}
    allowed: list[str] = []
    for marker in reversed(list(item.iter_markers("autopsy"))):
        options |= marker.kwargs
        allowed += marker.kwargs.get("allow", [])
    if options.pop("off", False):
        return None
    options["allow"] = allowed
    unknown = options.keys() - inspect.signature(autopsy).parameters.keys()
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: the marker autopsy has no argument {', '.join(sorted(unknown))}")
    return options
