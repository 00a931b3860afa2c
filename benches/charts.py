#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Draws what the benchmarks measured, and keeps the tables of BENCHMARKS.md.

charts.py RUN                draws the charts of RUN/bench.json and RUN/peers.json into RUN
charts.py RUN PAGE [README]  and writes the tables of PAGE, between its marks, and the rows of it that
                             README has

What was not measured is not drawn, its table stays as it was, and the status is 1 if there is a PAGE.
"""

import json
import math
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

plt.switch_backend("svg")
# The same run gives the same bytes: letters are paths of a font that comes with matplotlib, and ids
# have a fixed salt.
plt.rcParams.update(
    {
        "svg.hashsalt": "jitmem",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        # A page with a dark background shows the chart on a card of its own.
        "figure.facecolor": "white",
        "figure.titlesize": 12.5,
        "figure.titleweight": "bold",
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
)

DISPATCHERS = {"one thread": "", "pool of 2 threads": ", pool", "thread per task": ", threads"}
STOCK, OURS = "llvm-jitlink-executor", "jitmem-executor"
# LLVM's in warm colours, jitmem's in blue; of the palette of Okabe and Ito, for all kinds of sight.
LOOKS = {
    "llvm-in-process": ("LLVM InProcessMemoryManager", "#E69F00"),
    "llvm-mapper": ("LLVM InProcessMemoryMapper", "#D55E00"),
    "jitmem": ("jitmem in process", "#004D80"),
    "llvm-epc": ("LLVM EPCGenericJITLinkMemoryManager", "#CC79A7"),
    "llvm-shared": ("LLVM SharedMemoryMapper", "#D55E00"),
    "llvm-simple-remote": ("LLVM SimpleRemoteMemoryMapper", "#F0E442"),
    "jitmem-shared": ("jitmem shared", "#0072B2"),
    "jitmem-remote": ("jitmem remote", "#56B4E9"),
    STOCK: ("llvm-jitlink-executor", "#999999"),
    OURS: ("jitmem-executor", "#009E73"),
}
# Those of jitmem-bench-peers, whose first row is called as the C API's own here.
PEERS = {
    "jitmem": ("jitmem, C API", "#004D80"),
    "asmjit": ("asmjit JitAllocator, one view", "#E69F00"),
    "asmjit, two views": ("asmjit JitAllocator, two views", "#D55E00"),
    "cranelift arena": ("cranelift-jit ArenaMemoryProvider", "#CC79A7"),
    "malloc + mprotect": ("malloc + mprotect", "#F0E442"),
    "floor": ("the floor", "#999999"),
    "jitmem, huge pages": ("jitmem, C API, huge pages", "#0072B2"),
    "a page for each": ("a page for each function", "#56B4E9"),
}
IN_PROCESS = ["llvm-in-process", "llvm-mapper", "jitmem"]
ACROSS = ["llvm-epc", "llvm-shared", "llvm-simple-remote", "jitmem-shared", "jitmem-remote"]
# What each of ours is measured by: LLVM's of the same kind.
RIVALS = {
    "jitmem": ["llvm-in-process", "llvm-mapper"],
    "jitmem-shared": ["llvm-shared"],
    "jitmem-remote": ["llvm-simple-remote"],
    OURS: [STOCK],
}


class Peer(str):
    """A row of jitmem-bench-peers."""


def look(manager):
    return (PEERS if isinstance(manager, Peer) else LOOKS)[manager]


class NotMeasured(Exception):
    pass


class Run:
    def __init__(self, path):
        nothing = {"phases": [], "executors": [], "targets": []}
        self.json = json.loads(path.read_text()) if path.exists() else nothing
        self.phases = {(p["workload"], p["phase"]): p for p in self.json["phases"]}
        self.executors = {e["executor"]: e for e in self.json["executors"]}
        beside = path.with_name("peers.json")
        self.tables = json.loads(beside.read_text()) if beside.exists() else {}

    def peer(self, table, row, column):
        """A figure of jitmem-bench-peers."""
        if table not in self.tables:
            raise NotMeasured(f"'{table}' beside other managers")
        cells = dict(zip(self.tables[table]["columns"], self.tables[table]["rows"].get(row, [])))
        if not isinstance(cells.get(column), (int, float)):
            raise NotMeasured(f"{table}, {column}, of {row}")
        return cells[column]

    def cell(self, workload, phase, row):
        cells = self.phases.get((workload, phase), {"cells": []})["cells"]
        for cell in cells:
            if cell["manager"] == row:
                return cell
        raise NotMeasured(f"({workload}) {phase} of {row}")

    def figure(self, workload, phase, row, name):
        cell = self.cell(workload, phase, row)
        if name not in cell:
            raise NotMeasured(f"{name} of ({workload}) {phase} of {row}")
        return cell[name]

    def executor(self, name, figure):
        if name not in self.executors:
            raise NotMeasured(f"{figure} of {name}")
        return self.executors[name][figure]

    def rival(self, workload, phase, manager, suffix=""):
        """The one of LLVM's that is faster, and what the manager takes of its time."""
        ratios = self.figure(workload, phase, manager + suffix, "ratios")
        rivals = [(ratios[r + suffix], r + suffix) for r in RIVALS[manager] if r + suffix in ratios]
        if not rivals:
            raise NotMeasured(f"LLVM's side of ({workload}) {phase}")
        ratio, name = max(rivals)
        return name, ratio

    def machine(self):
        machine = self.json["machine"]
        return f"{machine['system']}, {machine['processors']} processors ({machine['processor']})"

    def conditions(self):
        return (
            f"LLVM {self.json['llvm']}, {self.machine()}. Bars: median round; thin lines: "
            "fastest to slowest round; ratios: median of each round's ratio."
        )


