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
    heads = [line[2:36].split() for line in lines if re.match(r"  mdlm +\d", line)]
    assert heads == 2 * [["mdlm", "2", "entropy"], ["mdlm", "2", "spread,", "4", "steps"]]
    calls = [float(re.search(r"entropy +([\d.]+)", line)[1]) for line in lines if "entropy" in line]
    assert calls == [9, 6]
    exact = lines[-1].split()
    assert exact[0] == "exact" and exact[1:4] == ["1.000", "+-", "0.000"]
    assert len(re.findall(r"\+-", lines[-1])) == 5 and len(re.findall(r"\+-", lines[3])) == 1
    lines = lines_of(capsys, tasks="add", methods="ar")
    assert float(re.search(r"ar +2 +([\d.]+)", lines[-1])[1]) == 5


def test_the_time_that_a_cached_source_saves_is_that_of_the_same_answers(capsys, monkeypatch):
    def in_turns(ways, rounds, device):
        return {name: [times * (1 + len(do().shape))] for name, (do, times) in ways.items()}
    monkeypatch.setattr(seq2seq, "time_in_turns", in_turns)
    lines = lines_of(capsys, command="sides", tasks="sort")
    assert lines[-1].split() == ["sort", "9", "9", "46.88", "46.88", "1.00", "(1.00", "to", "1.00)"]
