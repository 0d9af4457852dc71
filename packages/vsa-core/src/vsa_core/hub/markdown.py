"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """Write a Markdown table whose columns also line up in plain text.

    Args:
        columns: titles.
        rows: cells, as many in each row as there are columns. The caller escapes titles and cells.
        left: titles of the columns to align left, as words are; all others are aligned right, as numbers are.

    Returns:
        Lines, each with its line break.

    >>> print(markdown_table(["model", "n"], [["MIMOConv", "4"]], left=["model"]), end="")
    | model    |  n |
    | -------- | -: |
    | MIMOConv |  4 |
    """
    cells = [columns, *rows]
    widths = [max(2, *map(len, column)) for column in zip(*cells, strict=True)]  # "-:" takes two characters
    lines = [
        [cell.ljust(width) if name in left else cell.rjust(width) for name, width, cell in zip(columns, widths, row, strict=True)]
        for row in cells
    ]
    rule = ["-" * width if name in left else "-" * (width - 1) + ":" for name, width in zip(columns, widths, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
