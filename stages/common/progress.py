"""Progress on long work: a bar on a terminal after two seconds, nothing in a log."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

tqdm.monitor_interval = 0  # its thread would be there before the worker processes are forked


def progress(items: Iterable[T], label: str, unit: str, total: int | None = None) -> Iterable[T]:
    """The items, counted on stderr as they are taken."""
    return tqdm(items, label, total, unit=f" {unit}", delay=2, leave=False, disable=None)
