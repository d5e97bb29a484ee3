"""
The page of --html for grids: cells stand where they belong, and those that break a rule are marked.
"""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_html_player import record, states
from test_player import CONTRAST, PLAIN, browser  # noqa: F401

from browser import needed
from data.sudoku import Sudoku4, Sudoku4InPlace
from flags import configure
from runs import cache, elsewhere, fit  # noqa: F401
from viewer import html_player
from viewer.html_player import Recorder, Recording, render_page

SOLVED = torch.tensor([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]])  # (1, 16)
CLUES = [0, 3, 5, 6, 9, 10, 15]
WRONG = 1, 3  # cell 1 is no 3: there is one in its row, its box and its column


def recorded(data, x, given, order):
    """x (1, L) as a network writes it, one cell after the other. -> a Recording"""
    mask = data().encoding.n_vocab
    recorder = Recorder(lambda z, t, at: torch.zeros(int(at.sum()), mask), mask, 1)
    about = "a run; entropy, 9 steps"
    counter = SimpleNamespace(calls=0)
    recording = Recording("mgdm", about, recorder, counter, data().encoding, given, data=data)
    z = torch.where(given, x, mask)  # (1, L)
    recording.show(0, z)
    for step, cell in enumerate(order):
        at = torch.arange(x.shape[1]) == cell  # (L,)
        recorder(z, None, at[None])
        z = torch.where(at, x, z)  # (1, L)
        recording.show(step + 1, z)
    return recording


def in_place(wrong=True):
    """A puzzle in place, in reading order; one digit is wrong. -> Recording, the cells written"""
    x, given = SOLVED.clone(), torch.zeros(1, 16, dtype=torch.bool)  # (1, 16) each
    given[0, CLUES] = True
    order = [cell for cell in range(16) if cell not in CLUES]
    if wrong:
        x[0, WRONG[0]] = WRONG[1]
    return recorded(Sudoku4InPlace, x, given, order), order


def in_front():
    """The same puzzle in front of a right answer but for one cell, which is no digit."""
    clues = torch.zeros_like(SOLVED)  # (1, 16)
    clues[0, CLUES] = SOLVED[0, CLUES]
    x = torch.cat([clues, SOLVED], 1)  # (1, 32)
    x[0, 16 + 2] = 0
    return recorded(Sudoku4, x, torch.arange(32)[None] < 16, range(16, 32))


def test_at_every_step_the_cells_that_break_a_rule_are_those_of_the_checker():
    """A given cell is never at fault, also where a wrong one repeats its digit."""
    recording, order = in_place()
    data = recording.data()
    assert data["box"] == 2 and data["columns"] == 4
    faults, (text,) = data["texts"][0]["faults"], data["texts"]
    assert len(faults) == len(order) + 1 == len(text["steps"]) + 1
    for step, found in enumerate(faults):
        others = {2, 4, 13} & set(order[:step])  # in its row, box and column
        assert found == (sorted({1} | others) if others else [])
    assert faults[-1] == [1, 2, 4, 13] and not in_place(wrong=False)[0].data()["texts"][0][
        "faults"][-1]
    z = list(states(data, 0))
    assert [None if token is None else int(token) for token in z[-1]] == recording.last[0].tolist()


@pytest.mark.parametrize("data", ["sudoku4-in-place", "sudoku4"])
def test_both_commands_record_the_grids_of_a_run(data, monkeypatch, capsys):
    L = 16 if "place" in data else 32
    fit("out", data=data, method="mdlm", block_size=L, max_iters=1)
    page, _, (run,) = record(monkeypatch, out_dir="out")
    recording, = page["recordings"]
    assert recording["box"] == 2 and page["title"] == "a held-out question"
    for text in recording["texts"]:
        assert len(text["faults"]) == len(run) == len(text["steps"]) + 1
        assert not set(sum(text["faults"], [])) & set(text["given"])
    html_player.main(configure(html_player.Config, out_dir="out", html="b.html", num_samples=2,
                               steps=9, device="cpu"), [])
    assert Path("b.html").read_bytes() == Path("out.html").read_bytes()
    short = record(monkeypatch, out_dir="out", prompt="12__")[0]["recordings"][0]
    assert short["box"] == 0 and short["texts"][0]["faults"] == []  # no whole grid


