"""
Chapter 18. From a masked language model to diffusion: DiffusionLLM (arXiv:2308.12219).

A masked language model has learned one rate of masks, such as 15 % (--mask_rate 0.15 trains one).
Fine-tuning makes a diffusion model of it, by the loss of RDM (arXiv:2302.05737). With T levels of
noise, of which level t masks a token with probability t/T, each text is seen at two that are drawn
together:

    t_1 >= t_2,  both of U{1 .. T};   a mask of z_1 is a mask of z_2 with probability t_2/t_1,
    text of z_1 is text of z_2; if t_1 = t_2, z_2 is a draw of its own
    loss  1/2 sum_i w(t_i) [z_i,l = m] CE_l(z_i),   w(t) = (6/T) (T - (t - 1))               (18.11)

with CE = -log x_theta(x). The weight is linear, and a prompt is never masked: the network sees
prompt and answer in full. The published weight is T - (t - 1), without 6/T, which only makes the
loss as large as a bound, and the steps of T = 50 comparable with those of mdlm. Per text it is
divided by the number of tokens that may be masked (train.py: loss_per_token).

(18.11) is no bound; `nelbo` is that of mdlm, (3.1), for the same network. As T grows, the mean of
(18.11) becomes that of mdlm's `simple` loss.

Answers end with [end], as data/chat.py fills them up. With --longest N the network also predicts
their length n from the prompt, as published: it reads the prompt and masks, and its first free row
has N + 1 logits more. The ends are then given, like the prompt, and

    -log p(x | prompt) = -log p(n | prompt) - log p(x before the end | n, prompt)

has the cross-entropy of n and a bound on the rest. n = N stands for N or more; of such answers the
network writes the ends itself. Published are a layer of its own and a beam of lengths.
"""
from dataclasses import dataclass

import torch

from data.tokenizer import end_of_text
from diffusion import ancestral, categorical, corrupt, probabilities
from flags import UserError, flag
from methods.base import cross_entropy, loss_at
from methods.mdlm import MDLM
from methods.rdm import WEIGHTS, couple


def coupled_levels(B, T, device="cpu"):
    """t_1 >= t_2 of (18.11), B pairs of U{1 .. T}. -> (B, 1) each, float"""
    t = torch.randint(1, T + 1, (2, B, 1), device=device).float()  # (2, B, 1)
    return t.amax(0), t.amin(0)  # (B, 1) each


def coupled_masks(process, x, t1, t2, T, frozen=None):
    """z_1 and z_2 of (18.11), which is (3.11). t1, t2 (B, 1) levels of T -> (B, L) each"""
    masks = couple(t1 / T, t2 / T, torch.rand(3, *x.shape, device=x.device))  # (B, L) twice
    return tuple(torch.where(at if frozen is None else at & ~frozen, process.mask, x)
                 for at in masks)  # (B, L) each


