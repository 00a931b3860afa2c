#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Records what real programs ask of a memory manager, for jitmem-bench-peers.

record.py FOLDER [PRELOAD]    writes FOLDER/NAME.txt.gz for each archive of PROGRAMS; and for a session of clang-repl
                              that runs on PRELOAD, which is libjitmem-llvm-22.so

A trace has a line for each step: "+ CODE CONSTANTS DATA" for a graph that comes, its bytes of each
protection laid out as JITLink does, and "- NUMBER" for one that goes, counted from 0 as they came.
Members of an archive come in its order and stay; then the program is linked anew, member by member: each
goes, in an order that is drawn with a fixed seed, and comes again. The session's steps are its own, as gdb sees
them (record_session.py).
"""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
# Debian's packages liblua5.4-dev, libsqlite3-dev, libzstd-dev, libssl-dev and libpython3.11-dev.
PROGRAMS = {
    "lua": "liblua5.4.a",
    "sqlite": "libsqlite3.a",
    "zstd": "libzstd.a",
    "libcrypto": "libcrypto.a",
    "libpython": "libpython3.11.a",
}
READOBJ = "llvm-readobj-22"
CLANG_REPL = "clang-repl-22"


def aligned(offset, alignment):
    return (offset + alignment - 1) // alignment * alignment


def plan(sections):
    """Bytes of code, constants and data: sections in their order, each at its alignment, and
    zero-filled ones last."""
    sizes = {"code": 0, "constants": 0, "data": 0}
    ordered = sorted(sections, key=lambda section: section["Type"]["Name"] == "SHT_NOBITS")
    for section in ordered:
        flags = {flag["Name"] for flag in section["Flags"]["Flags"]}
        if "SHF_ALLOC" not in flags or section["Size"] == 0:
            continue
        kind = (
            "code" if "SHF_EXECINSTR" in flags else "data" if "SHF_WRITE" in flags else "constants"
        )
        alignment = max(1, section["AddressAlignment"])
        sizes[kind] = aligned(sizes[kind], alignment) + section["Size"]
    return tuple(sizes.values())


def plans(archive):
    command = [READOBJ, "--sections", "--elf-output-style=JSON", archive]
    objects = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for member in objects:
        sections = [entry["Section"] for entry in member["Sections"]]
        sizes = plan(sections)
        if any(sizes):
            yield sizes


def record(archive):
    members = list(plans(archive))
    lines = [f"+ {code} {constants} {data}" for code, constants, data in members]
    order = list(range(len(members)))
    random.Random(1).shuffle(order)
    for number in order:
        lines += [f"- {number}", "+ {} {} {}".format(*members[number])]
    return "\n".join(lines) + "\n"


def session(inputs):
    """Definitions, expressions, templates and loops, some of which are taken back."""
    yield 'extern "C" int printf(const char *, ...);'
    yield "template <class T> T twice(T value) { return value + value; }"
    for i in range(inputs):
        yield f"int square{i}(int n) {{ int sum = {i}; for (int j = 0; j < n; ++j) sum += j * n; return sum; }}"
        yield f"int value{i} = square{i}({i + 3}) + twice({i}.5);"
        yield f'const char *name{i} = "value number {i}";'
        if i % 3 == 0:
            yield f'auto lambda{i} = [](long n) {{ return printf("%ld %s\\n", n, name{i}); }};'
            yield f"lambda{i}(value{i});"
        if i % 4 == 0:
            yield f"double gone{i}[{16 * i + 16}] = {{1, 2, 3}};"
            yield "%undo"
    yield "%quit"


def record_session(preload):
    with tempfile.TemporaryDirectory() as folder:
        trace, inputs = Path(folder, "trace"), Path(folder, "inputs")
        inputs.write_text("\n".join(session(60)) + "\n")
        commands = [
            "set startup-with-shell off",
            f"set environment LD_PRELOAD {Path(preload).resolve()}",
            f"source {Path(__file__).with_name('record_session.py')}",
        ]
        gdb = ["gdb", "-batch", *(word for command in commands for word in ("-ex", command))]
        subprocess.run(
            [*gdb, "--args", shutil.which(CLANG_REPL)],
            check=True,
            stdin=inputs.open(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "RECORD_TO": str(trace), "DEBUGINFOD_URLS": ""},
        )
        return trace.read_text()


def write(folder, name, trace):
    # Without a time, the same steps give the same bytes.
    (Path(folder) / f"{name}.txt.gz").write_bytes(gzip.compress(trace.encode(), mtime=0))


def main(folder, preload=None):
    for name, archive in PROGRAMS.items():
        path = LIBRARIES / archive
        if not path.exists():
            sys.exit(f"record.py: {path}: not found; install the package that has it")
        write(folder, name, record(path))
    if preload:
        write(folder, "clang-repl", record_session(preload))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
