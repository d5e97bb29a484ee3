"""
--html: what is recorded is what happened, at no network call more; and in a real browser the page plays it, takes no
text for markup, and can be read by keyboard, in the dark, on paper and on a telephone.
"""
import html
import json
import re
import time
from pathlib import Path

import pytest
import torch
from browser import Browser, needed
from runs import cache, complaint, elsewhere, fit  # noqa: F401

import page
import sample
from data.tokenizer import byte_level, chars, decode, pieces
from diffusion import probabilities
from methods import make_method, make_sampler
from oracle import exact

SHORT = dict(device="cpu", num_samples=2, steps=9)


def films(monkeypatch, **flags):
    """What sample.py --html tells the page, the page as text, and the states of each walk."""
    walks, trajectory = [], sample.trajectory

    def spied(*args):
        walks.append([])
        for z in trajectory(*args):
            walks[-1].append(z)
            yield z

    monkeypatch.setattr(sample, "trajectory", spied)
    sample.main(sample.Config(**{**SHORT, "html": "out.html", **flags}))
    text = Path("out.html").read_text("utf-8")
    told = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    return json.loads(told), text, walks


def states(film, number):
    """The states of a text, as the page puts them together: lists of what each token is spelled like."""
    text = film["texts"][number]
    z = list(text["start"])
    yield [film["tokens"][token] for token in z]
    for step in text["steps"]:
        for place, token, *_ in step:
            z[place] = token
        yield [film["tokens"][token] for token in z]


@pytest.mark.parametrize("flags", [
    dict(oracle="mdlm", beside="udlm,gidd,pgm,bd3lm"), dict(oracle="mdlm", sampler="psi", eta=0.5),
    dict(oracle="mdlm", sampler="confidence"), dict(oracle="udlm", tail="gibbs", rounds=5),
    dict(oracle="duo", label="sea", guidance=3.0)], ids=str)
def test_the_page_is_told_every_state_of_every_text(flags, monkeypatch, capsys):
    told, _, walks = films(monkeypatch, prompt="the old _ _ _ _ _ _", **flags)
    encoding = exact("mdlm").encoding
    assert len(told["films"]) == len(walks) >= 1
    for film, walk in zip(told["films"], walks):
        assert len(film["calls"]) == len(walk) - 1 and film["calls"] == sorted(film["calls"])
        for i in range(2):
            assert film["texts"][i]["given"] == [0, 1]
            for seen, z in zip(states(film, i), walk, strict=True):
                assert seen == [page.spelling(encoding, id) for id in z[i].tolist()]


def test_what_ar_has_not_written_yet_is_told_as_nothing(monkeypatch):
    told, _, (walk,) = films(monkeypatch, oracle="ar", prompt="_ _ dog _ _")
    shown = list(states(told["films"][0], 1))
    assert [[token is None for token in z] for z in shown] == [
        [True, True, False, True, True], [False, True, False, True, True], [False, False, False, True, True],
        [False, False, False, False, True], [False] * 5]
    assert shown[-1] == [page.spelling(exact("ar").encoding, id) for id in walk[-1][1].tolist()]


def test_a_film_is_named_after_what_was_sampled_from():
    frozen = torch.zeros(1, 4, dtype=torch.bool)
    for flags, name in ((dict(out_dir="out/a"), "out/a;"), (dict(init_from="s-sahoo/duo"), "s-sahoo/duo;"),
                        (dict(oracle="duo", init_from="x"), "the exact denoiser of the toy language;")):
        film, _ = page.filmed(sample.Config(html="out.html", **flags), "duo", None, byte_level(), frozen, None, None)
        assert film.about.startswith(name)


def notes(film):
    for number, text in enumerate(film["texts"]):
        for step, entries in enumerate(text["steps"]):
            for place, token, p, *best in (entry for entry in entries if len(entry) > 2):
                yield number, step, place, token, p, dict(zip(best[::2], best[1::2]))


