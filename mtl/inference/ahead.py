"""Work done by threads, so that files are decoded and written while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
    threads: int = 1,
    left: Callable[[Result], None] | None = None,
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Yield (item, its result to come) in order.

    Args:
        function: Called in a thread, with one item at a time in each.
        items: Drawn in the caller's thread, as many ahead as `depth` says.
        depth: Results that may wait; with 0 nothing is done ahead.
        threads: How many call the function.
        left: Called with results that nobody took because the caller, or what gives items, came to an end before; what has not
            begun by then is not done.
    """
    queue: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                queue.append((item, pool.submit(function, item)))
                if len(queue) > depth:
                    yield queue.popleft()
            while queue:
                yield queue.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for _, future in queue:
                if left is not None and not future.cancelled() and future.exception() is None:
                    left(future.result())
