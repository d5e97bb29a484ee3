"""
The page of --html in a real browser: it plays what was recorded, takes no text for markup, and is
usable by keyboard, in the dark, on paper and on a phone.
"""
import html
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_html_player import record, states

from browser import Browser, needed
from data.tokenizer import byte_level, chars, decode, pieces
from oracle import exact
from runs import cache, elsewhere  # noqa: F401
from viewer.html_player import Recorder, Recording, render_page


@pytest.fixture(scope="module")
def browser():
    driven = Browser()
    yield driven
    driven.close()


MARKUP = "</script><script>document.title='taken'</script><b onclick=x>&amp;"
ODD = "two\nlines\ta\u202eb Ä東🙂é\u0301 "


def odd_page():
    """Bytes that are markup, characters of many tokens, controls, and no UTF-8, from the right."""
    encoding, raw = byte_level(), (MARKUP + ODD).encode() + b"\xff\xf0\x9f end"
    x, frozen = torch.tensor([list(raw)]), torch.zeros(1, len(raw), dtype=torch.bool)  # (1, L) each
    frozen[0, :3] = True
    logits = torch.arange(257.).log()  # (V,)
    recorder = Recorder(lambda z, t, at: logits.expand(int(at.sum()), -1), 256, 1)
    recording = Recording("mdlm", MARKUP, recorder, SimpleNamespace(calls=0), encoding, frozen)
    place = torch.arange(len(raw))  # (L,)
    for step in range(5):
        hidden = (place < len(raw) * (4 - step) // 4) & ~frozen  # (1, L)
        recording.show(step, torch.where(hidden, 256, x))
        recorder(x, None, hidden & (place >= len(raw) * (3 - step) // 4))
    Path("odd.html").write_text(render_page(MARKUP, [recording]), "utf-8")
    return encoding, x[0], frozen[0]


SHOWN = "return [...document.querySelectorAll('.text')].map(t => t.textContent)"
PLAIN = "return [...document.querySelectorAll('details pre')].map(t => t.textContent)"
TOKENS = "[...document.querySelectorAll('.t[role=option]')]"


@needed
def test_markup_in_a_text_stays_text_and_invisible_characters_are_shown(browser):
    encoding, x, frozen = odd_page()
    browser.open(Path("odd.html").resolve())
    assert browser.complaints() == [] and browser.run("return document.scripts.length") == 2
    assert browser.run("return document.title") == f"palimpsest: {MARKUP}"
    assert browser.run(PLAIN) == [decode(encoding, x.tolist())]
    shown, = browser.run(SHOWN)
    assert all(part in shown for part in (MARKUP, "↵\n", "⇥", "⟨202e⟩", "··東···🙂"))
    labels = browser.run(f"return {TOKENS}.map(t => t.ariaLabel)")
    assert len(labels) == len(x) and "bytes f0" in labels[-6] + labels[-7] and "given" in labels[0]


@needed
def test_after_the_end_of_a_text_tokens_are_faded_and_not_part_of_the_plain_text(browser):
    x, given = torch.tensor([[2, 0, 1, 2, 0]]), torch.tensor([[True, False, False, False, False]])
    recorder = Recorder(None, 3, 1)
    recording = Recording("ar", "", recorder, SimpleNamespace(calls=0), chars("!ab"), given, end=0,
                          unwritten=True)  # "b!ab!", of which "!" ends it
    for step in range(6):
        recording.show(step, torch.where(torch.arange(5) <= step, x, 3))
    Path("end.html").write_text(render_page("", [recording]), "utf-8")
    browser.open(Path("end.html").resolve())
    assert browser.run(PLAIN) == ["b"] and browser.complaints() == []
    faded = f"return {TOKENS}.map(t => t.classList.contains('past'))"
    assert browser.run(faded) == [False, False, True, True, True]
    browser.run("go(2)")
    kinds = browser.run(f"return {TOKENS}.map(t => t.className)")
    assert "unwritten" in kinds[3] and "mask" not in kinds[3] and "given" in kinds[0]
    assert browser.run(f"return {TOKENS}[4].ariaLabel") == "5: “not written yet”"


@needed
def test_every_step_on_the_slider_shows_the_state_of_that_step(browser, monkeypatch):
    prompt = "the old dog _ _ _ _"
    data, _, runs = record(monkeypatch, oracle="mdlm", beside="udlm,ar", prompt=prompt)
    encoding = exact("mdlm").encoding
    browser.open(Path("out.html").resolve())
    browser.run("document.querySelector('#slider').focus()")
    browser.press("home")
    for step in range(10):
        for recording, run, text in zip(data["recordings"], runs, browser.run(PLAIN)):
            ids = state_at(recording, run, step, encoding)
            assert html.unescape(text) == "".join(pieces(encoding, ids))
        assert browser.run("return document.querySelector('#slider').value") == str(step)
        browser.press("right")
    assert browser.complaints() == []


def state_at(recording, run, step, encoding):
    """The ids of the first text at a step of the slider, of 9."""
    raw = list(states(recording, 0))[round(step / 9 * (len(run) - 1))]
    id_of = lambda token: encoding.encode_single_token(token.encode("latin-1"))
    return [encoding.n_vocab if token is None else id_of(token) for token in raw]


@needed
def test_it_plays_to_the_end_and_pauses_by_button_and_by_space(browser, monkeypatch):
    record(monkeypatch, oracle="mdlm", prompt="the old dog _ _ _ _ _", sampler="ancestral")
    browser.open(Path("out.html").resolve())
    at = lambda: int(browser.run("return document.querySelector('#slider').value"))
    said = lambda: browser.run("return document.querySelector('#said').textContent")

    def wait_for(what):
        end = time.time() + 60
        while not browser.run(f"return {what}"):
            assert time.time() < end, what
            time.sleep(0.02)

    browser.click("#play")
    wait_for("view.at > 0 && view.at < N")
    assert "Pause" in browser.run("return document.querySelector('#play').textContent")
    browser.click("#play")
    assert 0 < at() <= 9 and "paused at" in said()
    browser.run("document.activeElement.blur(); go(0)")
    browser.press("space")
    wait_for("view.at === N && !view.timer")
    assert at() == 9 and "finished" in said()
    browser.press("left", "left")
    assert at() == 7 and browser.complaints() == []


@needed
def test_a_token_under_the_pointer_or_the_focus_shows_what_else_was_likely(browser, monkeypatch):
    record(monkeypatch, oracle="mdlm", prompt="the old dog _ _ _ _ _")
    browser.open(Path("out.html").resolve())
    token = "article:first-child .t:nth-of-type(5)"
    card = "const c = document.querySelector('#card'); return c.hidden ? '' : c.innerText"
    assert browser.run(card) == ""
    browser.hover(token)
    assert "written at step" in browser.run(card) and browser.run(card).count("%") >= 5
    browser.run("hide(); document.querySelector('.t[tabindex=\"0\"]').focus()")
    assert "given, never changed" in browser.run(card)
    browser.press("right", "right", "right", "right")
    focused = "return document.activeElement === document.querySelector(arguments[0])"
    assert browser.run(focused, token)
    label = browser.run("return document.activeElement.ariaLabel")
    assert re.fullmatch(r"5: “ \S+”, step \d+, probability [\d.]+ %(, or .* %)?", label)
    browser.press("escape")
    assert browser.run(card) == ""
    text = browser.run(SHOWN)
    browser.click("#texts label:nth-of-type(2) input")
    assert browser.run(SHOWN) != text and len(browser.run(PLAIN)[0].split()) == 8


@needed
def test_the_picture_of_all_steps_has_the_colors_of_the_words(browser, monkeypatch):
    record(monkeypatch, oracle="mdlm", prompt="the old dog _ _ _ _ _", sampler="ancestral")
    browser.open(Path("out.html").resolve())
    words, picture = browser.run(COLORS)
    assert len(set(map(tuple, words[3:]))) >= 3  # of five words
    for word, pixel in zip(words[3:], picture[3:]):
        assert max(abs(a - b) for a, b in zip(word, pixel)) <= 8  # the picture has 40 tones


COLORS = """
document.head.append(el("style", { textContent: ".t { transition: none !important }" }));
const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const words = panels[0].spans.map((span) => {
  ink.fillStyle = getComputedStyle(span).backgroundColor; ink.fillRect(0, 0, 1, 1);
  return [...ink.getImageData(0, 0, 1, 1).data.slice(0, 3)];
});
const { canvas } = panels[0], picture = canvas.getContext("2d");
return [words, words.map((_, i) => [...picture.getImageData(canvas.width - 1, i, 1, 1).data
  .slice(0, 3)])];
"""


@needed
@pytest.mark.parametrize("look", [
    dict(), dict(color_scheme="dark"), dict(width=360, height=740), dict(media="print"),
    dict(media="print", color_scheme="dark")], ids=str)
def test_words_stand_out_from_their_background_and_nothing_is_cut_off(look, browser, monkeypatch):
    """Contrast of at least 4.5 (WCAG AA), light, dark and printed; no sideways scrolling."""
    record(monkeypatch, oracle="mdlm", beside="udlm", prompt="the old dog _ _ _ _ _ _ _ _ _ _ _ _")
    browser.emulate(**look)
    browser.open(Path("out.html").resolve())
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    for color in ("settle", "probability"):
        browser.run("view.color = arguments[0]; recolor()", color)
        assert browser.run(CONTRAST) >= 4.5
    browser.emulate()


CONTRAST = """
const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const light = (colors) => {
  ink.fillStyle = "#fff"; ink.fillRect(0, 0, 1, 1);
  for (const c of colors) { ink.fillStyle = c; ink.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...ink.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
document.head.append(el("style", { textContent: ".t { transition: none !important }" }));
const nodes = [...document.querySelectorAll(".t.fill, .t.given, .about, .foot")];
return Math.min(...nodes.map((node) => {
  const behind = [];
  for (let n = node; n; n = n.parentElement) behind.unshift(getComputedStyle(n).backgroundColor);
  const ground = light(behind), word = light([...behind, getComputedStyle(node).color]);
  return (Math.max(ground, word) + .05) / (Math.min(ground, word) + .05);
}));
"""