@pytest.mark.parametrize("oracle", ["mdlm", "ar"])
def test_the_belief_is_the_networks_own_at_the_moment_of_writing(oracle, monkeypatch):
    """Before --temperature: what was drawn there is the likeliest, but its probability is not 1."""
    told, _, (walk,) = films(monkeypatch, oracle=oracle, temperature=0.0)
    model, (film,), n, least = exact(oracle), told["films"], 0, 1000
    number = {page.spelling(model.encoding, id): id for id in range(model.encoding.n_vocab)}
    for text, step, place, token, p, best in notes(film):
        before = walk[step][text:text + 1]
        z = model.method.shift(before) if oracle == "ar" else before
        law = probabilities(model.denoiser(z, torch.tensor([[0.5]])))[0, place]
        assert p == round(1000 * law[number[film["tokens"][token]]].item())
        assert best == pytest.approx({film["tokens"].index(page.spelling(model.encoding, id.item())): 1000 * q.item()
                                      for q, id in zip(*law.topk(5))}, abs=0.51)
        n, least = n + 1, min(p, least)
    assert n == 2 * 32 and least < 500


@pytest.mark.parametrize("method, flags", [
    ("ar", dict()), ("bd3lm", dict()), ("mdlm", dict(sampler="semi-ar", decode_block=4, cache="dual"))])
def test_with_a_cache_every_belief_stands_at_its_own_place(method, flags):
    """The network is asked about a few tokens from the middle of the text. It says of each how far along it is."""
    encoding, L = chars("abcdefgh"), 8

    def placed(z, t, at, positions=None, mask_mod=None, cache=None):
        first = max(cache.start, cache.read) if cache else 0
        told = torch.nn.functional.one_hot((torch.arange(z.shape[1]) + first).clamp(max=7), 9).float() * 9
        return told.expand(len(z), -1, -1)[at]

    model = make_method(method, 8, diffusion_block=4)
    placed.caches = True
    seen, frozen = page.Seen(placed, 8, 3), torch.zeros(3, L, dtype=torch.bool)
    film = page.Film(method, "", seen, encoding, frozen)
    sampler = make_sampler(flags.pop("sampler", "ancestral"), method, **flags)
    for z in sample.trajectory(model, seen, frozen.long(), frozen, 4, sampler):
        film.add(z, 0)
    told = [(place, best) for _, _, place, _, _, best in notes(film.data())]
    tokens = film.data()["tokens"]
    assert sorted({place for place, _ in told}) == list(range(8))
    assert all(tokens[max(best, key=best.get)] == "abcdefgh"[place] for place, best in told)


def test_a_film_asks_nothing_more_and_changes_nothing(monkeypatch, capsys):
    for oracle in ("mdlm", "udlm", "bd3lm"):
        sample.main(sample.Config(oracle=oracle, **SHORT))
        plain = capsys.readouterr()
        told, _, _ = films(monkeypatch, oracle=oracle)
        filmed = capsys.readouterr()
        cost = re.search(r"(\d+) network calls, .* positions scored", plain.err)
        assert filmed.out == plain.out and cost[0] in filmed.err and told["films"][0]["calls"][-1] == int(cost[1])


def test_a_page_of_128_steps_64_tokens_and_3_texts_stays_small(capsys):
    fit("out", method="udlm", block_size=64)
    sample.main(sample.Config(out_dir="out", steps=128, html="out.html", device="cpu", sampler="psi", eta=0.1))
    assert 30_000 < Path("out.html").stat().st_size < 400_000
    assert "kB: open it in a browser" in capsys.readouterr().err


@pytest.mark.parametrize("argv, says", [
    (["--oracle", "mdlm", "--beside", "udlm"], "give --html out.html too"),
    (["--oracle", "mdlm", "--html", "o.html", "--beside", "udml"], "udml is no oracle (did you mean udlm?)"),
    (["--oracle", "mdlm", "--html", "no/where/o.html"], "there is no folder no/where"),
    (["--oracle", "mdlm", "--html", "o.html", "--chat"], "leave out --chat"),
    (["--oracle", "mdlm", "--html", "o.html", "--length", "40"], "--length 32 at most"),
])
def test_a_film_that_cannot_be_is_refused_in_one_line_and_leaves_no_file(argv, says, capsys):
    assert says in complaint(sample, *argv, capsys=capsys)
    assert not list(Path().glob("o.*"))


