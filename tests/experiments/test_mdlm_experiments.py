"""The commands of experiments/mdlm.py: network calls as RADD's formula has them, all samplers."""
from experiments import mdlm
from flags import configure
from runs import TINY, cache, elsewhere  # noqa: F401


def test_the_calls_are_as_many_as_in_the_formula_of_radd(capsys):
    """64 tokens in 256 steps: 256 (1 - (1 - 1/256)^64) = 56.7 calls alone; sixteen texts are each
    read as often."""
    mdlm.main(configure(mdlm.Config, command="calls", steps="256"))
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("   256"))
    calls, formula, read, _, _, read_of_16 = map(float, row[1:])
    assert formula == 56.7 and calls == read
    assert abs(calls - formula) < 6 and abs(read_of_16 - formula) < 1.5


def test_every_sampler_of_the_table_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mdlm, "TOY", {**TINY, "block_size": 32})
    mdlm.main(configure(mdlm.Config, command="samplers", num_samples=4, steps="2",
                        out_dir=str(tmp_path)))
    shown = capsys.readouterr().out
    assert all(f"  {what} " in shown for rows in mdlm.SAMPLERS.values() for what in rows)


def test_variances_of_all_uses_of_as_many_calls_are_shown_relative_to_the_first(
        tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mdlm, "TOY", {**TINY, "block_size": 32})
    mdlm.main(configure(mdlm.Config, command="complement", batches=3, out_dir=str(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    for what in mdlm.PAIRS:
        rows = [line for line in lines if line.startswith(f"  {what:<42}")]
        assert len(rows) == len(mdlm.LOSSES)
        for row in rows:
            ratios = list(map(float, row[44:].split()))
            assert len(ratios) == 6 and min(ratios) > 0
            assert set(ratios) == {1.0} or not what.startswith("64")
