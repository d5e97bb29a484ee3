"""Texts longer than those of training are written through a window; idle texts are not read."""
import pytest
import torch

import sample
from flags import configure
from methods import make_method
from model import Transformer
from runs import cache, complaint, elsewhere, fit  # noqa: F401
from samplers.generate import trajectory
from samplers.sliding_window import count_windows, slide_window


def network(**options):
    torch.manual_seed(0)
    net = Transformer(7, n_layer=2, n_head=2, n_embd=16, **options).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("options", [dict(cond_dim=0), dict(cond_dim=8),
                                     dict(cond_dim=8, n_classes=3)], ids=str)
def test_texts_that_nobody_asks_about_are_not_read_and_the_others_answer_as_before(options):
    """Per-row caching of masked models: a text in which nothing opens costs nothing."""
    net, read = network(**options), []
    z, t = torch.randint(7, (6, 5)), torch.rand(6, 1)  # (6, 5), (6, 1)
    label = torch.randint(4, (6,)) if "n_classes" in options else None  # (6,)
    at = torch.rand(6, 5) < 0.4  # (6, 5)
    at[1], at[4] = False, False
    net.blocks[0].register_forward_pre_hook(lambda block, inputs: read.append(len(inputs[0])))
    selected, all_rows = net(z, t, at=at, label=label), net(z, t, label=label)
    torch.testing.assert_close(selected, all_rows[at], atol=1e-5, rtol=1e-5)
    assert read == [int(at.any(-1).sum()), 6]
    assert net(z, t, at=torch.zeros_like(at), label=label).shape == (0, 7)


@pytest.mark.parametrize("method", ["mdlm", "udlm", "genmd4", "pgm"])
@pytest.mark.parametrize("length, stride", [(8, 3), (20, 3), (21, 4), (20, 8), (9, 1)])
def test_each_window_continues_what_stands_before_it(method, length, stride):
    """No window is longer than 8, given words stay, and what a window has written is not written
    again."""
    m, sizes = make_method(method, 5), []
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (3, length)), torch.rand(3, length) < 0.3  # (3, length) each

    def rough(z, t, at=None, **layout):
        sizes.append(z.shape[1])
        logits = torch.randn(*z.shape, 6)  # (B, 8, 6)
        return logits if at is None else logits[at]

    states = list(trajectory(m, rough, given, frozen, 4, window=8, stride=stride))
    assert all((z == given)[frozen].all() for z in states)
    assert (states[-1] < 5).all() and max(sizes) <= 8
    done = [8 + stride * i for i in range(-(-(length - 8) // stride))] + [length]
    assert len(done) == count_windows(length, 8, stride)
    assert len(states) == 4 * len(done) + 1  # four states a window, one before the first
    for i, end in enumerate(done):
        assert (states[4 * (i + 1)][:, :end] == states[-1][:, :end]).all()


def test_a_text_of_one_window_is_written_as_without():
    m, calls = make_method("mdlm", 5), lambda z, t, at: torch.zeros(int(at.sum()), 6)
    z, nothing = m.prior((2, 8)), torch.zeros(2, 8, dtype=torch.bool)  # (2, 8) each
    write = lambda z, frozen: m.sample(calls, z, frozen, 4)
    torch.manual_seed(0)
    plain = list(write(z, nothing))
    torch.manual_seed(0)
    slid = slide_window(write, z, nothing, 8, 4)
    assert all(torch.equal(a, b) for a, b in zip(plain, slid))


def test_the_script_writes_long_texts_and_refuses_a_gap_between_windows(tmp_path, capsys):
    fit(tmp_path / "out", method="mdlm")
    where = dict(out_dir=str(tmp_path / "out"), steps=3, num_samples=1, device="cpu", length=21)
    sample.main(configure(sample.Config, **where, stride=3, json=True), [])
    assert '"stride": 3' in capsys.readouterr().out
    sample.main(configure(sample.Config, **where, watch=True), [])
    assert len(capsys.readouterr().out.split("text 1\n")[1].split()) == 21
    gap = complaint(sample, "--out_dir", tmp_path / "out", "--stride", 9, capsys=capsys)
    assert "at most 8" in gap
