#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Writes the picture of README, two-views.svg: python3 docs/two_views.py >docs/two-views.svg"""

COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866"]
# Pages of one kind: its name, the executor's protection, and (object, width) from left to right.
ROWS = [
    ("code", "read + execute", [(0, 46), (1, 30), (2, 58), (3, 22), (4, 40), (5, 26), (6, 34), (7, 20)]),
    ("constants", "read", [(0, 24), (1, 40), (2, 20), (4, 62), (5, 34), (6, 26), (7, 44)]),
    ("data", "read + write", [(0, 34), (2, 24), (3, 52), (5, 30), (7, 38)]),
]
WIDTH, TOP, STEP, HEIGHT = 900, 78, 82, 44
LEFT, MIDDLE, RIGHT, SIDE, PAGES = 20, 290, 710, 170, 320


def text(x, y, words, size=14, anchor="middle", weight="normal", fill="#1a1a1a"):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{fill}">{words}</text>'
    )


def box(x, y, width, height, fill, stroke, dash=""):
    dash = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" '
        f'fill="{fill}" stroke="{stroke}"{dash}/>'
    )


def arrow(x1, x2, y):
    return f'<path d="M{x1} {y} H{x2}" stroke="#555555" stroke-width="1.5" marker-end="url(#tip)"/>'


def row(y, name, protection, objects):
    middle = y + HEIGHT / 2
    yield box(LEFT, y, SIDE, HEIGHT, "#fff4e5", "#b36b00")
    yield text(LEFT + SIDE / 2, middle + 5, "read + write")
    yield arrow(LEFT + SIDE + 4, MIDDLE - 8, middle)
    yield box(MIDDLE, y, PAGES, HEIGHT, "#ffffff", "#555555")
    x = MIDDLE + 3
    for number, width in objects:
        yield box(x, y + 3, width, HEIGHT - 6, COLOURS[number], "#ffffff")
        x += width + 1
    for page in range(1, 4):
        line = MIDDLE + page * PAGES / 4
        yield (
            f'<path d="M{line} {y - 4} V{y + HEIGHT + 4}" stroke="#555555" stroke-dasharray="3 3"/>'
        )
    yield text(MIDDLE, y - 9, name, size=13, anchor="start", fill="#444444")
    yield arrow(RIGHT - 4, MIDDLE + PAGES + 8, middle)
    yield box(RIGHT, y, SIDE, HEIGHT, "#e6f2ff", "#00539c")
    yield text(RIGHT + SIDE / 2, middle + 5, protection)


def picture():
    bottom = TOP + len(ROWS) * STEP
    height = bottom + 36
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">'
    )
    yield "<title>Two views of the same pages, with many linked objects packed into each page</title>"
    yield (
        '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0 L9 4 L0 8 Z" fill="#555555"/></marker></defs>'
    )
    yield f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    yield text(LEFT + SIDE / 2, 24, "the linker's view", weight="bold")
    yield text(LEFT + SIDE / 2, 43, "never executable", size=12, fill="#444444")
    yield text(MIDDLE + PAGES / 2, 24, "memory pages", weight="bold")
    yield text(
        MIDDLE + PAGES / 2, 43, "each colour is one linked object", size=12, fill="#444444"
    )
    yield text(RIGHT + SIDE / 2, 24, "the running code's view", weight="bold")
    yield text(RIGHT + SIDE / 2, 43, "its protection never changes", size=12, fill="#444444")
    for number, (name, protection, objects) in enumerate(ROWS):
        yield from row(TOP + number * STEP, name, protection, objects)
    yield text(
        MIDDLE + PAGES / 2,
        bottom + 12,
        "dashed lines: page boundaries",
        size=12,
        fill="#444444",
    )
    yield text(
        LEFT + SIDE / 2, bottom + 12, "in the linking process", size=12, fill="#444444"
    )
    yield text(
        RIGHT + SIDE / 2, bottom + 12, "there or in another process", size=12, fill="#444444"
    )
    yield "</svg>"


print("\n".join(picture()))
