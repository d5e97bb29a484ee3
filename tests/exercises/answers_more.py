"""Answers to exercises 11 to 23: see answers.py."""

from answers import BLIND

K = "K = kappa * (torch.log1p(kappa) - at_x) + torch.log1p(kappa) - log_p.sum(-1)\n"
D = "d = torch.where(z == x, torch.log1p(kappa), 0.0) - at_z\n"
LADDER = """\
if self.schedule == "linear": return {}
if self.schedule == "polynomial": return {}
return {}"""
NEVER = "never = log_c.isinf() | log_u.isinf()\n"
BACK = "back = query % L // block - key % L // block\n"
OWN = "own = (back == 0) & ((query < L) == (key < L))\n"
FAR = "near = back * block <= (L if reach is None else reach)\n"
U = "u = torch.rand(x.shape, dtype=torch.float64)\n"
PATH = "right = lambda t: u < process.alpha(t.double()) + process.b(t.double(), x)\n"
APART = "wrong = (x + torch.randint_like(x, 1, process.V)) % process.V\n"
PAIR = "return torch.where(right(s), x, wrong), torch.where(right(t), x, wrong)"
BWD, FWD = "student.exp() * (student - teacher)", "teacher.exp() * (teacher - student)"
KL = """\
if name == "kl-bwd":
    return {}
if name == "kl-fwd":
    return {}"""

