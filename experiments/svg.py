"""
Small pictures as SVG, for docs/tour.ipynb: notebooks draw what has `_repr_svg_`, and nothing has to
be installed.

    lines(x, {name: y})        curves over numbers x
    chart({name: [(x, y)]})    curves with numbers x of their own
    words(rows, marked)        texts, a row each, some of their words marked
    tables({name: (n, m)})     tables of probabilities side by side, the darker the larger
"""
import math
from html import escape

INKS = "#6a2fb5", "#b3261e", "#1b6e8c", "#8a6d00", "#2e7d32"
FLOOR = 0.01  # of logarithmic charts
FONT = 'font-family="sans-serif" font-size="12"'


class Picture(str):
    def _repr_svg_(self):
        return str(self)


def picture(width, height, parts):
    """-> a Picture with a white ground, readable in the dark too."""
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return Picture(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                   f'{FONT}>{ground}{"".join(parts)}</svg>')


def text_at(x, y, text, ink="black", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" text-anchor="{anchor}">' \
           f'{escape(str(text))}</text>'


def lines(x, curves, title="", across=""):
    """Curves {name: values}, as long as the numbers x. A single value is a level."""
    return chart({name: [(float(a), float(b)) for a, b in
                         zip(x, y if hasattr(y, "__len__") else [y] * len(x))]
                  for name, y in curves.items()}, title, across)


def ticks(least, most, log):
    """Three numbers for the axis; of a logarithmic one 1, 2, 5, 10, 20, ... in between."""
    if not log:
        return [least, (least + most) / 2, most]
    found = [a * 10.0**n for n in range(-9, 10) for a in (1, 2, 5)]
    return [a for a in found if least <= a * (1 + 1e-9) and a <= most * (1 + 1e-9)]


def chart(curves, title="", across="", log=False):
    """Curves {name: [(x, y)]}. log: y is drawn as its logarithm, values below 0.01 as 0.01."""
    width, height, left, top = 560, 300, 60, 30
    scale = (lambda v: math.log(max(v, FLOOR))) if log else lambda v: v
    xs, ys = ([pair[i] for y in curves.values() for pair in y] for i in (0, 1))
    most = max(ys) or 1.0
    least = max(FLOOR, min(ys)) if log else min(0.0, *ys)
    if log:  # to a round number on either side
        marks = ticks(least / 2.5, most * 2.5, log)
        least, most = max(m for m in marks if m <= least), min(m for m in marks if m >= most)
    first, last = min(xs), max(xs)
    place = lambda a: left + (a - first) / (last - first) * (width - left - 150)
    level = lambda v: height - 40 - (scale(v) - scale(least)) / (scale(most) - scale(least)) * (
        height - 40 - top)
    parts = [text_at(left, 18, title), text_at(left, height - 6, across)]
    for v in ticks(least, most, log):
        parts += [text_at(left - 6, level(v) + 4, f"{v:g}" if log else f"{v:.2f}", anchor="end"),
                  f'<path d="M{left} {level(v):.1f}H{width - 150}" stroke="#ddd"/>']
    parts += [text_at(place(a), height - 22, f"{a:.3g}", anchor="middle") for a in (first, last)]
    for n, (name, y) in enumerate(curves.items()):
        ink = INKS[n % len(INKS)]
        path = "L".join(f"{place(a):.1f} {level(v):.1f}" for a, v in y)
        parts += [f'<path d="M{path}" fill="none" stroke="{ink}" stroke-width="2"/>',
                  text_at(width - 142, top + 16 * n + 10, name, ink)]
    return picture(width, height, parts)


def words(rows, marked, labels):
    """Texts, a row each, as lists of words. marked: which of the words stand out; labels: of rows
    """
    parts, width = [], 130 + 68 * max(map(len, rows))
    for i, (row, marks, label) in enumerate(zip(rows, marked, labels)):
        parts.append(text_at(6, 22 + 24 * i, label, "#666"))
        for j, (word, mark) in enumerate(zip(row, marks)):
            if mark:
                parts.append(f'<rect x="{122 + 68 * j}" y="{8 + 24 * i}" width="66" height="20" '
                             'rx="4" fill="#e6dcf5"/>')
            parts.append(text_at(155 + 68 * j, 22 + 24 * i, word, anchor="middle"))
    return picture(width, 14 + 24 * len(rows), parts)


def tables(named, down, across):
    """Tables of probabilities (n, m) side by side; down, across: names of rows and columns."""
    size, parts, left = 26, [], 90
    width = left + len(across) * size + 26
    for n, (name, table) in enumerate(named.items()):
        at, most = n * width, max(map(max, table))
        parts.append(text_at(at + left, 16, name))
        for i, row in enumerate(table):
            parts.append(text_at(at + left - 6, 90 + size * i + 17, down[i], anchor="end"))
            parts += [f'<rect x="{at + left + size * j}" y="{90 + size * i}" width="{size - 1}" '
                      f'height="{size - 1}" fill="{INKS[0]}" fill-opacity="{float(p / most):.3f}" '
                      'stroke="#ddd"/>' for j, p in enumerate(row)]
        parts += [f'<g transform="translate({at + left + size * j + 17} 84) rotate(-60)">'
                  f"{text_at(0, 0, word)}</g>" for j, word in enumerate(across)]
    return picture(width * len(named), 100 + size * len(down), parts)
