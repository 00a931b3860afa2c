#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs the benchmarks one after the other; one that fails does not keep the next from running.

measure.py BUILD RESULTS [--publish] [--small] [--full] [--parts=NAMES] [--bench-args=WORDS]
    [--peers-args=WORDS]

BUILD has bench/ and peers/, where benches/orc and benches/peers were built. What each part says goes
to standard output and into a file of RESULTS, and charts.py draws that. --publish also measures what
only benches/results has, and writes that folder and the tables of BENCHMARKS.md and README.md; figures
of a part that failed stay there as they were. --small measures as little as each part can. --parts=peers,image
measures those only. The status is 1 if a part failed."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent
# Of LLVM's managers, those in this process.
PEERS = "llvm-in-process,llvm-mapper,floor"


@dataclass
class Part:
    # The file of RESULTS that has what it says.
    file: str
    command: list
    # How long it takes on an idle machine with two processors. It is ended after four times that.
    minutes: float
    # What it writes besides.
    writes: tuple = ()
    # What is measured for benches/results only.
    published_only: bool = False


def parts(build, results, given):
    bench, peers = build / "bench", build / "peers"
    rounds = ["--rounds=1"] if given.small else []
    full = ["--full"] if given.full and not given.small else []
    some = [bench / "jitmem-bench", "--only=a,b"]
    return [
        Part(
            "tables.md",
            [bench / "jitmem-bench", f"--json={results}/bench.json", *rounds, *given.bench_args],
            5,
            ("bench.json",),
        ),
        Part("features.md", [bench / "jitmem-bench-features"], 1),
        Part("image.md", [bench / "jitmem-bench-image", *rounds], 1),
        Part(
            "peers.md",
            [peers / "jitmem-bench-peers", f"--json={results}/peers.json", *full]
            + given.peers_args,
            5 if full else 1,
            ("peers.json",),
        ),
        Part(
            "unwind.md",
            [bench / "jitmem-bench-unwind", *(["--most", "10000"] if given.small else [])],
            5,
        ),
        Part("throws.md", [bench / "jitmem-bench-throws", *(["2000"] if given.small else [])], 1),
        Part(
            "mprotect.md",
            [*some, *(rounds or ["--quick"]), f"--managers={PEERS},jitmem-mprotect"],
            1,
            published_only=True,
        ),
        Part(
            "closing.md",
            [*some, *(rounds or ["--rounds=2"]), f"--managers={PEERS},jitmem,jitmem-closing"],
            1,
            published_only=True,
        ),
        Part("c-api.md", [bench / "jitmem-bench-c"], 1, published_only=True),
        Part(
            "ranges.md",
            ["cargo", "bench", "--locked", "--bench", "ranges"],
            1,
            published_only=True,
        ),
    ]


def run(part, results):
    """Why it failed; nothing if it did not."""
    try:
        child = subprocess.Popen(
            part.command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        return f"it can't be started: {error.strerror}: {part.command[0]}"
    limit = max(5, 4 * part.minutes)
    late = threading.Event()

    def end():
        late.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(60 * limit, end)
    timer.start()
    try:
        with open(results / part.file, "wb") as file:
            for line in child.stdout:
                file.write(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        status = child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    if late.is_set():
        return f"it had not ended after {limit:.0f} minutes"
    if status < 0:
        return f"it was ended by signal {-status}"
    if status > 0:
        return f"it ended with status {status}; what it said of that is above"
    return None if written(part, results) else f"it did not write {', '.join(part.writes)}"


def written(part, results):
    return all((results / name).exists() for name in part.writes)


def main():
    words = argparse.ArgumentParser(usage=__doc__)
    words.add_argument("build", type=Path)
    words.add_argument("results", type=Path)
    for name in ("publish", "small", "full"):
        words.add_argument(f"--{name}", action="store_true")
    for name in ("bench-args", "peers-args"):
        words.add_argument(f"--{name}", type=shlex.split, default=[])
    words.add_argument("--parts", type=lambda names: [name for name in names.split(",") if name])
    given = words.parse_args()
    build, results = given.build.resolve(), given.results.resolve()
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)

    wanted = [p for p in parts(build, results, given) if given.publish or not p.published_only]
    if given.parts:
        known = {Path(part.file).stem: part for part in wanted}
        unknown = [name for name in given.parts if name not in known]
        if unknown:
            words.error(f"there is no part {', '.join(unknown)}; there are {', '.join(known)}")
        wanted = [known[name] for name in known if name in given.parts]
    if not given.small:
        print(
            f"{len(wanted)} parts, about {sum(p.minutes for p in wanted):.0f} minutes on an idle "
            "machine with two processors",
            flush=True,
        )
        if os.getloadavg()[0] > 0.5:
            print(f"the machine is not idle: its load is {os.getloadavg()[0]:.1f}", flush=True)
    lines, failed = ["| part | seconds | |", "|---|--:|---|"], []
    for number, part in enumerate(wanted, 1):
        words = shlex.join(str(word) for word in part.command).replace(f"{ROOT}/", "")
        print(f"\n== part {number} of {len(wanted)}: {words}\n", flush=True)
        start = time.monotonic()
        why = run(part, results)
        seconds = time.monotonic() - start
        lines.append(f"| {part.file} | {seconds:.0f} | {why or 'measured'} |")
        if why:
            failed.append(part)
            print(f"\nmeasure: {part.file}: {why}", flush=True)
        else:
            print(f"\nmeasure: {part.file}: {seconds:.0f} seconds", flush=True)
    (results / "parts.md").write_text("\n".join(["# Parts of the run", "", *lines, ""]))

    print("\n== charts and tables\n", flush=True)
    pages = [ROOT / "BENCHMARKS.md", ROOT / "README.md"] if given.publish else []
    drawn = subprocess.run([SOURCE / "charts.py", results, *pages], check=False).returncode == 0
    if given.publish:
        publish(results, failed)
    print("\n".join(["", *lines]))
    for part in failed:
        print(f"measure: {part.file} was not measured", file=sys.stderr)
    if not drawn and not given.parts:
        print("measure: not everything was drawn; what was not is above", file=sys.stderr)
    sys.exit(1 if failed or not (drawn or given.parts) else 0)


def publish(results, failed):
    """Copies what was measured. What a part that failed has said is half a page, unless it has written
    what it writes at its end."""
    halves = {part.file for part in failed if not (part.writes and written(part, results))}
    for path in sorted(results.iterdir()):
        if path.name not in halves:
            shutil.copy(path, SOURCE / "results")
    print("measure: benches/results, BENCHMARKS.md and README.md have what was measured", flush=True)


if __name__ == "__main__":
    main()