CELLS = """return [...document.querySelectorAll('.board')].map(
  b => [...b.children].map(c => c.textContent))"""
KINDS = "return [...document.querySelectorAll('.board')].map(b => [...b.children].map(c => "


def shown(browser, *recordings):
    Path("grid.html").write_text(render_page("", recordings), "utf-8")
    browser.open(Path("grid.html").resolve())


@needed
def test_cells_stand_in_rows_and_wrong_ones_are_marked(browser):  # noqa: F811
    recording, order = in_place()
    shown(browser, recording)
    browser.run("go(0)")
    (cells,) = browser.run(CELLS)
    digits = SOLVED[0].tolist()
    assert cells == [str(digits[i]) if i in CLUES else "" for i in range(16)]
    browser.run("go(N)")
    (cells,), (kinds,) = browser.run(CELLS), browser.run(KINDS + "c.className))")
    assert "".join(cells) == "".join(map(str, recording.last[0].tolist()))
    assert [i for i in range(16) if "wrong" in kinds[i].split()] == [1, 2, 4, 13]
    assert [i for i in range(16) if "given" in kinds[i]] == CLUES
    tops = browser.run(KINDS + "c.getBoundingClientRect()).map(r => [r.x, r.y]))")[0]
    assert all(x < other for (x, y), (other, same) in zip(tops[:3], tops[1:4]) if y == same)
    assert len({round(y) for _, y in tops}) == len({round(x) for x, _ in tops}) == 4
    assert [kinds[i].split().count("right") for i in range(4)] == [0, 1, 0, 0]
    assert "under" in kinds[4] and "under" not in kinds[0] + kinds[8]
    foot = "return document.querySelector('article > .foot').textContent"
    assert "16 of 16 cells settled" in browser.run(foot)
    assert browser.run(foot).endswith("4 cells break a rule")
    assert "row 1, column 2: “3”, breaks a rule, step 1" in browser.run(
        "return document.querySelectorAll('.board .t')[1].ariaLabel")
    assert browser.run(PLAIN) == ["1334\n3412\n2143\n4321"] and browser.complaints() == []
    shown(browser, in_place(wrong=False)[0])
    assert browser.run(foot).endswith("solved")
    browser.run("go(N - 1)")
    assert "solved" not in browser.run(foot) and "rule" not in browser.run(foot)


@needed
def test_the_arrow_keys_move_along_rows_and_columns(browser):  # noqa: F811
    shown(browser, in_front())
    at = "return [...document.querySelectorAll('.t[role=option]')].indexOf(document.activeElement)"
    browser.run("document.querySelector('.t[tabindex=\"0\"]').focus()")
    seen = []
    for key in ("down", "right", "down", "down", "down", "up", "left"):
        browser.press(key)
        seen.append(browser.run(at))
    assert seen == [4, 5, 9, 13, 17, 13, 12]  # from the question into the answer, and back


@needed
@pytest.mark.parametrize("look", [dict(), dict(color_scheme="dark"), dict(width=360, height=740),
                                  dict(media="print")], ids=str)
def test_question_and_answer_are_two_grids_that_can_be_read(look, browser):  # noqa: F811
    browser.emulate(**look)
    shown(browser, in_front(), in_place()[0])
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    question, answer, _ = browser.run(CELLS)
    assert question == [str(SOLVED[0, i].item()) if i in CLUES else "" for i in range(16)]
    assert answer[2] == "_" and "".join(answer).replace("_", "3") == "".join(
        map(str, SOLVED[0].tolist()))
    names = "return [...document.querySelectorAll('.boards figcaption')].map(c => c.textContent)"
    assert browser.run(names) == ["question", "answer"]
    sizes = browser.run(KINDS + "[c.clientWidth, c.clientHeight]).flat())")
    assert min(map(min, sizes)) >= 22 and browser.complaints() == []
    for color in ("settle", "probability"):
        browser.run("view.color = arguments[0]; recolor()", color)
        assert browser.run(CONTRAST) >= 4.5
    browser.emulate()
