"""micro.py is methods/mdlm.py: the same draws give the same numbers. It needs torch alone."""
import ast
import random

import pytest
import torch

import micro
from methods import make_method
from runs import ROOT
from samplers.orders import Spread

V, B, L = 5, 6, 9


def network(z):
    """Logits that depend on every letter of the text, on the place and on masks. -> (B, L, V)"""
    left, right = z.roll(1, -1), z.roll(-1, -1)  # (B, L)
    scores = [0.7 * left + 0.2 * z * v - 0.3 * right * (v - 1) for v in range(V)]
    return torch.stack(scores, -1).sin()  # (B, L, V)


def denoiser(z, t, at=None):
    """The same function as methods call it."""
    return network(z) if at is None else network(z)[at]


@pytest.fixture
def x():
    return torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))  # (B, L)


@pytest.mark.parametrize("name, theirs", [("training_loss", "loss"), ("bound_on_nats", "nelbo")])
def test_loss_and_bound_are_those_of_mdlm_number_by_number(x, name, theirs):
    """Equal seeds, so equal times, masks and weights."""
    method = make_method("mdlm", V)
    torch.manual_seed(7)
    ours = getattr(micro, name)(network, x, V)  # (B, L)
    torch.manual_seed(7)
    expected = getattr(method, theirs)(denoiser, x)  # (B, L)
    assert (ours > 0).any() and (ours == 0).any()
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_masks_open_where_spread_opens_them_and_each_word_once(x):
    seen = []

    def spy(z):
        seen.append(z.clone())
        return torch.full((*z.shape, V), -torch.inf).scatter(-1, (z % V)[..., None] * 0 + 2, 0.0)
    states = [z.clone() for z in micro.open_masks(spy, B, L, 4, V)]
    turns = Spread().turns(torch.ones(1, L, dtype=torch.bool), 4)[0]  # (L,)
    for step, (before, after) in enumerate(zip(seen, states)):
        assert ((before == V) == (turns >= step)).all()
        assert ((before != after) == (turns == step)).all()
    assert len(states) == 4 and (states[-1] == 2).all()  # as the network says


def test_letters_are_drawn_from_the_law_of_the_network():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2, 0, 0])  # (V,)
    *_, z = micro.open_masks(lambda z: p.log().expand(*z.shape, V), 4000, 2, 1, V)
    share = z.flatten().bincount(minlength=V) / z.numel()  # (V,)
    assert (share - p).abs().max() < 4 * (0.25 / z.numel()) ** 0.5


def test_it_imports_torch_alone_and_is_short():
    tree = ast.parse((ROOT / "micro.py").read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}
    assert names == {"random", "sys", "torch", "torch.nn.functional"}
    assert {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} == {"torch"}


def test_its_sentences_follow_the_rules():
    random.seed(0)
    text = micro.write_out("S" * 200)
    words = {word for options in micro.RULES.values() for option in options
             for word in option.replace(".", "").split() if not word.isupper()}
    assert set(text.replace(".", "").split()) == words and text.count(". ") == 200


def test_it_learns_your_text_and_prints_a_bound_and_samples(tmp_path, monkeypatch, capsys):
    """A text with a single rule: after a's come b's. A few steps are enough to beat chance."""
    (tmp_path / "mine.txt").write_text("aaab" * 500)
    monkeypatch.setattr("sys.argv", ["micro.py", str(tmp_path / "mine.txt")])
    for name, value in dict(STEPS=60, B=8, L=8, D=16, HEADS=2, LAYERS=1, RATE=0.02).items():
        monkeypatch.setattr(micro, name, value)
    micro.main()
    first, *_, last, one, two, three, four = capsys.readouterr().out.splitlines()
    assert first.startswith("step 0 of 60  loss ") and "knowing nothing: 0.693" in last
    assert float(last.split()[4]) < 0.6
    assert all(len(text) == 8 and set(text) <= set("ab") for text in (one, two, three, four))
