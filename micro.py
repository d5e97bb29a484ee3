"""
Masked diffusion, whole, in one file. Read it first: noise, loss, bound, sampler, and two minutes.

    python micro.py            learns the small English of RULES, letter by letter
    python micro.py my.txt     learns your text; both need torch alone

Noise hides letters of a text x behind a mask, a network learns what is hidden, and sampling opens
masks until none is left. L letters out of V; time t runs from 0 (clean) to 1 (masks alone):

    noise   z_l = x_l with probability 1 - t, else the mask                                    (0.1)
    bound   -log p(x) <= E_k E_z sum_l [z_l = mask] (L/k) (-log x_theta_l(x_l | z)),           (3.1)
            k of the L letters are masks, k ~ Uniform{1..L}

x_theta is the network's output, probabilities of the letters at each place. Opening masks one after
the other is a chain rule, p(x) = prod_l x_theta_l(x_l | what is open); (3.1) is its mean over all
orders. methods/mdlm.py has the same figures for the same draws, and all options. B texts at a time.
"""
import random
import sys

import torch
import torch.nn.functional as F
from torch import nn

STEPS, B, L, D, HEADS, LAYERS, RATE = 1600, 24, 48, 96, 3, 2, 4e-3
RULES = {  # each capital is replaced by one of its options, until none is left
    "S": ["N V N. ", "N sleeps. ", "N sleeps near N. ", "N that V N sleeps. "],
    "N": ["the C", "the A C", "my C", "my A C"], "V": ["sees", "finds", "pulls", "washes"],
    "A": ["old", "small", "wet", "brown"], "C": ["dog", "cat", "gull", "horse", "boat", "cake"]}


def write_out(text):
    """A random text by the RULES: "S" is a sentence."""
    return "".join(write_out(random.choice(RULES[c])) if c in RULES else c for c in text)


def even_times(n):
    """A time in each n-th of (0, 1): the mean of free draws, with less noise. -> (n, 1)"""
    return ((torch.arange(n) + torch.rand(n)) / n).clamp(1e-6, 1 - 1e-6)[:, None]  # (n, 1)


def nats_at_masks(network, x, z, mask):
    """-log x_theta(x) where z has a mask; 0 where the letter is open, and so known. -> (B, L)"""
    nats = F.cross_entropy(network(z).transpose(1, 2), x, reduction="none")  # (B, L)
    return torch.where(z == mask, nats, 0.0)  # (B, L)


def training_loss(network, x, mask):
    """What training minimizes. (3.1) would do, but its weights L/k make noisy gradients. The right
    x_theta is the best at every t, so times may be weighed anew: of density 2 (1 - t), few masks,
    each of weight 3. That is no bound, and trains faster. -> (B, L)"""
    t = 1 - (1 - even_times(len(x))).sqrt()  # (B, 1)
    keep = torch.rand(x.shape) < 1 - t  # (B, L) a coin for each letter: (0.1)
    return 3 * nats_at_masks(network, x, torch.where(keep, x, mask), mask)  # (B, L)


def bound_on_nats(network, x, mask):
    """One draw of (3.1), whose mean is at least -log p(x). -> (B, L) nats"""
    k = (even_times(len(x)) * x.shape[1]).ceil()  # (B, 1) of 1 .. L
    rank = torch.rand(x.shape).argsort(-1).argsort(-1)  # (B, L) the places in a random order
    z = torch.where(rank < k, mask, x)  # (B, L) k masks, anywhere
    return x.shape[1] / k * nats_at_masks(network, x, z, mask)  # (B, L)


@torch.no_grad()
def open_masks(network, n, length, steps, mask):
    """Yields n texts (n, length) after each step. Letters that open at once do not know of each
    other, so they lie far apart: `spread`. steps = length draws from the model exactly."""
    z = torch.full((n, length), mask)  # (n, length)
    for step in range(steps):
        at = torch.arange(length) % steps == step  # (length,) each behind an open letter
        p = network(z)[:, at].double().softmax(-1)  # (n, m, V) float64: rare letters can win
        z[:, at] = p.flatten(0, 1).multinomial(1).view(n, -1)  # (n, m)
        yield z


class Network(nn.Module):
    """ids z (B, L) -> logits (B, L, V). All letters see all, and how many are masks, so no t."""
    def __init__(self, V):
        super().__init__()
        self.letters, self.places = (nn.Parameter(0.05 * torch.randn(n, D)) for n in (V + 1, L))
        layer = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        layers = [nn.TransformerEncoderLayer(D, HEADS, 4 * D, **layer) for _ in range(LAYERS)]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(D), nn.Linear(D, V))

    def forward(self, z):
        return self.layers(self.letters[z] + self.places)  # (B, L, V) the mask is id V


def learn(network, x, mask):
    """Follow the gradient of random windows of the text x (n,); the rate rises, then falls to 0."""
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), fused=True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(step / 100, 1) * (1 - step / STEPS)
        batch = x.unfold(0, L, 1)[torch.randint(len(x) - L + 1, (B,))]  # (B, L)
        loss = training_loss(network, batch, mask).mean()  # ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step} of {STEPS}  loss {loss.item():.3f}", flush=True)


def main():
    random.seed(0), torch.manual_seed(0)
    text = open(sys.argv[1], encoding="utf-8").read() if sys.argv[1:] else write_out("S" * 20_000)
    letters = sorted(set(text))
    x, mask = torch.tensor([letters.index(c) for c in text]), len(letters)  # (n,) ids 0 .. V - 1
    network, cut = Network(mask), len(x) * 9 // 10
    learn(network, x[:cut], mask)
    with torch.no_grad():  # held-out windows side by side, so that their errors are independent
        nats = bound_on_nats(network, x[cut:].unfold(0, L, L)[:1000], mask).mean(-1)  # (n,)
    print(f"held-out text: at most {nats.mean():.3f} +- {nats.std() / len(nats) ** 0.5:.3f} nats a "
          f"letter; knowing nothing: {torch.tensor(mask).log():.3f}")
    *_, z = open_masks(network, 4, L, L // 2, mask)  # (4, L) two letters at a time
    print(*("".join(letters[i] for i in text) for text in z.tolist()), sep="\n")


if __name__ == "__main__":
    main()
