"""
Chapter 18. A trained energy: was a text written by people, or by a model? EDLM (arXiv:2410.21357).

    loss    softplus(E(z, x)) + softplus(-E(z, x~)),   z ~ q(z_t | x),   x~ ~ x_theta(. | z)  (18.8)

x~ fills the masks of z with draws of a frozen masked network, each token from its own distribution.
(18.8) is noise-contrastive estimation. The loss is least at E = log x_theta(x | z) - log p(x | z),
so that x_theta exp(-E) is p itself, with all that the masks say about each other. E(z, x) is a sum
over the masks of z, hence 0 without masks, from a network that reads both texts at once. (The paper
takes the mean over the tokens of a network that reads x.)

It is no language model: it has no bound on -log p(x) and writes no text. It rates the draws of
another model: samplers/energy.py.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Absorbing, categorical, corrupt, probabilities, stratified
from methods.base import Method
from model import Transformer


def freeze(network):
    """All weights become buffers: saved and moved like weights, but neither trained nor averaged.
    """
    for module in network.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, p.detach())
    return network


class EnergyNetwork(Transformer):
    """network(z, t, text=x) -> E(z, x) (B,) nats; without `text` the logits of the frozen masked
    network, (N, V) at the positions `at`, or (B, L, V)."""
    supports_cache = supports_fused_head = False

    def __init__(self, vocab_size, *sizes, **options):
        super().__init__(vocab_size, *sizes, **options)
        self.proposals = freeze(Transformer(vocab_size, *sizes, **{**options, "dropout": 0.0}))
        self.head = torch.nn.Linear(self.head.in_features, 1)
        torch.nn.init.zeros_(self.head.weight)  # at first all energies are 0
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, z, t=None, at=None, text=None, **layout):
        if text is None:
            with torch.no_grad():
                return self.proposals(z, t, at=at, **layout)  # (N, V) or (B, L, V)
        mask = torch.full_like(z, self.vocab_size - 1)  # (B, L)
        masked = z == mask  # (B, L)
        ids = torch.stack([text, mask], -1)  # (B, L, 2) a word under a mask is the sum of both
        weights = torch.stack([torch.ones_like(masked), masked], -1).float()  # (B, L, 2)
        nats = super().forward((ids, weights), t, at=masked, **layout)[:, 0].float()  # (N,)
        return torch.zeros(z.shape, device=z.device).masked_scatter(masked, nats).sum(-1)  # (B,)


@dataclass(eq=False)
class Energy(Method):
    """--method energy: tells text from the draws of a masked run, that of --init_from, from whose
    weights it also starts. From scratch the draws are random words."""
    predicts = "each token in its place"  # as the frozen network does
    classifies, fixed_positions, shardable = True, False, False
    network = EnergyNetwork

    def __post_init__(self):
        self.process, self.vocab_size = Absorbing(self.n_tokens), self.n_tokens + 1

    def weights_from(self, other, weights, fresh):
        """Those of a masked run, and at once those of the frozen network; or of another energy."""
        if isinstance(other, Energy):
            return weights
        if not (other.opens_masks and other.bidirectional) or other.samplers is not None:
            return None
        body = {name: a for name, a in weights.items() if not name.startswith("head.")}
        frozen = {f"proposals.{name}": a for name, a in weights.items()}
        width = weights["head.weight"].shape[1]
        return {**body, **frozen, "head.weight": torch.zeros(1, width), "head.bias": torch.zeros(1)}

    def usage(self, folder, classes):
        return {"sampler": "energy", "energy": folder}

    def draw(self, network, z, t):
        """x~ of (18.8). -> (B, L)"""
        at = z == self.process.mask  # (B, L)
        logits = network(z, t, at=at)[:, :self.n_tokens]  # (N, n_tokens)
        return z.masked_scatter(at, categorical(probabilities(logits)))  # (B, L)

    def energies(self, network, x, t, frozen=None):
        """E(z, x) and E(z, x~), for one draw of z and x~. -> (B,) each"""
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        other = self.draw(network, z, t)  # (B, L)
        return network(z, t, text=x), network(z, t, text=other)  # (B,) each

    def loss(self, denoiser, x, frozen=None):
        """(18.8). -> (B, 1) nats per text"""
        pair = self.energies(denoiser, x, stratified(len(x), x.device), frozen)  # (B,) each
        return contrast(*pair)[:, None]  # (B, 1)

    nelbo = loss

    def pairs_at(self, network, x, t):
        """At the times t (n, 1): (18.8), and the share of x and x~ that is told right, (n,) each"""
        of_text, of_draw = self.energies(network, x, t)  # (n,) each
        return contrast(of_text, of_draw), (2 - of_text.sign() + of_draw.sign()) / 4  # (n,) each

    def rate(self, network, z, t, at):
        """For texts x (B, L) that fill the masks `at` of z: log x_theta(x) - E(z, x).

        -> a function of x, (B,) nats: log p(x | z) at the optimum, up to a constant
        """
        log_p = network(z, t, at=at)[:, :self.n_tokens].double().log_softmax(-1)  # (N, n_tokens)

        def log_joint(x):
            own = log_p.gather(1, x[at][:, None])[:, 0]  # (N,)
            total = own.new_zeros(x.shape).masked_scatter(at, own).sum(-1)  # (B,)
            return total - network(z, t, text=x)  # (B,)
        return log_joint


def contrast(of_text, of_draw):
    """(18.8) from the energies of text and of draws. -> shape of both"""
    return F.softplus(of_text) + F.softplus(-of_draw)
