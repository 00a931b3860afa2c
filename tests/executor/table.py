# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Which controllers have run which programs."""

from catalogue import NOTES, RUNTIME

SHORT = {"generic": "gen", "simple-remote": "rem", "shared": "shm"}


class Table:
    """Rows are programs; columns controllers with a memory manager, and with the ORC runtime (+rt)."""

    def __init__(self):
        self.cells = {}

    def note(self, cell, outcome):
        """The first failure counts, whatever comes of the rest of a test."""
        if self.cells.get(cell) != "failed":
            self.cells[cell] = outcome

    def text(self):
        if not self.cells:
            return ""
        cells = sorted(self.cells, key=lambda cell: (str(cell[0]), cell[2] == RUNTIME))
        columns = list(dict.fromkeys(cell[:3] for cell in cells))
        names = list(dict.fromkeys(cell[3] for cell in self.cells))
        reasons = []

        def mark(column, name):
            outcome = self.cells.get((*column, name), "")
            marks = {"passed": "ok", "failed": "FAILED", "": "."}
            if outcome in marks:
                return marks[outcome]
            if outcome not in reasons:
                reasons.append(outcome)
            return f"[{reasons.index(outcome) + 1}]"

        def count(column, wanted):
            return sum(wanted(self.cells[cell]) for cell in self.cells if cell[:3] == column)

        rows = [
            ["LLVM", *[str(llvm) for llvm, _, _ in columns]],
            ["", *[SHORT[mode] + "+rt" * (linked == RUNTIME) for _, mode, linked in columns]],
        ]
        rows += [[name, *[mark(column, name) for column in columns]] for name in names]
        for label, wanted in (
            ("passed", lambda outcome: outcome == "passed"),
            ("failed", lambda outcome: outcome == "failed"),
            ("can't run", lambda outcome: outcome not in ("passed", "failed")),
        ):
            counts = [count(column, wanted) for column in columns]
            rows.append([f"{label} ({sum(counts)})", *map(str, counts)])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows
        ]
        notes = [
            f"[{index}] {reason}, with the stock executor as well"
            for index, reason in enumerate(reasons, 1)
        ]
        return "\n".join(["", *lines, *notes, *NOTES])
