"""The tables of chapter 19, on runs of two steps."""
import re

from experiments import seq2seq
from flags import configure


def lines_of(capsys, **flags):
    seq2seq.main(configure(seq2seq.Config, questions=4, **flags))
    return capsys.readouterr().out.splitlines()


def test_every_task_has_its_methods_and_the_exact_distribution(capsys, monkeypatch):
    monkeypatch.setattr(seq2seq, "steps_in", lambda seconds, method, **flags: 2)
    monkeypatch.setattr(seq2seq, "SIZE", dict(n_layer=1, n_head=2, n_embd=16, batch_size=4))
    lines = lines_of(capsys, tasks="sort,summary", sides="encoder", methods="mdlm")
    assert lines[2].startswith("sort: ") and lines[2].endswith("H 0.000 nats an answer")
    assert lines[6].startswith("summary: ") and lines[6].endswith("H 1.818 nats an answer")
    assert [line.split(",")[0] for line in lines if line[:4] == "  md"] == 2 * ["  mdlm: 2 steps"]
    calls = [float(re.search(r"entropy +([\d.]+)", line)[1]) for line in lines if "entropy" in line]
    assert calls == [9, 6]
    exact = lines[-1].split()
    assert exact[0] == "exact" and exact[1:4] == ["1.000", "+-", "0.000"]
    assert len(re.findall(r"\+-", lines[-1])) == 5 and len(re.findall(r"\+-", lines[4])) == 1
    lines = lines_of(capsys, tasks="add", methods="ar")
    assert float(lines[-1].split()[0]) == 5


def test_a_method_has_flags_of_its_own_and_its_errors_count_seeds(capsys, monkeypatch):
    monkeypatch.setattr(seq2seq, "steps_in", lambda seconds, method, **flags: 2)
    monkeypatch.setattr(seq2seq, "SIZE", dict(n_layer=1, n_head=2, n_embd=16, batch_size=4))
    made, train = [], seq2seq.trained
    monkeypatch.setattr(seq2seq, "trained", lambda task, own, steps, seed: made.append(
        (own.get("noise_factor"), seed)) or train(task, own, steps, seed))
    monkeypatch.setattr(seq2seq, "figures_of", lambda *args: [(len(made), 0.1)])
    lines = lines_of(capsys, tasks="sort", methods="difformer,difformer --noise_factor 1", seeds=2)
    assert made == [(None, 1), (None, 2), (1.0, 1), (1.0, 2)]
    assert lines[-2].startswith("  difformer --noise_factor 1: 2 steps, above H ")
    assert lines[-1].split()[1:] == ["3.500", "+-", "0.510"]  # (0.1^2 + 0.5 / 2)^(1/2)


def test_the_time_that_a_cached_source_saves_is_that_of_the_same_answers(capsys, monkeypatch):
    def in_turns(ways, rounds, device):
        return {name: [times * (1 + len(do().shape))] for name, (do, times) in ways.items()}
    monkeypatch.setattr(seq2seq, "time_in_turns", in_turns)
    lines = lines_of(capsys, command="sides", tasks="sort")
    assert lines[-1].split() == ["sort", "9", "9", "46.88", "46.88", "1.00", "(1.00", "to", "1.00)"]
