#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Records what real programs ask of a memory manager, for jitmem-bench-peers.

record.py FOLDER [PRELOAD...]

It writes FOLDER/NAME.txt.gz for each archive of PROGRAMS; where PRELOAD is libjitmem-llvm-22.so, for a
session of clang-repl that runs on it; and where it is libjitmem-llvm-14.so, for queries that PostgreSQL
compiles.

A trace has a line for each step: "+ CODE CONSTANTS DATA" for a graph that comes, its bytes of each
protection, and "- NUMBER" for one that goes, counted from 0 as they came. Members of an archive come in its
order and stay; then the program is linked anew, member by member: each goes, in an order that is drawn with
a fixed seed, and comes again. Sessions' steps are their own, as gdb sees them (record_session.py).
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
POSTGRES = "/usr/lib/postgresql/15/bin"


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
        body = f"{{ int sum = {i}; for (int j = 0; j < n; ++j) sum += j * n; return sum; }}"
        yield f"int square{i}(int n) {body}"
        yield f"int value{i} = square{i}({i + 3}) + twice({i}.5);"
        yield f'const char *name{i} = "value number {i}";'
        if i % 3 == 0:
            yield f'auto lambda{i} = [](long n) {{ return printf("%ld %s\\n", n, name{i}); }};'
            yield f"lambda{i}(value{i});"
        if i % 4 == 0:
            yield f"double gone{i}[{16 * i + 16}] = {{1, 2, 3}};"
            yield "%undo"
    yield "%quit"


def gdb(trace, *arguments, **options):
    """gdb with the recorder, which writes to the file."""
    recorder = Path(__file__).with_name("record_session.py")
    command = ["gdb", "-nx", "-batch", "-ex", "set startup-with-shell off", *arguments]
    return subprocess.Popen(
        [part.format(recorder=recorder) for part in command],
        env={**os.environ, "RECORD_TO": str(trace), "DEBUGINFOD_URLS": ""},
        **options,
    )


def record_clang_repl(preload):
    with tempfile.TemporaryDirectory() as folder:
        trace, inputs = Path(folder, "trace"), Path(folder, "inputs")
        inputs.write_text("\n".join(session(60)) + "\n")
        preloaded = f"set environment LD_PRELOAD {Path(preload).resolve()}"
        program = ["--args", shutil.which(CLANG_REPL)]
        commands = ["-ex", preloaded, "-ex", "source {recorder}", *program]
        with inputs.open() as text:
            if gdb(trace, *commands, stdin=text, stdout=subprocess.DEVNULL).wait():
                sys.exit("record.py: gdb failed with clang-repl")
        return trace.read_text()


def record_postgres(preload):
    """The queries of tests/preload/postgres.py in one backend, with cursors that stay open meanwhile."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests/preload"))
    import postgres

    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    user = user if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        trace, home = Path(folder, "trace"), folder + "/home"
        server = postgres.Server(POSTGRES, home, user, postgres.install(preload, folder))
        os.chmod(folder, 0o711)
        os.mkdir(home)
        if user:
            shutil.chown(home, "postgres", "postgres")
        make = [server.tool("initdb"), "-D", home + "/data", "-A", "trust", "-N"]
        subprocess.run([*user, *make], check=True, cwd="/", stdout=subprocess.DEVNULL)
        with server:
            backend = postgres.Session(server)
            backend.run("set jit=off", postgres.TABLES, postgres.JIT)
            # LLVM is loaded with the first query, and jitmem with it.
            backend.run("select sum(abalance) from accounts")
            attached = ["-p", str(backend.pid), "-ex", "source {recorder}"]
            recorder = gdb(trace, *attached, stdout=subprocess.PIPE, text=True)
            for line in recorder.stdout:
                if line.startswith("record_session: "):
                    break
            backend.run(*postgres.ANALYTIC, *postgres.short_queries(100))
            cursor = "declare c{0} cursor for select abalance + {0} from accounts"
            backend.run("begin", *(cursor.format(i) for i in range(postgres.OPEN)))
            backend.run(*(f"fetch 1 from c{i}" for i in range(postgres.OPEN)))
            backend.run(*postgres.short_queries(100), *postgres.ANALYTIC)
            backend.close()
            recorder.communicate()
        return trace.read_text()


SESSIONS = {
    "libjitmem-llvm-22.so": ("clang-repl", record_clang_repl),
    "libjitmem-llvm-14.so": ("postgresql", record_postgres),
}


def write(folder, name, trace):
    # Without a time, the same steps give the same bytes.
    (Path(folder) / f"{name}.txt.gz").write_bytes(gzip.compress(trace.encode(), mtime=0))


def main(folder, *preloads):
    for name, archive in PROGRAMS.items():
        path = LIBRARIES / archive
        if not path.exists():
            sys.exit(f"record.py: {path}: not found; install the package that has it")
        write(folder, name, record(path))
    for preload in preloads:
        name, of_session = SESSIONS[Path(preload).name]
        write(folder, name, of_session(preload))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
