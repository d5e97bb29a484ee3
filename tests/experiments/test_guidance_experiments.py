"""The commands of experiments/guidance.py: tables, figure, and what is concluded."""
import pytest
import torch

from checkpoints.load import load_model
from experiments import guidance
from flags import configure
from oracle import exact
from runs import cache, elsewhere, fit  # noqa: F401


def config_of(**flags):
    return configure(guidance.Config, **flags)


def test_the_toy_command_prints_its_table_and_draws_its_figure(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    model = lambda config, name, **flags: exact(flags["method"])
    monkeypatch.setattr(guidance, "train_or_load", model)
    guidance.main(config_of(command="toy", strengths="0,3", steps="2", num_samples=24,
                            out_dir="results", figure="docs/guidance.png"))
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "strength" in line]
    assert len(rows) == 8 and (tmp_path / "docs/guidance.png").stat().st_size > 10_000
    strengths = zip(rows[::2], rows[1::2])
    assert all(float(strong[4]) > float(none[4]) + 0.3 for none, strong in strengths)


def test_the_frechet_distance_of_clouds_is_that_of_gaussians():
    torch.manual_seed(0)
    a = torch.randn(4000, 3, dtype=torch.float64)
    assert abs(guidance.frechet_distance(a, a)) < 1e-9
    assert guidance.frechet_distance(a, a + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5)
    # three dimensions, each with (3 - 1)^2
    assert guidance.frechet_distance(a, 3 * a) == pytest.approx(4 * 3, rel=0.1)


def test_the_claim_is_judged_by_both_numbers_in_the_fewest_steps():
    def rows(few, most):
        """mdlm gets half of the digits right, at Frechet distance 100."""
        return [[name, n, 2.0, right, 0.01, far, 1.0, 0.1] for n, other in ((8, few), (128, most))
                for name, (right, far) in (("mdlm", (0.5, 100)), ("udlm", other))]
    say = lambda few, most: list(guidance.conclusions(rows(few, most), 2.0))[-1]
    assert "favors udlm over masks: holds; and more in 8" in say((0.6, 50), (0.5, 100))
    assert "holds; and no more in 8" in say((0.6, 90), (0.5, 80))
    for few in ((0.51, 50), (0.6, 110)):
        assert "does not hold" in say(few, (0.5, 100))
    udlm = [row for row in rows((1, 1), (1, 1)) if row[0] == "udlm"]
    assert list(guidance.conclusions(udlm, 2.0)) == []


def test_the_claim_runs_to_its_table_and_its_grids(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    fit("out", data="digits", block_size=64, labels=True)
    monkeypatch.setattr(guidance, "train_or_load", lambda *a, **k: load_model("out"))
    guidance.main(config_of(command="digits", methods="mdlm", strengths="0,2", steps="1,2",
                            num_samples=20, out_dir="claims"))
    printed = capsys.readouterr().out
    assert printed.count("steps, strength") == 4 and "of the digits right" in printed
    assert len(list((tmp_path / "claims").glob("digits-mdlm-*.png"))) == 4
