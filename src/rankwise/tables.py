"""Plain text tables, for the reports that print themselves."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows under a header: numbers to the right, everything else to the left.

    Examples:
        >>> print(text_table(["module", "r"], [["fc1", 4], ["layers.fc2", 16]]))
        module       r
        fc1          4
        layers.fc2  16
    """
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[column], int | float) for row in rows if row[column] != "")
        for column in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