RIGHT = {
    11: [f"""\
one = torch.log1p(kappa)
{K}IS = torch.expm1(one * (z == x) - at_z) - (one * (z == x) - at_z)
return u * K + IS * text""", f"""\
K = (1 + kappa) * torch.log1p(kappa) - kappa * at_x - log_p.sum(-1)
{D}return torch.addcmul(torch.where(text, torch.expm1(d) - d, 0.0), u, K)""", f"""\
others = (torch.log1p(kappa) - log_p.sum(-1))
K = others + kappa * (torch.log1p(kappa) - at_x)
{D}return u * K + (torch.expm1(d) - d).masked_fill(~text, 0)"""],
    12: ['return "tests/theory/test_theory.py::test_the_closed_forms_are_the_one_bound[uniform]"'],
    13: [(LADDER.format("t", "t.pow(self.power)", "(t * math.pi / 2).sin()"),
          LADDER.format("0 * t + 1", "self.power * t.pow(self.power - 1)",
                        "math.pi / 2 * (t * math.pi / 2).cos()")),
         (LADDER.format("t.clone()", "(t.log() * self.power).exp()",
                        "torch.cos(math.pi / 2 * (1 - t))"),
          LADDER.format("t.new_ones(t.shape)", "self.power * self.masks(t) / t",
                        "math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))")),
         (None, """\
with torch.enable_grad():
    t = t.detach().requires_grad_()
    return torch.autograd.grad(self.masks(t).sum(), t)[0]""")],
    14: ["""\
score = torch.full_like(z, -1, dtype=confidence.dtype)
score[masked] = confidence
full = z.clone()
full[masked] = drawn
rank = score.argsort(-1, descending=True).argsort(-1)
z = torch.where(rank < k, full, z)""", """\
score = torch.zeros(z.shape, dtype=confidence.dtype).masked_scatter(masked, confidence)
new, z = z.masked_scatter(masked, drawn), z.clone()
for i, n in enumerate(k[:, 0].tolist()):
    best = score[i].topk(int(n)).indices
    z[i, best] = new[i, best]""", """\
score = confidence.new_full(z.shape, -math.inf).masked_scatter(masked, confidence)
z = torch.where(highest(score, k), z.masked_scatter(masked, drawn), z)""".replace(
        "math.inf", "float('inf')")],
    15: ["return (2 * steps - 1) / (2 * steps)", "return 0.5 + 0.5 * (steps - 1) / steps",
         "from fractions import Fraction\nreturn 1 - Fraction(1, 2 * steps)"],
    16: [NEVER + "mixed = torch.where(never, -math.inf, log_u + gamma * (log_c - log_u))",
         "c, u = (a.log_softmax(-1) for a in (log_c, log_u))\n"
         + "mixed = (gamma * c + (1 - gamma) * u).nan_to_num(nan=-math.inf, posinf=-math.inf)",
         "mixed = torch.lerp(log_u, log_c, float(gamma))\n"
         + "mixed[(log_u == -math.inf) | (log_c == -math.inf)] = -math.inf"],
    17: [BACK + OWN + FAR + "return own | (back > 0) & near & (key >= L)",
         "q, k = query % L // block, key % L // block\n"
         + "far = q - k <= (L if reach is None else reach) // block\n"
         + "return torch.where(key < L, (q == k) & (query < L), "
         + "(q > k) & far | (q == k) & (query >= L))",
         "q, k = (i % L // block for i in (query, key))\n"
         + "noisy = (q == k) & (query < L) & (key < L)\n"
         + "clean = (q == k) & (query >= L) & (key >= L)\n"
         + "far = True if reach is None else (q - k) * block <= reach\n"
         + "return noisy | clean | (k < q) & (key >= L) & far"],
    18: ["n = group * t + ~group * (1 - t)\nreturn 6 - 6 * n if weighting == 'simple' else n ** -1",
         "one, zero = (6 * (1 - t), 6 * t) if weighting == 'simple' else (1 / t, 1 / (1 - t))\n"
         + "return torch.where(group, one, zero)",
         "n = (1 - t).expand(group.shape).clone()\nn[group] = t.expand(group.shape)[group]\n"
         + "return {'simple': 6 * (1 - n), 'bound': 1 / n}[weighting]"],
    19: [U + "wrong = torch.randint_like(x, process.V - 1)\nwrong = wrong + (wrong >= x)\n"
         + PATH + PAIR,
         U + "word = process.draw_noise(t, x)\n"
         + "right = lambda t: u < process.alpha(t.double())\n"
         + "return torch.where(right(s), x, word), torch.where(right(t), x, word)",
         U + APART + PATH + "z_s, z_t = wrong.clone(), wrong.clone()\n"
         + "z_s[right(s)], z_t[right(t)] = x[right(s)], x[right(t)]\nreturn z_s, z_t"],
    20: [KL.format("F.kl_div(teacher, student, log_target=True, reduction='none').sum(-1)",
                   "F.kl_div(student, teacher, log_target=True, reduction='none').sum(-1)").replace(
        "F.", "torch.nn.functional."),
         KL.format("torch.einsum('nv,nv->n', student.exp(), student - teacher)",
                   f"({FWD}).sum(1)"),
         "p, q = (student, teacher) if name == 'kl-bwd' else (teacher, student)\n"
         + "if name.startswith('kl'): return (p.exp() * p - p.exp() * q).sum(dim=-1)"],
    21: ['return record["nats_per_token"] * record["tokens"] / record["bytes"] / math.log(2)',
         "bits = record['nats_per_token'] / math.log(2) * record['tokens']\n"
         "return bits / record['bytes']",
         "size = record['bytes'] / record['tokens']\n"
         "return math.log2(math.exp(record['nats_per_token'])) / size"],
    22: ["return math.fsum(ar_nats)", "return sum(ar_nats) + 0 * sum(masked_nats)",
         "import torch\nreturn torch.tensor(ar_nats).sum()"],
    23: ["return 1 / math.sqrt(sum(1 / math.comb(length - 1, k) for k in range(length)))",
         "import torch\nn = torch.tensor([math.comb(length - 1, k) for k in range(length)])\n"
         "return (1 / n).sum() ** -0.5",
         "return sum(math.factorial(k) * math.factorial(length - 1 - k) for k in range(length)) "
         "** -0.5 * math.factorial(length - 1) ** 0.5"],
}

