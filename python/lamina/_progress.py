"""A progress bar on stderr, where one is wanted and rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def with_progress(
    items: Iterable[Item],
    total: int,
    what: str | Callable[[], str],
    wanted: bool | None,
    op: str = "compress",
) -> Iterator[Item]:
    """The items, with a bar beside them.

    what    the text of the bar; a function is asked again for each item
    wanted  True: show the bar (needs rich); None: show it if rich is installed and stderr is a terminal
    op      the function that an error names
    """
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        if wanted:
            raise ImportError(f"{op}: progress=True needs rich: pip install rich") from None
        yield from items
        return
    columns = (*Progress.get_default_columns(),)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what if isinstance(what, str) else what(), total=total)
        for item in items:
            yield item
            bar.update(task, advance=1, description=what if isinstance(what, str) else what())
