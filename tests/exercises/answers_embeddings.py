"""Answers to exercises 28 to 30: see answers.py."""

GAUSSIAN = ("alpha, sigma = (a[..., None] for a in signal(gamma))\n"
            "dot, norm = z @ table.T, table.square().sum(-1)\nreturn ")
SUMS = ("n = range(len(candidates))\n"
        "score = [sum(utility(candidates[{0}], candidates[{1}]) for j in n if {2}) for i in n]\n"
        "return {3}")

RIGHT = {
    28: [GAUSSIAN + "alpha / sigma ** 2 * dot - (alpha / sigma) ** 2 * norm / 2",
         """\
mean = torch.sigmoid(-gamma).sqrt()[..., None, None] * table
return -(z[..., None, :] - mean).square().sum(-1) / 2 / torch.sigmoid(gamma)[..., None]""",
         """\
alpha, sigma = signal(gamma)
law = torch.distributions.Normal(alpha[..., None, None] * table, sigma[..., None, None])
return law.log_prob(z[..., None, :]).sum(-1)"""],
    29: ["return -decoder_nats + math.log(2)", "import torch\nreturn torch.tensor(0.5 ** -1).log()"
         " - decoder_nats", "import numpy\nreturn numpy.log(2) - decoder_nats"],
    30: [SUMS.format("i", "j", "j != i", "score.index(max(score))"),
         SUMS.format("i", "j", "i != j", "max(n, key=lambda i: score[i])"),
         """\
best, most = 0, -math.inf
for i, y in enumerate(candidates):
    others = candidates[:i] + candidates[i + 1:]
    mean = sum(utility(y, other) for other in others) / max(1, len(others))
    if mean > most:
        best, most = i, mean
return best"""],
}

WRONG = {
    28: [(GAUSSIAN + "alpha / sigma ** 2 * dot", "of one norm only"),
         (GAUSSIAN + "alpha / sigma * (dot - alpha / 2 * norm)", "has its variance"),
         (GAUSSIAN + "(dot - norm / 2) / sigma ** 2", "it was alpha e_v"),
         (GAUSSIAN + "alpha / sigma ** 2 * (dot - norm / 2)", "has alpha^2"),
         (GAUSSIAN + "alpha / sigma ** 2 * (dot - alpha * norm)", "factor 1/2"),
         (GAUSSIAN + "(alpha / sigma ** 2 * (dot - alpha / 2 * norm)).softmax(-1)",
          "its logarithm"),
         (GAUSSIAN + "dot[..., 0]", "the shape"),
         ("return z @ table.T * gamma", "a number for each word")],
    29: [("return math.log(2)", "nothing left to do"), ("return math.log(2) + decoder_nats",
                                                       "nothing to share"),
         ("return 1 - decoder_nats", "counted in bits"),
         ("return decoder_nats - math.log(2)", "the sign"), ("pass", "is not a number")],
    30: [(SUMS.format("j", "i", "j != i", "score.index(max(score))"), "references of the others"),
         (SUMS.format("i", "j", "True", "score.index(max(score))"), "agrees with itself"),
         (SUMS.format("i", "j", "candidates[j] != candidates[i]", "score.index(max(score))"),
          "are no others"),
         (SUMS.format("i", "j", "j != i", "max(n, key=lambda i: (score[i], i))"),
          "the last of equals"),
         (SUMS.format("i", "j", "j != i", "candidates[score.index(max(score))]"),
          "return its number")],
}
