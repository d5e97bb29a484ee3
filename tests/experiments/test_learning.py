"""Every benchmark of learning prints its table, for tiny networks and few steps."""
import io
from pathlib import Path

import pytest
import torch

from data import load_data
from experiments import learning, timing, training
from experiments.training import train_model
from flags import UserError, configure
from runs import cache, complaint, elsewhere  # noqa: F401
from runtime import progress

TINY = dict(n_layer=1, n_embd=8, n_head=1, dtype="float32", eval_iters=1, warmup_iters=0)


def run(**flags):
    learning.main(configure(learning.Config, out_dir="bench", share=0.1, **flags))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(training, "NANOGPT", {**training.NANOGPT, **TINY})
    monkeypatch.setattr(training, "FIVE_MINUTES", dict(batch_size=2, max_iters=20))
    monkeypatch.setattr(training, "TWO_MINUTES",
                        dict(batch_size=2, block_size=32, max_iters=20, **TINY))
    monkeypatch.setattr(progress, "print_evaluation", lambda *args: None)


@pytest.fixture
def few_texts(monkeypatch):
    """The bound of 200 texts: a table of them has the same lines."""
    score = learning.score_texts
    monkeypatch.setattr(learning, "score_texts", lambda model, x, *rest: score(
        model, x[:200], *rest))


def test_the_comparison_on_a_text(capsys):
    lines = [f"line {n} has {n % 7} of {n % 5}, and no more" for n in range(1000)]
    Path("input.txt").write_text("\n\n".join(lines))
    run(command="train", data="input.txt", seeds=2)
    said = capsys.readouterr().out
    for row in ("ar, exact, nats/char", "ar as nanoGPT counts", "mdlm, bound, nats/char",
                "2 seeds, spread", "6-gram", "on the same texts, mdlm less ar: "):
        assert row in said


def test_errors_hold_for_other_seeds_and_texts_and_methods_are_compared_text_by_text(capsys):
    """Texts of spread 1, of which three runs of two lines are worth .2 more or less."""
    texts = torch.arange(-1.0, 1.1, 0.5)  # (5,) their mean has the error .354
    runs = [learning.Trained(what, texts + luck + more, 1.0, 2.0)
            for luck in (-0.2, 0.0, 0.2)
            for what, more in (("ar, exact", 1.0), ("mdlm, bound", 1.5))]
    lines = learning.print_means(runs, "a machine", True, (0.5, 0.1))
    learning.print_differences(lines, True)
    table = capsys.readouterr().out
    error = (0.125 + 0.2 ** 2 / 3 + 0.1 ** 2) ** 0.5
    first, second = (line for line in table.splitlines() if "3 seeds, spread 0.200" in line)
    assert first.startswith("ar, exact") and f"0.500 +- {error:.3f}, 3 seeds" in first
    assert f"1.000 +- {error:.3f}, 3 seeds" in second and "1.0 min, 2.0 CPU min" in second
    assert "on the same texts, mdlm less ar: +0.500 +- 0.000" in table
    learning.print_means(runs[:1], "a machine", True)
    assert "0.800 +- 0.354, one seed" in capsys.readouterr().out


def test_the_distance_to_the_entropy(few_texts, capsys):
    run(command="toy", methods="ar,udlm")
    said = capsys.readouterr().out
    assert "udlm, above the entropy" in said and "exact entropy, nats/token" in said
    assert "2.12" in said


def test_the_samplers_own_error_falls_with_the_steps(capsys):
    config = configure(learning.Config, command="oracle", methods="udlm")
    learning.compare_few_steps(config, n=48, length=8)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128]
    above = [float(row[1]) for row in rows]
    assert above[0] > above[3] > above[-1] and abs(above[-1]) < 0.1


def test_the_default_text_in_equal_time(few_texts, capsys, monkeypatch):
    """With the toy language in place of the docstrings."""
    toy = dict(data="toy", block_size=8, batch_size=2)
    sources = []
    monkeypatch.setattr(learning, "steps_in", lambda seconds, method, **source: 2)
    monkeypatch.setattr(learning, "load_data", lambda *args: load_data("toy", 8))
    monkeypatch.setattr(learning, "train_named", lambda config, name, seed, max_iters, **source:
                        sources.append(source) or train_model(
                            f"bench/{name}", method=name, max_iters=max_iters, **toy, **TINY))
    run(command="text", methods="ar,mdlm")
    assert sources == 2 * [dict(data="python", tokenizer="bpe")]
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert rows["ar"][5] == "64" and rows["mdlm"][6:9] == ["in", "128", "steps"]


def test_the_steps_that_fit_a_time_are_more_in_more_time():
    flags = dict(data="toy", block_size=8, batch_size=2, **TINY)
    few, many = (learning.steps_in(seconds, "mdlm", **flags) for seconds in (1e-4, 1.0))
    assert few == 1 < 10 < many


def test_an_unknown_method_or_no_command_is_one_line(capsys):
    with pytest.raises(UserError, match="'mdml' is not one of"):
        run(command="toy", methods="mdml")
    assert "say what to measure: train, toy, text, oracle" in complaint(learning, capsys=capsys)


@pytest.mark.parametrize("says, name", [
    ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n",
     "ARM, implementer 0x41, part 0xd4f"),
    ("processor\t: 0\nmodel name\t: Some Zen\n", "Some Zen"), ("processor\t: 0\n", "")])
def test_a_processor_has_the_name_it_gives_itself_or_that_of_its_parts(says, name, monkeypatch):
    monkeypatch.setattr("os.path.exists", lambda path: True)
    monkeypatch.setattr(timing, "open", lambda path: io.StringIO(says), raising=False)
    assert timing.processor_name() == name
