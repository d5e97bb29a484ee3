"""Model collapse: the table model by sums over all its generations, and the loop of networks."""
import json
import math
import re
from pathlib import Path

import pytest
import torch

from data.toy import Toy
from experiments import collapse
from experiments.collapse import diversity, expected_diversity, next_shares
from flags import configure
from runs import cache, complaint, elsewhere  # noqa: F401

N = 6  # words that a generation writes
FIRST = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)  # (V,)


def chain(p0, share):
    """One word of probability p0: from its count in one generation to that in the next.
    -> shares p (n + 1,), T (n + 1, n + 1)"""
    p = share * p0 + (1 - share) * torch.arange(N + 1).double() / N  # (n + 1,)
    return p, torch.stack([binomial(x) for x in p])  # (n + 1, n + 1)


def binomial(p):
    k = torch.arange(N + 1).double()  # (n + 1,)
    ways = torch.tensor([math.comb(N, i) for i in range(N + 1)]).double()  # (n + 1,)
    return ways * p ** k * (1 - p) ** (N - k)  # (n + 1,)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.2])
def test_the_diversity_falls_by_the_formula_summed_over_all_counts(share):
    """Each word by itself is a binomial chain, and sum p^2 is a sum over words."""
    exact, counts, chains = [diversity(FIRST).item()], [], [chain(p0, share) for p0 in FIRST]
    for g in range(1, 6):
        counts = ([law @ T for law, (_, T) in zip(counts, chains)] if counts
                  else [binomial(p0) for p0 in FIRST])  # (n + 1,) each
        square = sum(law @ p.square() for law, (p, _) in zip(counts, chains))  # ()
        exact.append((1 - square).item())
    found = [expected_diversity(exact[0], N, share, g) for g in range(6)]
    assert found == pytest.approx(exact, abs=1e-12)
    if share == 0:
        assert found[5] == pytest.approx(exact[0] * (1 - 1 / N) ** 5)


def test_kept_text_stops_the_fall():
    first = diversity(FIRST).item()
    assert expected_diversity(first, N, 0, 200) < 1e-9
    k = 0.25
    limit = first * (1 - k) / (1 - k + k / N)
    assert expected_diversity(first, N, 0.5, 200) == pytest.approx(limit) and limit > 0.9 * first


def test_the_tails_go_first():
    """Exactly: the rarer a word, the likelier it is lost, in each generation; after the first with
    probability (1 - p)^n."""
    lost = []
    for p0 in (0.5, 0.2, 0.1, 0.02):
        law, (_, T) = binomial(torch.tensor(p0).double()), chain(p0, 0.0)  # (n + 1,)
        gone = [law[0].item()]
        for _ in range(4):
            law = law @ T  # (n + 1,)
            gone.append(law[0].item())
        assert gone[0] == pytest.approx((1 - p0) ** N) and gone == sorted(gone)
        lost.append(gone)
    assert all(a < b for one, other in zip(lost, lost[1:]) for a, b in zip(one, other))


def test_the_table_of_the_page_is_the_exact_one():
    page = (Path(__file__).parents[2] / "docs" / "12-collapse.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| (0.*) \|$", page, re.M)
    assert [g for g, _ in rows] == ["0", "1", "2", "5"]
    for g, cells in ((int(g), cells.split(" | ")) for g, cells in rows):
        exact = [expected_diversity(0.46, N, share, g) for share in (0.0, 0.5)]
        for p0 in FIRST:
            law, (_, T) = torch.eye(N + 1).double()[-1], chain(p0, 0.0)  # (n + 1,)
            for generation in range(g):
                law = law @ T if generation else binomial(p0)  # (n + 1,)
            exact.append(law[0].item())
        assert cells == [f"{value:.3f}" for value in exact]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_generations_of_words_have_that_diversity_and_lose_those_words(share):
    draw, p = torch.Generator().manual_seed(0), FIRST.expand(4000, -1)  # (draws, V)
    for g in range(1, 4):
        p = next_shares(p, FIRST, N, share, 1, draw)  # (draws, V)
        D = diversity(p)  # (draws,)
        exact = expected_diversity(diversity(FIRST).item(), N, share, g)
        assert abs(D.mean() - exact) < 4 * D.std() / 4000 ** 0.5
        if g == 1:
            gone, expected = (p == share * FIRST).double().mean(0), (1 - FIRST) ** N  # (V,) each
            assert ((gone - expected).abs() < 4 * (expected / 4000) ** 0.5).all()
    assert torch.allclose(p.sum(-1), torch.ones(4000).double())


