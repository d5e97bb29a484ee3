"""The table of orders, and both terms of KL over temperatures."""
import pytest

from experiments import figures, orders
from flags import UserError, configure
from methods import make_method
from runs import TINY, cache, complaint, elsewhere, fit  # noqa: F401


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


def test_trained_networks_have_an_exact_kl_where_their_orders_do(capsys):
    """And the planner writes by its head, and by x_theta."""
    for name, flags in (("masks", dict(method="planner")), ("words", dict(method="udlm")),
                        ("short", dict(method="mdlm", block_size=4))):
        fit(name, **{**TINY, "block_size": 32, **flags})
    capsys.readouterr()
    lines = run(capsys, command="networks", out_dir="masks", num_samples=8, steps="4",
                samplers="ancestral,spread,p2")
    assert lines[3] == "masks, planner, step 2"
    assert {line[:34].strip(): line[34:].split()[0].strip(".0123456789") for line in lines[4:]} == {
        "ancestral, 4 steps": "<", "spread, 4 steps": "", "p2, by its head, 4 steps": ">",
        "p2, 4 steps": ">"}
    lines = run(capsys, command="networks", out_dir="words", num_samples=8, steps="4",
                samplers="ancestral")
    assert lines[-1].startswith("  ancestral, 4 steps") and "<" in lines[-1]
    with pytest.raises(UserError, match="no run on texts of 32 words"):
        run(capsys, command="networks", out_dir="short")


@pytest.mark.parametrize("argv, says", [
    ([], "say what to measure: oracle, trained"),
    (["--command", "oracle", "--steps", "8,x"], "give whole numbers from 1 on"),
    (["--command", "oracle", "--steps", "0"], "give whole numbers from 1 on"),
    (["--command", "trained", "--words", "2,x"], "--words 2,x: give whole numbers from 1 on"),
    (["--command", "trained"], "--out_dir names the runs")])
def test_bad_input_is_one_line(argv, says, capsys):
    assert says in complaint(orders, *argv, capsys=capsys)


@pytest.mark.parametrize("method, sampler, exact", [
    ("mdlm", "spread", True), ("udlm", "turns", True), ("mdlm", "entropy", True),
    ("mdlm", "ancestral", False), ("udlm", "ancestral", False), ("udlm", "psi", False)])
def test_a_law_is_exact_where_the_order_follows_from_what_is_open(method, sampler, exact):
    assert orders.is_exact(make_method(method, 113), sampler) is exact
