"""What the benchmark found, in ratios: as text, as tables of a page, as a chart.

    python -m scripts.benchmark_report docs/performance_cpu.json --page docs/performance.md --chart docs/speed.png

makes the tables anew between the two comment lines of the page that name the file, and with ``--chart`` the picture,
which the page then shows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark_plan import OTHER, STAGES
from scripts.benchmark_summary import Result, seconds_of, share_of_peak
from util.errors import Parser, UserError, run_cli
from util.files import atomic_path, read_json

GIB = 2**30
TERA = 1e12
COLOURS = ("#9aa0a6", "#1a73e8", "#8ab4f8", "#34a853")
Rows = list[list[str]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a result, and put it into a page or a chart (``argv`` without the program's name; None: the process's)."""
    parser = Parser(
        prog="python -m scripts.benchmark_report", description="Show what scripts.benchmark has written by --json."
    )
    parser.add_argument("json", type=Path, help="its file")
    parser.add_argument("--page", type=Path, help="a Markdown file whose tables of this result are made anew")
    parser.add_argument("--chart", type=Path, help="a PNG file for a chart")
    args = parser.parse_args(argv)
    result = read_json(args.json, "the result of scripts.benchmark")
    if not isinstance(result, dict) or not {"fast", "stages", "settings"} <= result.keys():
        raise UserError(f"{args.json} is no result of scripts.benchmark; name a file that its --json has written")
    print(text_report(result))
    if args.chart:
        draw_chart(result, args.chart)
        print(f"drawn: {args.chart}")
    if args.page:
        text = markdown_report(result)
        if args.chart:
            place = os.path.relpath(args.chart.resolve(), args.page.resolve().parent)
            text += f"\n\n![Seconds of every stage]({place})"
        update_page(args.page, args.json.name, text)
        print(f"tables made anew: {args.page}")


# As text and as tables.


def text_report(result: Result) -> str:
    """Everything that was found, in lines of text."""
    lines = [*_about(result), ""]
    for i in range(len(result["fast"])):
        lines += [*_aligned(_stage_rows(result, i)), *_verdict(result, i), ""]
    return "\n".join([*lines, *_further(result)]).rstrip().replace("**", "")


def markdown_report(result: Result) -> str:
    """The same as Markdown."""
    parts = ["\n".join(f"- {line}" for line in _about(result))]
    for i in range(len(result["fast"])):
        head, *rows = _stage_rows(result, i)
        table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        parts.append("\n".join("| " + " | ".join(cell.strip() for cell in row) + " |" for row in table))
        parts.append("\n".join(f"- {line}" for line in _verdict(result, i)))
    further = _further(result)
    return "\n\n".join([*parts, *(["\n".join(f"- {line}" for line in further)] if further else [])])


def update_page(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        UserError: the page has no such lines.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    content = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{page} lacks the lines {begin} and {end}, between which the tables go; add them")
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _about(result: Result) -> list[str]:
    machine, settings, peaks = result["machine"], result["settings"], result["peaks"]
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    instructions = "".join(f", {flag}" for flag in machine["bf16_instructions"])
    size = f"{settings['frames']} frames of {settings['height']}×{settings['width']}"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        f"{settings['config']['model']}, {size}, {settings['sentences']} sentences",
        f"{where}{instructions}: {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB",
        f"peaks in this run: {peaks['fp32'] / TERA:.3g} (fp32) and {peaks['bf16'] / TERA:.3g} (bf16) TFLOP/s in a "
        f"matrix product, {peaks['copy'] / 1e9:.3g} GB/s in a copy",
        versions,
        f"command: `{result['command']}`",
    ]


def _stage_rows(result: Result, index: int) -> Rows:
    """A head and a row per stage, the last for all of them."""
    run, base = result["fast"][index], result.get("baseline")
    head = [f"{run['dtype']}: stage", "seconds", "TFLOP", "of peak"]
    rows = [[*head, *(["baseline s", "TFLOP", "of peak", "ratio"] if base else [])]]
    total = {
        "seconds": run["seconds"],
        "operations": sum(run["operations"].values()),
        "share_of_peak": run["share_of_peak"],
    }
    if base:
        operations = sum(base["operations"].values())
        total |= {"baseline_seconds": base["seconds"], "baseline_operations": operations, "ratio": run["speedup"]}
        total["baseline_share_of_peak"] = share_of_peak(operations, base["seconds"], result["peaks"], "fp32")
    for name, row in {**run["stage_table"], "all": total}.items():
        cells = [name, f"{row['seconds']:.2f}", _tera(row["operations"]), _percent(row["share_of_peak"])]
        if base:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}×"
            slow = row["baseline_operations"]
            cells += [f"{row['baseline_seconds']:.2f}", _tera(slow), _percent(row["baseline_share_of_peak"]), ratio]
        rows.append(cells)
    return rows


