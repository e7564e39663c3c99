"""The two forms of `autopsy`: a block, `with autopsy() as report:`, and a decorator, `@autopsy`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from threading import get_ident
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from xor_study.autopsy.report import Report

P = ParamSpec("P")
Q = ParamSpec("Q")
O = ParamSpec("O")  # noqa: E741  # of options
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Watched(Protocol[P, R_co]):
    """A function under `@autopsy`: it is called as before, and each call is watched.

    Attributes:
        report: of the last call, also if that raised an exception; None before the first call.
    """

    report: Report | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function in a block of its own."""

    @overload
    def __get__(self, instance: None, owner: type) -> Watched[P, R_co]: ...
    @overload
    def __get__(
        self: Watched[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
    ) -> Watched[Q, R_co]: ...


class Block(AbstractContextManager[Report]):
    """What `autopsy(...)` returns: a block for `with`, or a decorator.

    Args:
        make: returns the context manager of one block.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Report]]) -> None:
        self._make = make
        self._made = [make()]  # wrong names of options are refused here, not when the block is entered
        self._open: list[AbstractContextManager[Report]] = []

    def __enter__(self) -> Report:
        """Begin to watch, and return the report that is being written."""
        manager = self._made.pop() if self._made else self._make()
        report = manager.__enter__()
        self._open.append(manager)
        return report

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stop watching, and complete the report."""
        return self._open.pop().__exit__(error_type, error, traceback)

    def leave(self, error: BaseException | None) -> None:
        """Leave the block where no `with` does it.

        Args:
            error: the exception that ends the block, which the caller raises itself afterwards; or None.

        Raises:
            NonFiniteError: at an event that only the end of the block confirms, if `on_event` is "raise".
        """
        try:
            self.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except BaseException as raised:
            if raised is not error:
                raise

    def __call__(self, function: Callable[P, R]) -> Watched[P, R]:
        """Return a function whose calls are watched with these options."""
        return _watched(function, self._make)


class Autopsy(Protocol, Generic[O]):
    """The type of `autopsy`, for the checker."""

    @overload
    def __call__(self, function: Callable[P, R], /) -> Watched[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, *args: O.args, **kwargs: O.kwargs) -> Block: ...


def both_forms(block: Callable[O, Iterator[Report]]) -> Autopsy[O]:
    """Let a generator function of a block be used as `with block(...)`, `@block(...)` and `@block`."""
    manager = contextmanager(block)

    @wraps(block)
    def form(*args: Any, **options: Any) -> Any:
        if args and callable(args[0]):
            return _watched(args[0], manager)
        return Block(partial(manager, *args, **options))

    return cast("Autopsy[O]", form)


def _watched(function: Callable[P, R], make: Callable[[], AbstractContextManager[Report]]) -> Watched[P, R]:
    """Return a function whose calls are watched.

    Raises:
        TypeError: if its body does not run while it is called, or if it is no plain function.
    """
    name = getattr(function, "__qualname__", repr(function))
    for test, what in _NOT_WATCHED.items():
        if test(function):
            raise TypeError(f"@autopsy can't watch {what} {name}: put `with autopsy() as report:` into its body")
    running: set[int] = set()

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        thread = get_ident()
        if thread in running:  # it calls itself: that belongs to the same block
            return function(*args, **kwargs)
        running.add(thread)
        try:
            with Block(make) as watched.report:
                return function(*args, **kwargs)
        finally:
            running.discard(thread)

    watched = cast("Watched[P, R]", call)
    watched.report = None
    return watched


_NOT_WATCHED: dict[Callable[[Any], bool], str] = {
    inspect.isclass: "the class",
    inspect.isgeneratorfunction: "the generator function",
    inspect.iscoroutinefunction: "the coroutine function",
    inspect.isasyncgenfunction: "the asynchronous generator function",
    lambda function: isinstance(function, staticmethod | classmethod | property): "the descriptor",
}
