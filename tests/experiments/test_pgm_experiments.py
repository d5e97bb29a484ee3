"""The claim of experiments/pgm.py: its plain sampler, and its table."""
import pytest
import torch

from experiments import pgm
from experiments.dense_reference import lean_masked_step
from flags import configure
from methods import make_method
from runs import complaint


def test_the_plain_sampler_of_the_claim_is_a_sampler_too():
    """A step of (0.3) for masks from t = 0.8 to s = 0.3: masks open with probability 5/8; within 5
    standard errors."""
    torch.manual_seed(0)
    process, p = make_method("mdlm", 4).process, torch.tensor([0.1, 0.2, 0.3, 0.4])  # .., (N,)
    logits = torch.cat([p.log(), torch.tensor([3.0])])  # (V,)
    z = torch.tensor([[4, 1]]).expand(20_000, -1)  # (n, 2)
    network = lambda z, t: logits.expand(*z.shape, 5).clone()
    new = lean_masked_step(process, network, z, 0.3, 0.8)  # (n, 2)
    seen = torch.bincount(new[:, 0], minlength=5) / len(new)  # (V,)
    due = torch.cat([p * 5 / 8, torch.tensor([3 / 8])])  # (V,)
    assert ((seen - due).abs() < 5 * (due * (1 - due) / len(new)).sqrt()).all()
    assert (new[:, 1] == 1).all()


@pytest.mark.parametrize("order", ["first-hitting", "ancestral"])
def test_the_table_counts_and_compares(order, capsys, monkeypatch):
    monkeypatch.setattr(pgm, "PLAIN_POSITIONS", 16)
    pgm.main(configure(pgm.Config, lengths="8,16", batches="1,3", steps=4, order=order,
                       vocab_size=50, n_layer=2, n_head=2, n_embd=16, moments=4, rounds=2))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert len(rows) == 12
    for row in rows:
        length, batch, sampler, seconds = int(row[0]), int(row[2]), row[3], row[4]
        positions = int(row[6].replace(",", ""))
        assert seconds.startswith("~") == (sampler == "plain" and length * batch > 16)
        if sampler == "plain":
            assert positions == length * batch * 4
        elif order == "first-hitting":
            assert positions == length * batch  # every token is scored once
        assert len(row) == (7 if sampler == "pgm" else 11)


@pytest.mark.parametrize("words, says", [
    (["--lengths=many"], "whole numbers"), (["--batches=0"], "at least 1"),
    (["--lengths=8", "--steps=32"], "open at least one")])
def test_a_claim_that_cannot_be_measured_is_one_line(words, says, capsys):
    assert says in complaint(pgm, *words, capsys=capsys)
