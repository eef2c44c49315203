"""Runs side by side as plain text: one screen for a handful of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.files.comparison import ComparedRun, Comparison
from deploy.report.wording import counted, fixed, measure, shown, signed, size, span

WIDTH = 100
"""Columns that the plans may take."""
_MOST_LAYERS = 8
_LONGEST_NAME, _LONGEST_BUDGET = 28, 24
_NONE = "–"


def comparison_lines(found: Comparison) -> list[str]:
    """Return the runs as a table, the rank correlations of their scores, and their plans."""
    same = [texts[0] for texts in _facts(found).values() if len(set(texts)) == 1]
    title = f"{counted(len(found.runs), 'run')} of one network, {counted(len(found.layers), 'layer')}"
    lines = [", ".join([title, *same]), "", *_table(found), "", *_correlations(found), "", *_plans(found)]
    return [shown(line) for line in lines]


def names_of(found: Comparison) -> list[str]:
    """Return what the runs are called: numbers from 1, with the name of the directory, or the path where they are not
    beside each other.
    """
    paths = [Path(run.path) for run in found.runs]
    parents = {path.parent for path in paths}
    texts = [path.name if len(parents) == 1 and path.name else str(path) for path in paths]
    return [f"{index} {_cut(text, _LONGEST_NAME)}" for index, text in enumerate(texts, start=1)]


def method_of(run: ComparedRun) -> str:
    """Return where a run's plan comes from."""
    return f"{run.method or 'by hand'}{' data-free' if run.data_free else ''}"


def metrics_of(found: Comparison) -> list[str]:
    """Return the metrics of the runs, each once; "accuracy" where none was verified. Figures of one are of one unit."""
    return list(dict.fromkeys(run.accuracy.metric for run in found.runs if run.accuracy is not None)) or ["accuracy"]


def differing(found: Comparison) -> list[int]:
    """Return the numbers of the layers that not all runs give the same format: those with most formats first, the
    largest of them first.
    """
    columns = list(zip(*(run.formats for run in found.runs), strict=True))
    numbers = [index for index, formats in enumerate(columns) if len(set(formats)) > 1]
    return sorted(numbers, key=lambda index: (-len(set(columns[index])), -found.layers[index].parameters))


def _facts(found: Comparison) -> dict[str, list[str]]:
    """What is told once where it is the same in all runs."""
    return {
        "target": [run.target for run in found.runs],
        "budget": [_cut(run.budget or "by hand", _LONGEST_BUDGET) for run in found.runs],
    }


def _table(found: Comparison) -> list[str]:
    columns: dict[str, list[str]] = {"run": names_of(found), "method": [method_of(run) for run in found.runs]}
    columns |= {name: texts for name, texts in _facts(found).items() if len(set(texts)) > 1}
    columns["bits"] = [fixed(run.avg_bits, ".2f") for run in found.runs]
    columns["size"] = [size(run.size_bytes) for run in found.runs]
    columns |= {f"{metric} (95 %)": [_accuracy(run, metric) for run in found.runs] for metric in metrics_of(found)}
    columns["of float's time"] = [_latency(run) for run in found.runs]
    columns["seconds"] = [_NONE if run.seconds is None else f"{run.seconds:.0f}" for run in found.runs]
    columns["evaluations"] = [_NONE if run.evaluations is None else str(run.evaluations) for run in found.runs]
    return _aligned([list(columns), *zip(*columns.values(), strict=True)], {"bits", "size", "seconds", "evaluations"})


def _accuracy(run: ComparedRun, metric: str) -> str:
    found = run.accuracy
    if found is None:
        return "not verified"
    return measure(found.mean, found.interval, metric) if found.metric == metric else _NONE


def _latency(run: ComparedRun) -> str:
    found = run.latency
    return _NONE if found is None else f"{fixed(found.ratio)} ({span(found.interval)})"


def _correlations(found: Comparison) -> list[str]:
    if not any(pair.moves for pair in found.scores):
        return ["No two runs have scored the same moves."]
    head = (
        "Rank correlation of the scores (Spearman). Above the diagonal: all moves. Below: the layers in one format, "
        "mean."
    )
    rows = [["", *(str(index) for index in range(1, len(found.runs) + 1))]]
    rows += [[name, *cells] for name, cells in zip(names_of(found), correlation_cells(found), strict=True)]
    return [head, *_aligned(rows, set(rows[0]) - {""})]


def correlation_cells(found: Comparison) -> list[list[str]]:
    """Return the correlations as a square: above the diagonal over all moves, below it within formats."""
    count = len(found.runs)
    cells = [["" if row == column else _NONE for column in range(count)] for row in range(count)]
    for pair in found.scores:
        cells[pair.first][pair.second] = _share(pair.spearman)
        cells[pair.second][pair.first] = _share(pair.within)
    return cells


def _share(value: float | None) -> str:
    return _NONE if value is None else signed(f"{value:.2f}")


def _plans(found: Comparison) -> list[str]:
    numbers = differing(found)
    if not numbers:
        return ["All runs have the same plan."]
    names, rows = names_of(found), []
    room = WIDTH - max(map(len, names)) - 2
    order, width = _shown_layers(found, numbers, room)
    for name, run in zip(names, found.runs, strict=True):
        rows.append([name, "".join(f"{run.bits[index]:>{width}g}" for index in order)])
    left_out = len(found.layers) - len(order)
    which = f"{counted(len(order), 'layer')} of {len(found.layers)} that differ" if left_out else "all layers"
    head = f"Weight bits, {which} in the order of the model; {len(numbers)} differ:"
    return [head, *_aligned(rows, set()), *_named(found, numbers)]


def _shown_layers(found: Comparison, numbers: Sequence[int], room: int) -> tuple[list[int], int]:
    """Return the layers whose bits find room, in the order of the model, and how wide a column is."""
    width = 1 + max(len(f"{bits:g}") for run in found.runs for bits in run.bits)
    most = max(1, room // width)
    return (list(range(len(found.layers))) if len(found.layers) <= most else sorted(numbers[:most])), width


def _named(found: Comparison, numbers: Sequence[int]) -> list[str]:
    """Return the formats of the layers that differ most."""
    rows = [
        [f"  {_cut(found.layers[index].path, _LONGEST_NAME)}", *(run.formats[index] for run in found.runs)]
        for index in numbers[:_MOST_LAYERS]
    ]
    head = ["most apart:", *(str(index) for index in range(1, len(found.runs) + 1))]
    more = len(numbers) - _MOST_LAYERS
    return _aligned([head, *rows], set()) + ([f"  and {more} more"] if more > 0 else [])


def _aligned(rows: Sequence[Sequence[str]], right: set[str]) -> list[str]:
    """Return rows with their columns under each other, two spaces apart; those whose heads are in `right` end alike."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    place: list[Callable[[str, int], str]] = [str.rjust if head in right else str.ljust for head in rows[0]]
    return [
        "  ".join(put(text, width) for put, text, width in zip(place, row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cut(text: str, most: int) -> str:
    """Keep the end of a text: there paths differ."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
