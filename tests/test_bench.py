"""Every benchmark runs to its table, on tiny networks and few steps; what it measures is tested elsewhere."""
import io

import pytest

import bench
import measure
import train
from data import BadInput
from runs import cache, elsewhere  # noqa: F401


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny = dict(n_layer=1, n_embd=8, n_head=1, dtype="float32", eval_iters=1, warmup_iters=0)
    monkeypatch.setattr(bench, "SIZE", {**bench.SIZE, **tiny})
    monkeypatch.setattr(bench, "FIVE_MINUTES", dict(batch_size=2, max_iters=20))
    monkeypatch.setattr(bench, "TWO_MINUTES", dict(batch_size=2, block_size=32, max_iters=20, **tiny))
    monkeypatch.setattr(train, "report", lambda *a: None)


def test_the_yardstick(capsys):
    bench.yardstick(bench.Config(command="train", data="names", share=0.1, seeds=2, out_dir="bench"))
    said = capsys.readouterr().out
    for row in ("ar, exact, nats/char", "ar as nanoGPT counts", "mdlm, bound, nats/char", "2 seeds, spread", "6-gram"):
        assert row in said


def test_the_distance_to_the_entropy(capsys):
    bench.toy(bench.Config(command="toy", methods="ar,udlm", share=0.1, out_dir="bench"))
    said = capsys.readouterr().out
    assert "udlm, above the entropy" in said and "exact entropy, nats/token" in said and "2.12" in said


def test_the_samplers_own_error_falls_with_the_steps(capsys):
    bench.sampler_error(bench.Config(command="oracle", methods="udlm"), n=32)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert float(rows[0][1]) > float(rows[3][1]) > float(rows[-1][1]) and abs(float(rows[-1][1])) < 0.1


def test_an_unknown_method_is_one_line():
    with pytest.raises(BadInput, match="mdml is none of"):
        bench.toy(bench.Config(methods="mdml"))


@pytest.mark.parametrize("says, name", [
    ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n", "ARM, implementer 0x41, part 0xd4f"),
    ("processor\t: 0\nmodel name\t: Some Zen\n", "Some Zen"), ("processor\t: 0\n", "")])
def test_a_processor_is_called_what_it_calls_itself_or_what_it_is_made_of(says, name, monkeypatch):
    monkeypatch.setattr("os.path.exists", lambda path: True)
    monkeypatch.setattr(measure, "open", lambda path: io.StringIO(says), raising=False)
    assert measure.processor() == name
