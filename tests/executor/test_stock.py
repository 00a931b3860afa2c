# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The same requests to the stock executor and to ours, and the same answers."""

import os
import re
import struct
import subprocess
import unittest

import programs
from sessions import (
    DYLIBS, EXECUTOR, MANAGER, MAPPER, MEMORY, NOTHING, R, RUN, RW, RX, Case, start, wrapper,
)
from wire import Failed, Session, call, pair, sequence, string, u8, u32, u64


def actions_errors(text):
    """What is said of several: ours says of which actions, and what comes first."""
    return text and re.sub("allocation action at 0x[0-9a-f]+: ", "", text.replace("; then ", "\n"))


class LikeStock(Case):
    """Each scenario is played with both."""

    def both(self, llvm, scenario):
        answers = []
        for executor in (programs.stock_executor(llvm), EXECUTOR):
            with Session([executor], llvm) as session:
                said = scenario(session)
                code, out, _ = session.finish()
                answers.append((said, code, out))
        self.assertEqual(*answers)
        return answers[0][0]

    def test_everything_that_stock_publishes_is_published(self):
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                with Session([programs.stock_executor(llvm)], llvm) as theirs, start(llvm) as ours:
                    self.assertGreater(len(theirs.symbols), 15)
                    self.assertLessEqual(set(theirs.symbols), set(ours.symbols))
                    for field in ("triple", "page_size", "map", "rest"):
                        self.assertEqual(getattr(theirs.setup, field), getattr(ours.setup, field))

    def test_what_linked_code_finds_by_dlsym(self):
        for llvm in programs.LLVM:
            command = [programs.tool("nm"), "-D", "--defined-only", programs.stock_executor(llvm)]
            names = re.findall("llvm_orc_[A-Za-z]+", subprocess.check_output(command, text=True))
            # Frames are registered before they are deregistered.
            names.sort(key=lambda name: "_deregister" in name)
            self.assertGreater(len(names), 2)

            def scenario(session):
                nothing = wrapper(session, "nothing")
                answers = {}
                for name in names:
                    args = u64(nothing) + u64(nothing + 16)
                    if "GDB" in name and llvm > 16:
                        args += u8(0)
                    by_name = name.encode() + b"\0" + args
                    answers[name] = session.call(wrapper(session, "by_name"), by_name)
                return answers

            with self.subTest(llvm=llvm):
                self.assertEqual(set(self.both(llvm, scenario).values()), {b"\0"})

    def lookup(self, session, requests):
        """Answers of the lookup of the session's generation, addresses as whether they are 0."""
        instance = u64(session.symbols[DYLIBS + "_Instance"])
        answer = session.ask(DYLIBS + "_open_wrapper", instance + string("") + u64(0))
        process = u64(answer.expected(answer.u64))
        results = []
        for names in requests:
            wire = sequence(string(name) + u8(required) for name, required in names)
            if DYLIBS + "_resolve_wrapper" in session.symbols and self.llvm == 22:
                answer = session.ask(DYLIBS + "_resolve_wrapper", process + wire)
                element = lambda: answer.optional(answer.definition)
            else:
                answer = session.ask(DYLIBS + "_lookup_wrapper", instance + process + wire)
                element = answer.u64 if self.llvm <= 16 else answer.definition
            try:
                found = answer.expected(lambda: answer.sequence(element))
            except Failed as failed:
                found = str(failed)
            else:
                found = [
                    item and ((item != 0) if self.llvm <= 16 else (item[0] != 0, *item[1:]))
                    for item in found
                ]
            results.append((names, found, len(answer.data) - answer.offset))
        return results

    def test_lookups(self):
        present, absent = "getpid", "no_such_symbol_anywhere"
        requests = [
            [],
            [(present, 1)],
            [(present, 0), (absent, 0), (present, 1)],
            [("", 0)],
            [(absent, 1)],
            [(absent, 0)] * 56,
        ]
        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                self.llvm = llvm
                # Required and without name: the stock executor of 22 aborts.
                more = [[("", 1)]] if llvm < 22 else []
                self.both(llvm, lambda session: self.lookup(session, requests + more))

    def test_libraries(self):
        def scenario(session):
            instance = u64(session.symbols[DYLIBS + "_Instance"])
            said = []
            for path, mode in (("/nonexistent.so", 0), ("", 1), ("libm.so.6", 0)):
                answer = session.ask(DYLIBS + "_open_wrapper", instance + string(path) + u64(mode))
                try:
                    answer.expected(answer.u64)
                    said.append("opened")
                except Failed as failed:
                    said.append(str(failed))
            return said

        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_no_bytes(self):
        """lli asks for them."""
        later, nothing = sequence([u64(0)]), sequence([]) + NOTHING

        def scenario(session):
            instance = u64(session.symbols[MANAGER + "_Instance"])
            reserve, place, release = (
                MANAGER + f"_{name}_wrapper"
                for name in ("reserve", *(("initialize", "release") if self.llvm == 22 else ("finalize", "deallocate")))
            )
            segment = sequence([u8(RW) + u64(0) + u64(0) + string(b"")])
            return [
                session.call(function, instance + args)
                for function, args in (
                    (release, later),
                    (reserve, u64(0)),
                    (reserve, u64(0)),
                    (release, later),
                    (release, later),
                    (release, sequence([])),
                    (place, nothing),
                    (reserve, u64(0)),
                    (place, nothing),
                    (place, segment + NOTHING),
                    (release, later),
                    (release, later),
                )
            ]

        for llvm in programs.LLVM:
            with self.subTest(llvm=llvm):
                self.llvm = llvm
                said = self.both(llvm, scenario)
                self.assertEqual(said[1], b"\1" + u64(0))

    def test_running(self):
        def scenario(session):
            said = []
            if RUN + "_void_function_wrapper" in session.symbols:
                # mov eax, edi; neg eax; ret; and main: mov eax, [rsi]'s first byte, minus argc
                instance = session.symbols[MANAGER + "_Instance"]
                base = session.ask(MANAGER + "_reserve_wrapper", u64(instance) + u64(4096))
                base = base.expected(base.u64)
                code = bytes.fromhex("89f8 f7d8 c3") + bytes(11)
                code += bytes.fromhex("488b06 0fb600 29f8 c3")
                wire = sequence([u8(RX) + u64(base) + u64(4096) + string(code)]) + NOTHING
                name = "_initialize_wrapper" if self.llvm == 22 else "_finalize_wrapper"
                session.call(MANAGER + name, u64(instance) + wire)
                args = u64(base) + u32(17)
                said.append(session.call(RUN + "_int_function_wrapper", args))
                for strings in (["abc"], ["\x05", "x", ""], [""]):
                    args = u64(base + 16) + sequence(map(string, strings))
                    said.append(session.call(RUN + "_main_wrapper", args))
            said.append(session.call(RUN + "_main_wrapper", b"short"))
            return said

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.llvm = llvm
                self.both(llvm, scenario)

    def refusals(self, session, requests):
        """What is said to each request, with addresses relative to the first reservation."""
        instance = u64(session.symbols[MANAGER + "_Instance"])
        answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(1 << 20))
        base = answer.expected(answer.u64)
        said = []
        for name, body, is_error in requests(base):
            answer = session.ask(f"{MANAGER}_{name}_wrapper", instance + body)
            if is_error:
                text = answer.error()
            else:
                try:
                    text = answer.expected(answer.u64) - base
                except Failed as failed:
                    text = str(failed)
            if isinstance(text, str):
                text = re.sub(
                    r"0x([0-9a-fA-F]{9,})", lambda hit: f"base+{int(hit.group(1), 16) - base:#x}", text
                )
            said.append((name, text))
        return said

    def test_the_memory_manager_of_22(self):
        def segment(base, offset, size, content=b"", group=RW):
            return u8(group) + u64(base + offset) + u64(size) + string(content)

        def requests(base):
            # Writable, or the stock executor dies of writing before it looks at what overlaps.
            one = sequence([segment(base, 0x1000, 0x1B88, b"data")])
            two = sequence([segment(base, 0x2000, 8)])
            yield "initialize", NOTHING + NOTHING, False
            yield "initialize", NOTHING + sequence([pair()]), False
            yield "initialize", sequence([segment(base, 0, 4, b"12345")]) + NOTHING, False
            yield "initialize", one + sequence([pair()]), False
            yield "initialize", two + NOTHING, False
            yield "initialize", one + NOTHING, False
            yield "deinitialize", sequence([u64(base)]), True
            yield "deinitialize", sequence([u64(16)]), True
            yield "deinitialize", sequence([u64(base + 0x1000)]), True
            yield "deinitialize", sequence([u64(base + 0x1000)]), True
            yield "deinitialize", NOTHING, True
            yield "release", sequence([u64(16)]), True
            yield "release", sequence([u64(base)]), True
            yield "release", sequence([u64(base)]), True

        self.both(22, lambda session: self.refusals(session, requests))

    def test_the_memory_manager_until_19(self):
        def segment(base, offset, size, content=b"", group=RW):
            return u8(group) + u64(base + offset) + u64(size) + string(content)

        def requests(base):
            yield "finalize", NOTHING + NOTHING, True
            yield "finalize", NOTHING + sequence([pair()]), True
            yield "finalize", sequence([segment(base, 0x1000, 8)]) + NOTHING, True
            yield "deallocate", sequence([u64(16)]), True
            yield "finalize", sequence([segment(base, 0, 8, b"data", R)]) + NOTHING, True
            yield "deallocate", sequence([u64(base)]), True
            yield "deallocate", sequence([u64(base)]), True

        for llvm in (14, 15, 16, 19):
            with self.subTest(llvm=llvm):
                self.both(llvm, lambda session: self.refusals(session, requests))

    def test_the_shared_memory_mapper(self):
        def scenario(session):
            instance = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", instance + u64(1 << 30))
            base, name = answer.expected(lambda: (answer.u64(), answer.string()))
            path = "/dev/shm" + name
            with open(path, "r+b") as file:
                os.unlink(path)
                file.write(b"\xb8" + u32(42) + b"\xc3")
            said = []
            for _ in range(2):
                segments = sequence([u8(RX) + u64(base) + u64(6), u8(RW) + u64(base + 4096) + u64(99)])
                answer = session.ask(
                    MAPPER + "_Initialize", instance + u64(base) + segments + sequence([pair()])
                )
                said.append(answer.expected(answer.u64) - base)
                said.append(session.call(RUN + "_void_function_wrapper", u64(base)))
                for keys in ([base], [base], [16], []):
                    answer = session.ask(
                        MAPPER + "_Deinitialize", instance + sequence(map(u64, keys))
                    )
                    said.append(answer.error())
            for bases in ([16], [base], [base]):
                answer = session.ask(MAPPER + "_Release", instance + sequence(map(u64, bases)))
                said.append(answer.error())
            return said

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def acting(self, session):
        """What makes actions that print words; one that begins with "!" fails."""
        says = wrapper(session, "says")

        def action(finalize, dealloc):
            words = [call(says, word.encode()) if word else b"" for word in (finalize, dealloc)]
            return pair(*words)

        return action

    def test_actions_of_the_memory_manager_until_19(self):
        def scenario(session):
            action = self.acting(session)
            instance = u64(session.symbols[MANAGER + "_Instance"])
            said = []

            def reserved():
                answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(4096))
                return answer.expected(answer.u64)

            def finalize(base, *actions):
                request = sequence([u8(RW) + u64(base) + u64(8) + string(b"data")]) + sequence(actions)
                answer = session.ask(MANAGER + "_finalize_wrapper", instance + request)
                said.append(actions_errors(answer.error()))

            def deallocate(*bases):
                request = instance + sequence(map(u64, bases))
                answer = session.ask(MANAGER + "_deallocate_wrapper", request)
                error = actions_errors(answer.error())
                # Of several errors, those of actions come last or in between.
                said.append(error and sorted(re.sub("0x[0-9a-f]{9,}", "", error).split("\n")))

            first, second, third, fourth = (reserved() for _ in range(4))
            # The stock executors call null.
            finalize(first, action("1a", "1x"), action("1b", ""), action("1c", "1z"))
            deallocate(first)
            finalize(second, action("2a", "2x"), action("2b", "2y"), action("!2c", "2z"), action("2d", ""))
            deallocate(second)
            finalize(third, action("3a", "!3x"), action("3b", "3y"), action("3c", "!3z"))
            deallocate(16, third, 32)
            finalize(fourth, action("4a", "4x"), action("4b", "4y"))
            return said

        for llvm in (14, 15, 16, 19):
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_actions_of_the_memory_manager_of_22(self):
        def scenario(session):
            action = self.acting(session)
            instance = u64(session.symbols[MANAGER + "_Instance"])
            answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(1 << 20))
            base = answer.expected(answer.u64)
            said = []

            def initialize(page, *actions):
                segment = u8(RW) + u64(base + 4096 * page) + u64(8) + string(b"data")
                request = instance + sequence([segment]) + sequence(actions)
                answer = session.ask(MANAGER + "_initialize_wrapper", request)
                try:
                    said.append(answer.expected(answer.u64) - base)
                except Failed as failed:
                    said.append(actions_errors(str(failed)))

            def undo(what, *offsets):
                request = instance + sequence(u64(base + offset) for offset in offsets)
                said.append(actions_errors(session.ask(f"{MANAGER}_{what}_wrapper", request).error()))

            initialize(1, action("1a", "1x"), pair(), action("1b", ""), action("1c", "1z"))
            undo("deinitialize", 4096)
            initialize(2, action("2a", "2x"), action("2b", "2y"), action("!2c", "2z"), action("2d", ""))
            initialize(3, action("3a", "!3x"), action("3b", "3y"), action("3c", "!3z"))
            initialize(4, action("4a", "4x"))
            undo("deinitialize", 3 * 4096, 4 * 4096)
            initialize(5, action("5a", "5x"), action("5b", "5y"))
            undo("release", 0)
            answer = session.ask(MANAGER + "_reserve_wrapper", instance + u64(1 << 20))
            base = answer.expected(answer.u64)
            initialize(6, action("6a", "6x"), action("6b", "6y"))
            return said

        self.both(22, scenario)

    def test_actions_of_the_shared_memory_mapper(self):
        def scenario(session):
            action = self.acting(session)
            instance = u64(session.symbols[MAPPER + "_Instance"])
            said = []

            def reserved():
                answer = session.ask(MAPPER + "_Reserve", instance + u64(1 << 20))
                base, name = answer.expected(lambda: (answer.u64(), answer.string()))
                os.unlink("/dev/shm" + name)
                return base

            def initialize(base, page, *actions):
                segments = sequence([u8(RW) + u64(base + 4096 * page) + u64(8)])
                request = instance + u64(base) + segments + sequence(actions)
                answer = session.ask(MAPPER + "_Initialize", request)
                try:
                    said.append(answer.expected(answer.u64) - base)
                except Failed as failed:
                    said.append(actions_errors(str(failed)))

            def undo(what, *addresses):
                request = instance + sequence(map(u64, addresses))
                said.append(actions_errors(session.ask(f"{MAPPER}_{what}", request).error()))

            base = reserved()
            initialize(base, 0, action("0a", "0x"), pair(), action("0b", ""), action("0c", "0z"))
            initialize(base, 1, action("1a", "1x"), action("1b", "1y"), action("!1c", "1z"))
            initialize(base, 2, action("2a", "2x"), action("2b", "!2y"), action("2c", "2z"))
            undo("Deinitialize", base, base + 2 * 4096)
            undo("Deinitialize", base)
            initialize(base, 3, action("3a", "3x"), action("3b", "3y"))
            undo("Release", base)
            initialize(reserved(), 4, action("4a", "4x"), action("4b", "4y"))
            return said

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_services_end_last_to_first(self):
        def scenario(session):
            action = self.acting(session)
            mapper = u64(session.symbols[MAPPER + "_Instance"])
            answer = session.ask(MAPPER + "_Reserve", mapper + u64(4096))
            base, name = answer.expected(lambda: (answer.u64(), answer.string()))
            os.unlink("/dev/shm" + name)
            actions = sequence([action("first", "mapper")])
            request = mapper + u64(base) + sequence([u8(RW) + u64(base) + u64(8)]) + actions
            mapped = session.call(MAPPER + "_Initialize", request)
            manager = u64(session.symbols[MANAGER + "_Instance"])
            answer = session.ask(MANAGER + "_reserve_wrapper", manager + u64(4096))
            base = answer.expected(answer.u64)
            name = "_initialize_wrapper" if session.llvm == 22 else "_finalize_wrapper"
            segments = sequence([u8(RW) + u64(base) + u64(8) + string(b"data")])
            actions = sequence([action("second", "manager")])
            managed = session.call(MANAGER + name, manager + segments + actions)
            return mapped[:1], managed[:1]

        for llvm in (16, 19, 22):
            with self.subTest(llvm=llvm):
                self.both(llvm, scenario)

    def test_memory_access(self):
        def scenario(session):
            instance = session.symbols[MANAGER + "_Instance"]
            base = session.ask(MANAGER + "_reserve_wrapper", u64(instance) + u64(4096))
            base = base.expected(base.u64)
            said = []
            for index, (name, size) in enumerate(
                (("uint8s", 1), ("uint16s", 2), ("uint32s", 4), ("uint64s", 8))
            ):
                value = struct.pack("<Q", 0x1122334455667788)[:size]
                write = sequence([u64(base + 16 * index + offset) + value for offset in (0, 5)])
                said.append(session.call(f"{MEMORY}_write_{name}_wrapper", write))
            write = sequence([u64(base + 64) + string("hello\0world\0"), u64(base + 80) + string("")])
            said.append(session.call(MEMORY + "_write_buffers_wrapper", write))
            for name in ("uint8s", "uint16s", "uint32s", "uint64s"):
                addresses = sequence(u64(base + offset) for offset in range(0, 96, 3))
                said.append(session.call(f"{MEMORY}_read_{name}_wrapper", addresses))
                said.append(session.call(f"{MEMORY}_read_{name}_wrapper", NOTHING))
            write = sequence([u64(base + 96) + u64(base), u64(base + 104) + u64(0)])
            said.append(session.call(MEMORY + "_write_pointers_wrapper", write))
            addresses = sequence([u64(base + 96), u64(base + 104), u64(base + 112)])
            answer = session.ask(MEMORY + "_read_pointers_wrapper", addresses)
            said.append([pointer and pointer - base for pointer in answer.sequence(answer.u64)])
            strings = sequence([u64(base + 64), u64(base + 70), u64(base + 200)])
            said.append(session.call(MEMORY + "_read_strings_wrapper", strings))
            ranges = sequence([u64(base) + u64(base + 96), u64(base) + u64(base)])
            said.append(session.call(MEMORY + "_read_buffers_wrapper", ranges))
            return said

        self.both(22, scenario)


if __name__ == "__main__":
    unittest.main()
