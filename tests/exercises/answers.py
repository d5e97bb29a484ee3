"""
Answers that students give to exercises 1 to 10, right and wrong: what stands between the marks.

Each wrong answer comes with words of the sentence that names its slip. An answer to an exercise
with several blanks is a tuple; None leaves that one as it is. No student's copy has this file.
"""

NOISE = "z = process.draw_noise(t, x)"
RIGHT = {
    1: ["""\
coin = torch.bernoulli(process.alpha(t).expand(x.shape)).bool()
z = torch.where(coin, x, process.draw_noise(t, x))
return z if frozen is None else torch.where(frozen, x, z)""", f"""\
{NOISE}
keep = torch.rand(x.shape, dtype=torch.float64, device=x.device) >= 1 - process.alpha(t)
if frozen is not None: keep |= frozen
z[keep] = x[keep]
return z""", """\
noisy = torch.rand_like(x, dtype=torch.float32) > process.alpha(t)
noisy = noisy & ~frozen if frozen is not None else noisy
return x.masked_scatter(noisy, process.draw_noise(t, x)[noisy])"""],
    2: ["""\
cdf = p.cumsum(-1) / p.sum(-1, keepdim=True)
u = torch.empty(p.shape[:-1] + (1,), dtype=torch.float64).uniform_()
return (cdf <= u).sum(-1).clamp(max=(p > 0).cumsum(-1).argmax(-1))""", """\
return torch.multinomial(p.reshape(-1, p.shape[-1]), 1).view(p.shape[:-1])""", """\
return torch.multinomial(p, 1)[..., 0]""", """\
cdf = p.cumsum(-1)
u = torch.rand(cdf.shape[:-1] + (1,), dtype=torch.float64) * cdf[..., -1:]
return torch.searchsorted(cdf, u, right=True)[..., 0]""", """\
return torch.distributions.Categorical(probs=p).sample()""", """\
g = torch.Generator().manual_seed(int(torch.randint(2 ** 31, ())))
cdf = p.cumsum(-1)
u = torch.rand(*p.shape[:-1], 1, dtype=torch.float64, generator=g) * cdf[..., -1:]
return (u < cdf).int().argmax(-1)""", """\
import numpy as np
cdf = p.numpy().cumsum(-1)
u = np.random.default_rng(0).random(cdf.shape[:-1] + (1,)) * cdf[..., -1:]
return torch.from_numpy((cdf <= u).sum(-1))""", """\
import random
flat = p.reshape(-1, p.shape[-1]).tolist()
ids = [random.choices(range(p.shape[-1]), weights=row)[0] for row in flat]
return torch.tensor(ids).view(p.shape[:-1])""", """\
return (p / torch.empty_like(p).exponential_()).argmax(-1)""", """\
u = torch.rand(p.shape, dtype=torch.float64)
return (p.log() - (-u.log()).log()).argmax(-1)"""],
    3: ["import torch\nreturn torch.tensor(n_tokens).log()",
        "import numpy\nreturn numpy.log(n_tokens)",
        "return -math.log(1 / n_tokens)",
        "from decimal import Decimal\nreturn Decimal(n_tokens).ln()"],
    4: [(None, "return (masked_weight(process, t) * cross_entropy)"
               ".masked_fill(z != process.mask, 0.0)"),
        ("return -process.dalpha(t) / (1 - process.alpha(t))", """\
out = torch.zeros_like(cross_entropy)
at = z == process.mask
out[at] = (masked_weight(process, t).expand(z.shape)[at] * cross_entropy[at]).to(out.dtype)
return out"""),
        ("return process.db(t, process.mask) / process.b(t, process.mask)", """\
nats = cross_entropy.masked_fill(z != process.mask, 0.0)
return torch.where(z == process.mask, masked_weight(process, t), 0.0) * nats""")],
    5: ["""\
k = (u * n).long() + 1
r = torch.rand(x.shape).masked_fill(given, 2.0)
return x.masked_fill(r <= r.sort(-1).values.gather(-1, k - 1), process.mask), k, n""", """\
k, z = torch.ceil(u * n).long(), x.clone()
for row, free, count in zip(z, ~given, k[:, 0]):
    places = free.nonzero()[:, 0]
    row[places[torch.randperm(len(places))[:count]]] = process.mask
return z, k, n""", """\
k = torch.ceil(u * n)
rank = torch.rand(x.shape).masked_fill(given, 9).argsort(-1).argsort(-1)
return torch.where(rank < k, process.mask, x), k, n"""],
    6: ['return "./tests/theory/test_theory.py::test_the_closed_forms_are_the_one_bound[mask] "'],
    7: ["""\
keep = (process.alpha(t) / process.alpha(s))[..., None]
into_z = (process.b(t, z) - keep[..., 0] * process.b(s, z))[..., None].expand(x_theta.shape)
factor = torch.where(symbols == z[..., None], keep + into_z, into_z)
joint = factor * (b_s + alpha_s * x_theta)""", """\
a = process.alpha(t) / process.alpha(s)
joint = (process.b(t, z) - a * process.b(s, z))[..., None].repeat(1, 1, process.V)
joint.scatter_add_(-1, z[..., None], a.expand(z.shape)[..., None].contiguous())
joint = joint.mul(x_theta * alpha_s + b_s)""", """\
a_t, a_s = process.alpha(t)[..., None], process.alpha(s)[..., None]
q = a_t * torch.eye(process.V, dtype=x_theta.dtype)[z] + a_s * process.b(t, z)[..., None]
joint = (q - a_t * process.b(s, z)[..., None]) * (a_s * x_theta + b_s)"""],
    8: ["""\
p = x_theta[..., :process.n_tokens].mul(likelihood(process, z, t))
return p.div(p.sum(-1, keepdim=True))""", """\
guess = x_theta[:, :, :process.n_tokens]
return (guess.log() + likelihood(process, z, t).log()).softmax(-1)""", """\
alpha, b = process.alpha(t)[..., None], process.b(t, z)[..., None]
own = F.one_hot(z, process.V)[..., :process.n_tokens]
joint = x_theta[..., :process.n_tokens] * (alpha * own + b)
return F.normalize(joint, p=1, dim=-1)"""],
    9: ["""\
own = own * alpha_t.expand(z.shape)[at] * (z[at] < process.n_tokens)
moves[at] = torch.rand(own.shape, dtype=torch.float64) < b_z[at] / (own + b_z[at])""", """\
own = torch.where(z[at] == process.mask, 0.0, alpha_t.expand_as(z)[at] * own) \
if process.mask is not None else alpha_t.expand_as(z)[at] * own
moves = moves.masked_scatter(at, torch.rand_like(own) <= b_z[at] / (b_z[at] + own))""", """\
real = (z[at] < process.n_tokens).double()
moves[at] = torch.bernoulli(b_z[at] / (b_z[at] + real * own * alpha_t.expand_as(z)[at])).bool()"""],
    10: ["return sum(1 - (1 - 1 / steps) ** length for _ in range(steps))",
         "from fractions import Fraction as F\nreturn steps * (1 - F(steps - 1, steps) ** length)",
         "import numpy as np\nreturn steps - steps * np.power(1 - 1 / steps, length)"],
}

