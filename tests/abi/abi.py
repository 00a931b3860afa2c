#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compares what two builds of libjitmem.so promise to programs, by libabigail.

usage: abi.py dump PREFIX FILE    writes what an installed jitmem promises
       abi.py compare OLD NEW     each a prefix or such a file; fails if programs of OLD may not run with NEW

Symbols and their versions are the library's, types are those of jitmem.h: the library's own debug information
describes Rust, where handles are structs that no program sees. So libabigail looks at a library of the same symbols
that is compiled from the header.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

# What abidiff counts in its summaries of functions, symbols and types. What is added is no break; what struct_size
# is for it has filtered out.
BREAKS = re.compile(r"summary:.*?\b[1-9]\d* (?:removed|changed)|SONAME changed", re.IGNORECASE)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported(library):
    """The functions of a library, each with its version."""
    lines = (line.split() for line in run("nm", "-D", "--defined-only", library).splitlines())
    return dict(words[2].split("@@") for words in lines if words[1] == "T")


def declared(header):
    """The functions of jitmem.h, each with its declaration."""
    found = re.findall(r"^((?!typedef\b)[a-z][^;{}()/#]*\b(jitmem_\w+)\([^;{}]*\));", header, re.MULTILINE)
    return {name: declaration for declaration, name in found}


def growing(header):
    """The structs that begin with their size: a field that is added at the end changes nothing for older programs."""
    return re.findall(r"^typedef struct (\w+) \{\n(?:\s*///.*\n)*\s*size_t struct_size;", header, re.MULTILINE)


def dump(prefix, out):
    """Writes the library's promises, as libabigail has them."""
    library, header = prefix / "lib" / "libjitmem.so", (prefix / "include" / "jitmem.h").read_text()
    symbols, declarations = exported(library), declared(header)
    if symbols.keys() != declarations.keys():
        different = sorted(symbols.keys() ^ declarations.keys())
        sys.exit(f"abi: {library} and its header differ in {', '.join(different)}")
    soname = re.search(r"SONAME.*\[(.*)\]", run("readelf", "-d", library))[1]
    with tempfile.TemporaryDirectory() as folder:
        source, versions, stub = (pathlib.Path(folder, name) for name in ("stub.c", "stub.map", "libjitmem.so"))
        bodies = (f"{declaration} {{ __builtin_trap(); }}\n" for _, declaration in sorted(declarations.items()))
        source.write_text("#include <jitmem.h>\n" + "".join(bodies))
        nodes = {}
        for name, version in symbols.items():
            nodes.setdefault(version, []).append(f"{name};")
        versions.write_text("".join(f"{node} {{ global: {' '.join(names)} }};\n" for node, names in nodes.items()))
        run(
            *("cc", "-g", "-fno-eliminate-unused-debug-types", "-shared", "-fPIC", "-nostdlib"),
            *(f"-ffile-prefix-map={folder}=.", f"-I{prefix / 'include'}", f"-Wl,-soname,{soname},--version-script,{versions}", source, "-o", stub),
        )
        locations = ("--no-corpus-path", "--no-comp-dir-path", "--no-show-locs")
        run("abidw", *locations, "--load-all-types", "--out-file", out, stub)
    # What may grow is noted in the file itself, behind what libabigail reads.
    with open(out, "a") as file:
        file.write(f"<!-- struct_size: {' '.join(growing(header))} -->\n")


def without_reached(said, new):
    """What abidiff says, less the types that it calls removed since a function of the new build takes them."""
    there = set(re.findall(r"<(?:class-decl|union-decl|enum-decl) name='(\w+)'", new))
    gone = re.findall(r"^\s*\[D\] '\w+ (\w+)'", said, re.MULTILINE)
    still = sum(name in there for name in gone)
    fewer = lambda count: f"{count[1]}{int(count[2]) - still} removed"
    return re.sub(r"(Unreachable types summary: )(\d+) removed", fewer, said)


def compare(old, new):
    """Says what changed; 0 if programs of the old build run with the new one."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, build in enumerate((old, new)):
            files.append(build)
            if build.is_dir():
                files[-1] = pathlib.Path(folder, f"{number}.abi")
                dump(build, files[-1])
        may_grow = re.search(r"<!-- struct_size: (.*) -->", files[0].read_text())[1].split()
        suppressions = pathlib.Path(folder, "suppressions")
        suppressions.write_text(
            "[suppress_type]\n  type_kind = struct\n  has_data_member_inserted_at = end\n"
            f"  name_regexp = ^({'|'.join(may_grow)})$\n"
        )
        command = ["abidiff", "--non-reachable-types", "--suppressions", suppressions]
        diff = subprocess.run([*command, *files], capture_output=True, text=True)
        counted = without_reached(diff.stdout, files[1].read_text())
    print(diff.stdout + diff.stderr, end="")
    # The lowest two bits are errors of its own, the next ones differences, the last of them what it knows to be a break.
    if diff.returncode & 3:
        sys.exit("abi: abidiff failed")
    # It knows a type that is reached now for one, too.
    known = diff.returncode & 8 and counted == diff.stdout
    if known or BREAKS.search(counted):
        print(f"abi: programs that were built with {old} may not run with {new}")
        return 1
    print(f"abi: programs that were built with {old} run with {new}")
    return 0


def main(command="", *paths):
    paths = [pathlib.Path(os.path.abspath(path)) for path in paths]
    match command, len(paths):
        case "dump", 2:
            dump(*paths)
            return 0
        case "compare", 2:
            return compare(*paths)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