def short(number):
    """Three digits, and thousands told apart."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def times(ratio):
    """How many times less a ratio below 1 is."""
    return f"{1 / ratio:.0f}" if ratio < 0.1 else f"{1 / ratio:.1f}"


def bars(axis, title, groups, managers, measure):
    """One group of horizontal bars for each name in groups, one bar in it for each manager.

    measure(group, manager) answers the length, or length, least and most, or None if there is none."""
    step = len(managers) + 1
    longest, drawn = 0, False
    for g, group in enumerate(groups):
        for m, manager in enumerate(managers):
            measured = measure(group, manager)
            y = g * step + m
            if measured is None:
                axis.annotate("–", (0, y), (4, 0), textcoords="offset points", va="center", size=9)
                continue
            length, least, most = measured if isinstance(measured, tuple) else (measured,) * 3
            drawn = True
            axis.barh(y, length, 0.86, color=look(manager)[1], edgecolor="#333333", linewidth=0.4)
            if most > least:
                axis.plot([least, most], [y, y], color="black", linewidth=0.8)
            axis.annotate(
                short(length), (most, y), (4, 0), textcoords="offset points", va="center", size=9
            )
            longest = max(longest, most)
    if not drawn:
        raise NotMeasured(title)
    axis.set_title(title)
    axis.set_xlim(0, longest * 1.22)
    axis.set_yticks([g * step + (len(managers) - 1) / 2 for g in range(len(groups))], groups)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.grid(axis="x")


def spread(run, workload, phase, row, unit_ns):
    """The median round of a row, the fastest, and the slowest."""
    names = ("median_ns", "fastest_ns", "slowest_ns")
    return tuple(run.figure(workload, phase, row, name) / unit_ns for name in names)


def legend(figure, managers):
    """Below the axes, for which the rest of the figure stays."""
    handles = [
        Patch(facecolor=color, edgecolor="#333333", linewidth=0.4, label=name)
        for name, color in (look(m) for m in managers)
    ]
    rows = math.ceil(len(handles) / 3)
    height = figure.get_figheight()
    below = (0.38 + 0.22 * rows) / height
    figure.set_layout_engine("constrained", rect=(0.005, below, 0.99, 1 - below))
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.22 / height), ncol=3)


def chart(run, title, widths, height):
    """A figure and its axes, side by side."""
    figure, axes = plt.subplots(1, len(widths), figsize=(11, height), width_ratios=widths)
    figure.suptitle(title, x=0.01, ha="left")
    figure.text(0.01, 0.06 / height, run.conditions(), size=9, color="#555555")
    return figure, axes


def save(figure, path):
    """Fixes the layout first: its solver differs from run to run in the last bits of a position,
    which the ids in the file are made of."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_position([round(edge, 4) for edge in axis.get_position().bounds])
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def in_process(run):
    """One small graph in the process that links it."""
    phases = {
        "allocate\n+ finalize": "allocate + finalize",
        "deallocate,\noldest first": "deallocate one by one, oldest first",
        "deallocate,\nrandom order": "deallocate one by one, random order",
        "replace one\nof 500 live": "churn at 500 live",
    }
    made = run.rival("a", "allocate + finalize", "jitmem")[1]
    freed = run.rival("a", "deallocate one by one, oldest first", "jitmem")[1]
    figure, (time, memory, mappings) = chart(
        run,
        f"In one process: a small graph is made {times(made)} times faster "
        f"and given back {times(freed)} times faster",
        [2, 1, 1],
        4.6,
    )
    bars(
        time,
        "time per graph, µs",
        list(phases),
        IN_PROCESS,
        lambda phase, manager: spread(run, "a", phases[phase], manager, 1e3),
    )

    def held(name, unit):
        return lambda _, manager: run.figure("a", "allocate + finalize", manager, name) / unit

    bars(memory, "memory of 10,000 graphs, MiB", [""], IN_PROCESS, held("memory_kb", 1024))
    bars(mappings, "mappings of 10,000 graphs", [""], IN_PROCESS, held("mappings", 1))
    legend(figure, IN_PROCESS)
    return figure


