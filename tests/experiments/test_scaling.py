"""Fits find what synthetic data were made of, within their own errors; and runs on the toy language
are scored above its exact entropy, each point with a schedule of its own."""
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch

from experiments import power_laws, repetition, scaling, training
from experiments.plotting import load_pyplot, save_figure
from experiments.power_laws import Frontier, Point
from flags import UserError, configure
from methods import make_method
from runs import cache, complaint, elsewhere  # noqa: F401

SIZES, CURVES = [100, 400, 1600, 6400], [1e9, 4e9, 1.6e10]
TRUE = power_laws.Law(math.log(0.2), 0.6, math.log(0.3), 0.8, 8e3, 1e6)


def points_of(law, noise=0.0, seeds=3, seed=1):
    """Points of a law, where each run is off by a factor of its own."""
    luck = torch.Generator().manual_seed(seed)
    points = []
    for N in SIZES:
        for run in range(seeds):
            off = math.exp(noise * torch.randn((), generator=luck).item())
            points += [Point(N, C / 6 / N, C, run, off * law.excess(N, C / 6 / N), 1e-5)
                       for C in CURVES]
    return points


# ---- fits

def test_exponents_of_data_without_noise_are_found_exactly():
    fit = power_laws.fit_law(points_of(TRUE))
    assert (fit.a, fit.b) == pytest.approx((TRUE.a, TRUE.b), abs=1e-4) and fit.residual < 1e-4
    assert (fit.A, fit.B) == pytest.approx((TRUE.A, TRUE.B), rel=1e-2)
    E = fit.A / 5e3 ** fit.a + fit.B / 2e6 ** fit.b  # (25.1) as it stands
    assert E == pytest.approx(TRUE.excess(5e3, 2e6), rel=1e-4)


def test_exponents_are_found_within_their_own_errors():
    """Of eight data sets whose runs are off by 5 %: the median of |found - true| / error is near
    that of a normal variable, 0.67, and few are beyond two errors (three seeds have long tails)."""
    off = []
    for seed in range(8):
        points = points_of(TRUE, 0.05, seed=seed)
        law = power_laws.fit_law(points)

        def estimate(points):
            fit = power_laws.fit_law(points, law)
            return [fit.a, fit.b]
        error, _ = power_laws.bootstrap(estimate, points, draws=16)  # (2,)
        assert (error > 0.001).all() and (error < 0.2).all()
        off.append((torch.tensor(estimate(points)) - torch.tensor([TRUE.a, TRUE.b])) / error)
    off = torch.stack(off).abs()  # (8, 2)
    median, within = off.median(0).values, (off < 2).double().mean(0)  # (2,) each
    assert (0.2 < median).all() and (median < 1.4).all() and (within > 0.6).all(), (median, within)


@pytest.mark.parametrize("places", [[(1, 1), (1, 2), (1, 3), (1, 4)],
                                    [(1, 1), (2, 1), (3, 1), (4, 1)]])
def test_the_bootstrap_gives_the_error_of_a_mean(places):
    """Of four runs of one size, or of four sizes with one run each: the standard deviation over
    sqrt(4), within the chance of draws (three sizes at least make the second one smaller)."""
    values = [0.5, 0.6, 0.8, 0.9]
    points = [Point(*place[:1], 1, 1.0, place[1], value, 0.0)
              for place, value in zip(places, values)]
    mean = lambda points: [sum(p.excess for p in points) / len(points)]
    error, draws = power_laws.bootstrap(mean, points, draws=600)
    right = torch.tensor(values).std().item() / 2
    low = 0.88 if places[0][0] == places[1][0] else 0.6
    assert len(draws) == 600 and low * right < error.item() < 1.12 * right  # 4 errors
    assert power_laws.bootstrap(mean, points[:1], draws=4)[0].isnan().all()


def test_the_minimum_of_a_known_parabola():
    x = [0.0, 1.0, 2.5, 4.0]
    assert power_laws.parabola_minimum(x, [3 + 2 * (v - 1.7) ** 2 for v in x]) == pytest.approx(
        (1.7, 3.0))
    for y in ([4, 3, 2, 1.5], [0, 1, 1, 0]):  # it lies outside; it is a maximum
        assert power_laws.parabola_minimum(x, y) is None
    assert power_laws.parabola_minimum([0, 1], [1, 2]) is None


