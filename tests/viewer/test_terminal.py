"""
--watch in a terminal: each frame replaces the one before, and nothing else on the screen changes.
`Glass` is a terminal of the simplest kind: it knows what a frame may use, and refuses all else.
"""
import re
import signal
import sys
import unicodedata
from types import SimpleNamespace

import pytest
import torch

import sample
from data.tokenizer import byte_level, chars, encode, words
from flags import configure
from runs import cache, elsewhere, terminal  # noqa: F401
from viewer import terminal as viewer
from viewer.terminal import Terminal, text_width, wrap_cells

COLORS = re.compile(r"\x1b\[[\d;]*m")


class Glass:
    """What a terminal shows: rows of cells. It knows up by n lines, erase below, colors, new lines,
    and characters of 0, 1 or 2 columns. One that does not fit on its line is an error, since a
    terminal would break the line itself."""

    def __init__(self, columns, lines=1000):
        self.rows, self.at, self.column, self.color = [[]], 0, 0, ""
        self.width, self.lines = columns, lines

    def feed(self, text):
        known = r"\x1b\[(\d+)F|(\x1b\[J)|\x1b\[([\d;]*)m|([^\x1b])|\x1b"
        for up, erase, color, char in re.findall(known, text, re.S):
            if up:
                assert int(up) < self.lines  # no cursor moves beyond the screen
                self.at, self.column = self.at - int(up), 0
                assert self.at >= 0
            elif erase:
                self.rows[self.at:] = [self.rows[self.at][:self.column]]
            elif color:
                self.color = "" if color == "0" else color
            elif char == "\n":
                self.at, self.column = self.at + 1, 0
                self.rows += [[]] * (self.at == len(self.rows))
            else:
                assert char.isprintable(), repr(text)
                wide = unicodedata.east_asian_width(char) in "WF"
                combines = unicodedata.combining(char) or 0x1160 <= ord(char) < 0x1200
                self.column += 0 if combines else 1 + wide
                assert self.column < self.width, repr(text)
                self.rows[self.at].append((char, self.color))
        return self

    def text(self):
        return "\n".join("".join(char for char, _ in row) for row in self.rows)


@pytest.fixture
def tty(monkeypatch):
    """Standard output is a terminal of that size. -> set its size"""
    out = SimpleNamespace(isatty=lambda: True, write=lambda text: sys.stdout.write(text),
                          flush=lambda: None)
    monkeypatch.setattr(viewer, "sys", SimpleNamespace(stdout=out))
    monkeypatch.setattr(viewer.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def size(columns, lines):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
    size(80, 24)
    return size


def frames(seen):
    """The frames, and by how many lines the cursor went up before each."""
    parts = re.split(r"(?:\x1b\[(\d+)F)?\x1b\[J", seen)
    return parts[2::2], [int(up or 0) for up in parts[1::2]]


def below_header(frame):
    return frame.split("\n", 3)[3]


def shown(states, encoding, given=()):
    """Show the states of a text one after the other."""
    frozen = torch.zeros(len(states[0]), dtype=torch.bool)
    frozen[list(given)] = True
    watched = Terminal(encoding, frozen, len(states) - 1)
    for step, z in enumerate(states):
        watched.show(step, torch.as_tensor(z)[None])
    watched.close()


def test_watching_redraws_each_frame_in_place_and_leaves_the_terminal_clean(terminal):  # noqa: F811
    seen, code = terminal(["sample", "--oracle", "mdlm", "--sampler", "ancestral", "--watch",
                           "--steps", 6, "--prompt", "the _ _ _"])
    drawn, up = frames(seen)
    assert code == 0 and len(drawn) == 7 and up[0] == 0
    for frame, rise in zip(drawn, up[1:]):
        assert frame.count("\n") == rise and "\x1b[1mthe\x1b[0m" in frame  # given: bold
        assert all(len(COLORS.sub("", line)) < 40 for line in frame.splitlines())
    first, last = below_header(drawn[0]), below_header(drawn[6]).split("--------")[0]
    assert "\x1b[2m_" in first and "\x1b[2m" not in last  # noise is dim
    styles = ("1", "2", "32", "33;4")
    assert seen.rindex("\x1b[0m") > max(seen.rfind(f"\x1b[{style}m") for style in styles)
    assert "\x1b[?25l" not in seen  # the cursor is never hidden
    glass = Glass(40).feed(seen.split("--------")[0]).text()  # one batch leaves one frame
    assert glass.count("step") == 1 and "step 6 of 6 [" in glass and glass.count("_ mask") == 1
    assert "-------- text 2" in seen and "-------- text 1" not in seen  # its last frame is the text


def test_ctrl_c_while_watching_leaves_no_color_and_no_traceback(terminal):  # noqa: F811
    """And the cursor is where the next line goes."""
    interrupted = []

    def after(seen, process):
        if seen.count(b"\x1b[J") > 5 and not interrupted:
            interrupted.append(process.send_signal(signal.SIGINT))

    seen, code = terminal(["sample", "--oracle", "udlm", "--watch", "--steps", 100_000], after)
    assert code == 130 and seen.endswith("interrupted\n")
    assert "Traceback" not in seen and "\x1b[?25l" not in seen
    glass = Glass(40).feed(seen)
    assert glass.color == "" and glass.text().splitlines()[-1].endswith("sample.py: interrupted")
    assert glass.text().startswith("step") and glass.text().count("given") == 1


def test_watching_prints_plain_lines_where_there_is_no_terminal(capsys):
    sample.main(configure(sample.Config, oracle="mdlm", sampler="ancestral", watch=True, steps=6,
                          prompt="the _ _ _", device="cpu"), [])
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.startswith("step    0: 'the _ _ _'\n")
    assert out.count("\nstep") == 6


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "")])
def test_dumb_terminals_and_those_who_want_no_color_get_plain_lines(name, value, tty, monkeypatch,
                                                                    capsys):
    monkeypatch.setenv(name, value)
    shown([[3, 3], [0, 3], [0, 1]], chars("abc"))
    lines = ["step    0: '__'", "step    1: 'a_'", "step    2: 'ab'"]
    assert capsys.readouterr().out.splitlines() == lines