WRONG = {
    11: [(K + D + "return u * K", "IS is missing"), (K + D + "return K + torch.where(text, "
         "torch.expm1(d) - d, 0.0)", "not multiplied by u"),
         (K + D + "return u * K + torch.expm1(d) - d", "IS counts at masks"),
         (K + D + "return u * K + torch.where(text, torch.expm1(d), 0.0)", "the - d is missing"),
         (K + "d = -at_z\nreturn u * K + torch.where(text, torch.expm1(d) - d, 0.0)", "d forgets"),
         (D + "K = kappa * (torch.log1p(kappa) - at_x)\n"
          "return u * K + torch.where(text, torch.expm1(d) - d, 0.0)", "K lacks"),
         (K + D + "return u * K + torch.where(text, d.exp() - 1 - d, 0.0)", "Use log1p")],
    12: [(BLIND, "it tests something else"), ("return 12", "is not a test"),
         ('return "tests/exercises/test_exercises.py::test_exercise_03_the_prediction_is_what_is_'
          'measured"', "reads the source")],
    13: [((LADDER.format("1 - t", "1 - t ** self.power", "torch.cos(math.pi / 2 * t)"), None),
          "runs backwards"),
         ((LADDER.format("t", "t ** self.power", "1 - torch.cos(math.pi / 2 * t)"), None),
          "slow where"),
         ((LADDER.format("t", "t ** 2", "torch.sin(math.pi / 2 * t)"), None), "take self.power"),
         ((LADDER.format("t", "t ** self.power", "torch.sin(t)"), None), "from none to all"),
         ((None, LADDER.format("0 * t + 1", "self.power * t ** (self.power - 1)",
                               "torch.cos(math.pi / 2 * t)")), "inner derivative"),
         ((None, LADDER.format("0 * t - 1", "t", "t")), "masks grow"),
         ((None, LADDER.format("0 * t + 1", "t ** (self.power - 1)", "t")), "factor self.power")],
    14: [("score = confidence.new_full(z.shape, 9.0).masked_scatter(masked, -confidence)\n"
          "z = torch.where(highest(score.masked_fill(~masked, -9), k), "
          "z.masked_scatter(masked, drawn), z)", "You keep the least confident"),
         ("score = confidence.new_full(z.shape, 1.0).masked_scatter(masked, confidence)\n"
          "z = torch.where(highest(score, k), z.masked_scatter(masked, drawn), z)",
          "it has no score"),
         ("z = z.masked_scatter(masked, drawn)", "You keep all draws"), ("pass", "No draw is kept"),
         ("score = confidence.new_full(z.shape, -1.0).masked_scatter(masked, confidence)\n"
          "z = z.masked_scatter(highest(score, k), drawn)", "belongs to its own position"),
         ("score = confidence.new_full(z.shape, -1.0).masked_scatter(masked, confidence)\n"
          "best = score.flatten().topk(int(k.sum())).indices\n"
          "hit = torch.zeros(z.numel(), dtype=torch.bool).index_fill(0, best, True).view(z.shape)\n"
          "z = torch.where(hit, z.masked_scatter(masked, drawn), z)", "one ranking for all"),
         ("z = torch.where(confidence > 0.5, drawn, z)", "one for each mask, in reading order")],
    15: [("return 1 - 1 / steps", "match by chance"), ("return 1", "infinitely many steps"),
         ("return 1 / (2 * steps)", "not in the language"), ("pass", "is not a number")],
    16: [(NEVER + "mixed = ((1 + gamma) * log_c - gamma * log_u).masked_fill(never, -math.inf)",
          "other convention"),
         (NEVER + "mixed = (gamma * log_u + (1 - gamma) * log_c).masked_fill(never, -math.inf)",
          "are exchanged"),
         ("mixed = gamma * log_c + (1 - gamma) * log_u", "exclude what either"),
         ("mixed = (gamma * log_c.exp() + (1 - gamma) * log_u.exp()).log()", "mix probabilities"),
         ("mixed = gamma * log_c + gamma * log_u", "do not sum to 1"),
         ("mixed = gamma * log_c", "left out")],
    17: [(BACK + FAR + "return (back == 0) & (key >= L) | (back == 0) & (query < L) & (key < L)"
          " | (back > 0) & near & (key >= L)", "the answer is given away"),
         (BACK + OWN + FAR + "return own | (back > 0) & near & (key < L)",
          "noisy tokens of earlier"),
         (BACK + FAR + "return (back > 0) & near & (key >= L)", "does not see itself"),
         (BACK + OWN + "return own | (back > 0) & (key >= L)", "`reach` has no effect"),
         (BACK + OWN + FAR + "return own | (back < 0) & (key >= L)", "later blocks"),
         (BACK + OWN + "return own or back > 0 and key >= L", "combine conditions by & and |")],
    18: [("n = torch.where(group, 1 - t, t)\n"
          "return 6 * (1 - n) if weighting == 'simple' else 1 / n",
          "the groups are exchanged"),
         ("return (6 * (1 - t) if weighting == 'simple' else 1 / t).expand(group.shape)",
          "both have the weight of group 1"),
         ("n = torch.where(group, t, 1 - t)\nreturn 6 * n if weighting == 'simple' else 1 / n",
          "you wrote 6 n"),
         ("n = torch.where(group, t, 1 - t)\nreturn 1 - n if weighting == 'simple' else 1 / n",
          "the factor 6"),
         ("return 1 / torch.where(group, t, 1 - t)", "has the weights of the bound"),
         ("return torch.where(group, t, 1 - t)", "a weight is 1 over it")],
    19: [(APART + "right = lambda t: torch.rand(x.shape).double() < process.alpha(t.double()) + "
          "process.b(t.double(), x)\n" + PAIR, "u is drawn again"),
         (U + PATH + "wrong = lambda: (x + torch.randint_like(x, 1, process.V)) % process.V\n"
          "return torch.where(right(s), x, wrong()), torch.where(right(t), x, wrong())",
          "draw once"),
         (U + APART + PATH
          + "return torch.where(right(t), x, wrong), torch.where(right(s), x, wrong)",
          "s and t are exchanged"),
         (U + APART + "right = lambda t: u < process.alpha(t.double())\n" + PAIR, "alpha alone"),
         (U + "wrong = torch.randint_like(x, process.V)\n" + PATH + PAIR, "counts already"),
         (U + APART + PATH + "return torch.where(right(s), x, wrong)", "return two values")],
    20: [(KL.format(f"({FWD}).sum(-1)", f"({BWD}).sum(-1)"), "directions are exchanged"),
         (KL.format(f"({BWD}).mean(-1)", f"({FWD}).mean(-1)"), "a mean over symbols"),
         (KL.format(f"-({BWD}).sum(-1)", f"-({FWD}).sum(-1)"), "the sign is wrong"),
         (KL.format("(student - teacher).sum(-1)", "(teacher - student).sum(-1)"),
          "not weighted by a probability")],
    21: [('return record["bits_per_byte"]', "you trust its bytes_per_token"),
         ('return record["nats_per_token"] / record["bytes"] * record["tokens"]', "nats per byte"),
         ('return record["nats_per_token"] / math.log(2) * record["tokens"] / record["characters"]',
          "characters are not bytes"),
         ('return record["nats_per_token"] / math.log(2)', "bits per token"),
         ("pass", "is not a number")],
    22: [("return sum(masked_nats)", "the bound of the masked model"),
         ("return sum(ar_nats) / 2", "did not make up for"),
         ("return sum(ar_nats) / len(ar_nats)", "nats per token"),
         ("return sum(ar_nats) + sum(masked_nats)", "both counted"),
         ("pass", "is not a number")],
    23: [("return 1.0", "the mean field were the sampler"),
         ("return sum(1 / math.comb(length - 1, k) for k in range(length)) ** -1", "no root"),
         ("return length ** -0.5", "one state for each number of open words"),
         ("return 2 ** (-(length - 1) / 2)", "all sets of open words were as likely"),
         ("pass", "is not a number")],
}