def _verdict(result: Result, index: int) -> list[str]:
    run, base = result["fast"][index], result.get("baseline")
    unet = _percent(run["unet_share_of_sentence"])
    lines = [
        f"{run['dtype']}: {run['rate']:.3g} frames × sentences per second, {run['peak_memory'] / GIB:.2f} GiB at most",
        f"{run['dtype']}: one more sentence takes {run['sentence_seconds']:.3g} s, {unet} of it the UNet",
    ]
    if not base:
        return lines
    same = run["agreement"]
    difference = same["greatest_difference"]
    lines.append(
        f"baseline, fp32: {base['rate']:.3g} frames × sentences per second, {base['peak_memory'] / GIB:.2f} GiB at most"
    )
    lines.append(
        f"**{run['speedup']:.2f}× the baseline's throughput** (operations alone: {run['operations_ratio']:.2f}×) at "
        f"**{run['peak_memory_ratio']:.2f} of its peak memory**"
    )
    lines.append(
        f"the same query for {same['same_query']} of {same['sentences']} sentences, mask logits apart by at most "
        f"{'–' if difference is None else f'{difference:.2g} of their range'}"
    )
    return lines


def _further(result: Result) -> list[str]:
    """Training, sweeps and processes."""
    lines = []
    training = result.get("training", {})
    for name in ("fast", "baseline"):
        if name in training:
            run = training[name]
            lines.append(
                f"training, {name} ({run['dtype']}): {run['rate']:.3g} clips per second, {run['seconds']:.2f} s a "
                f"step, {run['peak_memory'] / GIB:.2f} GiB at most, loss {run['loss']:.4f}"
            )
    if "speedup" in training:
        ratios = (training["speedup"], training["peak_memory_ratio"])
        lines.append(f"training: {ratios[0]:.2f}× the baseline's throughput at {ratios[1]:.2f} of its peak memory")
    for row in result.get("sweep", {}).get("rows", ()):
        count = row["frames"] * row["sentences"]
        lines.append(
            f"frames {row['frames']}, sentences {row['sentences']}: {row['seconds']:.2f} s, "
            f"{row['seconds'] / row['frames']:.3g} s a frame, {row['seconds'] / count:.3g} s a frame and sentence"
        )
    for row in result.get("processes", ()):
        lines.append(
            f"{row['processes']} × {row['threads']} (processes × threads): {row['rate']:.3g} frames × sentences per "
            "second together"
        )
    return lines


def _aligned(rows: Rows) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _tera(operations: float) -> str:
    return f"{operations / TERA:.3g}" if operations else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


# As a picture.


def draw_chart(result: Result, path: Path) -> None:
    """Bars of every stage's seconds, the baseline's and each fast run's.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    runs = [(f"this project, {run['dtype']}", run) for run in result["fast"]]
    if "baseline" in result:
        runs.insert(0, ("baseline, fp32", result["baseline"]))
    names = [name for name in (*STAGES, OTHER) if any(seconds_of(run, name) > 0 for _, run in runs)]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    thickness = 0.8 / len(runs)
    for i, (label, run) in enumerate(runs):
        places = [row + thickness * i for row in range(len(names))]
        values = [seconds_of(run, name) for name in names]
        bars = axes.barh(
            places, values, thickness, label=f"{label}: {run['seconds']:.1f} s", color=COLOURS[i % len(COLOURS)]
        )
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2, fontsize=7)
    axes.set_yticks([row + 0.4 - thickness / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    settings = result["settings"]
    axes.set_xlabel("seconds")
    axes.set_title(f"{settings['frames']} frames of {settings['height']}×{settings['width']}, "
                   f"{settings['sentences']} sentences", fontsize=10)  # fmt: skip
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    run_cli(main)