def test_a_temperature_below_1_writes_frequent_words_more_often():
    p = next_shares(FIRST.expand(4000, -1), FIRST, N, 0, 0.5, torch.Generator().manual_seed(0))
    law = FIRST ** 2 / (FIRST ** 2).sum()  # (V,)
    assert torch.allclose(p.mean(0), law, atol=4 * (0.25 / N / 4000) ** 0.5)


def test_texts_are_described_by_the_language_that_they_should_have():
    toy = Toy()
    x, topic = toy.sample(300, 16, torch.Generator().manual_seed(0), return_topic=True)
    row = collapse.describe(x, toy)
    assert row["nats"] == pytest.approx(-toy.log_prob(x).mean().item() / 16)
    assert row["topics"] == 0 and row["shares"] == pytest.approx(toy.prior.tolist(), abs=0.08)
    sea = collapse.describe(x[topic == 1], toy)
    assert sea["shares"][1] > 0.8 and sea["topics"] >= 1 and sea["words"] > row["words"]
    assert sea["words"] == toy.V - len(x[topic == 1].unique())
    one = collapse.describe(torch.zeros(4, 16, dtype=torch.long), toy)
    assert one["diversity"] == one["entropy"] == 0 and one["words"] == toy.V - 1


def run(capsys, **flags):
    collapse.main(configure(collapse.Config, out_dir="runs", **flags))
    return capsys.readouterr().out


def test_each_generation_learns_from_the_texts_of_the_one_before(capsys, monkeypatch):
    monkeypatch.setattr(collapse, "FLAGS", {**collapse.FLAGS, "batch_size": 2, "warmup_iters": 0})
    learned = []
    learn = lambda x, flags: learned.append(x) or [x, flags]
    texts = lambda trainer, n, temperature, seed: trainer[0][:n].roll(1, 0)
    monkeypatch.setattr(collapse, "learn", learn)
    monkeypatch.setattr(collapse, "write", texts)
    flags = dict(command="networks", methods="ar", num_texts=4, generations=3, seeds=2)
    said = run(capsys, **flags, temperatures="1")
    assert said.count("original text kept") == 3 and said.count("own texts only") == 3
    assert said.count("generation 3") == 4 and said.count("+-") > 20
    first, own, own2, both, both2 = learned[:5]  # the first network serves both lines
    assert len(learned) == 10 and len(first) == len(own) == 4 and len(both) == len(both2) == 8
    assert torch.equal(own, first.roll(1, 0)) and torch.equal(own2, own.roll(1, 0))
    assert torch.equal(both[:4], first) and torch.equal(both2[:4], first)
    assert torch.equal(both[4:], first.roll(1, 0)) and torch.equal(both2[4:], both[:4].roll(1, 0))
    assert not torch.equal(learned[5], first)  # another seed
    assert "\n  generation" not in run(capsys, **flags, temperatures="1")  # kept


def test_networks_learn_given_texts_and_write(capsys, monkeypatch):
    monkeypatch.setattr(collapse, "FLAGS", {**collapse.FLAGS, "batch_size": 2, "warmup_iters": 0})
    said = run(capsys, command="networks", methods="mdlm", num_texts=4, generations=1, seeds=1,
               keeps="no", temperatures="0.9", steps=30, size="1x8")
    assert said.count("generation 1") == 1 and "temperature 0.9" in said
    row, = json.loads(open("runs/mdlm-no-0.9-1.json").read())["rows"][-1:]
    assert row["nats"] > 0 and len(row["shares"]) == 4
    x = torch.arange(12).view(6, 2)
    given = collapse.GivenTexts(x)
    read = torch.cat([given.micro_batch(number, 3, 1, None)[0] for number in range(4)])  # (12, L)
    assert sorted(read[:6].tolist()) == sorted(read[6:].tolist()) == x.tolist()


def test_the_table_says_what_the_formula_says(capsys):
    said = run(capsys, command="table", words=50, draws=5, generations=2)
    assert said.count("(12.8)") == 4 and said.count("+-") == 12
    first = diversity(collapse.words_of_language()).item()
    assert f"{expected_diversity(first, 50, 0, 2):.4f}" in said
    assert f"{expected_diversity(first, 50, 0.5, 2):.4f}" in said


@pytest.mark.parametrize("argv, says", [
    ([], "say what to measure: table, networks"),
    (["--command", "table", "--keeps", "x"], "is not one of"),
    (["--command", "networks", "--size", "2x"], "'2x' is no size"),
    (["--command", "networks", "--methods", "gpt"], "is not one of")])
def test_bad_input_is_one_line(argv, says, capsys):
    assert says in complaint(collapse, *argv, capsys=capsys)