# ---- in a browser

@pytest.fixture(scope="module")
def browser():
    driven = Browser()
    yield driven
    driven.close()


MARKUP = "</script><script>document.title='taken'</script><b onclick=x>&amp;"
ODD = "two\nlines\ta\u202eb Ä東🙂é\u0301 "


def odd_page():
    """Bytes that are markup, many-token characters, controls, and no UTF-8 at all; they open from right to left."""
    encoding, raw = byte_level(), (MARKUP + ODD).encode() + b"\xff\xf0\x9f end"
    x, frozen = torch.tensor([list(raw)]), torch.zeros(1, len(raw), dtype=torch.bool)
    frozen[0, :3] = True
    seen = page.Seen(lambda z, t, at: torch.arange(257.).log().expand(int(at.sum()), -1), 256, 1)
    film = page.Film("mdlm", MARKUP, seen, encoding, frozen)
    for step in range(5):
        hidden = (torch.arange(len(raw)) < len(raw) * (4 - step) // 4) & ~frozen
        film.add(torch.where(hidden, 256, x), step)
        seen(x, None, hidden & (torch.arange(len(raw)) >= len(raw) * (3 - step) // 4))
    Path("odd.html").write_text(page.page(MARKUP, [film]), "utf-8")
    return encoding, x[0], frozen[0]


SHOWN = "return [...document.querySelectorAll('.text')].map(t => t.textContent)"
PLAIN = "return [...document.querySelectorAll('details pre')].map(t => t.textContent)"


@needed
def test_markup_in_a_text_stays_text_and_what_cannot_be_seen_is_shown(browser):
    encoding, x, frozen = odd_page()
    browser.open(Path("odd.html").resolve())
    assert browser.complaints() == [] and browser.run("return document.scripts.length") == 2
    assert browser.run("return document.title") == f"palimpsest: {MARKUP}"
    assert browser.run(PLAIN) == [decode(encoding, x.tolist())]
    shown, = browser.run(SHOWN)
    assert all(part in shown for part in (MARKUP, "↵\n", "⇥", "⟨202e⟩", "··東···🙂"))
    spans = browser.run("return [...document.querySelectorAll('.t[role=option]')].map(t => t.ariaLabel)")
    assert len(spans) == len(x) and "bytes f0" in spans[-6] + spans[-7] and "given" in spans[0]


@needed
def test_what_comes_after_the_end_of_a_text_is_faded_and_no_part_of_the_plain_text(browser):
    x, given = torch.tensor([[2, 0, 1, 2, 0]]), torch.tensor([[True, False, False, False, False]])
    film = page.Film("ar", "", page.Seen(None, 3, 1), chars("!ab"), given, stop=0)      # "b!ab!", of which "!" ends it
    for step in range(6):
        film.add(sample.not_yet(x, given, step, 3), step)
    Path("end.html").write_text(page.page("", [film]), "utf-8")
    browser.open(Path("end.html").resolve())
    assert browser.run(PLAIN) == ["b"] and browser.complaints() == []
    faded = "return [...document.querySelectorAll('.t[role=option]')].map(t => t.classList.contains('past'))"
    assert browser.run(faded) == [False, False, True, True, True]


@needed
def test_every_step_on_the_slider_shows_the_state_of_that_step(browser, monkeypatch):
    told, _, walks = films(monkeypatch, oracle="mdlm", beside="udlm,ar", prompt="the old dog _ _ _ _")
    encoding = exact("mdlm").encoding
    browser.open(Path("out.html").resolve())
    browser.run("document.querySelector('#slider').focus()")
    browser.press("home")
    for step in range(10):
        for film, walk, text in zip(told["films"], walks, browser.run(PLAIN)):
            assert html.unescape(text) == "".join(pieces(encoding, shown(film, walk, step, encoding)))
        assert browser.run("return document.querySelector('#slider').value") == str(step)
        browser.press("right")
    assert browser.complaints() == []


def shown(film, walk, step, encoding):
    of = [None if token is None else encoding.encode_single_token(token.encode("latin-1"))
          for token in list(states(film, 0))[round(step / 9 * (len(walk) - 1))]]
    return [encoding.n_vocab if id is None else id for id in of]


@needed
def test_it_plays_to_the_end_and_pauses_by_button_and_by_space(browser, monkeypatch):
    films(monkeypatch, oracle="mdlm", prompt="the old dog _ _ _ _ _")
    browser.open(Path("out.html").resolve())
    at = lambda: int(browser.run("return document.querySelector('#slider').value"))

    def until(what):
        end = time.time() + 60
        while not browser.run(f"return {what}"):
            assert time.time() < end, what
            time.sleep(0.02)

    browser.click("#play")
    until("view.at > 0 && view.at < N")
    assert "Pause" in browser.run("return document.querySelector('#play').textContent")
    browser.click("#play")
    paused = at()
    assert 0 < paused <= 9 and "paused at" in browser.run("return document.querySelector('#said').textContent")
    browser.run("document.activeElement.blur(); go(0)")
    browser.press("space")
    until("view.at === N && !view.timer")
    assert at() == 9 and "finished" in browser.run("return document.querySelector('#said').textContent")
    browser.press("left", "left")
    assert at() == 7 and browser.complaints() == []


@needed
def test_pointing_at_a_token_or_walking_to_it_tells_what_else_it_could_have_been(browser, monkeypatch):
    told, _, _ = films(monkeypatch, oracle="mdlm", prompt="the old dog _ _ _ _ _")
    browser.open(Path("out.html").resolve())
    token = "article:first-child .t:nth-of-type(5)"
    card = "const c = document.querySelector('#card'); return c.hidden ? '' : c.innerText"
    assert browser.run(card) == ""
    browser.hover(token)
    assert "written at step" in browser.run(card) and browser.run(card).count("%") >= 5
    browser.run("hide(); document.querySelector('.t[tabindex=\"0\"]').focus()")
    assert "given, never changed" in browser.run(card)
    browser.press("right", "right", "right", "right")
    assert browser.run("return document.activeElement === document.querySelector(arguments[0])", token)
    label = browser.run("return document.activeElement.ariaLabel")
    assert re.fullmatch(r"5: “ \S+”, step \d+, believed [\d.]+ %(, or .* %)?", label)
    browser.press("escape")
    assert browser.run(card) == ""
    text = browser.run(SHOWN)
    browser.click("#texts label:nth-of-type(2) input")
    assert browser.run(SHOWN) != text and len(browser.run(PLAIN)[0].split()) == 8


@needed
@pytest.mark.parametrize("look", [dict(), dict(color_scheme="dark"), dict(width=360, height=740), dict(media="print"),
                                  dict(media="print", color_scheme="dark")], ids=str)
def test_words_stand_out_from_what_is_behind_them_and_nothing_is_cut_off(look, browser, monkeypatch):
    """Contrast of at least 4.5 (WCAG AA), in the light, the dark, on paper; no scrolling sideways on a telephone."""
    films(monkeypatch, oracle="mdlm", beside="udlm", prompt="the old dog _ _ _ _ _ _ _ _ _ _ _ _")
    browser.emulate(**look)
    browser.open(Path("out.html").resolve())
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    for colour in ("settle", "belief"):
        browser.run("view.colour = arguments[0]; recolour()", colour)
        assert browser.run(CONTRAST) >= 4.5
    browser.emulate()


CONTRAST = """
const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const light = (colours) => {
  ink.fillStyle = "#fff"; ink.fillRect(0, 0, 1, 1);
  for (const c of colours) { ink.fillStyle = c; ink.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...ink.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
document.head.append(el("style", { textContent: ".t { transition: none !important }" }));
return Math.min(...[...document.querySelectorAll(".t.fill, .t.given, .about, .foot")].map((node) => {
  const behind = [];
  for (let n = node; n; n = n.parentElement) behind.unshift(getComputedStyle(n).backgroundColor);
  const [a, b] = [light(behind), light([...behind, getComputedStyle(node).color])].sort((x, y) => x - y);
  return (b + .05) / (a + .05);
}));
"""
