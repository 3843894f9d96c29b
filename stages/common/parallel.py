"""Work on all cores, with results in order and only a few chunks in memory."""

import multiprocessing
import os
from argparse import ArgumentParser, ArgumentTypeError
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from stages.common.errors import PipelineError

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


def add_workers(parser: ArgumentParser) -> None:
    """Give a stage's command line `--workers`, all cores by default."""
    parser.add_argument(
        "--workers", type=_count, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}; expected a whole number from 1 on")
    return int(text)


def chunked(items: Iterable[I], size: int) -> Iterator[list[I]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def ordered(function: Callable[[I], O], items: Iterable[I], workers: int) -> Iterator[O]:
    """`map(function, items)` by `workers` processes, never more than two items each under way.

    One worker, or one item, needs no other process. They are forked, so start this before any thread.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if workers == 1 or len(first) < 2:
        yield from map(function, chain(first, iterator))
        return
    waiting: deque[Future[O]] = deque()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        try:
            for item in chain(first, iterator):
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise PipelineError(
                "a worker process was killed; expected it to finish (is there memory enough? try --workers 1)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
