#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Records what objects of real programs ask of a memory manager, for jitmem-bench-peers.

record.py FOLDER     writes FOLDER/NAME.txt.gz for each archive of PROGRAMS that is installed

A trace has a line for each step: "+ CODE CONSTANTS DATA" for a graph that comes, its bytes of each
protection laid out as JITLink does, and "- NUMBER" for one that goes, counted from 0 as they came.
Members of an archive come in its order and stay; then the program is linked anew, member by member: each
goes, in an order that is drawn with a fixed seed, and comes again.
"""

import gzip
import json
import random
import subprocess
import sys
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


def main(folder):
    for name, archive in PROGRAMS.items():
        path = LIBRARIES / archive
        if not path.exists():
            sys.exit(f"record.py: {path}: not found; install the package that has it")
        # Without a time, the same objects give the same bytes.
        packed = gzip.compress(record(path).encode(), mtime=0)
        (Path(folder) / f"{name}.txt.gz").write_bytes(packed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
