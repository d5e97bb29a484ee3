"""
Chapter 14. TESS (arXiv:2305.08379), and TESS 2 (2502.13917): the same channel as +-k logits.

    w = k [ sqrt(a) (2 e_x - 1) + sqrt(1 - a) eps ],   lam = 4a / (1 - a),                   (14.13)
    y = w sqrt( lam (4 + lam) ) / (2k),   up to a constant
    input  ( softmax(w) + e_hat' ) / 2,   e_hat' the last prediction, 1/V if there is none   (14.14)

a is the papers' alpha-bar. k drops out of lam: it only sets how sharp softmax(w) is. The network is
trained on cross-entropies at uniform times of the cosine schedule, and no likelihood is published.
There is one all the same: e_hat is a model of the channel (14.1), so (14.4) holds for it.

In training a share of the texts has the e_hat' of a first call, without a gradient. In the bound
all have one, of the same y. (TESS 2 takes it from another time with the same eps: two such y
determine x, so this would leak.)

With --shifted, row l reads [start, z_0, .., z_(L-1)], stands at z_(l-1), and predicts x_l. So the
network can start from an ar run, as TESS 2 does from Mistral: --init_from. Attention opens at once.
The gates of the clock, which an ar network does not have, start at one: at first it computes what
the ar network does, with all tokens in view.
"""
from dataclasses import dataclass

import torch

from diffusion import stratified
from flags import UserError, flag
from methods.simplex import LogitNoise


@dataclass(eq=False)
class TESS(LogitNoise):
    """--method tess. --shifted is TESS 2's network."""
    self_condition: float = flag(0.5, "share of texts that are trained on the network's own first "
                                      "prediction; 0: the network has no such input", least=0,
                                 most=1, fixed=True)
    shifted: bool = flag(False, "row l predicts the token behind it, as in ar: for --init_from an "
                                "ar run", fixed=True)
    adapts = ("the next token",)

    def __post_init__(self):
        super().__post_init__()
        if self.shifted:
            self.predicts = "each token in the place before it, from evidence"

    @property
    def feeds_back(self):
        return self.self_condition > 0

    def predict(self, denoiser, y, t, at, fed_back=None):
        """After a first call for the texts `fed_back` (B,); None: all. In training for no text as
        well: who shares weights (FSDP) waits for the calls of all. -> (N, V) nats"""
        first = at if fed_back is None else at & fed_back[:, None]  # (B, L)
        if not (self.process.feeds_back and (torch.is_grad_enabled() or first.any())):
            return super().predict(denoiser, y, t, at)  # (N, V)
        with torch.no_grad():
            e_hat = self.process.log_words(denoiser, y, t, first).exp().to(y.dtype)  # (N, V)
        fed = torch.full_like(y, 1 / self.n_tokens)  # (B, L, V)
        fed = fed.masked_scatter(first[..., None], e_hat)  # (B, L, V)
        return self.process.log_words(denoiser, y, t, at, fed)  # (N, V)

    def loss(self, denoiser, x, frozen=None):
        """Cross-entropies at uniform times. -> (B, L) nats"""
        t = stratified(len(x), x.device)  # (B, 1)
        fed_back = torch.rand(len(x), device=x.device) < self.self_condition  # (B,)
        return self.cross_entropies(denoiser, x, t, frozen, fed_back)  # (B, L)

    def weights_from(self, other, theirs, fresh):
        """Those of an ar network, whose start is ours, and a clock that does nothing at first. ->
        state dict"""
        if other.predicts not in self.adapts:
            return super().weights_from(other, theirs, fresh)
        if not self.shifted:
            raise UserError(f"a network of {other.name} predicts the token behind each row: give "
                            "--shifted")
        clock = {name: a for name, a in fresh.items() if name not in theirs}
        return {**theirs, **{name: open_gates(name, a) for name, a in clock.items()}}


def open_gates(name, a):
    """The bias of a block's adaptive norm, with one in its two gates: see model.py: Block."""
    if not name.endswith("adaln.bias") or not name.startswith("blocks."):
        return a
    parts = list(a.clone().chunk(6))  # 6 of (D,)
    for gate in (2, 5):
        parts[gate] = torch.ones_like(parts[gate])
    return torch.cat(parts)  # (6 D,)
