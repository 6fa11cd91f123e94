"""Work done ahead by one thread, so that files are decoded while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield (item, its result to come) in order.

    Args:
        function: Called in the thread, one item at a time.
        items: Drawn in the caller's thread, as many ahead as `depth` says.
        depth: Results that may wait.
    """
    queue: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as pool:
        try:
            for item in items:
                queue.append((item, pool.submit(function, item)))
                if len(queue) > depth:
                    yield queue.popleft()
            while queue:
                yield queue.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
