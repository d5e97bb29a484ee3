"""--html: what is recorded is what happened, without one more network call. Page: test_player.py"""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample
from data.tokenizer import chars, grid, words
from diffusion import probabilities
from flags import configure, load_row
from kinds import in_place
from methods import METHODS, make_method
from networks import random_net
from oracle import exact
from runs import cache, complaint, elsewhere, fit  # noqa: F401
from samplers import generate, make_sampler
from viewer import html_player
from viewer.html_player import Recorder, Recording, as_latin1
from viewer.terminal import shown_words

SHORT = dict(device="cpu", num_samples=2, steps=9)
DATA = r'<script type="application/json" id="data">(.*?)</script>'


def record(monkeypatch, **flags):
    """The data of sample.py --html, the page as text, and the states of each model's texts."""
    runs, trajectory = [], generate.trajectory

    def spied(*args):
        runs.append([])
        for z in trajectory(*args):
            runs[-1].append(z)
            yield z

    with monkeypatch.context() as patch:
        patch.setattr(generate, "trajectory", spied)
        sample.main(configure(sample.Config, **{**SHORT, "html": "out.html", **flags}), [])
    page = Path("out.html").read_text("utf-8")
    return json.loads(re.search(DATA, page, re.S)[1]), page, runs


def states(recording, number):
    """The states of a text, as the page puts them together: lists of the bytes of each token."""
    text = recording["texts"][number]
    z = list(text["start"])
    yield [recording["tokens"][token] for token in z]
    for step in text["steps"]:
        for position, token, *_ in step:
            z[position] = token
        yield [recording["tokens"][token] for token in z]


WRITERS = in_place(name for name in METHODS if not load_row(METHODS, name).classifies)
FLAGS = [dict(oracle="mdlm", sampler="psi", eta=0.5), dict(oracle="mdlm", sampler="confidence"),
         dict(oracle="udlm", corrector="gibbs", rounds=5),
         dict(oracle="duo", label="sea", guidance=3.0)]


@pytest.mark.parametrize("flags", [dict(oracle=WRITERS[0], beside=",".join(WRITERS[1:])), *FLAGS],
                         ids=lambda flags: str([*flags.values()][-1]))
def test_the_page_has_every_state_of_every_text(flags, monkeypatch, capsys):
    data, _, runs = record(monkeypatch, prompt="the old _ _ _ _ _ _", **flags)
    encoding = exact("mdlm").encoding
    names = [flags["oracle"], *filter(None, flags.get("beside", "").split(","))]
    assert [recording["name"] for recording in data["recordings"]] == names
    assert len(runs) == len(names)
    for recording, run in zip(data["recordings"], runs):
        assert len(recording["calls"]) == len(run) - 1
        assert recording["calls"] == sorted(recording["calls"])
        for i in range(2):
            assert recording["texts"][i]["given"] == [0, 1]
            for seen, z in zip(states(recording, i), run, strict=True):
                assert seen == [as_latin1(encoding, id) for id in z[i].tolist()]


@pytest.mark.parametrize("output", [torch.zeros(6, 4), torch.zeros(2, 5, 16)],
                         ids=["tokens", "texts"])
def test_vectors_are_no_distributions_of_words(output):
    """Few numbers for each token, or vectors of a text, as wide as one likes."""
    seen = Recorder(lambda z, t, at=None: output, 8, 2)
    z = torch.zeros(2, 3, dtype=torch.long)  # (2, 3)
    assert seen(z, torch.ones(2, 1)) is output and not seen.take()
    seen.denoiser = lambda z, t, at=None: torch.zeros(6, 9)  # 8 words and a mask
    seen(z, torch.ones(2, 1))
    assert len(seen.take()) == 6


def test_what_ar_has_not_written_yet_has_no_token(monkeypatch):
    data, _, (run,) = record(monkeypatch, oracle="ar", prompt="_ _ dog _ _")
    shown = list(states(data["recordings"][0], 1))
    assert [[token is None for token in z] for z in shown] == [
        [True, True, False, True, True], [False, True, False, True, True],
        [False, False, False, True, True], [False, False, False, False, True], [False] * 5]
    assert data["recordings"][0]["unwritten"]
    ids = run[-1][1].tolist()
    assert shown[-1] == [as_latin1(exact("ar").encoding, id) for id in ids]


