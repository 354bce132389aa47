"""A comparison's files: CSV for programs, Markdown and a picture for people, JSON for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invertible._files import write_text
from invertible.train.compare_result import ComparedRow, Comparison, figure_of, in_words, ranks

RESULT = "table"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write table.json, table.csv and table.md, each whole or not at all.

    Args:
        comparison: What was found.
        folder: Where to.
    """
    comparison.save(folder / f"{RESULT}.json")
    comparison.save_csv(folder / f"{RESULT}.csv")
    write_text(folder / f"{RESULT}.md", as_markdown(comparison))


def as_markdown(comparison: Comparison) -> str:
    """The table to be read: the best of each column bold, what it tells, and the circumstances.

    Args:
        comparison: What was found.

    Returns:
        Markdown.
    """
    heads, cells = table_cells(comparison)
    lines = [f"# {comparison.title}", "", comparison.paper, "", _line(heads), _line(["---"] * len(heads))]
    lines += [_line([_bold(text) if is_best else text for text, is_best in row]) for row in cells]
    told = [f"- {finding.severity}: {finding.sentence}" for finding in comparison.findings]
    known = [f"{name.replace('_', ' ')}: {value}" for name, value in comparison.conditions.items()]
    about = [comparison.note, "; ".join(known)]
    return "\n".join([*lines, "", *told, *([""] if told else []), *(f"{text}\n" for text in about if text)])


def table_cells(comparison: Comparison) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """The table as texts: the row, our first figure, the paper's, our other figures, epochs.

    Args:
        comparison: What was found.

    Returns:
        Heads, and for each row its cells, each with whether it is the best of its column.
    """
    rows, (first, *others) = comparison.rows, comparison.figures
    columns: list[tuple[str, list[tuple[str, bool]]]] = [("", [(row.name, False) for row in rows])]
    columns.append((f"{first.name}, ours", _ours(comparison, first.name, first.better)))
    for name in comparison.columns:
        values = [row.paper.get(name) for row in rows]
        places = ranks(values, figure_of(name, comparison.figures).better)
        texts = ["" if value is None else in_words(value) for value in values]
        columns.append((f"{name}, the paper's", [(t, p == 1) for t, p in zip(texts, places, strict=True)]))
    columns += [(other.name, _ours(comparison, other.name, other.better)) for other in others]
    columns.append(("epochs", [(_epochs(row), False) for row in rows]))
    return [head for head, _ in columns], [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def expectation(comparison: Comparison, command: str, tolerance: float = 0.03) -> dict[str, Any]:
    """What `tables/expected.json` keeps of a comparison, for `make reproduce` to hold the next one against.

    Args:
        comparison: What was found.
        command: That it was made with.
        tolerance: Share of a figure that the next one may differ by; four standard deviations if they are more.

    Returns:
        The entry. Figures of which neither way is better (time, size) are left out.
    """
    rows: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in comparison.rows:
        rows[row.name] = {}
        for figure in comparison.figures:
            mean, deviation = row.mean(figure.name), row.deviation(figure.name)
            if figure.better is not None and mean is not None:
                allowed = max(4 * (deviation or 0.0), tolerance * abs(mean))
                kept = {"ours": mean, "deviation": deviation, "tolerance": allowed}
                rows[row.name][figure.name] = {k: None if v is None else float(f"{v:.4g}") for k, v in kept.items()}
    about = comparison.conditions
    seeds = [run.seed for run in comparison.rows[0].runs]
    found = {"data": f"{about.get('data')}, {about.get('n_test')} for testing", "seeds": seeds}
    return found | {"hardware": about.get("hardware"), "command": command, "rows": rows}


def _ours(comparison: Comparison, figure: str, better: str | None) -> list[tuple[str, bool]]:
    places = ranks([row.mean(figure) for row in comparison.rows], better)
    return [(_shown(row, figure), place == 1) for row, place in zip(comparison.rows, places, strict=True)]


def _shown(row: ComparedRow, figure: str) -> str:
    n_failed = sum(run.error is not None for run in row.runs)
    failed = f" ({n_failed} failed)" if n_failed and n_failed < len(row.runs) else ""
    return (row.shown(figure) + failed) if row.values(figure) else "failed" if n_failed else "-"


def _epochs(row: ComparedRow) -> str:
    epochs = row.epochs()
    return "" if epochs is None else str(epochs)


def _bold(text: str) -> str:
    return f"**{text}**" if text else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