def another_process(run):
    """A tiny object that is linked into another process."""
    groups = list(DISPATCHERS)
    best, worst = (
        pick(run.rival("oop-b", "in all", "jitmem-shared", s)[1] for s in DISPATCHERS.values())
        for pick in (min, max)
    )
    figure, (time, messages, memory) = chart(
        run,
        f"In another process: a tiny object takes {best:.2f} to {worst:.2f} "
        "of SharedMemoryMapper's time",
        [1.5, 1, 1],
        5.6,
    )

    def sent(group, manager):
        row = manager + DISPATCHERS[group]
        return sum(
            run.figure("oop-b", "in all", row, name) for name in ("messages", "own_messages")
        )

    bars(
        time,
        "time per object, added and removed, µs",
        groups,
        ACROSS,
        lambda group, manager: spread(run, "oop-b", "in all", manager + DISPATCHERS[group], 1e3),
    )
    bars(messages, "messages per object", groups, ACROSS, sent)
    bars(
        memory,
        "memory of 2,000 objects, MiB",
        groups,
        ACROSS,
        lambda group, manager: run.figure(
            "oop-b", "add + look up", manager + DISPATCHERS[group], "memory_kb"
        )
        / 1024,
    )
    for axis in (messages, memory):
        axis.set_yticklabels([])
    legend(figure, ACROSS)
    return figure