def test_noise_that_is_marked_keeps_its_word_and_text_is_a_word_alone(monkeypatch):
    """audm: a list of one is noise, and its word is that which the terminal shows."""
    data, _, (run,) = record(monkeypatch, oracle="audm", prompt="the _ _ _ _")
    first, *_, last = states(data["recordings"][0], 0)
    encoding = exact("audm").encoding
    assert [type(token) for token in first] == [str, *[list] * 4]
    shown = shown_words(run[0][0].tolist(), encoding.n_vocab)  # ids
    assert [token[0] for token in first[1:]] == [as_latin1(encoding, id) for id in shown[1:]]
    assert all(isinstance(token, str) for token in last)


@pytest.mark.parametrize("flags, name", [
    (dict(out_dir="out/a"), "out/a;"), (dict(init_from="s-sahoo/duo"), "s-sahoo/duo;"),
    (dict(oracle="duo", init_from="x"), "the exact denoiser of the toy language;")])
def test_a_recording_is_named_after_its_model(flags, name):
    model = exact("duo")
    config = configure(html_player.Config, **flags)
    frozen = torch.zeros(32, dtype=torch.bool)  # (L,)
    counter = generate.CallCounter(model.denoiser)
    writer = generate.writer_of(config, model, counter, frozen)
    recording = html_player.record(config, model, writer, counter, frozen[None])
    assert recording.name == "duo" and recording.about.startswith(name)


def test_all_texts_of_a_page_go_on_to_their_last_token():
    """The page fades what comes after the end, and texts that ended would leave the batch."""
    model, frozen = exact("ar"), torch.zeros(32, dtype=torch.bool)  # (L,)
    model.encoding = SimpleNamespace(special_tokens_set={"<|endoftext|>"}, eot_token=7, n_vocab=113)
    counter, config = generate.CallCounter(model.denoiser), configure(html_player.Config)
    writer = generate.writer_of(config, model, counter, frozen)
    assert writer.end == 7
    recording = html_player.record(config, model, writer, counter, frozen[None])
    assert writer.end is None and recording.end == 7


def written(recording):
    """(text, step, position, token, p, {token: p}) for each entry with probabilities."""
    for number, text in enumerate(recording["texts"]):
        for step, entries in enumerate(text["steps"]):
            for position, token, p, *best in (entry for entry in entries if len(entry) > 2):
                yield number, step, position, token, p, dict(zip(best[::2], best[1::2]))


@pytest.mark.parametrize("oracle", ["mdlm", "ar"])
def test_a_probability_is_the_networks_own_at_the_moment_of_writing(oracle, monkeypatch):
    """Before --temperature: the token is the likeliest one, but its probability is not 1."""
    data, _, (run,) = record(monkeypatch, oracle=oracle, temperature=0.0)
    model, (recording,), n, least = exact(oracle), data["recordings"], 0, 1000
    bytes_of = lambda id: as_latin1(model.encoding, int(id))
    number = {bytes_of(id): id for id in range(model.encoding.n_vocab)}
    for text, step, position, token, p, best in written(recording):
        before = run[step][text:text + 1]
        z = model.method.shift(before) if oracle == "ar" else before
        p_x = probabilities(model.denoiser(z, torch.tensor([[0.5]])))[0, position]  # (V,)
        assert p == round(1000 * p_x[number[recording["tokens"][token]]].item())
        assert best == pytest.approx({recording["tokens"].index(bytes_of(id)): 1000 * q.item()
                                      for q, id in zip(*p_x.topk(5))}, abs=0.51)
        n, least = n + 1, min(p, least)
    assert n == 2 * 32 and least < 500


@pytest.mark.parametrize("method, flags", [
    ("ar", dict()), ("bd3lm", dict()),
    ("mdlm", dict(name="semi-ar", decode_block=4, cache="dual"))])
def test_with_a_cache_every_probability_stands_at_its_own_position(method, flags):
    """The network reads a few tokens in the middle of the text, and outputs at which position."""
    encoding, L = chars("abcdefgh"), 8

    def position_denoiser(z, t, at, positions=None, mask_mod=None, cache=None):
        first = max(cache.start, cache.read) if cache else 0
        position = (torch.arange(z.shape[1]) + first).clamp(max=7)  # (n,)
        logits = torch.nn.functional.one_hot(position, 9).float() * 9  # (n, V)
        return logits.expand(len(z), -1, -1)[at]

    model = make_method(method, 8, diffusion_block=4)
    position_denoiser.supports_cache = True
    recorder, frozen = Recorder(position_denoiser, 8, 3), torch.zeros(3, L, dtype=torch.bool)
    recording = Recording(method, "", recorder, SimpleNamespace(calls=0), encoding, frozen)
    sampler = make_sampler(**{"name": "ancestral", "method": model, **flags})
    texts = generate.trajectory(model, recorder, frozen.long(), frozen, 4, sampler)
    for step, z in enumerate(texts):
        recording.show(step, z)
    tokens = recording.data()["tokens"]
    seen = [(position, best) for _, _, position, _, _, best in written(recording.data())]
    assert sorted({position for position, _ in seen}) == list(range(8))
    assert all(tokens[max(best, key=best.get)] == "abcdefgh"[position] for position, best in seen)


