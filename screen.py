"""
What --watch shows: a text in the terminal while it denoises.

    step  31 of 128 [####............]  17 of 32 tokens
    given  opened  changed  _ mask

    the old dog _ _ near the _ ...

Nothing but what every terminal has had for forty years: the cursor goes up by so many lines, the rest is erased, and
words are bold, dim, green or yellow. The head stays where it is and the frame never gets shorter, so that nothing
jumps. A frame is one write that leaves no colour switched on, and the cursor is never hidden: whatever ends the
script, the terminal is as it was.
"""
import functools
import os
import shutil
import sys
import time
import unicodedata

from data.tokenizer import decode, pieces

GIVEN, MASK, OPENED, CHANGED = "1", "2", "32", "33;4"        # bold, dim, green, yellow and underlined
LEGEND = [("given", GIVEN), ("opened", OPENED), ("changed", CHANGED), ("_ mask", MASK)]
FASTEST, WHOLE, SLOWEST = 0.03, 4.0, 0.15                    # seconds: a frame, a walk at least, a frame held at most


class Screen:
    """--watch. Plain lines where there is no terminal, or where NO_COLOR or TERM=dumb asks for them. steps: of the
    walk, 0 where nobody knows. A walk of few steps is slowed down to be seen; of very many, some are left out."""

    def __init__(self, steps=0):
        dumb = os.environ.get("NO_COLOR") or os.name != "nt" and os.environ.get("TERM", "") in ("", "dumb")
        self.live, self.steps = sys.stdout.isatty() and not dumb, steps
        self.last = self.waiting = self.size = None          # ids of the last frame, a frame left out, its size
        self.drawn, self.top, self.began = 0, 0, 0.0          # lines of the last frame, its first line, its time

    def show(self, step, z, frozen, encoding):
        """z (L,), frozen (L,): one text after `step` steps."""
        self.waiting = step, z.tolist(), frozen.tolist(), encoding
        if not self.live:
            return self.say() if step % max(1, self.steps // 16) == 0 or step == self.steps else None
        passed = time.monotonic() - self.began
        hold = min(SLOWEST, WHOLE / self.steps) if self.steps else FASTEST
        if passed < hold and hold >= FASTEST:
            time.sleep(hold - passed)
        if passed >= FASTEST or hold >= FASTEST:
            self.draw()

    def say(self):
        step, z, _, encoding = self.waiting
        self.waiting = None
        print(f"step {step:>4}: {decode(encoding, z)!r}", flush=True)

    def draw(self):
        (step, z, frozen, encoding), self.waiting, self.began = self.waiting, None, time.monotonic()
        size = shutil.get_terminal_size()
        if self.size not in (None, size):                    # lines broke anew: the old frame stays, begin below it
            self.drawn = 0
        self.size, width = size, max(20, size.columns - 1)
        styles = [style(*now) for now in zip(z, self.last or z, frozen, [encoding.n_vocab] * len(z))]
        self.last = z
        cells = [(char, mark * (char != " ")) for piece, mark in zip(pieces(encoding, z), styles) for char in piece]
        lines = wrap(cells, width)
        room, news = max(1, size.lines - 5), [i for i, line in enumerate(lines) if moved(line)]
        if news and not any(self.top <= i < self.top + room for i in news):
            self.top = news[0] - room // 2                   # a text taller than the screen: where something happens
        self.top = max(0, min(self.top, len(lines) - room))
        body = [painted(line) for line in lines[self.top:self.top + room]]
        body += [""] * (self.drawn - 3 - len(body))
        shown = sum(id < encoding.n_vocab for id in z)
        frame = [head(step, self.steps, shown, len(z), width), painted(legend(width)), "", *body]
        sys.stdout.write((f"\x1b[{self.drawn}F" if self.drawn else "") + "\x1b[J" + "\n".join(frame) + "\n")
        sys.stdout.flush()
        self.drawn = len(frame)

    def close(self):
        """Show what was left out last, and see to it that no colour stays."""
        if self.waiting:
            self.draw() if self.live else self.say()
        if self.live:
            sys.stdout.write("\x1b[0m")                      # a frame may have been cut in the middle
            sys.stdout.flush()


def style(id, before, given, n_vocab):
    """What is remarkable about a token, as a terminal's style, or ""."""
    changed = OPENED if before >= n_vocab else CHANGED
    return GIVEN if given else MASK if id >= n_vocab else changed if id != before else ""


def head(step, steps, shown, n, width):
    """The first line: how far the walk is, as a bar where there is room for one."""
    at = f"step {step:>{len(str(steps))}} of {steps}" if steps else f"step {step}"
    tokens, room = f"{shown:>{len(str(n))}} of {n} tokens", min(30, width - len(at) - len(str(n)) * 2 - 18)
    done = round(room * min(1, step / steps)) if steps else 0
    bar = f" [{'#' * done}{'.' * (room - done)}]" if steps and room >= 5 else ""
    return f"{at}{bar}  {tokens}"[:width]


def legend(width):
    cells = [cell for word, mark in LEGEND for cell in [*((char, mark) for char in word), (" ", ""), (" ", "")]]
    return cells[:width]


@functools.cache
def cost(char):
    """Columns that a character takes: 2 if it is wide, 0 if it sits on the one before, -1 if it must not be shown."""
    if unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return -1                                            # joiners, directions, variants: no two terminals agree
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def columns(text):
    return sum(max(0, cost(char)) for char in text)


def wrap(cells, width):
    """Styled characters [(char, style)] to lines of at most `width` columns, broken at spaces where there are any. A
    mark without a character to sit on gets a space, and so does what would garble the screen."""
    lines, line, used, space = [], [], 0, 0                  # space: cells of the line up to its last space
    for char, mark in cells:
        if char == "\n":
            lines.append(line)
            line, used, space = [], 0, 0
            continue
        if cost(char) < 0:
            continue
        char = char if char.isprintable() else " "           # tabs and escapes
        char = " " + char if cost(char) == 0 and not line else char
        while char and used + columns(char) > width:
            cut = len(line) if char == " " else space or len(line)
            char = "" if char == " " else char               # a line may end in place of a space
            lines.append(line[:cut])
            line, space = line[cut:], 0
            used = columns("".join(c for c, _ in line))
        if char:
            line.append((char, mark))
            used, space = used + columns(char), len(line) if char == " " else space
    return lines + [line]


def moved(line):
    return any(mark in (OPENED, CHANGED) for _, mark in line)


def painted(line):
    """Styled characters as text with as few marks of colour as can be."""
    parts, last = [], ""
    for char, mark in line:
        if mark != last:
            parts.append("\x1b[0m" * bool(last) + f"\x1b[{mark}m" * bool(mark))
        parts.append(char)
        last = mark
    return "".join(parts) + "\x1b[0m" * bool(last)