@dataclass(eq=False)
class DiffusionLLM(MDLM):
    """--method diffusion_llm: fine-tunes a masked language model (--mask_rate trains one), or a run
    of mdlm, on answers (--sft). `nelbo` is the bound of mdlm."""
    levels: int = flag(50, "T, the levels of noise in training", least=1)
    level_weight: str = flag("linear", "w of (18.11): linear as published, reciprocal as in a "
                             "bound of T levels, or none", [*WEIGHTS])
    mask_rate: float = flag(0.0, "train a masked language model instead, at this rate of masks; 0: "
                            "diffusion", least=0, most=1)
    longest: int = flag(0, "predict the length of an answer from its prompt, up to so many tokens, "
                        "and write as many; 0: its ends are drawn like other tokens", least=0,
                        most=100_000, fixed=True, idle=["mask_rate"])
    weighting: str = "simple"  # no flags here
    complement: bool = False
    distilled_by, public_layout = (), None
    end = None  # the id of [end]; None: texts have none, and their length is what is free

    def __post_init__(self):
        super().__post_init__()
        self.lengths_from = self.n_tokens + 1  # of the logits
        self.vocab_size = self.lengths_from + (self.longest + 1) * (self.longest > 0)

    def on_data(self, data):
        self.end = end_of_text(data.encoding) if self.longest else None

    def extra_state(self):
        return {} if self.end is None else {"end": torch.tensor(self.end)}

    def load_extra_state(self, state):
        self.end = int(state["end"]) if "end" in state else None

    def weights_from(self, other, weights, fresh):
        """Those of a masked network, with fresh rows for the lengths."""
        weights = super().weights_from(other, weights, fresh)
        if weights and self.longest and len(weights["embed"]) == self.lengths_from:
            rows = {name: torch.cat([weights[name], fresh[name][self.lengths_from:]])
                    for name in ("embed", "head.weight", "head.bias")}
            weights = {**weights, **rows}
        return weights

    # ---- lengths

    def lengths(self, x, frozen=None):
        """The free tokens before the first [end], N at most, and which ones are ends that follow
        from it. -> (B, 1), (B, L) bool"""
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        over = free & (((x == -1 if self.end is None else x == self.end) & free).cumsum(-1) > 0)
        n = (free & ~over).sum(-1, keepdim=True).clamp(max=self.longest)  # (B, 1)
        return n, over & (n < self.longest)

    def first_free(self, x, frozen=None):
        """What the lengths are read from: the prompt and masks, and the first of these."""
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        return torch.where(free, self.process.mask, x), free & (free.cumsum(-1) == 1)  # (B, L) each

    def length_nats(self, denoiser, x, n, frozen=None):
        """-log p(n | prompt) at the first free token, 0 elsewhere. n (B, 1) -> (B, L) nats"""
        z, at = self.first_free(x, frozen)  # (B, L) each
        t = torch.ones(len(x), 1, device=x.device)  # (B, 1)
        rule = lambda logits, n: cross_entropy(logits[:, self.lengths_from:], n)  # (M,)
        return loss_at(denoiser, z, t, at, rule, (n,), self.vocab_size, share=1 / x.shape[1])

    def draw_lengths(self, denoiser, z, frozen, to_probs=probabilities):
        """Give the ends of texts whose length is drawn. -> z, frozen (B, L)"""
        z, at = self.first_free(z, frozen)  # (B, L) each
        logits = denoiser(z, torch.ones(len(z), 1, device=z.device), at=at)  # (M, V)
        free = (~frozen).sum(-1)[at.any(-1)]  # (M,)
        possible = torch.arange(self.longest + 1, device=z.device) <= free[:, None]  # (M, N + 1)
        logits = logits[:, self.lengths_from:].masked_fill(~possible, -torch.inf)  # (M, N + 1)
        n = torch.full_like(z[:, :1], self.longest)  # (B, 1)
        n[at.any(-1)] = categorical(to_probs(logits))[:, None]  # (M, 1)
        over = ~frozen & ((~frozen).cumsum(-1) > n) & (n < self.longest)  # (B, L)
        return torch.where(over, self.end, z), frozen | over  # (B, L) each

    # ---- losses and samples

    def weight_of(self, t):
        """w of (18.11), RDM's in another scale. t (B, 1) levels of T -> (B, 1)"""
        scale = {"linear": 6.0, "reciprocal": self.levels, "none": 2.0}[self.level_weight]
        return scale * WEIGHTS[self.level_weight](t, self.levels)  # (B, 1)

    def loss(self, denoiser, x, frozen=None):
        """(18.11), or with --mask_rate the cross-entropy at that rate. With --longest that of the
        length is added, and an answer counts by its own tokens alone. -> (B, L) nats"""
        if self.longest and not self.mask_rate:
            n, over = self.lengths(x, frozen)  # (B, 1), (B, L)
            free = torch.ones_like(over) if frozen is None else ~frozen  # (B, L)
            kept = (free & ~over).sum(-1, keepdim=True)  # (B, 1)
            share = free.sum(-1, keepdim=True) / kept.clamp(min=1)  # (B, 1)
            nats = self.length_nats(denoiser, x, n, frozen) * free.sum(-1, keepdim=True)  # (B, L)
            return nats + self.pair_loss(denoiser, x, frozen, ~free | over, share)  # (B, L)
        return self.pair_loss(denoiser, x, frozen, frozen)  # (B, L)

    def pair_loss(self, denoiser, x, frozen, shown, times=1.0):
        """The loss of the tokens that are not shown, `times` as much."""
        if self.mask_rate:
            t = torch.full((len(x), 1), self.mask_rate, device=x.device)  # (B, 1)
            z = corrupt(self.process, x, t, shown)  # (B, L)
            share = self.mask_rate
            return self.cross_entropy(denoiser, x, z, t, 1 / share, frozen, share)  # (B, L)
        t1, t2 = coupled_levels(len(x), self.levels, x.device)  # (B, 1) each
        nats = 0.0
        for t, z in zip((t1, t2), coupled_masks(self.process, x, t1, t2, self.levels, shown)):
            weight = self.weight_of(t) / 2 * times  # (B, 1)
            nats = nats + self.cross_entropy(denoiser, x, z, t / self.levels, weight, frozen)
        return nats

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (3.1); with --longest of the bound given the length, and the cross-entropy of
        the length. -> (B, L) nats"""
        if not self.longest:
            return super().nelbo(denoiser, x, frozen)  # (B, L)
        n, over = self.lengths(x, frozen)  # (B, 1), (B, L)
        shown = over if frozen is None else over | frozen  # (B, L)
        return self.length_nats(denoiser, x, n, frozen) + super().nelbo(denoiser, x, shown)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """With --longest the length is drawn first."""
        if self.longest and self.end is not None:
            z, frozen = self.draw_lengths(denoiser, z, frozen, to_probs)  # (B, L) each
        yield from super().sample(denoiser, z, frozen, steps, sampler, to_probs)

    def oracle(self, language):
        if self.longest:
            raise UserError("--longest has no exact denoiser, as a language has no lengths: leave "
                            "it out")
        return super().oracle(language)