def test_curves_of_equal_compute_have_the_exponents_of_the_law():
    """(25.2) follows from (25.1); the parabola is an approximation, and the same at each C where
    the law's two terms keep their ratio (sizes that follow N*)."""
    g, e = TRUE.compute_exponents
    assert (g, e) == pytest.approx((0.8 / 1.4, -0.48 / 1.4))
    points = []
    for C in CURVES:
        best = min((TRUE.excess(N, C / 6 / N), N) for N in torch.logspace(2, 7, 3001).tolist())[1]
        points += [Point(best * k, C / 6 / best / k, C, 1, TRUE.excess(best * k, C / 6 / best / k),
                         1e-5) for k in (0.25, 0.5, 1, 2, 4)]
    fit = power_laws.fit_frontier(power_laws.isoflop_minima(points))
    assert fit.size_exponent == pytest.approx(g, abs=0.005)
    assert fit.excess_exponent == pytest.approx(e, abs=0.002)
    assert fit.size(CURVES[1]) == pytest.approx(best * (CURVES[1] / CURVES[2]) ** g, rel=0.1)


def test_a_method_that_needs_sixteen_times_the_compute_has_that_gap(monkeypatch):
    """Where it needs 16 times the tokens at each size, by the laws and by the lines."""
    monkeypatch.setattr(power_laws, "DRAWS", 5)
    first = points_of(TRUE)
    second = points_of(TRUE._replace(log_B=TRUE.log_B + TRUE.b * math.log(16)))
    more = [p._replace(tokens=16 * p.tokens, compute=16 * p.compute) for p in first]
    for other in (second, more):
        found = scaling.describe_gap(first, other)
        assert found["ratio"] == pytest.approx(16, rel=1e-3)
        assert found["factor"] == pytest.approx(1, abs=1e-3)
    assert found["by lines"] == pytest.approx(16)
    E, C = 0.4, TRUE.compute_for(0.4)
    assert min(TRUE.excess(N, C / 6 / N) for N in torch.logspace(1, 6, 4001).tolist()) == (
        pytest.approx(E, rel=1e-5))
    line = Frontier(1e9, 8.0, 0.5, math.log(0.3), -0.25)
    assert line.excess(line.compute_for(0.2)) == pytest.approx(0.2)
    easy = [p._replace(excess=p.excess / 100) for p in first]
    assert scaling.describe_gap(first, easy) is None


def test_a_bound_of_the_gap_needs_no_fit():
    """At C = 1 the first has 0.5, which the second has not at C = 4, but at C = 8."""
    first, second = ([Point(N, 1, C, 1, E, 0.0) for N, C, E in rows] for rows in (
        [(1, 1, 0.7), (2, 1, 0.5), (1, 2, 0.2)],
        [(1, 1, 0.9), (1, 4, 0.6), (2, 4, 0.8), (2, 8, 0.4), (1, 8, 0.9)]))
    assert power_laws.least_ratio(first, second) == (0.5, 4)
    assert power_laws.least_ratio(second, first) is None


def test_a_crossing_is_interpolated_in_the_logarithm():
    x = [1, 4, 16, 64]
    assert power_laws.crossing(x, [1, 1, 1, 1], [3, 2, 0.5, 0.4]) == pytest.approx(
        4 * 4 ** (1 / 1.5))
    assert power_laws.crossing(x, [1] * 4, [0.5, 2, 0.5, 0.4]) > 4  # for good
    assert power_laws.crossing(x, [1] * 4, [0.5] * 4) == 1
    assert power_laws.crossing(x, [1] * 4, [0.5, 0.5, 0.5, 1]) is None
    lines = [{s: {n: [e, 0.0] for n, e in zip(x, line)} for s, line in enumerate(seeds)}
             for seeds in ([[1] * 4] * 2, [[3, 2, 0, 0], [3, 2, 1.5, 0.5]])]
    epochs, factor, n = repetition.mean_crossing(*lines)
    assert epochs == pytest.approx(16) and n == 2  # at 8 and at 32
    assert factor == pytest.approx(2)  # their logarithms have the error log 2


@pytest.mark.parametrize("wrong", [
    lambda: power_laws.crossing([4, 1], [1, 1], [1, 1]),
    lambda: power_laws.crossing([0, 1], [1, 1], [1, 1]),
    lambda: power_laws.fit_law(points_of(TRUE)[:3]),
    lambda: power_laws.fit_law([p._replace(excess=0.0) for p in points_of(TRUE)])])
def test_data_that_have_no_fit_are_refused(wrong):
    with pytest.raises(UserError):
        wrong()


# ---- runs