def programs(run):
    """Whole programs, and the process that runs them."""
    managers = ["llvm-in-process", "jitmem", *ACROSS]
    executors = [STOCK, OURS]
    start = run.rival("executor", "in all", OURS)[1]
    figure, (link, starts, calls, idle) = chart(
        run,
        "Whole programs: the managers differ little; "
        f"jitmem-executor starts in {start:.2f} of LLVM's time",
        [1.5, 0.8, 1, 1],
        4.4,
    )
    objects = 168
    bars(
        link,
        "four libraries, 168 objects, ms",
        [""],
        managers,
        lambda _, m: spread(run, "oop-c", "in all", m, 1e6 / objects),
    )
    bars(
        starts,
        "start, ms",
        [""],
        executors,
        lambda _, e: spread(run, "executor", "in all", e, 1e6),
    )
    bars(
        calls,
        "empty call, µs",
        ["1 in\nflight", "8 in\nflight"],
        executors,
        lambda group, e: spread(run, "executor", f"empty call, {group[0]} in flight", e, 1e3),
    )
    figures = {"propor-\ntional": "proportional_kb", "private\ndirty": "private_dirty_kb"}
    bars(
        idle,
        "idle memory, KiB",
        list(figures),
        executors,
        lambda group, e: run.executor(e, figures[group]),
    )
    legend(figure, managers + executors)
    return figure


