#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes order.ld: the functions that a backend of PostgreSQL calls, which the linker puts together.

usage: order.py LIBJITMEM-LLVM-14.SO [--pg DIR]

A page fault in a file maps 64 KiB around it, so functions that are called take the less memory the closer they lie.
Constants follow them, since those that are used lie all over their section. Callgrind says which functions are called, in a library
that is built with -DLinkerTakesOrder=OFF: it knows one section of code. Only memory depends on the list: what it lacks or has too
many is linked all the same.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

QUERIES = """\
create table accounts as select i as aid, i % 10 as bid, (i * 31) % 1000 as balance from generate_series(1, 1000) i;
set jit=on
set jit_above_cost=0
select sum(balance) from accounts
select balance * 2 + 3, bid from accounts where aid = 7 and balance >= 0
select balance * 2 + 3, bid from accounts where aid = 8 and balance >= 0
"""
#: Not called under valgrind, which has no mremap that makes a second view.
VIEWS = ["_ZN6jitmem6memory4view", "_ZN6jitmem6memory11writer_view"]
SCRIPT = """\
/* SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception */
/* Written by order.py, which says what for. What depends on the compiler's release is left out: hashes, and whether a function is cold. */
SECTIONS {{
  .text.called : {{
    *crtbeginS.o(.text)
    *libc_nonshared.a:*(.text)
{}
  }}
  .rodata.near : {{ *(.rodata .rodata.*) }}
}}
INSERT BEFORE .text;
"""


def called(preload, tools):
    """Names of the part's functions that were called."""
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="jitmem-order-") as folder:
        if user:
            shutil.chown(folder, "postgres", "postgres")
            os.chmod(folder, 0o755)
        shutil.copy(preload, folder)
        shutil.copytree(os.path.join(os.path.dirname(preload), "jitmem"), folder + "/jitmem")
        server, counts = os.path.join(tools, "postgres"), folder + "/counts"
        subprocess.run(
            [*user, os.path.join(tools, "initdb"), "-D", folder + "/data", "-A", "trust", "-N", "--no-instructions"],
            check=True, cwd="/", stdout=subprocess.DEVNULL,
        )
        subprocess.run(
            [*user, "valgrind", "--quiet", "--tool=callgrind", "--smc-check=all", "--demangle=no",
             "--callgrind-out-file=" + counts, server, "--single", "-D", folder + "/data", "postgres"],
            check=True, cwd="/", input=QUERIES, text=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "LD_PRELOAD": folder + "/" + os.path.basename(preload)},
        )
        return functions(pathlib.Path(counts).read_text())


def functions(counts):
    """Functions of the part that have counts of their own; names stand where they come first."""
    files, names, found, inside = {}, {}, set(), False
    for kind, number, name in re.findall(r"^(c?ob|c?fn)=\((\d+)\)(?: (.+))?$", counts, re.M):
        known = files if kind.endswith("ob") else names
        if name:
            known[number] = name
        if kind == "ob":
            inside = re.search(r"/llvm-\d+\.so$", files[number]) is not None
        elif kind == "fn" and inside:
            found.add(names[number])
    return found


def pattern(name):
    """The name as it is with any compiler of its kind."""
    name = re.sub(r"'\d+$", "", name)
    name = re.sub(r"17h[0-9a-f]{16}E.*", "17h*", name)
    # Constructors of complete objects and of bases are one function.
    name = re.sub(r"([CD])[12]E", r"\1*E", name)
    name = re.sub(r"\.(isra|constprop|part|llvm|\d+)\b.*", "*", name)
    return re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("preload", type=os.path.realpath)
    parser.add_argument("--pg", default="/usr/lib/postgresql/15/bin")
    options = parser.parse_args()
    names = {pattern(name) for name in called(options.preload, options.pg) if re.match("_Z|_R|jitmem_", name)}
    names = sorted(names | {name + "*" for name in VIEWS})
    script = SCRIPT.format("\n".join(f"    *(.text*.{name})" for name in names))
    pathlib.Path(__file__).with_name("order.ld").write_text(script)


main()
