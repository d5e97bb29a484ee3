"""
Chapter 18. MARIA (arXiv:2502.06901): an AR model and a masked one fill gaps together.

An AR model writes well and fast, but reads nothing on the right of a gap. A masked model reads
both sides, but draws several tokens at once without regard to each other, or needs a call for each.
Take both as they are. z is the text with masks in its gaps, which are filled from left to right:

    logits_l = W [h_AR(x_<l) ; h_MLM(z)_l] + b,                                              (18.12)
               at first W = [W_AR/2 ; W_MLM/2], b = (b_AR + b_MLM)/2, so that p ~ sqrt(p_AR p_MLM)
    loss     = (1/k) sum_{z_l = m} -log p(x_l | x_<l, z),   k ~ U{1..n} masks anywhere       (18.13)

h are the last hidden states, W_AR and W_MLM the heads of the two experts. W and b alone are
trained. The masked expert reads z once, and the AR expert each token once, by its cache.

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
    read_with_cache,
    skip_texts,
)
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
    """Two frozen networks under one head, (18.12).

    network(z, t, at): z (B, 2 L) is a text with masks, and behind it that text as ar reads it;
    at (B, 2 L) selects places of the first half. With an InfillCache, z (B, n) are new tokens as ar
    reads them.
    """
    supports_cache = supports_fused_head = True
    fixed_shapes = False  # see diffusion.Wrapper

    def __init__(self, ar, masked):
        super().__init__()
        self.ar, self.masked = ar.requires_grad_(False), masked.requires_grad_(False)
        heads, self.vocab_size = (ar.head, masked.head), ar.vocab_size
        self.head = nn.Linear(sum(head.in_features for head in heads), ar.vocab_size)
        with torch.no_grad():  # the product of the experts
            self.head.weight.copy_(torch.cat([head.weight for head in heads], 1) / 2)  # (V, D)
            self.head.bias.copy_(sum(head.bias for head in heads) / 2)  # (V,)

    @property
    def embed(self):
        """The wider embedding, by which memory is estimated. -> (V, D)"""
        return max(self.ar.embed, self.masked.embed, key=lambda a: a.shape[1])

    @torch.no_grad()
    def states(self, z, at, cache, mask_mod):
        """[h_AR ; h_MLM] at the places `at`. -> (N, D) or (B, L, D)"""
        if cache:
            if cache.states is None:
                cache.states = self.masked(cache.text, head=keep_states)  # (B, L, D)
            lo = cache.start
            right = select_rows(cache.states[:, lo:lo + z.shape[1]], at)  # (N, D)
            left = self.ar(z, at=at, cache=cache, mask_mod=mask_mod, head=keep_states)  # (N, D)
        else:
            L = z.shape[1] // 2
            at = at if at is None else offset_positions(at, 2 * L, L)  # (B, L) or (N,)
            right, left = (part(half, at=at, head=keep_states) for part, half in zip(
                (self.masked, self.ar), z.split(L, 1)))  # (N, D) each
        return torch.cat([left, right], -1)  # (N, D) or (B, L, D)

    def forward(self, z, noise=None, at=None, cache=None, mask_mod=None, head=None):
        h = self.states(z, at, cache, mask_mod)  # (N, D) or (B, L, D)
        return self.head(h) if head is None else head(h, self.head.weight, self.head.bias)


@dataclass(eq=False)
class MARIA(Method):
    """--method maria: a head on two experts, which are runs on the same text. `nelbo` is exact."""
    ar: str = flag("out/python-ar", "folder of the run of ar that writes", fixed=True)
    masked: str = flag("out/python-mdlm", "folder of the run with masks that reads both sides",
                       fixed=True)
    predicts = "each token from the text before it and what is given after it"
    exact, shardable, samplers = True, False, ("ancestral",)
    sizes = weights = None  # of the experts: (2, 9); their weights, in a new run

    def __post_init__(self):
        self.noise, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1
        self.mask = self.start = self.n_tokens

    # ---- the experts

    def on_start(self, read_model):
        models = [read_model("--ar", self.ar), read_model("--masked", self.masked)]
        writer, reader = (model.method for model in models)
        if not (writer.exact and writer.block_length == 1 and writer.network is Transformer):
            raise UserError(f"--ar {self.ar} is a run of {writer.name}: give one of ar, with one "
                            "head")
        if (not (reader.opens_masks and reader.bidirectional) or reader.uses_time
                or reader.network is not Transformer):
            raise UserError(f"--masked {self.masked} is a run of {reader.name}: give one of mdlm, "
                            "md4 or radd")
        self.sizes = torch.stack([sizes_of(model) for model in models])  # (2, 9)
        self.weights = [model.denoiser.state_dict() for model in models]

    def extra_state(self):
        return {} if self.sizes is None else {"experts": self.sizes}

    def load_extra_state(self, state):
        self.sizes = state["experts"].cpu()  # (2, 9)

    def network(self, vocab_size, *sizes, **options):
        """The network; what the flags say of one counts for nothing (`check`)."""
        experts = [expert_of(row, vocab_size, mask_mod)
                   for row, mask_mod in zip(self.sizes, (causal, None))]
        for expert, weights in zip(experts, self.weights or ()):
            expert.load_state_dict(weights)
        return TwoExperts(*experts)

    def check(self, config):
        if config.init_from not in ("scratch", "resume"):
            raise UserError(f"--init_from {config.init_from}: maria starts from --ar and --masked, "
                            "leave it out")
        if config.labels:
            raise UserError("--labels: the experts of maria are called without classes, leave it "
                            "out")
        known, longest = flags_of(config), int(self.sizes[:, -1].min())
        for name in flags_of(NetworkFlags):
            if getattr(config, name) != known[name].default:
                raise UserError(f"--{name} counts for nothing with maria, whose experts have their "
                                "own: leave it out")
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

    def prior(self, shape, device="cpu"):
        return torch.full(shape, self.mask, device=device)  # (B, L)

    def count_states(self, length, steps):
        """One for each token, whatever `steps` says."""
        return length

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