def live_graphs(run):
    """What stays live: mappings, memory, and what a call of linked code takes."""
    most = run.json["machine"]["most_mappings"]
    calls = {f"{n:,}\nfunctions": f"call {n} functions in random order" for n in (10000, 20000)}
    ends = {m: run.figure("e", "live graphs", m, "live") for m in IN_PROCESS}
    figure, (mappings, memory, time) = chart(
        run,
        f"Many live graphs: LLVM's managers end at {short(max(ends[m] for m in IN_PROCESS[:2]))}, "
        f"jitmem has {short(ends['jitmem'])} in "
        f"{run.figure('e', 'live graphs', 'jitmem', 'mappings')} mappings",
        [1.2, 1.2, 1],
        4.6,
    )
    held = [
        ("a", "churn at 500 live"),
        ("a", "allocate + finalize"),
        ("d", calls["20,000\nfunctions"]),
        ("e", "live graphs"),
    ]
    for axis, name, unit, title in (
        (mappings, "mappings", 1, "mappings"),
        (memory, "memory_kb", 1024, "memory, MiB"),
    ):
        # The second line lies on the first: a wide one below, a narrow one above.
        for manager, width in zip(IN_PROCESS, (5, 2, 2)):
            points = [
                (run.figure(*phase, manager, "live"), run.figure(*phase, manager, name) / unit)
                for phase in held
            ]
            axis.plot(*zip(*points), "o-", color=LOOKS[manager][1], linewidth=width, markersize=5)
            if manager != "llvm-mapper":
                axis.annotate(
                    short(points[-1][1]), points[-1], (2, -14), textcoords="offset points"
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("live graphs")
        axis.margins(0.12)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.grid()
    mappings.axhline(most, color="black", linestyle="--", linewidth=1)
    mappings.annotate(
        f"the kernel's limit, {most:,}", (500, most), (0, 4), textcoords="offset points", size=9
    )
    bars(
        time,
        "a call of linked code, ns",
        list(calls),
        IN_PROCESS,
        lambda group, manager: spread(run, "d", calls[group], manager, 1),
    )
    legend(figure, IN_PROCESS)
    return figure


def peers(run):
    """jitmem's C API beside what a host would have instead."""
    # The arena's steps take too long to be shown beside others; peers.md has them.
    named = [Peer(name) for name in PEERS if name != "cranelift arena"]
    managers, placed = named[:5], [name for name in named if name != "malloc + mprotect"]

    def cell(table, row, column):
        """Nothing where one can't do it; peers.md says why."""
        try:
            return run.peer(table, row, column)
        except NotMeasured:
            return None

    figure, (time, threads, calls) = chart(
        run, "Beside other managers: replacing one of 500 small graphs", [1.2, 1, 1.2], 5.6
    )
    bars(
        time,
        "time per graph, ns",
        ["median", "p99"],
        [m for m in managers if m != "malloc + mprotect"],
        lambda column, manager: cell("replacing", manager, column),
    )
    bars(
        threads,
        "times the graphs of one thread",
        ["2 threads", "8 threads"],
        managers,
        lambda group, manager: cell("threads", manager, f"{group[0]} / 1"),
    )
    bars(
        calls,
        "a call of linked code, ns",
        ["20,000 functions", "200,000 functions"],
        placed,
        lambda column, manager: cell("running", manager, column),
    )
    legend(figure, named)
    return figure


CHARTS = [in_process, another_process, programs, live_graphs, peers]

# The columns of the page's table of peers: in words, table, column, and of which it is a multiple.
BESIDE = [
    ("replace a graph, median", "replacing", "median"),
    ("p99.9", "replacing", "p99.9"),
    ("2 threads", "threads", "2 / 1"),
    ("8 threads", "threads", "8 / 1"),
    ("replacing one of 1,000,000 / 10,000", "live", "1000000", "10000"),
    ("memory of 10,000, KiB", "making", "memory, KiB"),
    ("20,000 calls, ns each", "running", "20,000 functions"),
    ("200,000 calls, ns each", "running", "200,000 functions"),
]

# What the first table of the page compares: in words, workload, phase, whose, dispatcher.
TIMES = [
    ("allocate and finalize a small graph", "a", "allocate + finalize", "jitmem", ""),
    ("deallocate it", "a", "deallocate one by one, oldest first", "jitmem", ""),
    ("replace one of 500 small graphs", "a", "churn at 500 live", "jitmem", ""),
    ("link and remove a tiny object", "b", "in all", "jitmem", ""),
    ("link and remove an object of four libraries", "c", "in all", "jitmem", ""),
    ("call one of 20,000 functions", "d", "call 20000 functions in random order", "jitmem", ""),
    (
        "another process: allocate and finalize a small graph",
        "oop-a",
        "allocate + finalize",
        "jitmem-shared",
        ", threads",
    ),
    ("another process: a tiny object", "oop-b", "in all", "jitmem-shared", ", threads"),
    ("the same with content in messages", "oop-b", "in all", "jitmem-remote", ", threads"),
    (
        "another process: an object of four libraries",
        "oop-c",
        "in all",
        "jitmem-shared",
        ", threads",
    ),
    ("start an executor", "executor", "in all", OURS, ""),
    ("an empty call in an executor", "executor", "empty call, 1 in flight", OURS, ""),
    ("fork with 10,000 small graphs", "g", "fork, and the child exits", "jitmem", ""),
    (
        "the same, and the child makes one more",
        "g",
        "fork, and the child makes its first graph",
        "jitmem",
        "",
    ),
    ("redirect a symbol of LLVM's manager for that", "h", "redirect a symbol", "jitmem", ""),
    ("change 8 bytes of code", "h", "change 8 bytes of code", "jitmem", ""),
    ("a graph of a clang-repl session", "t", "clang-repl", "jitmem", ""),
    ("a graph of PostgreSQL's queries", "t", "postgresql", "jitmem", ""),
]
COUNTS = [
    ("memory of 10,000 small graphs, KiB", "a", "allocate + finalize", "memory_kb"),
    ("mappings of 10,000 small graphs", "a", "allocate + finalize", "mappings"),
    ("small graphs that can be live", "e", "live graphs", "live"),
]
# In words, LLVM's phase, jitmem's.
KEPT = [
    ("memory per byte of 500 plans, in steady churn",) + ("after steady churn",) * 2,
    ("the same, after a peak of 5,000",) + ("after a peak",) * 2,
    ("the same, trimmed", "after a peak", "after a peak, and a call of trim"),
]


def duration(nanoseconds):
    for unit, size in (("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{short(nanoseconds / size)} {unit}"
    return f"{short(nanoseconds)} ns"


def quotient(ratio):
    """Two digits, and no exponent."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:#.2g}"


def reached(run):
    """How many targets were met, and the comparisons that a user asks for."""
    targets = [row for table in run.json["targets"] for row in table["rows"]]
    if not targets:
        raise NotMeasured("a target")
    met = [row for row in targets if row["reached"]]
    other = []
    for verdict, words in ((False, "missed"), (None, "did not measure")):
        named = "; ".join(row["what"] for row in targets if row["reached"] is verdict)
        if named:
            other.append(f"{words} {named}")
    lines = [
        f"This run met {len(met)} of {len(targets)} targets that the project has set itself"
        f"{': it ' + ', and '.join(other) if other else ''}."
    ]
    lines += ["", "| | LLVM | jitmem | jitmem / LLVM |", "|---|--:|--:|--:|"]
    for words, *compared in TIMES:
        lines.append(row_of(words, lambda: time_row(run, *compared)))
    for words, *compared in COUNTS:
        lines.append(row_of(words, lambda: count_row(run, *compared)))
    for words, *compared in KEPT:
        lines.append(row_of(words, lambda: kept_row(run, *compared)))
    return lines


def row_of(words, cells):
    """A row, with dashes where a part of the run failed."""
    try:
        return f"| {words} | {' | '.join(cells())} |"
    except NotMeasured as what:
        MISSING.append(f"row '{words}': {what} was not measured")
        return f"| {words} | – | – | – |"


def time_row(run, workload, phase, manager, suffix):
    rival, ratio = run.rival(workload, phase, manager, suffix)
    theirs = run.figure(workload, phase, rival, "median_ns")
    ours = run.figure(workload, phase, manager + suffix, "median_ns")
    return duration(theirs), duration(ours), quotient(ratio)


def count_row(run, workload, phase, name):
    theirs, ours = (run.figure(workload, phase, row, name) for row in ("llvm-mapper", "jitmem"))
    return f"{theirs:,}", f"{ours:,}", quotient(ours / theirs)


def kept_row(run, *phases):
    theirs = min(per_byte(run, phases[0], rival) for rival in RIVALS["jitmem"])
    ours = per_byte(run, phases[1], "jitmem")
    return f"{theirs:.2f}", f"{ours:.2f}", quotient(ours / theirs)


def per_byte(run, phase, row):
    """Memory that is in use for each byte that is live."""
    return run.figure("f", phase, row, "memory_kb") / run.figure("f", phase, row, "content_kb")


def table_of(folder, name):
    """A table that a program has printed, as it is."""
    path = folder / name
    if not path.exists():
        raise NotMeasured(name)
    text = path.read_text()
    return [line for line in text.splitlines() if line.startswith("|")]


def beside(run):
    """jitmem and other managers; a dash where one can't do it, which peers.md explains."""
    if not run.tables:
        raise NotMeasured("what other managers take")
    lines = [
        f"| | {' | '.join(words for words, *_ in BESIDE)} |",
        "|---|" + "--:|" * len(BESIDE),
    ]
    for row, (name, _) in PEERS.items():
        cells = []
        for _, table, column, *under in BESIDE:
            try:
                figure = run.peer(table, row, column)
                for other in under:
                    figure /= run.peer(table, row, other)
                cells.append(duration(figure) if table == "replacing" else short(figure))
            except NotMeasured:
                cells.append("–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def rival_of(run, workload, phase, cell):
    """LLVM's row that ours is measured by, and the ratio; nothing for LLVM's own rows."""
    row = cell["manager"]
    manager, _, dispatcher = row.partition(", ")
    manager, _, executor = manager.partition(" on ")
    if executor == OURS:
        rivals = [row.replace(f" on {OURS}", f" on {STOCK}"), *RIVALS.get(manager, [])]
        if workload.startswith("oop-"):
            rivals = [row.replace(manager, rival) for rival in rivals[1:]]
        measured = [rival for rival in rivals if rival in cell["ratios"]]
        return (measured[0], cell["ratios"][measured[0]]) if measured else (None, 0)
    if executor:
        return None, 0
    if manager in RIVALS and cell["ratios"]:
        return run.rival(workload, phase, manager, dispatcher and f", {dispatcher}")
    return None, 0


def lost(run):
    """Where ours takes more than 1.05 of LLVM's time; of the dispatchers, the worst."""
    worst = {}
    for (workload, phase), measured in run.phases.items():
        for cell in measured["cells"]:
            rival, ratio = rival_of(run, workload, phase, cell)
            if ratio <= 1.05:
                continue
            manager, *executor = cell["manager"].partition(", ")[0].split(" on ")
            who = " on ".join([LOOKS[manager][0], *executor])
            times = (ratio, run.figure(workload, phase, rival, "median_ns"), cell["median_ns"])
            key = (workload, phase, who)
            worst[key] = max(worst.get(key, times), times)
    if not run.phases:
        raise NotMeasured("what jitmem takes beside LLVM's managers")
    lines = ["| | | LLVM | jitmem | jitmem / LLVM |", "|---|---|--:|--:|--:|"]
    for (workload, phase, who), (ratio, theirs, ours) in worst.items():
        lines.append(
            f"| ({workload}) {phase} | {who} "
            f"| {duration(theirs)} | {duration(ours)} | {quotient(ratio)} |"
        )
    return lines


def fill(page, mark, lines):
    """Puts the lines between the marks of this name."""
    text, count = re.subn(
        rf"(<!-- {mark}[^>]*-->\n).*?(<!-- end -->)",
        lambda found: found[1] + "\n".join(lines) + "\n" + found[2],
        page.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        sys.exit(f"charts: {page} has {count} places for '{mark}', not 1")
    page.write_text(text)


def rows(readme, page):
    """Has readme's rows be those of page: each that begins like one of them."""
    of_page = {line.split("|")[1]: line for line in page.read_text().splitlines() if "|" in line}
    head, table, rest = re.split(
        rf"(<!-- rows: {page.name} -->\n(?:\|.*\n)+)", readme.read_text(), maxsplit=1
    )
    lines = table.splitlines()
    for number, line in enumerate(lines[3:], 3):
        words = line.split("|")[1]
        if words not in of_page:
            sys.exit(f"charts: {page} has no row '{words.strip()}', which {readme} shows")
        lines[number] = of_page[words]
    readme.write_text(head + "\n".join(lines) + "\n" + rest)


def machine(run):
    if "machine" not in run.json:
        raise NotMeasured("the machine")
    return [f"LLVM {run.json['llvm']}, {run.machine()}."]


TABLES = {
    "machine": lambda run, _: machine(run),
    "reached": lambda run, _: reached(run),
    "lost": lambda run, _: lost(run),
    "features": lambda _, folder: table_of(folder, "features.md"),
    "unwind": lambda _, folder: table_of(folder, "unwind.md"),
    "throws": lambda _, folder: table_of(folder, "throws.md"),
    "images": lambda _, folder: table_of(folder, "image.md"),
    "beside": lambda run, _: beside(run),
}
# What was not drawn or written, and why.
MISSING = []


def main(folder, page=None, readme=None):
    folder = Path(folder)
    run = Run(folder / "bench.json")
    for draw in CHARTS:
        path = folder / f"{draw.__name__}.svg"
        try:
            save(draw(run), path)
        except NotMeasured as what:
            MISSING.append(f"{path.name} is not drawn: {what} was not measured")
    for mark, lines in TABLES.items() if page else ():
        try:
            fill(Path(page), mark, lines(run, folder))
        except NotMeasured as what:
            MISSING.append(f"table '{mark}' of {page} stays as it was: {what} was not measured")
    if readme:
        rows(Path(readme), Path(page))
    for what in MISSING:
        print(f"charts: {what}")
    return 1 if page and MISSING else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