def test_given_opened_changed_and_masked_tokens_each_have_their_style(tty, capsys):
    states = [[0, 4, 4, 1], [0, 2, 4, 1], [0, 2, 4, 3]]
    shown(states, words(["old", "dog", "cat", "eats"]), given=[0])
    _, second, last = map(below_header, frames(capsys.readouterr().out)[0])
    assert second.startswith("\x1b[1mold\x1b[0m \x1b[32mcat\x1b[0m \x1b[2m_\x1b[0m dog\n")
    assert last.startswith("\x1b[1mold\x1b[0m cat \x1b[2m_\x1b[0m \x1b[33;4meats\x1b[0m\n")


ODD = ("東京へ行く🙂 e\u0301e\u0301 \u0300 na\u00efve \u200b\u200d\ufe0f\u202etxt "
       "\x07\x1b[31m\t한\u1112\u1161 end\n\n")


@pytest.mark.parametrize("width", [21, 22, 23, 40, 80])
def test_odd_characters_neither_break_a_line_nor_garble_the_screen(width, tty, capsys):
    """Wide ones, combining ones, escapes, bidirectional marks."""
    tty(width, 24)
    encoding = byte_level()
    ids = torch.from_numpy(encode(encoding, ODD * 3).astype("int64"))  # (n,)
    torch.manual_seed(0)
    order = torch.rand(len(ids)).argsort()  # (n,)
    shown([torch.where(order < k * len(ids) // 9, ids, 256) for k in range(10)], encoding)
    glass = Glass(width, 24).feed(capsys.readouterr().out)
    text = glass.text()
    assert text.startswith("step 9 of 9") and glass.color == "" and text.count("step") == 1
    if width == 80:
        assert "東京へ行く🙂 e\u0301e\u0301 " in text and "txt" in text


def test_control_characters_of_a_text_are_shown_in_a_frame_and_not_obeyed(tty, capsys):
    shown([[27, 7, 65]], byte_level())
    frame, = frames(capsys.readouterr().out)[0]
    assert below_header(COLORS.sub("", frame)).startswith("\\x1b\\x07A\n")


def test_words_stay_whole_and_only_what_is_longer_than_a_line_is_broken():
    lines = lambda text, width: ["".join(char for char, _ in line) for line in
                                 wrap_cells([(char, "") for char in text], width)]
    assert lines("two old dogs sleep", 8) == ["two old ", "dogs ", "sleep"]
    assert lines("two old dogs", 7) == ["two old", "dogs"]
    assert lines("abcdefghij kl", 4) == ["abcd", "efgh", "ij ", "kl"]
    assert lines("a\n\nb", 4) == ["a", "", "b"]
    assert lines("界界界", 5) == ["界界", "界"] and lines("a 界界", 5) == ["a ", "界界"]
    assert lines("\x1b\t界界", 4) == ["  ", "界界"] and lines("\u0301a", 4) == [" \u0301a"]
    assert lines("a\u200bb\u202ec", 4) == ["abc"]
    for width in range(2, 9):
        odd = lines("a 界 bc 界界 de\u0301f 界 g" * 5, width)
        assert all(text_width(line) <= width for line in odd)


def test_the_frame_never_gets_shorter_and_its_header_stays_in_place(tty, capsys):
    """The text gets longer and shorter; nothing below it jumps."""
    long, short = [0] * 40, [1] * 40
    shown([short, long, short, long], words(["extraordinary", "a"]))
    drawn, up = frames(capsys.readouterr().out)
    heights = [frame.count("\n") for frame in drawn]
    assert heights == sorted(heights) and heights[0] < heights[1] == heights[2]
    assert up == [0, *heights[:-1]]
    assert all(frame.startswith(f"step {i} of 3 [") for i, frame in enumerate(drawn))


def test_a_text_taller_than_the_screen_is_shown_where_it_changes(tty, monkeypatch, capsys):
    tty(30, 10)
    monkeypatch.setattr(viewer, "FASTEST", 0)  # no frame is skipped
    encoding, states = words([f"word{i}" for i in range(100)]), [torch.full((100,), 100)]
    for i in range(100):
        states.append(torch.where(torch.arange(100) == i, i, states[-1]))  # (100,)
    shown(states, encoding)
    out = capsys.readouterr().out
    drawn, up = frames(out)
    assert all(frame.count("\n") <= 8 for frame in drawn) and max(up) <= 8
    assert len(drawn) == 101
    assert all(f"\x1b[32mword{i}\x1b[0m" in frame for i, frame in enumerate(drawn[1:]))
    Glass(30, 10).feed(out)


def test_many_steps_skip_frames_but_never_the_last_and_few_steps_wait(tty, monkeypatch, capsys):
    slept, looks = [], []  # a clock that ticks at every look
    clock = lambda: looks.append(0) or 0.001 * len(looks) + sum(slept)
    monkeypatch.setattr(viewer.time, "sleep", slept.append)
    monkeypatch.setattr(viewer.time, "monotonic", clock)
    shown([[0]] * 2001, chars("a"))
    drawn, _ = frames(capsys.readouterr().out)
    assert 60 < len(drawn) < 240 and drawn[-1].startswith("step 2000 of 2000") and not slept
    shown([[0]] * 9, chars("a"))
    drawn, _ = frames(capsys.readouterr().out)
    assert len(drawn) == 9 and sum(slept) == pytest.approx(8 * viewer.SLOWEST, rel=0.1)


def test_a_terminal_of_another_size_gets_a_new_frame_below_the_old_one(tty, capsys):
    z = torch.zeros(1, 60, dtype=torch.long)  # (1, 60)
    watched = Terminal(chars("a"), z[0].bool(), 9)
    watched.show(0, z)
    tty(40, 24)
    watched.show(1, z)
    drawn, up = frames(capsys.readouterr().out)
    assert up == [0, 0] and all(len(COLORS.sub("", line)) < 40 for line in drawn[1].splitlines())


def test_the_next_batch_begins_below_the_texts_of_the_last_one(tty, capsys):
    watched = Terminal(chars("ab"), torch.zeros(2, dtype=torch.bool), 1)
    for _ in range(2):
        watched.show(0, torch.tensor([[2, 2], [2, 2]]))
        watched.show(1, torch.tensor([[0, 1], [2, 2]]))  # the first text of the batch is shown
        watched.close()
        print("-------- text")
    out = capsys.readouterr().out
    drawn, up = frames(out)
    assert len(drawn) == 4 and up[0] == up[2] == 0 and up[1] == up[3] > 0
    assert Glass(80).feed(out).text().count("step 1 of 1") == 2 == out.count("\x1b[32mab")


@pytest.mark.parametrize("lines, there", [(24, True), (8, False)])
def test_a_text_is_printed_again_unless_the_last_frame_shows_all_of_it(lines, there, tty, capsys):
    """Where it is taller than the screen, or where no frame was drawn, it is printed."""
    tty(30, lines)
    encoding, ids = words([f"word{i}" for i in range(30)]), list(range(30))
    watched = Terminal(encoding, torch.zeros(30, dtype=torch.bool), 1)
    watched.show(0, torch.full((1, 30), 30))
    watched.show(1, torch.tensor([ids]))
    assert watched.still_shows(ids) == there and not watched.still_shows(ids[:-1])
    watched.live = False
    assert not watched.still_shows(ids)
