"""Parallel work: in order, bounded, the same for any number of workers; a failure comes through."""

import os
import signal
from collections.abc import Iterator

import pytest

from stages.common import parallel
from stages.common.errors import PipelineError


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    if number == 3:
        raise PipelineError("three: 3; expected another number")
    return number


def vanish(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 57])
def test_results_come_in_order(workers, count):
    assert list(parallel.ordered(double, range(count), workers)) == [2 * number for number in range(count)]


def test_items_are_taken_only_as_needed():
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = parallel.ordered(double, items(), 2)
    next(results)
    assert len(taken) <= 6
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_through(workers):
    with pytest.raises(PipelineError, match="three: 3"):
        list(parallel.ordered(refuse, range(10), workers))


def test_a_killed_worker_is_an_error_with_a_word():
    with pytest.raises(PipelineError, match="worker process was killed"):
        list(parallel.ordered(vanish, range(10), 2))


def test_chunks_hold_every_item_once():
    assert list(parallel.chunked(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(parallel.chunked([], 3)) == []
