"""The recipes of experiments/recipe.py: their losses, and the table."""
import pytest
import torch

from experiments import recipe
from flags import configure
from methods.mdlm import MDLM
from model import Transformer
from runs import cache, complaint, elsewhere  # noqa: F401


@pytest.mark.parametrize("weighting, choices", [
    ("simple", dict(timed=False, even=True, simple=True)),
    ("bound", dict(timed=False, even=True))])
def test_the_recipes_at_both_ends_are_the_losses_of_mdlm(weighting, choices):
    torch.manual_seed(2)
    net, x, losses = Transformer(12, 1, 2, 16, cond_dim=0).double(), torch.randint(11, (4, 8)), []
    torch.nn.init.normal_(net.head.weight)
    for method in (MDLM(11, weighting), recipe.Recipe(11, **choices)):
        torch.manual_seed(3)
        losses.append(method.loss(net, x))  # (B, L)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_opposite_masks_cover_every_token_once(monkeypatch):
    method, seen = recipe.Recipe(5, pairs=True), []

    def spy(denoiser, x, z, t):
        seen.append((z, t))
        return torch.ones(x.shape)  # (2B, L)
    monkeypatch.setattr(method, "cross_entropy", spy)
    method.loss(None, torch.zeros(6, 40, dtype=torch.long))
    (z, t), masked = seen[0], seen[0][0] == method.process.mask  # (6, 40)
    assert (masked[:3] ^ masked[3:]).all() and torch.equal(t[:3], 1 - t[3:])
    assert 0 < masked[:3].float().mean() < 1 and z.shape == (6, 40)


def test_the_table_compares_each_change_with_plain(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "NANOGPT", dict(block_size=64, n_layer=1, n_head=2, n_embd=8))
    lines = [f"line {n} has {n % 7} of {n % 5}, and no more" for n in range(400)]
    (tmp_path / "input.txt").write_text("\n\n".join(lines))
    config = configure(recipe.Config, data="input.txt", steps=20, share=0.1, rounds=1,
                       only="plain,muon,all,plain's steps in bfloat16")
    recipe.main(config)
    rows = [line for line in capsys.readouterr().out.splitlines() if ", seed 1" in line]
    assert [row.partition(",")[0] for row in rows] == [
        "plain", "plain", "plain", "plain", "muon", "all", "all", "plain's steps in bfloat16"]
    assert all("learning rate" in row for row in rows[:3])
    assert all(row.split()[-1][0] in "+-" for row in rows[3:])


@pytest.mark.parametrize("argv, says", [
    ([], "give a text"), (["--data", "names", "--only", "nothing"], "is not one of plain, muon")])
def test_a_recipe_that_does_not_exist_is_one_line(argv, says, capsys):
    assert says in complaint(recipe, *argv, capsys=capsys)
