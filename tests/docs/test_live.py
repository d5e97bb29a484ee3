"""
docs/live/index.html computes what data/toy.py computes, to 1e-9. In a browser without a window, or
else in node, which runs the page's oracle without the page.
"""
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from browser import CHROMIUM, DRIVER, Browser, needed
from data.toy import toy_language
from diffusion import Uniform, likelihood
from evaluation.parallel_cost import path_ratio
from experiments.live_page import MARKS, PAGE, as_block, main
from flags import configure
from samplers.orders import Spread, prediction_entropy

HTML = PAGE.read_text("utf-8")
TOY = toy_language()
NODE = shutil.which("node")
ORACLE = re.search(r'<script id="oracle">\n(.*?)</script>', HTML, re.S)[1]
TABLES = re.search(r'id="language">\n(.*?)\n</script>', HTML, re.S)[1]
L = 7


@pytest.fixture(scope="module")
def browser():
    driven = Browser()
    driven.open(PAGE)
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def run(request):
    """What JavaScript returns that sees the page's oracle and `lang`."""
    if DRIVER and CHROMIUM:
        return request.getfixturevalue("browser").run
    if not NODE:
        pytest.skip("neither a browser nor node: apt-get install chromium chromium-driver")

    def in_node(code):
        whole = f"{ORACLE}\nconst lang = makeLanguage({TABLES});\nconst f = () => {{{code}}};\n" \
                "process.stdout.write(JSON.stringify(f()));"
        return json.loads(subprocess.run([NODE, "-"], input=whole, capture_output=True, text=True,
                                         check=True).stdout)
    return in_node


def test_the_numbers_of_the_page_are_those_of_the_language_and_it_is_short():
    assert TABLES == as_block(TOY), "python -m experiments.live_page"
    scripts = re.findall(r'<script id="\w+">\n(.*?)</script>', HTML, re.S)
    assert len(scripts) == 2 and sum(len(code.splitlines()) for code in scripts) <= 300
    assert max(map(len, MARKS.sub("", HTML).splitlines())) <= 100
    assert not re.search(r"src=|href=\"http|fetch\(|import ", HTML)  # it needs nothing else


