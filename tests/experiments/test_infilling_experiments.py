"""The table of ways to fill gaps, and that of drafts, on tiny runs."""
import pytest
import torch

from data import load_data
from experiments import infilling, speculative
from flags import configure
from methods import make_method
from runs import cache, complaint, elsewhere, fit  # noqa: F401

EXPERTS = dict(n_layer=2, n_embd=128, n_head=4, cond_dim=128)  # the defaults, which maria takes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs on the toy language."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.progress.print_summary", lambda trainer: None)
        fit(root / "ar", method="ar")
        fit(root / "mdlm", method="mdlm")
        fit(root / "heads", method="ar", heads=3)
        fit(root / "maria", method="maria", ar=str(root / "ar"), masked=str(root / "mdlm"),
            **EXPERTS)
    return root


def test_every_way_to_fill_gaps_has_its_row(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    capsys.readouterr()
    infilling.main(configure(infilling.Config, out_dir="maria,maria", max_texts=20, rounds=1))
    lines = capsys.readouterr().out.splitlines()[3:]
    rows = {line[:28].strip(): line[28:].split() for line in lines}
    assert list(rows) == ["ar alone", "masked, one call", "product of both", "maria",
                          "masked, a call per token", "exact"]
    assert float(rows["maria"][3]) == 0 and float(rows["exact"][0]) < float(rows["maria"][0])
    assert float(rows["maria"][-1]) > 0 and rows["exact"][-1] == "-"


def test_a_call_for_each_token_sees_what_is_written_on_its_left():
    """With the exact denoiser of masks it gives the exact law, that of MARIA's oracle."""
    data = load_data("toy", 6)
    method, masks = (make_method(name, data.encoding.n_vocab) for name in ("maria", "mdlm"))
    exact = masks.oracle(data.language)
    network = type("Network", (), {"masked": staticmethod(lambda z, at: exact(z, None, at=at))})
    x = data.windows("val", 4)  # (4, 6)
    z = torch.where(torch.arange(6) % 3 == 1, x, method.mask)  # (4, 6)
    found = [method.nats(denoiser, x, z) for denoiser in (
        infilling.again_after_each(network), method.oracle(data.language))]
    torch.testing.assert_close(*found)


def test_every_draft_that_is_named_has_its_row_and_calls_add_up(runs, monkeypatch):
    monkeypatch.chdir(runs)
    config = configure(speculative.Config, out_dir="ar", masked="mdlm", small="ar", heads="heads",
                       gamma=2, rounds=2)
    rows = {row["row"]: row for row in speculative.measure(config)}
    assert len(rows) == 10 and rows["no draft"]["calls"] == 8
    assert rows["no draft"]["speed_up"] == rows["no draft"]["to"] == 1
    assert rows["several heads"]["draft_calls"] == rows["n-grams"]["draft_calls"] == 0
    for name, row in rows.items():
        assert row["tokens_per_call"] * row["calls"] == pytest.approx(8) and row["ms_per_token"] > 0
    few = configure(speculative.Config, out_dir="ar")
    assert list(speculative.rows_of(few)) == ["no draft", "n-grams"]


@pytest.mark.parametrize("module, argv, says", [
    (infilling, ["--out_dir", "ar"], "--out_dir ar is a run of ar: name runs of maria"),
    (speculative, ["--out_dir", "mdlm"], "--out_dir mdlm is a run of mdlm: give one of ar"),
    (speculative, ["--out_dir", "ar", "--heads", "ar"], "is for an ar with several")])
def test_bad_input_is_one_line(module, argv, says, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert says in complaint(module, *argv, capsys=capsys)
