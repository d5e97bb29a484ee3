"""The graders of exercises 25 and 26: noise as evidence."""
import torch
import torch.nn.functional as F

from graders import DOUBLE, check, check_equal, check_shape, hint
from methods.evidence import draw_evidence, receiver_nats


def draws(*shape, seed=25):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_exercise_25_evidence_has_its_mean_and_its_variance():
    x, eps = torch.tensor([[0, 2], [1, 1]]), draws(2, 2, 3)  # (2, 2), (2, 2, 3)
    lam = torch.tensor([[4.0, 0.5], [2.0, 9.0]], dtype=DOUBLE)  # (2, 2)
    word, size = F.one_hot(x, 3), lam[..., None]  # (2, 2, 3), (2, 2, 1)
    with hint("lam has one more dimension than x by now, so that it multiplies all V entries"):
        ours = draw_evidence(x, lam, eps)  # (2, 2, 3)
    check_equal("y of four tokens", ours, size * word + size.sqrt() * eps, {
        "lam stands in the place of its root: lam is the variance": size * word + size * eps,
        "the mean is 1, not lam": word + size.sqrt() * eps,
        "all other words get -lam, as BFN's y does in units of beta":
            size * (2 * word - 1) + size.sqrt() * eps,
        "there is no noise": size * word + 0 * eps, "there is only noise": size.sqrt() * eps})


def test_exercise_25_softmax_of_evidence_is_bayes_rule():
    """Of a word with the prior p, log p(x | y) = log p + y up to a constant, whatever lam is."""
    p, eps = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE), draws(400, 3)  # (3,), (400, 3)
    y = draw_evidence(torch.zeros(400, dtype=torch.long), 3.0, eps)  # (400, 3)
    check_shape("y of 400 tokens", y, (400, 3))
    means = 3.0 * torch.eye(3, dtype=DOUBLE)  # (3, 3)
    density = -(y[:, None] - means).square().sum(-1) / 6  # (400, 3) of each word
    check(bool(((p.log() + y).softmax(-1) - (p.log() + density).softmax(-1)).abs().max() < 1e-9)
          and abs(float(y[:, 0].mean()) - 3) < 0.5,
          f"y of word 0 at lam = 3 has the mean {float(y[:, 0].mean()):.2f} there: it must be 3")


def test_exercise_26_with_one_token_the_steps_telescope():
    """However many steps there are: their sum, and the last cross-entropy, is -log p(x)."""
    p, x = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE), torch.tensor([0, 1, 2])  # (3,), (3,)
    for n in (1, 4):
        y, total = torch.zeros(3, 3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
        others = {"the sign is wrong": 0, "the receiver does not know what the network predicts: "
                  "log_p is missing": 0, "you return the cross-entropy after the evidence, not "
                  "what it gained": 0, "the mean of dy stands in place of the log of a mean": 0}
        for i in range(n):
            log_p, d = (p.log() + y).log_softmax(-1), 2.0 * (i + 1)  # (3, 3)
            dy = d * torch.eye(3, dtype=DOUBLE) + d ** 0.5 * draws(3, 3, seed=i)  # (3, 3)
            with hint("log_p and dy have V entries for each token; take that of x by gather"):
                ours = receiver_nats(log_p, dy, x)  # (3,)
            check_shape("a term", ours, (3,))
            own, after = dy.diagonal(), (log_p + dy).logsumexp(-1)  # (3,) each
            terms = after - own, own - dy.logsumexp(-1), after - own - log_p.diagonal(), (
                own - (log_p.exp() * dy).sum(-1))  # (3,) each
            others = {what: others[what] + term for what, term in zip(others, terms)}
            total, y = total + ours, y + dy
        last = -(p.log() + y).log_softmax(-1).diagonal()  # (3,)
        check_equal(f"-log p of three words, in {n} steps", total + last, -p.log(),
                    {what: wrong + last for what, wrong in others.items()})


def test_exercise_26_evidence_of_nothing_is_worth_nothing():
    log_p = draws(5, 3).log_softmax(-1)  # (5, 3)
    gained = receiver_nats(log_p, torch.full((5, 3), 2.0, dtype=DOUBLE), torch.arange(5) % 3)
    check_equal("evidence 2 for every word", gained, torch.zeros(5, dtype=DOUBLE), {
        "it counts as evidence for x: log_p + dy must be summed over words": gained * 0 + 2})
