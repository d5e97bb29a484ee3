"""AR2Diff: its loss and its sampler as sums over the world of 27 texts; and it has no bound."""
import contextlib
import io
import math

import pytest
import torch
import world
from bounds import close, mean_of_batches
from evaluations import results, run
from networks import randomize
from runs import complaint, elsewhere, cache, fit, metrics, tiny  # noqa: F401
from world import LANGUAGE, P, TEXTS, L, N

import evaluate
import train
from checkpoints.load import load_model
from methods import make_method
from methods.diffugpt import ShiftedTransformer
from samplers import make_sampler

APART = (TEXTS[:, None] != TEXTS).sum(-1)  # (27, 27) words in which z differs from x


def made(**flags):
    return make_method("ar2diff", N, **flags)


def noisy():
    """q(z | x) for t ~ U(0, 1), a row for each x: of a polynomial in t, d words changed. -> (27,
    27)"""
    d = torch.arange(L + 1)  # (L + 1,)
    t = (torch.arange(4000, dtype=torch.float64)[:, None] + 0.5) / 4000  # (4000, 1)
    return ((1 - t + t / N) ** (L - d) * (t / N) ** d).mean(0)[APART]  # (27, 27)


def law_of(log_p):
    """p_theta of a whole text x at each z, word by word. log_p (27, L, N) -> (27, 27)"""
    rows = [log_p[:, l, TEXTS[:, l]] for l in range(L)]  # L times (27, 27)
    return torch.stack(rows).sum(0).exp()  # (27, 27)


def exact():
    """The exact denoiser at every text. -> (27, L, N) log-probabilities"""
    return made().oracle(LANGUAGE)(TEXTS, None)


def vandal(z, t=None, at=None, **layout):
    log_p = world.vandal(z, torch.tensor(0.4))  # (B, L, N)
    return log_p if at is None else log_p[at]


# ---- the loss

def test_the_exact_denoiser_is_bayes_rule_at_an_unknown_time():
    joint = P[:, None] * noisy()  # (27, 27) x, z
    p = torch.stack([torch.stack([joint[TEXTS[:, l] == v].sum(0) for v in range(N)], -1)
                     for l in range(L)], 1)  # (27, L, N)
    close(exact().exp(), p / p.sum(-1, keepdim=True), 1e-6)


def test_without_unrolling_the_exact_denoiser_is_the_best():
    """The cross-entropy is convex in the logits, and its gradient is 0 there."""
    logits = exact().requires_grad_()  # (27, L, N)
    nats = -(P[:, None] * noisy() * law_of(logits.log_softmax(-1)).log().T).sum()
    assert torch.autograd.grad(nats, logits)[0].abs().max() < 1e-6


def enumerated(log_p, unroll):
    """The mean of (18.10) over texts, z and z'. log_p (27, L, N) -> ()"""
    z = noisy()  # (27, 27) x, z
    first = -(P[:, None] * z * law_of(log_p).log().T).sum()
    again = -(P[:, None] * (z @ law_of(log_p)) * law_of(log_p).log().T).sum()
    return (first + again) / 2 if unroll else first


@pytest.mark.parametrize("unroll", [False, True])
def test_the_loss_has_the_mean_of_its_formula_for_any_denoiser(unroll):
    method, due = made(unroll=unroll), enumerated(vandal(TEXTS), unroll)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 3000, replacement=True)  # (n,)
        return method.loss(vandal, TEXTS[of]).sum(-1)  # (n,)
    mean, error = mean_of_batches(draw)
    assert error < 0.01 * due and abs(mean - due) < 4.5 * error


def test_the_loss_is_no_bound():
    """Of words that have nothing to do with each other it costs less than their entropy, since
    z shows most of them."""
    q = noisy()  # (27, 27) x, z
    p = torch.stack([q[TEXTS[:, 0] == v].sum(0) for v in range(N)], -1) / 27  # (27, N) at the first
    log_p = (p / p.sum(-1, keepdim=True)).log()  # (27, N)
    one_word = -(q / 27 * log_p[:, TEXTS[:, 0]].T).sum()  # ()
    assert one_word < 0.8 * math.log(N)


def test_no_gradient_passes_through_the_draw_and_given_words_stay():
    method = make_method("ar2diff", 7)
    net = randomize(ShiftedTransformer(8, n_layer=1, n_head=2, n_embd=8, cond_dim=0))
    x, frozen = torch.randint(7, (6, 9)), torch.arange(9).expand(6, 9) < 3  # (6, 9) each
    seen, gradients = [], []

    def spy(z, t, at=None, **layout):
        seen.append(z)
        gradients.append(torch.is_grad_enabled())
        return net(z, t, at=at, **layout)
    nats = method.loss(spy, x, frozen)
    assert gradients == [True, False, True] and torch.equal(seen[0], seen[1])
    assert all(torch.equal(z[frozen], x[frozen]) for z in seen) and (seen[2] != seen[0]).any()
    assert (nats[frozen] == 0).all() and (seen[2] < 7).all()


# ---- the sampler

def chain(steps, best_of=1):
    """The law of --sampler unroll through the exact denoiser. -> (27,)"""
    step, p = law_of(exact()), torch.full((27,), 1 / 27, dtype=torch.float64)
    for _ in range(steps - 1):
        p = p @ step
    pairs, score = p[:, None] * step, step.log()  # (27, 27) each: the last two texts, the score
    ranks = score.flatten().round(decimals=9).unique(return_inverse=True)[1]  # (729,)
    at = torch.zeros(int(ranks.max()) + 1, dtype=torch.float64).index_add(0, ranks, pairs.flatten())
    below = at.cumsum(0) - at  # (ranks,) chance of a lower score
    kept = ((below + at) ** best_of - below ** best_of) / at.clamp(min=1e-300)  # (ranks,)
    return (pairs.flatten() * kept[ranks]).view(27, 27).sum(0)  # (27,)


