"""The table of orders, and both terms of KL over temperatures."""
import pytest

from experiments import figures, orders
from flags import configure
from runs import cache, complaint, elsewhere  # noqa: F401


def run(capsys, **flags):
    orders.main(configure(orders.Config, **flags))
    return capsys.readouterr().out.splitlines()


def test_the_table_has_every_rule_and_says_what_is_exact_and_what_a_bound(capsys, monkeypatch):
    few = ("spread: streams", "random", "least entropy", "confidence: draws, then chooses", "DDPD",
           "uniform noise, by (0.3)")
    assert len(orders.RULES) + len(orders.BUDGETS) >= 15
    monkeypatch.setattr(orders, "RULES", {name: orders.RULES[name] for name in few})
    monkeypatch.setattr(orders, "BUDGETS", [("golden", 2.0)])
    lines = run(capsys, command="oracle", num_samples=8, steps="4")
    first = {line[:34].strip(): line[34:].split() for line in lines}
    assert {name: first[name][0][0] for name in few} == {
        "spread: streams": "0", "random": "<", "least entropy": "0",
        "confidence: draws, then chooses": ">", "DDPD": ">", "uniform noise, by (0.3)": "<"}
    value = lambda name: float(first[name][0].strip("<"))
    assert value("spread: streams") < value("random") and abs(value("budget 2, golden")) < 0.1


def test_a_frontier_has_both_terms_whose_difference_is_kl(monkeypatch):
    monkeypatch.setattr(orders, "TEMPERATURES", [0.5, 1.0])
    monkeypatch.setattr(orders, "FRONTIER", {"one": ("spread", {}, 10 ** 6)})
    rows = orders.measure_frontier(configure(figures.Config, num_samples=8))
    (_, h, nats), (_, h1, nats1) = rows["one"]
    assert nats1 == pytest.approx(h1, abs=1e-4) and nats > h + 0.02 and h < h1
    assert rows["confidence, at most"][0][1] < rows["confidence, at most"][0][2]


@pytest.mark.parametrize("argv, says", [
    ([], "say what to measure: oracle, trained"),
    (["--command", "oracle", "--steps", "8,x"], "give whole numbers from 1 on"),
    (["--command", "oracle", "--steps", "0"], "give whole numbers from 1 on"),
    (["--command", "trained", "--words", "2,x"], "--words 2,x: give whole numbers from 1 on"),
    (["--command", "trained"], "--out_dir names the runs")])
def test_bad_input_is_one_line(argv, says, capsys):
    assert says in complaint(orders, *argv, capsys=capsys)
