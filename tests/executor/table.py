# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Which controllers have run which programs."""

from catalogue import ABSENT, RUNTIME

SHORT = {"generic": "gen", "simple-remote": "rem", "shared": "shm"}


class Table:
    """Rows are programs, columns are controllers with a memory manager, with ORC runtime (+rt) or not."""

    def __init__(self):
        self.cells = {}

    def note(self, cell, outcome):
        """The first failure counts, whatever comes of the rest of a test."""
        if self.cells.get(cell) != "failed":
            self.cells[cell] = outcome

    def text(self):
        columns = list(dict.fromkeys(cell[:3] for cell in sorted(self.cells, key=lambda c: (c[0], c[2] == RUNTIME))))
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
            ["", *[str(llvm) for llvm, _, _ in columns]],
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
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
        lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
        notes = [f"[{index + 1}] {reason}; shown with the stock executor" for index, reason in enumerate(reasons)]
        notes += [reason for llvm, reason in ABSENT.items()]
        return "\n".join(["", *lines, *notes])
