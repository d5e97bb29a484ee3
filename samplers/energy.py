"""
Chapter 18. Energies: draws of a masked model, chosen by what an AR model, or a trained energy,
makes of the whole text. EDLM (arXiv:2410.21357).

A masked model draws the masks M of z as if they did not depend on each other. An energy puts this
right. With U the visible tokens,

    p(x | z) ~ prod_(l in M) x_theta^l(x_l) exp(-E(z, x)),      and for an AR model           (18.6)
    E = log x_theta(x_M) - log p_AR(x)                          p(x | z) = p_AR(x_M | x_U)
    E = log x_theta(x_M) - sum_(l in M) log p_AR(x_l | x_<l)    --carry: blind to the right

A step from t to s draws K texts x~ ~ q, that is from x_theta under --temperature and --top_p, and
keeps one of them by its weight w = p(x~ | z) / q(x~):

    softmax       the j-th with probability w_j / sum_i w_i                                   (18.7)
    metropolis    the first, then the j-th in its place with probability min(1, w_j / w)

Then it opens masks as (0.3) does, with the words of that text. Both are exact for K -> infinity,
whatever q is: a temperature of the draws is in w, too.
"""
from collections import Counter
from dataclasses import dataclass, field

import torch

from diffusion import categorical, probabilities, reverse_step
from flags import UserError, flag
from samplers.base import MaskSampler, scatter_at, toss


def choose_by_softmax(log_w):
    """(18.7). log_w (B, K) -> (B,) which of K"""
    return categorical(log_w.softmax(-1).nan_to_num(1.0))  # (B,) nan: all are impossible


def choose_by_metropolis(log_w):
    """(18.7): a chain that begins with the first of K. log_w (B, K) -> (B,) which of K"""
    at = torch.zeros_like(log_w[:, 0], dtype=torch.long)  # (B,)
    for k in range(1, log_w.shape[1]):
        chance = (log_w[:, k] - log_w.gather(1, at[:, None])[:, 0]).exp()  # (B,)
        at = torch.where(toss(chance), k, at)  # (B,) nan, both impossible: stays
    return at


RULES = {"softmax": choose_by_softmax, "metropolis": choose_by_metropolis}


