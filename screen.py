"""
What --watch shows: a text in the terminal while it denoises.
"""
import os
import shutil
import sys
import unicodedata

import torch

from data.tokenizer import decode, pieces


class Screen:
    """--watch: the text in place, given tokens bold, noise dim, what just changed green. Plain lines where there is no
    terminal, or where NO_COLOR or TERM=dumb asks for them. A frame is one write, and leaves no colour switched on.
    steps is 0 where nobody knows how many there will be."""

    def __init__(self, steps=0):
        dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.live, self.drawn, self.last, self.steps = sys.stdout.isatty() and not dumb, 0, None, steps

    def show(self, step, z, frozen, encoding):
        """z (L,), frozen (L,): one text after `step` steps."""
        changed = torch.zeros_like(frozen) if self.last is None else z != self.last                     # (L,)
        self.last = z
        if not self.live:
            if step % max(1, self.steps // 16) == 0 or step == self.steps:
                print(f"step {step:>4}: {decode(encoding, z.tolist())!r}", flush=True)
            return
        style = lambda i: "1" if frozen[i] else "2" if z[i] >= encoding.n_vocab else "32" if changed[i] else ""
        cells = [(char, style(i)) for i, piece in enumerate(pieces(encoding, z.tolist())) for char in piece]
        size = shutil.get_terminal_size()
        lines = self.wrap(cells, max(20, size.columns - 1))
        if len(lines) > size.lines - 2:                      # the cursor cannot go back further up than the screen
            lines = [*lines[:size.lines - 3], "..."]
        frame = "\n".join([f"step {step}" + (f" of {self.steps}" if self.steps else ""), *lines])
        sys.stdout.write((f"\x1b[{self.drawn}F" if self.drawn else "") + f"\x1b[J{frame}\n")
        sys.stdout.flush()
        self.drawn = len(lines) + 1

    def close(self):
        if self.live:
            sys.stdout.write("\x1b[0m")                      # a frame may have been cut in the middle
            sys.stdout.flush()

    @staticmethod
    def wrap(cells, width):
        """Styled characters to lines of the terminal's width; a new line in the text starts one."""
        lines, line, room = [], "", width
        for char, style in cells:
            char = char if char.isprintable() or char == "\n" else " "      # tabs and escapes would garble the screen
            cost = 0 if char == "\n" else 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if char == "\n" or cost > room:
                lines.append(line)
                line, room = "", width
            if char != "\n":
                line += f"\x1b[{style}m{char}\x1b[0m" if style else char
                room -= cost
        return lines + [line]
