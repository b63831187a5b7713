"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first ``text_columns`` are text, the others numbers; ``|`` in a cell stays in it."""
    rule = [':--' if place < text_columns else '--:' for place in range(len(head))]
    lines = [[cell.replace('|', r'\|') for cell in row] for row in (head, rule, *rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