@dataclass(eq=False)
class EnergySampler(MaskSampler):
    """--sampler energy: of several draws of all masks, one that an energy prefers."""
    energy: str = flag("ar", "who rates texts: the folder of a run of ar, or of energy, or for the "
                       "toy language the oracle ar")
    energy_texts: int = flag(4, "texts that a step draws to choose from", least=1, most=1000)
    energy_rule: str = flag("softmax", "how it chooses one of them", [*RULES])
    energy_window: float = flag(1.0, "the share of the steps that use the energy, from noise on",
                                least=0, most=1)
    carry: bool = flag(False, "rate each new token by what stands before it alone (coAR)")
    judge: object = None  # the model that rates, from `prepare`; None: all texts are alike
    spent: Counter = field(default_factory=Counter)  # by all texts
    spent_before: Counter = field(default_factory=Counter)  # by all batches but the last

    @property
    def draws_from_model(self):
        return self.judge is None

    def fits(self, method):
        if reason := super().fits(method):
            return reason
        if not method.bidirectional:
            return f"rates whole texts, and {method.name} does not read them at once"

    def prepare(self, model):
        self.judge = model.beside("--energy", self.energy)
        method, length = self.judge.method, self.judge.config.block_size
        if not (method.exact or method.rate):
            raise UserError(f"--energy {self.energy} is a run of {method.name}, which has a bound "
                            "and no probabilities: give a run of ar or of energy")
        if self.carry and not method.exact:
            raise UserError(f"--carry sums next-token probabilities, which {self.energy} has not: "
                            "leave it out, or give a run of ar to --energy")
        if length < model.config.block_size:
            raise UserError(f"--energy {self.energy} knows texts of {length} tokens, and the model "
                            f"writes {model.config.block_size}: train it with at least that "
                            "--block_size")

    # ---- what is known of the texts, and what they cost

    def follows(self, config):
        """The model whose law the texts have for many candidates, or None, and a sentence.
        config: the flags of sampling"""
        name, exact = self.energy, self.judge.method.exact
        if self.energy_window == 0 or self.energy_texts == 1:
            return None  # the model's own
        if not exact:
            return None, f"the likelihood of these texts is not known: {name} has energies, no sums"
        if self.carry:
            return None, (f"the likelihood of these texts is not known: {name} has another one, "
                          "which --carry leaves behind")
        if self.energy_window < 1 or config.top_p < 1 or config.temperature == 0:
            return None, (f"the likelihood of these texts is not known: draws and window leave out "
                          f"what {name} may write")
        return self.judge, (f"the more texts a step draws, the closer its texts come to the law of "
                            f"{name}, in any number of steps")

    def costs(self, whole=False):
        """Of the last batch, or of all texts."""
        before = {} if whole else self.spent_before
        return {what: n - before.get(what, 0) for what, n in self.spent.items()}

    # ---- writing

    def rate(self, z, t, at, log_q):
        """-> a function of texts x (B, L) that fill the masks `at` of z: log p(x | z) up to a
        constant, (B,) nats. log_q: a function like it, of the draft"""
        if self.judge is None:
            return log_q
        method, network = self.judge.method, self.judge.denoiser
        if not method.exact:
            return method.rate(network, z, t, at)
        given = ~at if self.carry else None  # (B, L)
        return lambda x: -method.nelbo(network, x, given).double().sum(-1)  # (B,)

    def choose(self, process, denoiser, z, t, rows, to_probs):
        """One of K draws of all masks of the texts `rows` (B,) of z (B, L), by (18.7). -> (b, L)"""
        at, t = (z == process.mask) & rows[:, None], t.float()  # (B, L), (B, 1)
        q = to_probs(denoiser(z, t, at=at)[:, :process.n_tokens]).double()  # (N, V)
        z, t, at = z[rows], t[rows], at[rows]  # (b, L), (b, 1), (b, L)

        def log_q(x):
            return scatter_at(at, q.gather(1, x[at][:, None])[:, 0].log()).sum(-1)  # (B,)
        rate, texts, log_w = self.rate(z, t, at, log_q), [], []
        for _ in range(self.energy_texts):
            texts.append(z.masked_scatter(at, categorical(q)))  # (b, L)
            log_w.append(rate(texts[-1]) - log_q(texts[-1]))  # (b,)
        self.spent.update(judge_calls=len(texts), judge_texts=len(texts) * len(z))
        best = RULES[self.energy_rule](torch.stack(log_w, 1))  # (B,)
        return torch.stack(texts, 1)[torch.arange(len(z), device=z.device), best]  # (B, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        self.spent_before = self.spent.copy()
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        for step, (t, s) in enumerate(zip(times[:-1], times[1:])):
            t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (B, 1) each
            if step >= round(self.energy_window * steps):
                z = reverse_step(process, denoiser, z, frozen, s, t, to_probs)  # (B, L)
                yield z
                continue
            opens = opening(process, z, s, t)  # (B, L)
            rows = opens.any(-1)  # (B,)
            if rows.any():
                chosen = self.choose(process, denoiser, z, t, rows, to_probs)  # (b, L)
                z = torch.where(opens, z.index_put((rows,), chosen), z)  # (B, L)
            yield z


def opening(process, z, s, t):
    """Which masks a step of (0.3) opens: each with probability (alpha_s - alpha_t) / (1 - alpha_t),
    written so that all open at s = 0. s, t (B, 1) -> (B, L) bool"""
    b_t, b_s = process.b(t, process.mask), process.b(s, process.mask)  # (B, 1) each
    coin = torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
    return (z == process.mask) & (coin * b_t < process.alpha(s) * b_t - process.alpha(t) * b_s)
