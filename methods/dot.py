"""
Chapter 20. Diffusion of Thoughts (arXiv:2402.07754), with masks for noise.

A text is a question, which is given, thoughts r_1 .. r_(m-1), and the answer r_m. n_i tokens of
r_i are not given, n in all. With CE = -log x_theta(x):

    passes     thought i, with probability n_i/n: z has k of its tokens as masks, k ~ U{1..n_i},
               thoughts before it are clean, and those behind it are all masks               (20.3)
                   -log p(x) <= E_i E_k E_z sum_{l in r_i} [z_l = m] (n/k) CE
    scheduled  with probability p:  z_u of x, u ~ U(t, 1);  x^ = x_theta(z_u), drawn at the masks
               of z_u;  z of x^ at time t, and still  [z_l = m] CE  of x                     (20.4)
    coupled    with probability c:  thoughts i and i + 1 have masks in z at the same rate t,
               and both are scored                                                           (20.5)

(20.3) is the chain rule over thoughts, log p(x) = sum_i log p(r_i | r_<i), with (3.1) in each: a
bound, and tight for p(x_l | z). A token that is chosen at random says which thought i is.

`--passes single` noises all thoughts at once, as mdlm does: (20.3) is (3.1) then. `--passes multi`
is trained, and writes, thought by thought (samplers/thoughts.py). A text without thoughts is one.

What they learn. Coupling changes which z are seen; the best prediction of a mask stays p(x_l | z).
Scheduled sampling makes z that say something else of x than they should: words of x^ may be wrong.
The best prediction is no longer p(x_l | z), and is too flat. Masks cannot repay that, since a
word that is written stays; a sampler that rewrites words, as `top-k --rescore`, may. The paper
draws x^ from a noisier z_u, and its code from pure noise, which tells x_theta nothing of x.
"""
from dataclasses import dataclass

import torch

from data import DATASETS
from data.puzzles import thought_at
from diffusion import corrupt, draw_at, probabilities, stratified, supports
from flags import UserError, flag, load_row
from methods.base import cross_entropy, loss_at
from methods.mdlm import MDLM, any_order


@dataclass(eq=False)
class DoT(MDLM):
    """--method dot: `loss` is that of mdlm in one thought, scaled to the whole text; `nelbo` is
    (20.3)."""
    weighting: str = flag("simple", "train on bounded weights or on the bound itself",
                          ["simple", "bound"])
    passes: str = flag("multi", "thought by thought, or all thoughts at once", ["multi", "single"],
                       fixed=True)
    scheduled: float = flag(0.0, "share of texts whose noise is made of the network's own text, at "
                            "the end of training; it grows from 0", least=0, most=1)
    coupled: float = flag(0.0, "share of texts in which two thoughts are noised together", least=0,
                          most=1)
    complement: bool = False  # no flag here
    distilled_by, public_layout = (), None
    samplers, takes_steps, classifier_process = ("thoughts",), False, None  # of --passes multi

    def __post_init__(self):
        super().__post_init__()
        self.lengths, self.share_drawn = (), self.scheduled
        if self.passes == "single":
            self.samplers, self.takes_steps, self.classifier_process = None, True, self.process
        if self.passes == "single" and self.coupled:
            raise UserError("--coupled joins two thoughts, and with --passes single all of them "
                            "are noised together: leave it out")

    @property
    def first_choice(self):
        return "thoughts" if self.passes == "multi" else super().first_choice

    # ---- what it keeps of the data

    def check(self, config):
        if self.scheduled and config.dropout:
            raise UserError("--scheduled draws text from the network while it is trained: leave "
                            "out --dropout")
        if self.coupled and not load_row(DATASETS, config.data).thoughts:
            raise UserError(f"--coupled joins two thoughts, and {config.data} has none: leave it "
                            "out, or try --data multiplication-thoughts")

    def on_data(self, data):
        self.lengths = data.thoughts

    def extra_state(self):
        return {"lengths": torch.tensor(self.lengths)} if self.lengths else {}  # (m,)

    def load_extra_state(self, state):
        self.lengths = tuple(state["lengths"].tolist()) if "lengths" in state else ()

    def on_step(self, step, trainer):
        self.share_drawn = self.scheduled * step / trainer.config.max_iters

    # ---- one thought

    def choose(self, x, frozen=None, coupled=0.0):
        """A random thought of each text, or with probability `coupled` it and the next one.
        -> here (B, L): its tokens that are not given; behind (B, L): those of later thoughts; n
        (B, 1): all tokens that are not given"""
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        n = free.sum(-1, keepdim=True)  # (B, 1)
        if self.passes == "single":
            return free, torch.zeros_like(free), n  # (B, L), (B, L), (B, 1)
        number = thought_at(x.shape[1], self.lengths).to(x.device).expand_as(x)  # (B, L)
        token = torch.rand(x.shape, device=x.device).masked_fill(~free, -1).argmax(-1, keepdim=True)
        first = number.gather(1, token)  # (B, 1)
        last = first + (torch.rand(first.shape, device=x.device) < coupled)  # (B, 1)
        return free & (first <= number) & (number <= last), free & (number > last), n

    def noise(self, x, t, here, behind):
        """z: masks `here` at time t, and all masks behind. -> (B, L)"""
        z = corrupt(self.process, x, t, ~here)  # (B, L)
        return z.masked_fill(behind, self.process.mask)  # (B, L)

    @torch.no_grad()
    def draw(self, denoiser, x, t, here, behind):
        """x^ of (20.4) for a share of texts, and x for the others. -> (B, L)"""
        u = t + (1 - t) * torch.rand(t.shape, device=t.device)  # (B, 1)
        z = self.noise(x, u, here, behind)  # (B, L)
        at = here & (z == self.process.mask)  # (B, L)
        at &= torch.rand(t.shape, device=t.device) < self.share_drawn  # (B, L)
        if supports(denoiser, "fixed_shapes"):
            every = torch.arange(x.numel(), device=x.device)  # (B L,)
            words, _ = draw_at(denoiser, z, u, every, probabilities, self.n_tokens)  # (B L,)
            return torch.where(at, words.view(x.shape), x)  # (B, L)
        if not at.any():
            return x  # (B, L)
        words, _ = draw_at(denoiser, z, u, at, probabilities, self.n_tokens)  # (N,)
        return x.masked_scatter(at, words)  # (B, L)

    # ---- losses

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes, a surrogate as in mdlm. -> (B, L) nats"""
        t, weight, share = self.draw_times(x)  # (B, 1), (B, 1) or 3, a number
        here, behind, n = self.choose(x, frozen, self.coupled)  # (B, L), (B, L), (B, 1)
        of = self.draw(denoiser, x, t, here, behind) if self.share_drawn else x  # (B, L)
        z = self.noise(of, t, here, behind)  # (B, L)
        weight = weight * n / here.sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
        at = here & (z == self.process.mask)  # (B, L)
        return loss_at(denoiser, z, t, at, cross_entropy, (x,), self.n_tokens, weight, frozen,
                       share)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (20.3). -> (B, L) nats"""
        here, behind, n = self.choose(x, frozen)  # (B, L), (B, L), (B, 1)
        u = stratified(len(x), x.device)  # (B, 1)
        z, k, part = any_order(self.process, x, u, ~here)  # (B, L), (B, 1), (B, 1)
        z = z.masked_fill(behind, self.process.mask)  # (B, L)
        at = here & (z == self.process.mask)  # (B, L)
        nats = loss_at(denoiser, z, k / part.clamp(min=1), at, cross_entropy, (x,), self.n_tokens)
        return n / k * nats  # (B, L)