TINY = dict(n_layer=1, n_embd=8, n_head=1, cond_dim=8, data="toy", batch_size=4, block_size=8,
            max_iters=100, lr_schedule="constant", warmup_iters=2, device="cpu", dtype="float32",
            muon_dtype="float32")


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_a_branch_decays_to_nothing_and_is_undone():
    """After a branch the trunk goes on as if there had been none; the branch itself is a run of
    constant rate, and then a linear decay."""
    data, rates = scaling.FreshTexts(8), []
    branched = training.make_trainer(data, method="mdlm", **TINY)
    step_optimizers = branched.step_optimizers

    def watched(step):
        step_optimizers(step)
        rates.append((step, branched.optimizers[0].param_groups[0]["lr"] / 0.02))
    branched.step_optimizers = watched
    assert [*training.decayed_at(branched, [5, 10], share=0.4)] == [5, 10]
    assert rates == [(0, 0.5), (1, 1), (2, 1), (3, 1), (4, pytest.approx(0.5)), (3, 1), (4, 1),
                     (5, 1), (6, 1), (7, 0.75), (8, 0.5), (9, 0.25)]
    plain = training.make_trainer(data, method="mdlm", **TINY)
    for _ in training.decayed_at(plain, [10], share=0.4):
        pass
    assert torch.equal(weights(branched), weights(plain))


def test_a_method_with_a_curriculum_has_no_common_trunk():
    data, seen = scaling.FreshTexts(8), []
    trainer = training.make_trainer(data, method="duo", **TINY)
    for _ in training.decayed_at(trainer, [6, 12]):
        seen.append((trainer.method.progress, weights(trainer)))
    assert [progress for progress, _ in seen] == [pytest.approx(5 / 6), pytest.approx(11 / 12)]
    alone = training.make_trainer(data, method="duo", **TINY)
    for _ in training.decayed_at(alone, [12]):
        assert torch.equal(weights(alone), seen[1][1])


@pytest.mark.parametrize("name", ["mdlm", "udlm"])
def test_the_exact_denoiser_has_no_excess_and_pairs_are_more_precise(name):
    data = scaling.FreshTexts(8)
    method = make_method(name, data.encoding.n_vocab)
    excess, oracle = scaling.Excess(data, method, 100), method.oracle(data.language)
    assert excess(method, oracle) == (0.0, 0.0)
    blurred = lambda *args, **layout: 0.7 * oracle(*args, **layout)  # a higher temperature
    mean, error = excess(method, blurred)
    assert mean > 4 * error > 0 and error < 0.3 * excess.floor.std() / 100 ** 0.5


def test_weights_are_counted_without_embedding_head_and_what_reads_the_time():
    data = scaling.FreshTexts(8)
    counts = [scaling.count_weights(training.make_trainer(data, method=name, **TINY).model)
              for name in ("ar", "mdlm", "udlm")]
    assert counts == [12 * 8 * 8 + 5 * 8 + 2 * 8 + 8] * 3  # matrices, biases, norms


def test_fresh_texts_depend_on_the_batch_alone_and_few_texts_are_each_read_once_an_epoch():
    fresh = scaling.FreshTexts(8)
    draw = lambda number, seed=1: fresh.micro_batch(number, 3, seed, None)[0]
    first = draw(40)
    assert not torch.equal(first, draw(41)) and not torch.equal(first, draw(40, seed=2))
    draw(0)
    assert torch.equal(first, draw(40))
    few = repetition.FewTexts(6, 8)
    read = torch.cat([few.micro_batch(number, 4, 1, None)[0] for number in range(6)])  # (24, L)
    texts = few.texts(1).tolist()
    for epoch in read.view(4, 6, 8):
        assert sorted(epoch.tolist()) == sorted(texts)
    assert read[:6].tolist() != read[6:12].tolist() and few.texts(2).tolist() != texts


def small(monkeypatch):
    monkeypatch.setattr(scaling, "FLAGS", {**scaling.FLAGS, "batch_size": 2, "warmup_iters": 0})
    monkeypatch.setattr(repetition, "FLAGS", scaling.FLAGS)
    monkeypatch.setattr(repetition, "WARMUP", 0)
    monkeypatch.setattr(power_laws, "DRAWS", 2)
    monkeypatch.setattr(power_laws, "STARTS", [(0.5, 0.5)])


def run(module, capsys, **flags):
    module.main(configure(module.Config, max_texts=4, out_dir="runs", **flags))
    return capsys.readouterr().out