def far(p):
    return ((p - P).abs().sum() / 2).item()


def test_the_chain_has_another_law_than_the_language():
    """The table of the docs: more steps do not help, since words are drawn apart and evidence is
    counted again in each; and the likeliest of several texts are too likely."""
    one = [round(far(chain(steps)), 3) for steps in (1, 2, 4, 16, 64)]
    four = [round(far(chain(steps, 4)), 3) for steps in (1, 2, 4, 16, 64)]
    nats = [round((-chain(16, n) @ P.log()).item(), 3) for n in (1, 4)]
    assert one == [0.246, 0.215, 0.202, 0.197, 0.197] and nats == [3.163, 2.390]
    assert four == [0.083, 0.190, 0.264, 0.291, 0.291]  # the entropy is 2.750
    close(chain(3).sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("steps, best_of", [(1, 1), (3, 1), (2, 3)])
def test_texts_have_the_law_of_the_chain(steps, best_of):
    """Chi-square within 4.5 standard deviations."""
    method, n = made(), 20_000
    sampler = make_sampler("unroll", method, best_of=best_of)
    torch.manual_seed(2)
    nothing = torch.zeros(n, L, dtype=torch.bool)  # (n, L)
    denoiser = world.by_state(method.oracle(LANGUAGE))
    states = [*method.sample(denoiser, method.prior((n, L)), nothing, steps, sampler)]
    assert len(states) == sampler.count_states(L, steps) == best_of * steps + 1
    assert abs(world.surprise(world.numbers(states[-1], N), chain(steps, best_of))) < 4.5


def test_the_text_of_the_best_score_is_kept():
    """The mean of the log-probabilities of its last draws, each text by itself."""
    method, scores, last = made(), [], []
    sampler = make_sampler("unroll", method, best_of=5)

    def spy(z, t, at=None, **layout):
        scores.append(vandal(z))
        return vandal(z, t, at)
    torch.manual_seed(0)
    z = method.prior((40, L))  # (40, L)
    for state in method.sample(spy, z, torch.zeros_like(z, dtype=torch.bool), 1, sampler):
        last.append(state)
    *texts, best = last
    rank = torch.stack([log_p.gather(-1, x[..., None]).sum((1, 2))
                        for log_p, x in zip(scores, texts)])  # (5, 40)
    close(rank.max(0).values, rank.gather(0, rank.argmax(0)[None])[0])
    assert torch.equal(best, torch.stack(texts)[rank.argmax(0), torch.arange(40)])


# ---- scripts

def test_it_starts_from_a_run_of_ar_and_evaluate_says_that_there_is_no_bound(capsys):
    fit("ar", method="ar", max_iters=3, learning_rate=0.01)
    fit("out", method="ar2diff", init_from="ar", max_iters=1, learning_rate=0.0, muon_lr=0.0)
    ar, new = load_model("ar").denoiser.state_dict(), load_model("out").denoiser.state_dict()
    assert all(torch.equal(ar[name], a) for name, a in new.items()) and ar.keys() == new.keys()
    assert metrics("out", "val_loss").keys() == {0, 1} and not metrics("out", "val_bound")
    capsys.readouterr()
    few = ["--out_dir=out", "--max_texts=6", "--num_samples=4", "--draws=1", "--device=cpu"]
    run(*few)
    said = capsys.readouterr().out
    assert "no bound on -log p: the network predicts words from noisy texts" in said
    assert "perplexity" not in said and "bits/byte" not in said and "exact -log p" in said
    found = results(capsys, *few)
    assert found["loss_per_token"] > 0 and found["sampler"] == "unroll" and not found["exact"]
    assert not {"nats_per_token", "perplexity", "gap", "bits_per_byte"} & found.keys()


@pytest.mark.parametrize("flag", ["against", "lambada", "choices", "zero_shot"])
def test_what_needs_a_likelihood_is_refused_in_one_line(flag, capsys):
    fit("out", method="ar2diff", max_iters=1)
    value = "names" if flag == "zero_shot" else "ngram"
    few = ["--max_texts=4", "--num_samples=0", "--draws=1", "--device=cpu", "--out_dir=out"]
    with contextlib.redirect_stdout(io.StringIO()):
        said = complaint(evaluate, *few, f"--{flag}={value}", capsys=capsys)
    assert f"--{flag} compares likelihoods, and ar2diff has no bound on them here: the" in said


def test_nothing_is_compared_with_it(capsys):
    fit("out", method="ar2diff", max_iters=1)
    fit("mdlm", max_iters=1)
    few = ["--max_texts=4", "--num_samples=0", "--draws=1", "--device=cpu", "--out_dir=mdlm"]
    said = complaint(evaluate, *few, "--against=out", capsys=capsys)
    assert "--against out has no bound on a likelihood: the network predicts" in said


def test_its_sampler_is_refused_for_others_and_their_samplers_for_it(capsys):
    fit("mdlm", max_iters=1)
    said = complaint(evaluate, "--out_dir=mdlm", "--sampler=unroll", "--device=cpu", capsys=capsys)
    assert "--sampler unroll draws from p(x | z) at all words" in said and "mdlm" in said
    assert "diffugpt and others" not in complaint(
        train, *tiny(method="ar2diff", init_from="mdlm", out_dir="o"), capsys=capsys)
