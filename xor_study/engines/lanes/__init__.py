"""The lanes engine: one network per SIMD lane, the whole training loop compiled, on the CPU.

`training.step` is traced (`trace`) to a program on scalars (`scalar`), which is optimized (`passes`, `functions`) and
becomes a loop over steps in machine code (`llvm`, `native`). `loops` returns the loop of a cohort, `blocks` runs it. A
loop serves all runs of the same structure; rates and seeds are its inputs. A run's bits depend neither on its lane or
block nor on the number of threads, since no operation crosses lanes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from xor_study.engines.lanes import native
from xor_study.engines.lanes.blocks import Group, groups
from xor_study.engines.lanes.llvm import LANES, Loop, NotCompilable
from xor_study.engines.lanes.loops import forget, kernel, program_of, traced
from xor_study.engines.lanes.native import Kernel
from xor_study.engines.lanes.processors import cores
from xor_study.training.cohorts import Cohort
from xor_study.training.outcome import Detail, Trained

__all__ = [
    "Group",
    "NotCompilable",
    "check",
    "cores",
    "forget",
    "groups",
    "native",
    "program_of",
    "traced",
    "train",
]

MOST_PARAMETERS = 257
"""Of a network, here with 64 hidden units: compiling a wider one takes longer than training it with vmap."""

MOST_SAMPLES = 512
"""Of a batch that is drawn in the loop, whose code grows with its size."""


def check(cohort: Cohort) -> None:
    """Raise NotCompilable for a cohort that is known not to compile, without tracing it."""
    program = cohort.program
    dtype = str(program.x1.dtype).removeprefix("torch.")
    reason = None
    if program.x1.device.type != "cpu":
        reason = f"device={program.x1.device.type}: it runs on the CPU only"
    elif dtype not in LANES:
        reason = f"dtype={dtype}: it compiles only {' and '.join(LANES)}"
    elif program.width > MOST_PARAMETERS:
        reason = f"a network of {program.width} parameters is too wide to compile (at most {MOST_PARAMETERS})"
    elif program.batch > MOST_SAMPLES and cohort.batches.seeds is not None:
        reason = f"batch={program.batch} is too large to compile (at most {MOST_SAMPLES})"
    if reason is not None:
        raise NotCompilable(f"engine=lanes: {reason}")


def train(
    cohorts: Iterable[Cohort],
    detail: Detail,
    progress: Callable[[int], None],
    threads: int | None = None,
    refuse: Callable[[Cohort, NotCompilable], None] | None = None,
    begin: Callable[[Cohort], bool] | None = None,
) -> Iterator[Trained]:
    """Train runs and yield them, some blocks at a time.

    Args:
        cohorts: of the runs; the next is taken when there is room for it.
        detail: what to keep in addition to measures and recorded losses.
        progress: called with the number of steps made since the last call, summed over networks.
        threads: number of threads; None for one on each core.
        refuse: called with each cohort that can't be compiled, which is then left out.
        begin: called with each cohort when a thread is free to train it, at most one ahead of what has been trained;
            returns whether to.

    Raises:
        NotCompilable: if a cohort can't be compiled and `refuse` is None.
    """
    workers, stop = threads or cores(), threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            compiled = _compiled(cohorts, detail, pool, workers, refuse)
            yield from _pipeline(compiled, detail, progress, pool, workers, stop, begin)
        finally:
            # After an error or an interrupt the threads must return, for the pool waits for them.
            stop.set()
            pool.shutdown(cancel_futures=True)


def _compiled(
    cohorts: Iterable[Cohort],
    detail: Detail,
    pool: ThreadPoolExecutor,
    workers: int,
    refuse: Callable[[Cohort, NotCompilable], None] | None,
) -> Iterator[tuple[Cohort, Loop, Kernel]]:
    """Yield cohorts with their loops and machine code, while the pool compiles some of the next ones."""
    ahead: deque[tuple[Cohort, Loop, Future[Kernel]]] = deque()
    for cohort in cohorts:
        try:
            check(cohort)
            loop, module = traced(cohort, detail)
        except NotCompilable as error:
            if refuse is None:
                raise
            refuse(cohort, error)
            continue
        ahead.append((cohort, loop, pool.submit(kernel, module)))
        if len(ahead) > workers:
            first, loop, code = ahead.popleft()
            yield first, loop, code.result()
    for first, loop, code in ahead:
        yield first, loop, code.result()


def _pipeline(
    compiled: Iterable[tuple[Cohort, Loop, Kernel]],
    detail: Detail,
    progress: Callable[[int], None],
    pool: ThreadPoolExecutor,
    workers: int,
    stop: threading.Event,
    begin: Callable[[Cohort], bool] | None,
) -> Iterator[Trained]:
    """Yield the runs of each group of blocks; the pool trains it while the next is traced, compiled and laid out."""
    waiting: deque[tuple[Group, list[Future[None]]]] = deque()
    for cohort, loop, code in compiled:
        for index, members in enumerate(groups(cohort, loop, detail)):
            group = Group(cohort, loop, members, detail)
            if begin is not None and index == 0:
                _wait(waiting, workers - 1, progress)
                if not begin(cohort):
                    break
            waiting.append((group, [pool.submit(task, code, stop) for task in group.tasks(workers)]))
            if len(waiting) > 1:
                yield _finished(waiting, progress)
    while waiting:
        yield _finished(waiting, progress)


def _finished(waiting: deque[tuple[Group, list[Future[None]]]], progress: Callable[[int], None]) -> Trained:
    """Wait for the first group's tasks and return its runs."""
    first = waiting.popleft()
    _wait([first], 0, progress)
    return first[0].trained()


def _wait(waiting: Iterable[tuple[Group, list[Future[None]]]], left: int, progress: Callable[[int], None]) -> None:
    """Wait until at most `left` tasks of some groups are not done, and report progress meanwhile."""
    pending = {task for _, tasks in waiting for task in tasks}
    while len(pending) > left:
        # The timeout is the interval of progress reports; an error of one task ends the wait for the others.
        until = FIRST_COMPLETED if left else FIRST_EXCEPTION
        done, pending = wait(pending, timeout=0.2, return_when=until)
        for task in done:
            task.result()
        for group, _ in waiting:
            progress(group.take_progress())
