"""
--watch: a text in the terminal while it is denoised.

    step  31 of 128 [####............]  17 of 32 tokens
    given  opened  changed  _ mask

    the old dog _ _ near the _ ...

It uses only what every terminal understands: the cursor moves up some lines, the rest of the screen
is erased, and words are bold, dim, green or yellow. The header keeps its place and no frame is
shorter than the one before, so that nothing jumps. Each frame is one write that resets all styles
at its end, and the cursor is never hidden, so the terminal stays usable however the script ends.
"""
import functools
import os
import shutil
import sys
import time
import unicodedata

from data.tokenizer import decode, pieces
from script import Controls, visible

GIVEN, MASK, OPENED, CHANGED = "1", "2", "32", "33;4"  # bold, dim, green, yellow and underlined
LEGEND = [("given", GIVEN), ("opened", OPENED), ("changed", CHANGED), ("_ mask", MASK)]
FASTEST, WHOLE, SLOWEST = 0.03, 4.0, 0.15    # seconds: per frame, per text, per frame at most


class Terminal:
    """Shows the first text of a batch; plain lines for NO_COLOR, TERM=dumb or without a terminal.

    end: the id that fills up texts behind their end, which is not shown
    steps: of a text, 0 if unknown. Texts of few steps are slowed down so that they can be seen; of
    many steps, some frames are skipped.
    """

    def __init__(self, encoding, frozen, steps=0, end=None):
        dumb = os.name != "nt" and os.environ.get("TERM", "") in ("", "dumb")
        self.live = sys.stdout.isatty() and not dumb and not os.environ.get("NO_COLOR")
        self.encoding, self.frozen, self.steps, self.end = encoding, frozen.tolist(), steps, end
        self.last = self.skipped = self.size = None  # ids of the last frame, a skipped state
        self.drawn, self.top, self.began = 0, 0, 0.0  # the last frame: lines, first line, time
        self.whole = False  # the last frame shows the whole text

    def show(self, step, z):
        """z (B, L): the texts after `step` steps."""
        self.skipped = step, z[0].tolist()
        if not self.live:
            if step % max(1, self.steps // 16) == 0 or step == self.steps:
                self.print_line()
            return
        passed = time.monotonic() - self.began
        hold = min(SLOWEST, WHOLE / self.steps) if self.steps else FASTEST
        if passed < hold and hold >= FASTEST:
            time.sleep(hold - passed)
        if passed >= FASTEST or hold >= FASTEST:
            self.draw()

    def without_ends(self, z):
        """The ids z up to what fills up the text."""
        n = len(z)
        while n and z[n - 1] == self.end:
            n -= 1
        return z[:n]

    def print_line(self):
        (step, z), self.skipped = self.skipped, None
        z = self.without_ends(z)
        z = shown_words(z, self.encoding.n_vocab)
        print(f"step {step:>4}: {decode(self.encoding, z)!r}", flush=True)

    def draw(self):
        (step, z), self.skipped, self.began = self.skipped, None, time.monotonic()
        size, n_vocab = shutil.get_terminal_size(), self.encoding.n_vocab
        if self.size not in (None, size):  # the terminal rewrapped the old frame: begin below it
            self.drawn = 0
        self.size, width = size, max(20, size.columns - 1)
        styles = [token_style(*now, n_vocab) for now in zip(z, self.last or z, self.frozen)]
        self.last = z
        z = self.without_ends(z)
        cells = [(char, style * (char != " "))
                 for piece, style in zip(pieces(self.encoding, shown_words(z, n_vocab)), styles)
                 for char in visible(piece)]
        lines = wrap_cells(cells, width)
        room = max(1, size.lines - 5)
        self.whole = len(lines) <= room
        changes = [i for i, line in enumerate(lines) if has_changes(line)]
        if changes and not any(self.top <= i < self.top + room for i in changes):
            self.top = changes[0] - room // 2  # scroll a tall text to where it changes
        self.top = max(0, min(self.top, len(lines) - room))
        body = [to_ansi(line) for line in lines[self.top:self.top + room]]
        body += [""] * (self.drawn - 3 - len(body))
        shown = sum(id < n_vocab for id in z)
        header = header_line(step, self.steps, shown, len(z), width)
        frame = [header, to_ansi(legend_cells(width)), "", *body]
        up = f"\x1b[{self.drawn}F" if self.drawn else ""
        sys.stdout.write(Controls(up + "\x1b[J" + "\n".join(frame) + "\n"))
        sys.stdout.flush()
        self.drawn = len(frame)

    def still_shows(self, ids):
        """Whether the last frame is the whole text of these ids, so that it need not be printed."""
        if self.live and self.skipped:
            self.draw()
        return self.live and self.whole and self.last == ids

    def close(self):
        """Show the last state if it was skipped, and reset styles. The next text begins below."""
        if self.skipped:
            self.draw() if self.live else self.print_line()
        if self.live:
            sys.stdout.write(Controls("\x1b[0m"))  # a frame may have been interrupted
            sys.stdout.flush()
        self.last, self.drawn, self.top, self.began = None, 0, 0, 0.0


def shown_words(z, n_vocab):
    """The ids to print: of a mask that shows a word, which is n_vocab + 1 + the word, the word."""
    return [id - n_vocab - 1 if id > n_vocab else id for id in z]


def token_style(id, before, given, n_vocab):
    """The style of a token, as the code of a terminal, or ""."""
    changed = OPENED if before >= n_vocab else CHANGED
    return GIVEN if given else MASK if id >= n_vocab else changed if id != before else ""


def header_line(step, steps, shown, n, width):
    """The first line: the step, with a bar if there is room, and how many tokens are text."""
    at = f"step {step:>{len(str(steps))}} of {steps}" if steps else f"step {step}"
    tokens = f"{shown:>{len(str(n))}} of {n} tokens"
    room = min(30, width - len(at) - len(str(n)) * 2 - 18)
    done = round(room * min(1, step / steps)) if steps else 0
    bar = f" [{'#' * done}{'.' * (room - done)}]" if steps and room >= 5 else ""
    return f"{at}{bar}  {tokens}"[:width]


def legend_cells(width):
    cells = [cell for word, style in LEGEND
             for cell in [*((char, style) for char in word), (" ", ""), (" ", "")]]
    return cells[:width]


@functools.cache
def char_width(char):
    """Columns of a character: 2 if wide, 0 if it combines with the last, -1 if it is left out."""
    if unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return -1  # joiners, directions, variants: terminals differ
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_width(text):
    return sum(max(0, char_width(char)) for char in text)


def wrap_cells(cells, width):
    """Styled characters [(char, style)] as lines of at most `width` columns, broken at spaces.

    A combining character at the start of a line gets a space before it. Tabs become spaces.
    """
    lines, line, used, space = [], [], 0, 0  # space: cells of the line up to its last space
    for char, style in cells:
        if char == "\n":
            lines.append(line)
            line, used, space = [], 0, 0
            continue
        if char_width(char) < 0:
            continue
        char = char if char.isprintable() else " "
        char = " " + char if char_width(char) == 0 and not line else char
        while char and used + text_width(char) > width:
            cut = len(line) if char == " " else space or len(line)
            char = "" if char == " " else char  # a space at the end of a line is dropped
            lines.append(line[:cut])
            line, space = line[cut:], 0
            used = text_width("".join(c for c, _ in line))
        if char:
            line.append((char, style))
            used, space = used + text_width(char), len(line) if char == " " else space
    return lines + [line]


def has_changes(line):
    return any(style in (OPENED, CHANGED) for _, style in line)


def to_ansi(line):
    """Styled characters as text, with as few style codes as possible."""
    parts, last = [], ""
    for char, style in line:
        if style != last:
            parts.append("\x1b[0m" * bool(last) + f"\x1b[{style}m" * bool(style))
        parts.append(char)
        last = style
    return "".join(parts) + "\x1b[0m" * bool(last)
