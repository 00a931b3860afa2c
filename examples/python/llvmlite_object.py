#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""llvmlite compiles, jitmem has the memory.

llvmlite's own engines (MCJIT, and LLJIT with either linker) take no memory manager: their memory is LLVM's. Its target
machine writes object files, though. Compiled for x86-64's large code model, these have references of 64 bits, which a host
resolves in a few lines.
"""

import ctypes
import struct
import sys

import jitmem
import llvmlite.binding as llvm

SOURCE = """
@counter = global i32 0
declare i32 @hear(i32)
define i32 @work(i32 %n) {
  %old = load i32, ptr @counter
  %new = add i32 %old, 1
  store i32 %new, ptr @counter
  %heard = call i32 @hear(i32 %n)
  %sum = add i32 %heard, %new
  ret i32 %sum
}
"""

NOBITS, RELA, SYMTAB = 8, 4, 2
ALLOCATED, WRITABLE, EXECUTABLE = 2, 1, 4
R_X86_64_64, R_X86_64_PC64 = 1, 24


def compile_object(source: str) -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(source)
    module.verify()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(opt=2, reloc="static", codemodel="large")
    return machine.emit_object(module)


class Section:
    def __init__(self, data: bytes, place: int) -> None:
        fields = struct.unpack_from("<IIQQQQIIQQ", data, place)
        _, self.kind, self.flags, _, offset, self.size, self.link, self.info, self.alignment, _ = fields
        self.content = b"" if self.kind == NOBITS else data[offset : offset + self.size]

    def segment(self) -> jitmem.Segment:
        protection = jitmem.READ
        if self.flags & EXECUTABLE:
            protection = jitmem.READ_EXEC
        elif self.flags & WRITABLE:
            protection = jitmem.READ_WRITE
        zeros = self.size - len(self.content)
        return jitmem.Segment(protection, len(self.content), zeros, max(self.alignment, 1))


def link(manager: jitmem.Manager, data: bytes, known: "dict[str, int]") -> "tuple[jitmem.Allocation, dict[str, int]]":
    """Puts an object file into memory. Answers the addresses of its symbols."""
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    sections = [Section(data, table + 64 * index) for index in range(count)]
    placed = [index for index, section in enumerate(sections) if section.flags & ALLOCATED and section.size]
    with manager.allocate([sections[index].segment() for index in placed], name="llvmlite") as graph:
        addresses = dict(zip(placed, graph.addresses))
        symbols = []
        (symtab,) = (section for section in sections if section.kind == SYMTAB)
        names = sections[symtab.link].content
        for name, _, _, index, value, _ in struct.iter_unpack("<IBBHQQ", symtab.content):
            text = names[name : names.index(b"\0", name)].decode()
            symbols.append((text, addresses[index] + value if index in addresses else known.get(text)))
        for segment, index in enumerate(placed):
            graph.write(segment, 0, sections[index].content)
        for section in sections:
            if section.kind != RELA or section.info not in addresses:
                continue
            for offset, info, addend in struct.iter_unpack("<QQq", section.content):
                (name, address), kind = symbols[info >> 32], info & 0xFFFFFFFF
                if kind not in (R_X86_64_64, R_X86_64_PC64) or address is None:
                    raise ValueError(f"relocation {kind} of {name or 'a section'}: not known")
                origin = addresses[section.info] + offset if kind == R_X86_64_PC64 else 0
                value = (address + addend - origin) % (1 << 64)
                graph.write(placed.index(section.info), offset, struct.pack("<Q", value))
        return graph.finalize(), {name: address for name, address in symbols if name and address is not None}


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
def hear(number: int) -> int:
    return 2 * number


def main() -> int:
    with jitmem.Manager() as manager:
        known = {"hear": ctypes.cast(hear, ctypes.c_void_p).value}
        allocation, symbols = link(manager, compile_object(SOURCE), known)
        work = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(symbols["work"])
        answers = [work(20), work(20)]
        place = jitmem.lookup(symbols["work"])
        print(f"LLVM {'.'.join(map(str, llvm.llvm_version_info))} of llvmlite, code in jitmem: {answers}, {place}")
        allocation.deallocate()
        return 0 if answers == [41, 42] and place is not None else 1


if __name__ == "__main__":
    sys.exit(main())
