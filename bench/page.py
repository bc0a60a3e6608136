"""Writes docs/performance.md and its chart from what the benchmarks have measured.

    python -m bench.page            (the last step of make bench)

It reads bench/results/yardstick.json, and of peers.json, hot_rows.json, other_writers.json and large_tables.json what
is there.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench.arguments import RESULTS
from bench.kinds import KINDS
from bench.scale import machines
from bench.sides import LOOP, PATHWAY, ROOT, WORKERS

PAGE: Final = ROOT / "docs" / "performance.md"
CHART: Final = ROOT / "docs" / "performance.svg"

BEGIN: Final = """# Performance

Written by `make bench` (`bench/page.py`): do not edit. Each figure is a median; a ratio is taken within one run, beside
the spread of the runs. Ratios travel between machines better than figures do."""
LINES: Final = {
    "rows_per_second": ("burst, rows/s", ",.0f"),
    "cpu_us": ("CPU of the worker a row, µs", ",.0f"),
    "mongod_cpu_us": ("CPU of MongoDB a row, µs", ",.0f"),
    "single_p50_ms": ("one row, insert to output, p50, ms", ",.1f"),
    "single_p99_ms": ("one row, p99, ms", ",.1f"),
}


def page(results: Path = RESULTS) -> str:
    """The page. Raises FileNotFoundError if the yardstick has not run."""
    measured = json.loads((results / "yardstick.json").read_text())
    parts = [BEGIN, "\n".join(_yardstick(measured)), "\n".join(_scale(measured))]
    for name, part in _PARTS.items():
        file = results / f"{name}.json"
        if file.exists():
            parts.append("\n".join(part(json.loads(file.read_text()))))
    return "\n".join(f"{part}\n" for part in parts).rstrip("\n") + "\n"


def _yardstick(measured: Mapping[str, Any]) -> Iterator[str]:
    plan = measured["plan"]
    yield "## Beside a hand-written loop"
    yield ""
    yield _wrapped(
        f"`{'chrt -r 10 ' * measured.get('real_time', False)}python -m bench.yardstick --runs {plan['runs']} "
        f"--rows {plan['rows']}`, {measured['cores']} cores, "
        f"torch threads a process: {plan['threads']}. MNIST rows, LeNet-5, and one photograph of 1 MB "
        f"for {KINDS['1 MB JPEG'].share} of them, ResNet-18. The loop watches, decodes, predicts and writes in one "
        "thread, without any guarantee. *Preprocess apart* is `preprocess_processes = 1`, *two partitions* is "
        "`partitions = 2`."
    )
    yield ""
    yield "![Rates by the loop's](performance.svg)"
    yield ""
    yield from _ratios(measured, LOOP)


def _ratios(measured: Mapping[str, Any], base: str) -> Iterator[str]:
    """The table of predictd's figures by those of the side `base`, each ratio within its run."""
    sides = [side for side in WORKERS if side in next(iter(measured["kinds"].values()))["median"]]
    yield f"| work | | {base} | {' | ratio | '.join(sides)} | ratio |"
    yield "|---|---|---|" + "---|---|" * len(sides)
    for kind, told in measured["kinds"].items():
        for name, (words, form) in LINES.items():
            cells = [kind, words, format(told["median"][base][name], form)]
            for side in sides:
                runs = (told["runs"][each][name] for each in (side, base))
                ratios = [own / other for own, other in zip(*runs, strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                cells += [format(told["median"][side][name], form), spread]
            yield f"| {' | '.join(cells)} |"


def _peers(measured: Mapping[str, Any]) -> Iterator[str]:
    plan = measured["plan"]
    yield "## Beside the closest peer"
    yield ""
    yield _wrapped(
        f"`make bench-peers ARGS='--runs {plan['runs']} --rows {plan['rows']}'`: the same rows, model and weights "
        "with Pathway and a connector of 100 lines (`bench/pathway_loop.py`), in a run of its own. A ratio is "
        "predictd's figure by Pathway's. Pathway keeps no versions, trains nothing, and ends at a broken image."
    )
    yield ""
    yield from _ratios(measured, PATHWAY)


def _scale(measured: Mapping[str, Any]) -> Iterator[str]:
    yield "## What a larger machine would do"
    yield ""
    yield "Computed by `python -m bench.scale` from the CPU times above; its docstring has the formula."
    yield ""
    yield "| work | cores | processes | rows/s | what binds |"
    yield "|---|---|---|---|---|"
    for kind, of in machines(measured).items():
        for each in of:
            yield f"| {kind} | {each.cores} | {each.processes} | {each.rows_per_second:,.0f} | {each.binds} |"


def _hot_rows(measured: Mapping[str, Any]) -> Iterator[str]:
    yield "## Rows that change all the time"
    yield ""
    yield _wrapped(
        f"`python -m bench.hot_rows --runs {len(measured['runs'])} --rows {measured['rows']}`: bursts of new rows, "
        "while four clients update 50 rows as fast as they can, of another table or of the same one. *Conflict* is a "
        "prediction that was thrown away."
    )
    yield ""
    words = {"mnist": "the table of the burst", "elsewhere": "another table"}
    yield from _medians("clients update", words, measured["medians"])


def _other_writers(measured: Mapping[str, Any]) -> Iterator[str]:
    yield "## What other writers feel"
    yield ""
    yield _wrapped(
        "`python -m bench.other_writers`: a client updates single rows, and another runs transactions of three rows, "
        "among 2,048 rows whose outputs are written over and over, without a model in between: the worst case."
    )
    yield ""
    yield from _medians("outputs are written by", {}, measured["medians"])


def _large_tables(measured: Mapping[str, float]) -> Iterator[str]:
    rows, small = (f"{measured[name]:,.0f}" for name in ("rows", "small"))
    yield "## A large table"
    yield ""
    yield _wrapped(
        f"`python -m bench.large_tables`: a daemon with an embedded MongoDB, LeNet-5 with the batched preprocess, a "
        f"table of {rows} rows; a page of a scan in a table of {small} small rows."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| backfill, rows/s | {measured['backfill']:,.0f} |"
    yield f"| the same by the rate of bursts of new rows | {measured['backfill'] / measured['burst']:.2f} |"
    yield f"| growth of the memory after 10,000 rows of the backfill, MiB | {measured['backfill_memory']:.1f} |"
    yield f"| resync, rows/s | {measured['resync']:,.0f} |"
    yield f"| growth of the memory in the resync, MiB | {measured['resync_memory']:.1f} |"
    yield f"| a page of 1,000 rows at the beginning of the table, ms | {measured['page_first_ms']:.2f} |"
    yield f"| a page at its end, ms | {measured['page_last_ms']:.2f} |"


_PARTS: Final = {
    "peers": _peers,
    "hot_rows": _hot_rows,
    "other_writers": _other_writers,
    "large_tables": _large_tables,
}


def _medians(first: str, words: Mapping[str, str], medians: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    names = list(next(iter(medians.values())))
    yield f"| {first} | {' | '.join(names)} |"
    yield f"|{'---|' * (len(names) + 1)}"
    for way, of in medians.items():
        yield f"| {words.get(way, way)} | {' | '.join(_figure(of[name]) for name in names)} |"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def chart(measured: Mapping[str, Any], file: Path = CHART) -> None:
    """Draws the rates of the bursts by the loop's."""
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "predictd"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(6, 3.0), layout="constrained")
    labels, values = [], []
    for kind, told in measured["kinds"].items():
        for side in (LOOP, *(side for side in WORKERS if side in told["ratio"])):
            labels.append(f"{kind}: {side}")
            values.append(told["ratio"][side]["rows_per_second"])
    axes.barh(labels, values, color=["#999999" if label.endswith(LOOP) else "#1f77b4" for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("rows/s of a burst, by the loop's")
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """The command line."""
    chart(json.loads((RESULTS / "yardstick.json").read_text()))
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(ROOT)}, {CHART.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
