"""Rows, table and picture of `reversible.py`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from _reversible_networks import version

Key = tuple[str, int, int]  # implementation, blocks, threads
Row = dict[str, Any]
COLOURS = {
    "plain": "#222222",
    "checkpoint": "#8c6d1f",
    "checkpoint-sqrt": "#c9a227",
    "memcnn": "#7b4fa3",
    "revtorch": "#2a7f9e",
    "revlib": "#4c9f50",
    "freia": "#8a8a8a",
    "invertible-store": "#e58a8a",
    "invertible-reconstruct": "#d1232a",
    "invertible-exact": "#8f0f3f",
}
COLUMNS = {
    "peak MiB": ("peak_mib", ".1f"),
    "x plain": ("peak_ratio", ".3f"),
    "step x plain": ("step_ratio", ".3f"),
    "gradient error": ("grad_error", ".1e"),
    "of backward": ("backward_error", ".1e"),
    "F": ("residual_evaluations", ".4g"),
    "BatchNorm": ("batchnorm_updates", ".4g"),
}


class Results:
    """What the workers found, and the rows it makes."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.setting = setting
        self.probes: dict[Key, dict[str, Any]] = {}
        self.seconds: dict[Key, dict[int, float]] = defaultdict(dict)
        self.ratios: dict[Key, list[float]] = defaultdict(list)
        self.failures: dict[Key, str] = {}

    def reuse(self, row: Row) -> None:
        """Everything but the times from an earlier run's row."""
        metrics = {key: value for key, value in row["metrics"].items() if not key.startswith("step_")}
        found = {"error": row["error"]} if "error" in row else metrics
        self.probed(row["implementation"], row["setting"]["blocks"], row["setting"]["threads"], found)

    def probed(self, name: str, blocks: int, threads: int, found: dict[str, Any]) -> None:
        self.probes[name, blocks, threads] = found
        if "error" in found:
            self.failures[name, blocks, threads] = found["error"]

    def is_sound(self, name: str, blocks: int, threads: int) -> bool:
        return (name, blocks, threads) not in self.failures

    def timed(self, turn: int, name: str, blocks: int, threads: int, found: dict[str, Any]) -> None:
        if "error" in found:
            self.failures[name, blocks, threads] = found["error"]
        else:
            self.seconds[name, blocks, threads][turn] = found["step_seconds"]
            self.ratios[name, blocks, threads] += found["ratios"]

    def rows(self) -> list[Row]:
        return [self._row(*key) for key in self.probes]

    def _row(self, name: str, blocks: int, threads: int) -> Row:
        setting = {"blocks": blocks, "threads": threads} | self.setting
        row: Row = {"implementation": name, "version": version(name), "setting": setting}
        failure = self.failures.get((name, blocks, threads))
        if failure:
            return row | {"metrics": {}, "error": failure}
        metrics, plain = dict(self.probes[name, blocks, threads]), self.probes["plain", blocks, threads]
        if "peak_mib" in plain:
            metrics["peak_ratio"] = metrics["peak_mib"] / plain["peak_mib"]
        return row | {"metrics": metrics | self._times(name, blocks, threads)}

    def _times(self, name: str, blocks: int, threads: int) -> dict[str, float]:
        seconds = list(self.seconds[name, blocks, threads].values())
        return spread("step_seconds", seconds) | spread("step_ratio", self.ratios[name, blocks, threads])


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if not values:
        return {}
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else 3 * values
    return {name: middle, f"{name}_q25": first, f"{name}_q75": third, f"{name}_rounds": len(values)}


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| blocks | threads | implementation | " + " | ".join(COLUMNS) + " |"]
    lines.append("|" + "---:|" * 2 + "---|" + "---:|" * len(COLUMNS))
    for row in sorted(rows, key=lambda row: (row["setting"]["threads"], row["setting"]["blocks"])):
        setting, metrics = row["setting"], row["metrics"]
        cells = [cell(metrics, *column) for column in COLUMNS.values()]
        cells = [row["error"]] + [""] * (len(cells) - 1) if "error" in row else cells
        lines.append(f"| {setting['blocks']} | {setting['threads']} | {row['implementation']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(metrics: dict[str, float], key: str, form: str) -> str:
    if key not in metrics:
        return ""
    text = format(metrics[key], form)
    if metrics.get(f"{key}_rounds", 1) > 1:
        text += f" ({metrics[f'{key}_q25']:.2f} to {metrics[f'{key}_q75']:.2f})"
    return text


def draw(rows: list[Row], file: Path) -> None:
    """Two panels against depth: peak memory and step time; the lowest number of threads."""
    from matplotlib.figure import Figure

    threads = min(row["setting"]["threads"] for row in rows)
    rows = [row for row in rows if row["setting"]["threads"] == threads and "error" not in row]
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    memory, time = figure.subplots(1, 2)
    memory.set_yscale("log")
    panel(memory, rows, "peak_mib", "peak memory above baseline (MiB)")
    panel(time, rows, "step_ratio", "time of a training step / plain")
    setting = rows[0]["setting"]
    where = f"{threads} thread{'s' * (threads > 1)}" if setting["device"] == "cpu" else setting["device"]
    shape = f"{setting['channels']} channels, {setting['size']}x{setting['size']}, batch {setting['batch']}"
    figure.suptitle(f"Training an additive coupling network: {shape}, {where}, PyTorch {setting['torch']}")
    figure.savefig(file, dpi=150)


def panel(axes: Any, rows: list[Row], key: str, title: str) -> None:
    """One line an implementation, its name at its right end."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    lines: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        if key in row["metrics"]:
            lines[row["implementation"]].append((row["setting"]["blocks"], row["metrics"]))
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        curve(axes, points, key, name)
    depths = sorted({row["setting"]["blocks"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(depth) for depth in depths])
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set(xlabel="blocks (two couplings each)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        label(axes, {name: points[-1][1][key] for name, points in lines.items()}, depths)


def curve(axes: Any, points: list[tuple[int, Any]], key: str, name: str) -> None:
    depths, colour = [depth for depth, _ in points], COLOURS[name]
    width = 2.4 if name.startswith("invertible") else 1.4
    # What stores everything lies on plain: dashes let both be seen.
    style = {"ls": "--", "zorder": 3} if name == "plain" else {"ls": "-"}
    axes.plot(depths, [metrics[key] for _, metrics in points], marker="o", ms=4, color=colour, lw=width, **style)
    if all(f"{key}_q25" in metrics for _, metrics in points):
        low, high = ([metrics[f"{key}_{end}"] for _, metrics in points] for end in ("q25", "q75"))
        axes.fill_between(depths, low, high, color=colour, alpha=0.12, lw=0)


def label(axes: Any, ends: dict[str, float], depths: list[int], gap: float = 0.05) -> None:
    """Names beside the axes, moved apart to at least `gap` of its height, each tied to its line's end."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    to_axes = axes.transData + axes.transAxes.inverted()
    order = sorted(ends, key=lambda name: ends[name])
    heights = apart([to_axes.transform((depths[-1], ends[name]))[1] for name in order], gap)
    for name, height in zip(order, heights, strict=True):
        tie = {"arrowstyle": "-", "color": COLOURS[name], "lw": 0.7, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
        at = {"xy": (depths[-1], ends[name]), "xytext": (1.05, height), "textcoords": "axes fraction"}
        axes.annotate(name, **at, color=COLOURS[name], va="center", fontsize=9, arrowprops=tie)


def apart(heights: list[float], gap: float) -> list[float]:
    """Move ascending heights as little as needed: runs that are too close are spread about their own middle."""
    runs: list[list[float]] = []
    for height in heights:
        runs.append([height])
        while len(runs) > 1 and _top(runs[-2], gap) + gap > _bottom(runs[-1], gap):
            last = runs.pop()
            runs[-1] += last
    return [_bottom(run, gap) + i * gap for run in runs for i in range(len(run))]


def _bottom(run: list[float], gap: float) -> float:
    return statistics.mean(run) - gap * (len(run) - 1) / 2


def _top(run: list[float], gap: float) -> float:
    return _bottom(run, gap) + gap * (len(run) - 1)