def test_both_commands_use_the_same_runs(capsys, monkeypatch):
    small(monkeypatch)
    flags = dict(sizes="1x8,1x16", methods="mdlm", seeds=2, most_excess=9.0, most_tokens=30_000,
                 compute=f"{6 * 832 * 128},{6 * 832 * 64 * 9}")
    monkeypatch.setattr(scaling, "plan", lambda config, N: {2: 1e6, 5: 2e6})
    said = run(scaling, capsys, command="laws", **flags)
    assert said.count("weights") == 8 and "8 of 8 points" in said
    assert "correlation" in said
    said = run(scaling, capsys, command="isoflop", **flags)
    assert "weights" not in said and "fewer than two curves" in said
    monkeypatch.setattr(scaling, "plan", lambda config, N: {2: 1e6, 5: 2e6, 8: 4e6})
    assert run(scaling, capsys, command="laws", **flags).count("weights") == 4  # what is missing


def test_few_texts_are_read_many_times(capsys, monkeypatch):
    small(monkeypatch)
    said = run(repetition, capsys, num_texts=4, epochs="1,2", size="1x8", seeds=2)
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert rows["1"].count("+-") == rows["2"].count("+-") == rows["best"].count("+-") == 3
    assert said.count("mdlm falls below ar") == 2 and said.count("weights") == 12


def test_epochs_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    lines = {name: {n: (1 / n, 0.01) for n in (2, 4, 8)} for name in repetition.LINES}
    figure = repetition.draw_lines(lines, configure(repetition.Config), load_pyplot())
    save_figure(figure, tmp_path / "lines.png")
    assert (tmp_path / "lines.png").stat().st_size > 5000


def test_the_table_and_the_figures_of_the_page_are_those_that_were_measured():
    docs = Path(__file__).parents[2] / "docs"
    kept = json.loads((docs / "figures" / "scaling.json").read_text("utf-8"))
    page = (docs / "25-scaling.md").read_text("utf-8")
    points = {name: [Point(*row) for row in part["points"]]
              for name, part in kept["methods"].items()}
    sizes = sorted({p.size for p in points["ar"]})
    rows = re.findall(r"^\| (\d[\d.]*e\d+) \| (.*) \|$", page, re.M)
    assert [f"{float(C):.2e}" for C, _ in rows] == sorted(
        {f"{p.compute:.2e}" for p in points["ar"]}, key=float)
    for C, cells in rows:
        for N, cell in zip(sizes, cells.split("|"), strict=True):
            seeds = [[p.excess for p in points[name]
                      if p.size == N and f"{p.compute:.2e}" == f"{float(C):.2e}"]
                     for name in ("ar", "mdlm")]
            found = [statistics.mean(each) for each in seeds if each]
            assert {len(each) for each in seeds} <= {0, 3}
            assert [float(word) for word in cell.split("/") if word.strip()] == pytest.approx(
                found, abs=6e-4)
    assert power_laws.least_ratio(points["ar"], points["mdlm"]) == (0.22918, 32)
    law = power_laws.fit_law(points["ar"])
    assert [*law] == pytest.approx(kept["methods"]["ar"]["law"]["fit"], abs=1e-3)
    for word in (f"a = {law.a:.3f} ", f"b = {law.b:.3f} ", f"square of {law.residual:.2f}"):
        assert word in page.replace("\n", " "), word


def test_the_curves_give_each_size_its_tokens():
    config = configure(scaling.Config, compute="1e9,4e9", least_tokens=50_000)
    assert scaling.plan(config, 1000) == {163: 1e9, 651: 4e9}
    assert scaling.plan(config, 6000) == {109: 4e9}


@pytest.mark.parametrize("module, argv, says", [
    (scaling, [], "say what to measure: laws, isoflop"),
    (scaling, ["--command", "laws", "--sizes", "2x"], "'2x' is no size"),
    (scaling, ["--command", "laws", "--sizes", "2x12"], "the width is a multiple of 8"),
    (scaling, ["--command", "laws", "--compute", "0"], "between 1 and 1e+24"),
    (scaling, ["--command", "laws", "--methods", "gpt"], "is not one of"),
    (repetition, ["--size", "x8"], "'x8' is no size"),
    (repetition, ["--epochs", "0,2"], "must be at least 1"),
    (repetition, ["--num_texts", "32", "--epochs", "4"], "would decay within the warm-up")])
def test_bad_input_is_one_line(module, argv, says, capsys):
    assert says in complaint(module, *argv, capsys=capsys)
