"""
Chapter 18. MARIA (arXiv:2502.06901): an AR model and a masked one fill gaps together.

An AR model writes well and fast, but reads nothing on the right of a gap. A masked model reads
both sides, but draws several tokens at once without regard to each other, or needs a call for each.
Take both as they are. z is the text with masks in its gaps, which are filled from left to right:

    logits_l = W [h_AR(x_<l) ; h_MLM(z)_l] + b,                                              (18.12)
               at first W = [W_AR/2 ; W_MLM/2], b = (b_AR + b_MLM)/2, so that p ~ sqrt(p_AR p_MLM)
    loss     = (1/k) sum_{z_l = m} -log p(x_l | x_<l, z),   k ~ U{1..n} masks anywhere       (18.13)

h are the last hidden states, W_AR and W_MLM the heads of the two experts. W and b alone are
trained; an expert for which no run is named starts from nothing and learns along. The masked expert
reads z once, and the AR expert each token once, by its cache.

The sum in (18.13) is exactly -log p(x_M | all that is not in M) for the masked tokens M: the chain
rule. If all is masked it is -log p(x). (Without its 1/k a loss of that size for any k.) What the
masked expert sees never changes, so it does not know the words in the gaps: the AR expert does. A
masked model that is called again after each token knows all of it, and so it is the better one
where calls are free.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusion import (
    Absorbing,
    ancestral,
    categorical,
    likelihood,
    probabilities,
    stratified,
    supports,
)
from flags import UserError, flag, flags_of
from methods.base import (
    Method,
    copy_capabilities,
    cross_entropy,
    loss_at,
    offset_positions,
    skip_texts,
)
from methods.left_to_right import read_with_cache
from methods.mdlm import any_order
from model import (
    TIME_INPUTS,
    Cache,
    NetworkFlags,
    Transformer,
    block_causal,
    causal,
    select_rows,
)

SIZES = "n_layer", "n_head", "n_embd", "cond_dim", "n_classes", "qk_norm", "norm_bias", "time_input"


def sizes_of(model):
    """What describes the network of an expert: SIZES, and the length of its texts. -> (9,)"""
    network, config = model.denoiser, model.config
    if vars(config).get("learned_places"):
        raise UserError("the experts of maria have rotary positions only: train them with "
                        "--no_learned_places")
    cond_dim = 0 if network.adaln is None else network.adaln.in_features
    numbers = {**vars(config), "cond_dim": cond_dim, "n_classes": len(model.classes),
               "time_input": [*TIME_INPUTS].index(config.time_input)}
    return torch.tensor([int(numbers[name]) for name in (*SIZES, "block_size")])  # (9,)


def expert_of(sizes, vocab_size, mask_mod):
    """The network that sizes (9,) describe, with fresh weights."""
    options = dict(zip(SIZES, sizes.tolist()))
    options["time_input"] = [*TIME_INPUTS][options["time_input"]]
    return Transformer(vocab_size, **options, mask_mod=mask_mod).eval()


def keep_states(h, weight, bias):
    """In place of a head: the last hidden states."""
    return h


class InfillCache(Cache):
    """The cache of the AR expert, and what the masked one makes of text (B, L), which it reads
    once."""

    def __init__(self, text):
        super().__init__(text.shape[1])
        self.text, self.states = text, None  # (B, L), (B, L, D)


class TwoExperts(nn.Module):
    """Two networks under one head, (18.12).

    network(z, t, at): z (B, 2 L) is a text with masks, and behind it that text as ar reads it;
    at (B, 2 L) selects places of the first half. With an InfillCache, z (B, n) are new tokens as ar
    reads them.
    """
    supports_cache = supports_fused_head = True
    fixed_shapes = False  # see diffusion.Wrapper

    def __init__(self, ar, masked):
        super().__init__()
        self.ar, self.masked = ar, masked
        heads, self.vocab_size = (ar.head, masked.head), ar.vocab_size
        self.head = nn.Linear(sum(head.in_features for head in heads), ar.vocab_size)
        with torch.no_grad():  # the product of the experts
            self.head.weight.copy_(torch.cat([head.weight for head in heads], 1) / 2)  # (V, D)
            self.head.bias.copy_(sum(head.bias for head in heads) / 2)  # (V,)

    @property
    def embed(self):
        """The wider embedding, by which memory is estimated. -> (V, D)"""
        return max(self.ar.embed, self.masked.embed, key=lambda a: a.shape[1])

    def states(self, z, at, cache, mask_mod, label):
        """[h_AR ; h_MLM] at the places `at`. -> (N, D) or (B, L, D)"""
        how = dict(head=keep_states, label=label)
        if cache:
            if cache.states is None:
                text = cache.text.repeat(len(z) // len(cache.text), 1)  # (B, L) twice if guided
                cache.states = self.masked(text, **how)  # (B, L, D)
            lo = cache.start
            right = select_rows(cache.states[:, lo:lo + z.shape[1]], at)  # (N, D)
            left = self.ar(z, at=at, cache=cache, mask_mod=mask_mod, **how)  # (N, D)
        else:
            L = z.shape[1] // 2
            at = at if at is None else offset_positions(at, 2 * L, L)  # (B, L) or (N,)
            right, left = (part(half, at=at, **how) for part, half in zip(
                (self.masked, self.ar), z.split(L, 1)))  # (N, D) each
        return torch.cat([left, right], -1)  # (N, D) or (B, L, D)

    def forward(self, z, noise=None, at=None, label=None, cache=None, mask_mod=None, head=None):
        h = self.states(z, at, cache, mask_mod, label)  # (N, D) or (B, L, D)
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)


@dataclass(eq=False)
class MARIA(Method):
    """--method maria: a head on two experts, which are runs on the same text. `nelbo` is exact."""
    ar: str = flag("", "folder of the run of ar that writes; empty: it learns along", fixed=True)
    masked: str = flag("", "folder of the run with masks that reads both sides; empty: it learns "
                       "along", fixed=True)
    predicts = "each token from the text before it and what is given after it"
    exact, shardable, one_by_one, samplers = True, False, True, ("ancestral",)

    def __post_init__(self):
        self.noise, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1
        self.mask = self.start = self.n_tokens
        self.given = {}  # {"ar" or "masked": (its sizes (9,), its weights in a new run)}

    # ---- the experts

    def on_start(self, read_model):
        fits = {"ar": lambda method: method.exact and method.block_length == 1,
                "masked": lambda method: method.opens_masks and method.bidirectional
                and not method.uses_time}
        for name, fit in fits.items():
            if where := vars(self)[name]:
                model = read_model(f"--{name}", where)
                if not fit(model.method) or model.method.network is not Transformer:
                    those = {"ar": "ar, with one head", "masked": "mdlm, md4 or radd"}[name]
                    raise UserError(f"--{name} {where} is a run of {model.method.name}: give one "
                                    f"of {those}")
                self.given[name] = sizes_of(model), model.denoiser.state_dict()

    def extra_state(self):
        return {f"expert_{name}": sizes for name, (sizes, _) in self.given.items()}

    def load_extra_state(self, state):
        self.given = {name: (state[f"expert_{name}"].cpu(), None) for name in ("ar", "masked")
                      if f"expert_{name}" in state}

    def network(self, vocab_size, *sizes, mask_mod=None, **options):
        """Experts that were given are frozen; the others have the sizes of the flags."""
        experts = []
        for name, pattern in (("ar", causal), ("masked", None)):
            if name in self.given:
                numbers, weights = self.given[name]
                expert = expert_of(numbers, vocab_size, pattern).requires_grad_(False)
                if weights:
                    expert.load_state_dict(weights)
            else:
                expert = Transformer(vocab_size, *sizes, mask_mod=pattern, **options)
                expert.head.requires_grad_(False)  # nobody calls it
            experts.append(expert)
        return TwoExperts(*experts)

    def check(self, config):
        if not self.given:
            return
        if config.init_from not in ("scratch", "resume"):
            raise UserError(f"--init_from {config.init_from}: maria starts from --ar and --masked, "
                            "leave it out")
        if config.labels:
            raise UserError("--labels: the experts of maria are called without classes, leave it "
                            "out")
        known = flags_of(config)
        for name in flags_of(NetworkFlags) if len(self.given) == 2 else ():
            if getattr(config, name) != known[name].default:
                raise UserError(f"--{name} counts for nothing with maria, whose experts have their "
                                "own: leave it out")
        longest = min(int(sizes[-1]) for sizes, _ in self.given.values())
        if config.block_size > longest:
            raise UserError(f"--block_size {config.block_size}: the experts know texts of {longest}"
                            " tokens, give at most that")

    # ---- losses

    def shift(self, x):
        """[start, x_0, .., x_(L-2)], as ar reads x. -> (B, L)"""
        return F.pad(x, (1, 0), value=self.start)[:, :-1]  # (B, L)

    def beside(self, denoiser, x):
        """The denoiser of z (B, L) for which x (B, L) is known on the left."""
        shifted = self.shift(x)  # (B, L)

        def call(z, t, at, **layout):
            L = z.shape[1]
            at = offset_positions(at, L, 2 * L)  # (B, 2 L) or (N,)
            return denoiser(torch.cat([z, shifted], 1), t, at=at, **layout)  # (N, V)
        return copy_capabilities(denoiser, call)

    def nats(self, denoiser, x, z, weight=None, frozen=None, share=1.0):
        """-log p(x_l | x_<l, z) at the masks of z, 0 elsewhere. -> (B, L) nats"""
        at, read = z == self.mask, self.beside(denoiser, x)  # (B, L)
        return loss_at(read, z, None, at, cross_entropy, (x,), self.n_tokens, weight, frozen, share)

    def nelbo(self, denoiser, x, frozen=None):
        """Exact: the sum of (18.13), all masked that is not given. -> (B, L) nats"""
        z = torch.full_like(x, self.mask)  # (B, L)
        return self.nats(denoiser, x, z if frozen is None else torch.where(frozen, x, z))  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """(18.13), times n, so that the mean over the free tokens is the mean over masks.
        -> (B, L) nats"""
        z, k, n = any_order(self.noise, x, stratified(len(x), x.device), frozen)  # (B, L), (B, 1)
        share = (1 + 1 / x.shape[1]) / 2
        return self.nats(denoiser, x, z, n / k, frozen, share)  # (B, L)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From left to right; yields z (B, L) after each token."""
        read = self.reader(denoiser, torch.where(frozen, z, self.mask))
        for l in range(z.shape[1]):
            at = ~frozen[:, l]  # (B,)
            if at.any():
                word = categorical(to_probs(read(z, l, at)[:, :self.n_tokens]))  # (N,)
                column = torch.tensor(l, device=z.device)  # ()
                z = z.index_put((at.nonzero()[:, 0], column), word)  # (B, L)
                yield z

    def reader(self, denoiser, text):
        """read(z, l, at) -> logits (N, V) of token l in the rows `at` (B,). text (B, L): with masks
        in all gaps, as the masked expert reads it"""
        cache = InfillCache(text) if supports(denoiser, "supports_cache") else None

        def read(z, l, at):
            if cache is None:
                only = F.one_hot(torch.tensor(l), z.shape[1]).bool().to(z.device)  # (L,)
                return self.beside(denoiser, z)(text, None, at=at[:, None] & only)  # (N, V)
            shifted, pattern = self.shift(z[:, :l + 1]), block_causal(1, cache.reach)  # (B, l + 1)
            return read_with_cache(denoiser, cache, shifted, at[:, None], l + 1, pattern)  # (N, V)
        return read

    # ---- the exact denoiser

    def likelihood(self, z, t):
        return likelihood(self.noise, z, t)  # (B, L, n_tokens)

    def oracle(self, language):
        """p(x_l | x_<l and what z shows on the right). -> (B, 2 L, n_tokens)"""
        def denoiser(both, t, at=None, label=None, **layout):
            z, shifted = both.chunk(2, 1)  # (B, L) each
            x, L = shifted.roll(-1, 1), z.shape[1]  # (B, L) at its end the start, never read
            half = torch.full((1, 1), 0.5, dtype=torch.float64, device=z.device)  # (1, 1) any time
            p = torch.ones(*both.shape, self.n_tokens, dtype=torch.float64)  # (B, 2 L, n_tokens)
            for l in range(L):
                rows = torch.ones(len(z)).bool() if at is None else at[:, l].cpu()  # (B,)
                if rows.any():
                    gap = z.new_full((len(z), 1), self.mask)  # (B, 1)
                    seen = torch.cat([x[:, :l], gap, z[:, l + 1:]], 1)  # (B, L)
                    e = self.likelihood(seen, half).cpu()[rows]  # (b, L, n_tokens)
                    topic = None if label is None else label.cpu()[rows]  # (b,)
                    p[rows, l] = language.posterior(e, topic=topic)[:, l]
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)
