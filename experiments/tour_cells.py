"""
The code of docs/tour.ipynb, which experiments/tour.py makes: a cell begins at a line of `# %%`.

    python -m experiments.tour_cells      the figures that the cells print, without the pictures
"""
# %% setup
import torch

from data.toy import toy_language
from diffusion import Absorbing, Uniform, bound, corrupt, likelihood
from evaluation.parallel_cost import follow, from_nothing, reverse_kl
from experiments.svg import lines, tables, words
from methods import make_method
from samplers import make_sampler

toy = toy_language()
entropy, _ = toy.entropy(16)
x = toy.sample(300, 16, torch.Generator().manual_seed(1))  # (n, L)
show = lambda ids: [(toy.words + ["?"])[i] for i in ids]
print(*show(x[0].tolist()))
print(f"entropy of a text of 16 words: {entropy:.4f} nats per word")

# %% noise
torch.manual_seed(0)
rows, marked, labels = [], [], []
for name, process in [("masks", Absorbing(toy.V)), ("wrong words", Uniform(toy.V))]:
    for t in (0.0, 0.3, 0.6, 0.9):
        z = corrupt(process, x[:1], torch.full((1, 1), t))  # (1, L)
        rows.append(show(z[0, :12].tolist()))
        marked.append((z != x[:1])[0, :12].tolist())
        labels.append(f"{name}, t = {t}")
words(rows, marked, labels)

# %% bound
mdlm = make_method("mdlm", toy.V)
exact = mdlm.oracle(toy)
flatten = lambda log_p: (0.7 * log_p).log_softmax(-1)
flatter = lambda z, t, at=None: flatten(exact(z, t, at))  # a wrong denoiser
torch.manual_seed(0)
for name, denoiser in [("exact", exact), ("flatter", flatter)]:
    nats = mdlm.nelbo(denoiser, x).mean(-1)  # (n,) one draw for each text
    error = nats.std() / len(nats) ** 0.5
    print(f"{name}: bound {nats.mean():.3f} +- {error:.3f}, entropy {entropy:.3f}")
share, curves = range(1, 17), {"exact": [], "flatter": []}
for k in share:  # k masks anywhere: nats at each of them
    z = torch.where(torch.rand(x.shape).argsort(-1).argsort(-1) < k, toy.V, x)  # (n, L)
    at = z == toy.V  # (n, L)
    log_p = exact(z, None, at)  # (N, V)
    for name, log_p in [("exact", log_p), ("flatter", flatten(log_p))]:
        curves[name].append(-log_p.gather(-1, x[at][:, None]).mean().item())
lines(list(share), {**curves, "entropy": entropy},
             "nats at a mask: the mean of a curve is its bound", "masks of 16")

# %% leave_one_out
process, times = Uniform(toy.V), [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
torch.manual_seed(0)
curves = {"leave-one-out": [], "p(x | z)": []}
for t in times:
    t = torch.full((len(x), 1), t, dtype=torch.double)  # (n, 1)
    z = corrupt(process, x, t)  # (n, L)
    e = likelihood(process, z, t)  # (n, L, V)
    p = toy.posterior(e)  # (n, L, V) leave-one-out: times the own evidence it is p(x | z)
    full = p * e / (p * e).sum(-1, keepdim=True)  # (n, L, V)
    for name, x_theta in [("leave-one-out", p), ("p(x | z)", full)]:
        curves[name].append(bound(process, x_theta, x, z, t).mean().item())
lines(times, curves, "(0.2) at time t, nats per word", "t")

# %% orders
mdlm = make_method("mdlm", toy.V)
exact, calls = mdlm.oracle(toy), [2, 4, 6, 8, 12, 16]
torch.manual_seed(0)
curves = {}
for name in ("spread", "first-hitting", "entropy"):
    sampler = make_sampler(name, mdlm)
    for n in calls:
        walk = follow(mdlm, exact, *from_nothing(mdlm, 60, 16), n, sampler)
        kl, error = reverse_kl(walk, toy.log_prob(walk.x))
        curves.setdefault(name, []).append(kl)
    print(f"{name}: 16 words in 8 steps cost {curves[name][3]:.3f} nats per word")
lines(calls, curves, "KL(q || p), nats per word", "steps for 16 words")

# %% distillation
text = "the old ? ? alone .".split()
ids = [toy.words.index(word) if word != "?" else None for word in text]
e = torch.ones(1, len(ids), toy.V, dtype=torch.double)  # (1, L, V) a mask is flat
for l, i in enumerate(ids):
    if i is not None:
        e[0, l] = torch.eye(toy.V)[i]
first = toy.posterior(e)[0, 2]  # (V,) p(a)
given = e.repeat(toy.V, 1, 1)  # (V, L, V)
given[:, 2] = torch.eye(toy.V)
pair = first[:, None] * toy.posterior(given)[:, 3]  # (V, V) p(a) p(b | a)
second = pair.sum(0)  # (V,)
product = first[:, None] * second  # (V, V) what one step draws
a, b = first, second  # (V,) each
for _ in range(50):  # the product that minimizes KL(product || pair)
    a = (pair.log() @ b).softmax(-1)  # (V,)
    b = (a @ pair.log()).softmax(-1)  # (V,)
mode = a[:, None] * b  # (V, V)
kl = lambda p, q: torch.special.xlogy(p, p / q).sum().item()
print(f"one step of the exact denoiser: KL(p || q) {kl(pair, product):.3f} nats, the least of "
      f"all products; KL(q || p) {kl(product, pair):.3f}")
print(f"a product that chooses a mode:  KL(p || q) {kl(pair, mode):.3f} nats;"
      f" KL(q || p) {kl(mode, pair):.3f}, the least here")
down, across = first.topk(7).indices, second.topk(7).indices  # (7,) each
named = {"p(a, b)": pair, "marginals": product, "one mode": mode}
tables({name: p[down][:, across].tolist() for name, p in named.items()},
              [toy.words[i] for i in down], [toy.words[i] for i in across])
