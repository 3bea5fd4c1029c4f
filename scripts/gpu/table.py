"""The table at the end, by Python's own means: the machine that it is printed on may have nothing else."""

from collections.abc import Mapping, Sequence

from gpu.finding import Finding

HEADINGS = ("check", "what", "value", "bound", "status", "note")


def lines(results: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Return the table's lines: a row per finding, columns as wide as they must be, notes as they come."""
    cells = [HEADINGS]
    for name, findings in results.items():
        cells += [(name, each.what, number(each.value, each.unit), number(each.bound, ""), each.status, each.reason)
                  for each in findings]  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS) - 1)]
    right = (2, 3)
    return [
        "  ".join(
            [
                *(
                    cell.rjust(width) if column in right else cell.ljust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=False))
                ),
                row[-1],
            ]
        ).rstrip()
        for row in cells
    ]


def number(value: float | None, unit: str) -> str:
    """Write a number with three digits that count, whole ones whole."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()