BLIND = 'return "tests/theory/test_theory.py::test_noise_and_signal_share_all_probability[mask]"'
CDF = "cdf = p.cumsum(-1)\nu = torch.rand(cdf.shape[:-1] + (1,), dtype=torch.float64)"
WRONG = {
    1: [("return torch.where(torch.rand(x.shape) < 1 - process.alpha(t), x, "
         "process.draw_noise(t, x))", "keep with probability 1 - alpha"),
        ("return torch.where(torch.rand(len(x), 1) < process.alpha(t), x, "
         "process.draw_noise(t, x))", "one coin for a whole text"),
        ("return torch.where(torch.rand(x.shape[1]) < process.alpha(t), x, "
         "process.draw_noise(t, x))", "all texts share their coins"),
        ("return torch.where(torch.rand(x.shape) < process.alpha(t), x, "
         "torch.randint_like(x, process.V))", "is kept or becomes 5"),
        ("return torch.where(torch.rand(x.shape) < process.alpha(t), x, "
         "process.V - 1)", "the share of right words under uniform noise"),
        ("return torch.where(torch.rand(x.shape) < process.alpha(t), x, "
         "process.draw_noise(t, x))", "a frozen token was noised"),
        ("keep = (torch.rand(x.shape) < process.alpha(t)) | frozen\n"
         "return torch.where(keep, x, process.draw_noise(t, x))", "`frozen` may be None"),
        ("return process.draw_noise(t, x)", "all tokens are kept, or none")],
    2: [(f"{CDF}\nreturn torch.searchsorted(cdf, u, right=True)[..., 0]", "you do not normalize"),
        (f"{CDF}\nreturn torch.searchsorted(cdf, u * cdf[..., -1:])[..., 0]",
         "search from the right"),
        (f"{CDF}\nsum = p.sum(-1, keepdim=True)\n"
         "return torch.searchsorted(cdf / sum, u, right=True)[..., 0]",
         "the last symbol that has some"),
        (f"{CDF}\nreturn torch.searchsorted(cdf, u * cdf[..., -1:], right=True)", "shape"),
        ("cdf = p.cumsum(-1)\nu = torch.rand(cdf.shape[:-1] + (1,)).double() * cdf[..., -1:]\n"
         "return torch.searchsorted(cdf, u, right=True)[..., 0]", "uses float32"),
        ("cdf = p.float().cumsum(-1)\nu = torch.rand(cdf.shape[:-1] + (1,)) * cdf[..., -1:]\n"
         "return torch.searchsorted(cdf, u, right=True)[..., 0]", "uses float32"),
        ("from numpy import float32, random\n"
         "u = random.default_rng(0).random(p.shape[:-1] + (1,), float32)\n"
         "return (p.cumsum(-1) <= torch.from_numpy(u) * p.sum(-1, keepdim=True)).sum(-1)",
         "uses float32"),
        ("return torch.multinomial(p.float(), 1)[..., 0]", "uses float32"),
        ("u = torch.rand(1, dtype=torch.float64) * p.sum(-1, keepdim=True)\n"
         "return torch.searchsorted(p.cumsum(-1), u, right=True)[..., 0]",
         "all rows share one random number"),
        ("return p.argmax(-1)", "take the likeliest"),
        ("return torch.randint(p.shape[-1], p.shape[:-1])", "all are equally likely"),
        ("return (p.log() - (-torch.rand(p.shape).log()).log()).argmax(-1)", "uses float32")],
    3: [("return math.log(n_tokens) / 2", "forget the weight"), ("return math.log(n_tokens + 1)",
        "count the mask"), ("return math.log2(n_tokens)", "count bits"),
        ("return None", "which is not a number"), ("return -math.log(n_tokens)", "not negative")],
    4: [((None, "return (z == process.mask) * masked_weight(process, t) * cross_entropy"),
         "select the masks with torch.where"),
        ((None, "return masked_weight(process, t) * cross_entropy.masked_fill("
                "z != process.mask, 0.0)"), "select the masks with torch.where"),
        ((None, "return torch.where(z == process.mask, cross_entropy, 0.0)"),
         "the weight is missing"),
        ((None, "return masked_weight(process, t) * cross_entropy"), "count as well"),
        (("return process.dalpha(t) / process.b(t, process.mask)", None), "the sign is wrong"),
        (("return 1 / t", None), "which holds for alpha = 1 - t only"),
        (("return 1 / (1 - t)", None), "of the share that was kept"),
        ((None, "at = z == process.mask\nreturn torch.where(at, cross_entropy, 0.0) / "
                "at.sum(-1, keepdim=True)"), "number of masks of each text")],
    5: [("k = (u * n).floor()\nr = torch.rand(x.shape).masked_fill(given, 2).argsort(-1)\n"
         "return torch.where(r.argsort(-1) < k, process.mask, x), k, n", "you round down"),
        ("k = (u * n).round()\nr = torch.rand(x.shape).masked_fill(given, 2).argsort(-1)\n"
         "return torch.where(r.argsort(-1) < k, process.mask, x), k, n", "round to the nearest"),
        ("k = (u * n).ceil()\nr = torch.rand(x.shape).argsort(-1)\n"
         "return torch.where(r.argsort(-1) < k, process.mask, x), k, n", "a given token became"),
        ("k = (u * n).ceil()\nr = torch.rand(x.shape).masked_fill(given, 2).argsort(-1)\n"
         "return torch.where((r < k) & ~given, process.mask, x), k, n", "argsort of the argsort"),
        ("k = (u * n).ceil()\nhit = (torch.rand(x.shape) < k / n) & ~given\n"
         "return torch.where(hit, process.mask, x), k, n", "not a coin for each token"),
        ("k = (u * n).ceil()\nr = (~given).cumsum(-1)\n"
         "return torch.where((r <= k) & ~given, process.mask, x), k, n", "first positions"),
        ("k = (u * n).ceil()\nr = torch.rand(x.shape[1]).expand(x.shape).masked_fill(given, 2)\n"
         "return torch.where(r.argsort(-1).argsort(-1) < k, process.mask, x), k, n",
         "all texts share one order"),
        ("k = (torch.rand(u.shape) * n).ceil()\nr = torch.rand(x.shape).masked_fill(given, 2)\n"
         "return torch.where(r.argsort(-1).argsort(-1) < k, process.mask, x), k, n",
         "k must be that of u"),
        ("return x.masked_fill(torch.rand(x.shape) < u, process.mask)", "return three values")],
    6: [('return "test_the_closed_forms_are_the_one_bound"', "give tests/FOLDER/FILE.py"),
        ('return "tests/theory/test_theory.py::test_noise_is_nowhere"', "is not a test"),
        ('return "tests/exercises/test_exercises.py::test_exercise_03_the_prediction_is_what_is_'
         'measured"', "reads the source"),
        ('return "tests/mutants/test_mutants.py::test_every_mutant_finds_its_line_exactly_once"',
         "reads the source"),
        (BLIND, "it tests something else")],
    7: [("joint = step = alpha_s * x_theta + b_s", "forget the first factor"),
        ("alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]\n"
         "b_t = process.b(t[..., None], symbols)\n"
         "step = alpha_ts * F.one_hot(z, process.V) + b_t - alpha_ts * b_s\n"
         "joint = step * (alpha_s * x_theta + b_s)", "not b(v) at each symbol v"),
        ("alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]\n"
         "into = process.b(t, z)[..., None]\n"
         "joint = (alpha_ts * F.one_hot(z, process.V) + into) * (alpha_s * x_theta + b_s)",
         "not b_t"),
        ("alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]\n"
         "into = process.b(t, z)[..., None] - alpha_ts * process.b(s, z)[..., None]\n"
         "step = alpha_ts * F.one_hot(z, process.V) + into\n"
         "joint = step + alpha_s * x_theta + b_s", "are added"),
        ("alpha_ts = (process.alpha(t) / process.alpha(s))[..., None]\n"
         "into = process.b(t, z)[..., None] - alpha_ts * process.b(s, z)[..., None]\n"
         "joint = (alpha_ts * F.one_hot(z, process.V) + into) * alpha_s * x_theta",
         "noise is missing in the second factor"),
        ("joint = x_theta", "the prediction itself")],
    8: [("joint = x_theta[..., :process.n_tokens] + likelihood(process, z, t)\n"
         "return joint / joint.sum(-1, keepdim=True)", "are added"),
        ("return x_theta[..., :process.n_tokens] * likelihood(process, z, t)", "not sum to 1"),
        ("return x_theta[..., :process.n_tokens]", "leave-one-out"),
        ("joint = x_theta * likelihood(process, z, t)\nreturn joint / joint.sum(-1, keepdim=True)",
         "one more symbol than the text"),
        ("e = likelihood(process, z, t)\nreturn e / e.sum(-1, keepdim=True)", "evidence alone"),
        ("joint = x_theta[..., :process.n_tokens] / likelihood(process, z, t)\n"
         "return joint / joint.sum(-1, keepdim=True)", "you divide by the evidence")],
    9: [("pass", "the second coin is missing"), ("moves[at] = False", "no token that the network"),
        ("own = torch.where(z[at] < process.n_tokens, own, 0.0)\n"
         "moves[at] = coin()[at] * (own + b_z[at]) < b_z[at]", "without alpha_t"),
        ("own = own * alpha_t.expand_as(z)[at]\n"
         "moves[at] = coin()[at] * (own + b_z[at]) < b_z[at]", "under masks own is 0"),
        ("own = torch.where(z[at] < process.n_tokens, own, 0.0) * alpha_t.expand_as(z)[at]\n"
         "moves[at] = coin()[at] * (own + b_z[at]) < own", "turned over"),
        ("moves = coin() * (own + b_z) < b_z", "your code raises RuntimeError")],
    10: [("return steps", "a call at every step"), ("return length", "a call for each token"),
         ("return steps * (1 - 1 / steps) ** length", "without a call"),
         ("return length * (1 - (1 - 1 / length) ** steps)", "exchanged")],
}