def test_the_script_writes_the_numbers_and_nothing_else(tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text(HTML.replace(TABLES, "{}"), "utf-8")
    from experiments import live_page
    main(configure(live_page.Config, page=str(page)))
    assert page.read_text("utf-8") == HTML and "113 words" in capsys.readouterr().out


def test_every_law_and_every_probability_is_that_of_python(run):
    """Masks, words that may be wrong at several levels, and words that contradict each other."""
    generator = torch.Generator().manual_seed(1)
    x = TOY.sample(6, L, generator)  # (n, L)
    x[5] = torch.randint(TOY.V, (L,), generator=generator)  # no text of the grammar
    keep = torch.tensor([1, 1, 0.6, 0.1, 0, 0.9], dtype=torch.double)  # (n,)
    masked = torch.rand(6, L, generator=generator) < 0.5  # (n, L)
    masked[1], masked[5] = True, False
    texts = [[None if m else [v, k] for v, m in zip(row, hidden)]
             for row, hidden, k in zip(x.tolist(), masked.tolist(), keep.tolist())]
    got = run(f"return {json.dumps(texts)}.map((text) => {{ const a = solve(lang, text); "
              "return { laws: a.laws.map((law) => [...law]), logP: a.logP } })")
    e = likelihood(Uniform(TOY.V), x, (1 - keep)[:, None])  # (n, L, V)
    e = torch.where(masked[..., None], 1.0, e)  # (n, L, V)
    exact = TOY.posterior(e)  # (n, L, V)
    for i, answer in enumerate(got):
        laws = torch.tensor(answer["laws"], dtype=torch.double)  # (L, V)
        assert (laws - exact[i]).abs().max() < 1e-9
        scale = e[i].amax(-1).log().sum()  # () log_prob makes the largest entry 1
        known = (TOY.prior.log() + TOY.log_evidence(e[i:i + 1])).logsumexp(-1)  # (1,)
        assert abs(answer["logP"] - known - scale) < 1e-9


def play(run, noise, order, steps, length=L):
    """A path of the page: its states, what changed in each step, and its two logarithms."""
    return run(f"const random = randomNumbers(3), state = start(lang, '{noise}', {length}, {steps},"
               " random), path = []; const keep = () => path.push({ z: state.z, t: state.t, "
               "opened: state.opened, nats: [state.logQ, state.logP] }); keep(); while "
               f"(!done(state)) {{ advance(lang, state, '{order}', random); keep() }} return path")


def laws_of(z):
    """The exact law of each place of a text with masks, None. -> (L, V)"""
    e = torch.ones(1, len(z), TOY.V, dtype=torch.double)  # (1, L, V)
    for l, v in enumerate(z):
        if v is not None:
            e[0, l] = torch.eye(TOY.V)[v]
    return TOY.posterior(e)[0]  # (L, V)


@pytest.mark.parametrize("order", ["spread", "random", "surest"])
def test_orders_open_what_they_say_and_the_cost_of_a_path_is_exact(run, order):
    path, log_q = play(run, "masks", order, 3), 0.0
    turns = Spread().turns(torch.ones(1, L, dtype=torch.bool), 3)[0]  # (L,)
    for step, (before, after) in enumerate(zip(path, path[1:])):
        laws, opened = laws_of(before["z"]), after["opened"]  # (L, V)
        hidden = [l for l in range(L) if before["z"][l] is None]
        assert opened == [l for l in hidden if after["z"][l] is not None] or order != "spread"
        assert len(opened) == -(-len(hidden) // (3 - step)) and set(opened) <= set(hidden)
        if order == "spread":
            assert opened == (turns == step).nonzero()[:, 0].tolist()
        if order == "surest":
            entropy = prediction_entropy(laws.log())  # (L,)
            others = [entropy[l] for l in set(hidden) - set(opened)]
            assert max(entropy[opened]) <= min(others, default=torch.inf)
        log_q += sum(laws[l, after["z"][l]].log() for l in opened)
        assert abs(log_q - after["nats"][0]) < 1e-9
    x = torch.tensor([path[-1]["z"]])  # (1, L)
    assert abs(TOY.log_prob(x) - path[-1]["nats"][1]) < 1e-9


def test_wrong_words_follow_the_reverse_step_and_their_path_costs_what_24_6_says(run):
    path, process = play(run, "words", "", 4), Uniform(TOY.V)
    times = torch.linspace(1, 0, 5, dtype=torch.double)[:, None, None]  # (5, 1, 1)
    log_q = torch.full((1,), L / TOY.V, dtype=torch.double).log() * 0 - L * torch.tensor(
        float(TOY.V), dtype=torch.double).log()  # (1,)
    for t, s, before, after in zip(times, times[1:], path, path[1:]):
        z, new = torch.tensor([before["z"]]), torch.tensor([after["z"]])  # (1, L) each
        x_theta = TOY.posterior(likelihood(process, z, t))  # (1, L, V)
        log_q = log_q + path_ratio(process, x_theta, z, new, t, s)  # (1,)
        e = likelihood(process, new, s)  # (1, L, V)
        scale = e.amax(-1).log().sum(-1)  # (1,)
        log_p = (TOY.prior.log() + TOY.log_evidence(e)).logsumexp(-1) + scale  # (1,)
        assert abs(log_q - after["nats"][0]) < 1e-9 and abs(log_p - after["nats"][1]) < 1e-9
        assert after["opened"] == (z != new)[0].nonzero()[:, 0].tolist()
    assert path[-1]["t"] == 0


def test_texts_one_word_at_a_time_cost_nothing_and_all_at_once_cost_much(run):
    """(24.2): each path of one mask at a time has log q = log p; all at once, the mean is a KL."""
    code = "const random = randomNumbers(5); return ['spread', 'random', 'surest'].map((order) =>" \
           " Array.from({{ length: {n} }}, () => writeText(lang, 'masks', order, 6, {steps}, " \
           "random).nats))"
    one = torch.tensor(run(code.format(n=5, steps=6)))  # (3, n)
    assert one.abs().max() < 1e-9
    once = torch.tensor(run(code.format(n=60, steps=1)))  # (3, n)
    assert (once.mean(-1) > 4 * once.std(-1) / 60 ** 0.5).all() and once.mean() > 2


@needed
def test_it_is_used_by_mouse_and_by_keyboard_in_the_dark_and_on_a_phone(browser):
    browser.emulate(width=360, height=740, color_scheme="dark")
    browser.open(PAGE)
    assert browser.complaints() == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    shown = "return [...document.querySelectorAll('.place')].map((p) => p.className)"
    assert browser.run(shown) == ["place hidden"] * 16
    browser.click(".place:nth-child(3)")
    browser.click(".word:first-child")
    assert "hidden" not in browser.run(shown)[2]
    browser.run("document.querySelectorAll('.place')[2].focus()")
    browser.press("left", "delete")
    assert browser.run("return at") == 1 and "hidden" in browser.run(shown)[1]
    browser.click("#step")
    assert browser.run("return state.z.filter((v) => v !== null).length") == 3
    browser.run("$('noise').value = 'words'; $('noise').onchange()")
    browser.click("#step")
    assert not browser.run("return state.z.includes(null)")
    browser.click("#many")
    assert "100 texts" in browser.run("return $('table').textContent")
    dark = browser.run("return getComputedStyle(document.body.parentNode).backgroundColor")
    browser.emulate()
    assert dark != browser.run("return getComputedStyle(document.documentElement).backgroundColor")