@pytest.mark.parametrize("oracle", ["mdlm", "udlm", "bd3lm"])
def test_recording_takes_no_more_calls_and_changes_nothing(oracle, monkeypatch, capsys):
    sample.main(configure(sample.Config, oracle=oracle, **SHORT), [])
    plain = capsys.readouterr()
    data, _, _ = record(monkeypatch, oracle=oracle)
    recorded = capsys.readouterr()
    cost = re.search(r"(\d+) network calls, .* positions scored", plain.err)
    assert recorded.out == plain.out and cost[0] in recorded.err
    assert data["recordings"][0]["calls"][-1] == int(cost[1])


def test_a_page_of_128_steps_64_tokens_and_3_texts_stays_small(capsys):
    fit("out", method="udlm", block_size=64)
    sample.main(configure(sample.Config, out_dir="out", steps=128, html="out.html", device="cpu",
                          sampler="psi", eta=0.1), [])
    assert 30_000 < Path("out.html").stat().st_size < 400_000
    assert "kB: open it in a browser" in capsys.readouterr().err


def test_the_command_of_the_page_records_the_same_as_sample_py(monkeypatch, capsys):
    fit("out", method="udlm", block_size=32)
    data, page, _ = record(monkeypatch, oracle="mdlm", beside="ar")
    capsys.readouterr()
    html_player.main(configure(html_player.Config, oracle="mdlm,ar", html="b.html", **SHORT), [])
    assert Path("b.html").read_text("utf-8") == page and capsys.readouterr().out == ""
    html_player.main(configure(html_player.Config, oracle="udlm", out_dir="out", html="b.html",
                               **SHORT), [])
    data = json.loads(re.search(DATA, Path("b.html").read_text("utf-8"), re.S)[1])
    abouts = [recording["about"] for recording in data["recordings"]]
    assert abouts == ["the exact denoiser of the toy language; ancestral, 9 steps",
                      "out; ancestral, 9 steps"]


@pytest.mark.parametrize("module, argv, says", [
    (sample, ["--oracle", "mdlm", "--beside", "udlm"], "counts for nothing without --html"),
    (sample, ["--oracle", "mdlm", "--html", "o.html", "--beside", "udml"],
     "udml is no oracle (did you mean udlm?)"),
    (sample, ["--oracle", "mdlm", "--html", "no/where/o.html"], "there is no folder no/where"),
    (sample, ["--oracle", "mdlm", "--html", "o.html", "--chat"], "leave out --chat"),
    (sample, ["--oracle", "mdlm", "--html", "o.html", "--length", "40"], "--length 32 at most"),
    (html_player, ["--html", "no/where/o.html", "--oracle", "mdlm"], "there is no folder no/where"),
    (html_player, ["--html", "o.html"], "name the models"),
    (html_player, ["--html", "o.html", "--oracle", "mdlm,udml"], "did you mean udlm?"),
    (html_player, ["--html", "o.html", "--out_dir", "nowhere"], "there is no checkpoint nowhere")])
def test_what_cannot_be_recorded_is_one_line_and_leaves_no_file(module, argv, says, capsys):
    assert says in complaint(module, *argv, capsys=capsys)
    assert not list(Path().glob("o.*"))


@pytest.mark.parametrize("encoding, spaced, columns", [
    (words(["a", "b"]), True, 0), (chars("ab"), False, 0), (grid(" .:", 8), False, 8)])
def test_the_page_knows_how_tokens_make_a_text(encoding, spaced, columns):
    assert html_player.spelling(encoding) == {"spaced": spaced, "columns": columns}


@pytest.mark.parametrize("name", ["sigma_gpt", "eso_lm"])
def test_what_the_network_said_stands_at_the_place_that_it_predicts(name):
    """Also where the network reads a text in another order."""
    method = make_method(name, 10)
    recorder = Recorder(random_net(cond_dim=0, mask_mod=method.mask_mod), 10, 2)
    before = method.prior((2, 8))  # (2, 8)
    for z in method.sample(recorder, before, before < 0, 2):
        changed = {tuple(pair) for pair in (z != before).nonzero().tolist()}
        assert set(recorder.take()) == changed != set()
        before = z
