"""
Chapter 15. What the methods of latent diffusion share: two stages, the bound (15.5), the walk.

A text x is encoded as K vectors h of d numbers, Gaussian noise is added to them, and a network
learns to take it away. gamma, alpha and sigma are those of gaussian.py; SNR = exp(-gamma):

    latents    h = (encoder(x) - mean) / deviation, per coordinate over the data              (15.1)
    forward    z = alpha h + sigma eps                                                        (15.2)
    velocity   v = alpha eps - sigma h;   h = alpha z - sigma v;   eps = sigma z + alpha v    (15.3)
    error      |v - v'|^2 = (1 + SNR) |h - h'|^2;   |eps - eps'|^2 = SNR |h - h'|^2           (15.4)
    bound      -log p(x) <= E[ -log p(x | z_0) ]                                              (15.5)
                            + 1/2 E int exp(-gamma) |h - h'(z)|^2 dgamma
                            + KL( q(z_1 | x) || N(0, I) ),   gamma from gamma_0 to gamma_1
    exact      E (15.5) = H(x) + TC + KL_1, as (13.8), for any encoder: TC is what a decoder  (15.6)
               of all words at once loses, and one from left to right does not

The decoder reads z_0, latents with the noise of the time --decode_at, in training as in samples. A
decoder that reads h itself has no bound: the integral is infinite. (15.5) holds for any encoder,
decoder and denoiser; given words are read by both of the latter, so they cost nothing.

Stage one, a share --autoencoder of the steps, trains encoder and decoder on -log p(x | z_0). Then
their averaged weights take the place of the trained ones, the statistics of (15.1) are measured,
and stage two trains the denoiser: it reads latents without a gradient, so nothing else moves.

Steps are (13.4) and (13.5), with a variance between that of (13.4) and a larger one:

    ancestral  variance of z_s:  (1 - a^2)^l ((1 - a^2) sigma_s^2 / sigma_t^2)^(1 - l),       (15.7)
               a = alpha_t / alpha_s;   l = 0 is (13.4), l = 1 is exact for variance 1
    2M         (13.5) with h' + (H / 2 H_old) (h' - h'_old),   H = (gamma_t - gamma_s) / 2    (15.8)

from t = 1 to --decode_at, where the words are drawn from the decoder. Guidance is linear in z, so
it is the same for h', v' and eps', with a label y or given words:

    guidance   h' = h'(z) + w ( h'(z, y) - h'(z) )                                            (15.9)
"""
from dataclasses import dataclass

import torch

from diffusion import Ancestral, ancestral, draw_from, probabilities, stratified
from flags import UserError, flag
from gaussian import (
    DDPM,
    Prediction,
    add_noise,
    log_evidence,
    noise_nats,
    prior_nats,
    signal,
)
from methods.base import Method, cross_entropy, free_tokens, scatter_nats
from methods.gammas import Logistic, PlainCosine
from methods.latent_network import LatentText
from methods.latent_space import (
    LatentSpace,
    as_likelihood,
    code_table,
    from_velocity,
    likeliest,
    one_hot,
    spread_over,
    to_float,
    to_velocity,
    velocity,
)
from model import select_rows

SPREAD = 0.75, 1.0  # center and scale of the gammas at which (15.5) is measured
STATISTICS = 2048  # texts for the mean and the variance of latents
SHOWN = 16  # times that words are shown in a walk, at most


@dataclass(eq=False)
class Latent(Method):
    """The base of the methods of chapter 15, which say what differs."""
    latents: int = flag(10, "vectors of a text", least=1, most=10_000, fixed=True)
    dim: int = flag(16, "numbers of a vector", least=1, most=10_000, fixed=True)
    autoencoder: float = flag(0.4, "share of the steps that train encoder and decoder; the rest "
                              "trains the denoiser", least=0.01, most=1, fixed=True)
    decode_at: float = flag(0.3, "time at which the decoder reads the latents, so how much noise "
                            "they have; 0: none, as published, without a bound", least=0, most=0.9,
                            fixed=True)
    self_condition: float = flag(0.5, "share of texts that are trained on the network's own first "
                                      "h'; 0: the network has no such input", least=0, most=1,
                                 fixed=True)
    uses_time, uniform_at_first = True, False
    fixed_positions = takes_steps = shardable = False
    samplers, classifier_process = ("ancestral", "ddpm", "ddim", "2m"), None
    scores_ratios = True  # outputs are mixed as they are: (15.9)
    unbounded_reason = ("the decoder reads latents without noise, and (15.5) is infinite: "
                        "--decode_at 0.3 has a bound")
    predicts = "the latents of a text from noisy ones"
    defaults = dict(ema=0.995, batch_size=64, minutes=5.0)
    outputs_h = False  # the network outputs h', not v'
    ordered = hides_given = False  # see methods/latent_network.py
    variance = "posterior"  # of --sampler ancestral: the l of (15.7)
    progress = 0.0  # the share of training that is done
    settled = False  # stage two has begun
    per_token = False  # the exact autoencoder: one vector a token

    def __post_init__(self):
        self.process = LatentSpace(self.n_tokens, self.schedule())
        self.vocab_size = self.n_tokens + 1  # a blank, for words that are not known
        self.bounded, self.stages = self.decode_at > 0, (self.autoencoder,)

    # ---- what a method may change

    def schedule(self):
        return PlainCosine()

    def loss_weight(self, gamma):
        """The weight of |h - h'|^2 in stage two, (15.4): v and v' as they are. -> shape of gamma"""
        return 1 + torch.exp(-gamma)

    def shown_to_encoder(self, x, at):
        """x as the encoder reads it in stage one. -> (B, L)"""
        return x  # (B, L)

    def shown_to_decoder(self, x, at):
        """x as the decoder reads it in stage one; if it writes all at once, given words only."""
        return x  # (B, L)

    # ---- flags, network, stages

    def check(self, config):
        for name, usual in dict(time_input="auto", learned_places=False, sides="joined").items():
            if getattr(config, name) != usual:
                raise UserError(f"--{name} {getattr(config, name)}: the network of {self.name} "
                                "reads latents, and has no such choice: leave it out")

    def network(self, vocab_size, *shape, **options):
        inputs = self.dim * (2 if self.self_condition else 1)
        return LatentText(vocab_size, *shape, self.latents, self.dim, inputs, self.ordered,
                          self.hides_given, **options)

    def on_step(self, step, trainer):
        self.progress = step / trainer.config.max_iters
        if self.progress >= self.autoencoder and not self.settled:
            self.settle(trainer)

    @torch.no_grad()
    def settle(self, trainer):
        """The averaged encoder and decoder take the place of the trained ones, and the statistics
        of (15.1) are measured: from here on neither changes."""
        average, trained, self.settled = trainer.average, trainer.model, True
        x = torch.as_tensor(trainer.data.windows("train", STATISTICS)).to(trainer.device)  # (n, L)
        everything = torch.ones_like(x, dtype=torch.bool)  # (n, L)
        parts = zip(x.split(256), everything.split(256))
        average.set_statistics(torch.cat([average.encode(*part) for part in parts]))
        for p, q in zip(trained.parameters(), average.parameters()):
            p.copy_(q)

    def extra_state(self):
        return {"latent_stage": torch.tensor(float(self.settled))}

    def load_extra_state(self, state):
        self.settled = bool(state["latent_stage"])
        self.progress = 1.0 if self.settled else 0.0

    # ---- the three calls

    def encode(self, denoiser, x, at):
        """(15.1) of x (B, L), without a gradient in stage two. -> (B, K, d)"""
        return to_float(denoiser(x, None, at=at))  # (B, K, d)

    def decode(self, denoiser, z, x, at):
        """Logits at `at` from z (B, K, d) at gamma_0, and from the given words. -> (N, V)"""
        return denoiser(z.float(), None, at=at, words=x)[:, :self.n_tokens]  # (N, V)

    def estimate(self, denoiser, z, t, at, x, fed=None):
        """h' at the times t (B, 1). fed (B, K, d): the last h', None for 0 -> (B, K, d)"""
        return self.to_h(self.output(denoiser, z, t, at, x, fed), z, t)  # (B, K, d)

    def guess(self, denoiser, z, t, at, x, fed=None):
        """h' in a walk. -> (B, K, d)"""
        return self.estimate(denoiser, z, t, at, x, fed)  # (B, K, d)

    def to_h(self, out, z, t):
        return out if self.outputs_h else from_velocity(z, out, self.gamma(t))  # (B, K, d)

    def output(self, denoiser, z, t, at, x, fed=None, **layout):
        """What the network says of z (B, K, d): v', or h'. -> (B, K, d)"""
        if self.self_condition:
            z = torch.cat([z, torch.zeros_like(z) if fed is None else fed], -1)  # (B, K, 2d)
        gamma = self.gamma(t).float()  # (B, 1)
        return to_float(denoiser(z.float(), gamma, at=at, words=x, **layout))  # (B, K, d)

    def gamma(self, t):
        return self.process.gamma(t)  # shape of t

    def ends(self):
        """gamma_0, gamma_1"""
        return [self.gamma(torch.tensor(t, dtype=torch.float64)) for t in (self.decode_at, 1.0)]

    def noisy(self, h, gamma, eps=None):
        """(15.2). h (B, K, d), gamma (B, 1) or () -> (B, K, d)"""
        eps = torch.randn(h.shape, device=h.device) if eps is None else eps  # (B, K, d)
        gamma = gamma.to(h.device, h.dtype).expand(h.shape[:-1])  # (B, K)
        return add_noise(h, gamma, eps)

    def for_decoder(self, h):
        """What the decoder reads: z_0, or h itself without noise. -> (B, K, d)"""
        return self.noisy(h, self.ends()[0]) if self.bounded else h  # (B, K, d)

    # ---- losses

    def loss(self, denoiser, x, frozen=None):
        """-log p(x | z_0) in stage one, the squared error of (15.4) in stage two. -> (B, L)"""
        at = free_tokens(x, frozen)  # (B, L)
        if self.progress < self.autoencoder:
            h = self.encode(denoiser, self.shown_to_encoder(x, at), at)  # (B, K, d)
            return self.word_nats(denoiser, h, x, at, self.shown_to_decoder(x, at))  # (B, L)
        with torch.no_grad():
            h = self.encode(denoiser, x, at)  # (B, K, d)
        return self.squared_error(denoiser, h, x, at)  # (B, L)

    def word_nats(self, denoiser, h, x, at, read=None):
        """-log p(x_l | z_0), the first term of (15.5). read (B, L): in place of x -> (B, L) nats"""
        read = x if read is None else read  # (B, L)
        logits = self.decode(denoiser, self.for_decoder(h), read, at)  # (N, V)
        return scatter_nats(cross_entropy(logits, x[at]), at)  # (B, L)

    def squared_error(self, denoiser, h, x, at):
        """(15.4) by `loss_weight`, the mean over K d numbers, at each free token. -> (B, L)"""
        t = self.decode_at + (1 - self.decode_at) * stratified(len(x), x.device)  # (B, 1)
        gamma, eps = self.gamma(t), torch.randn(h.shape, device=h.device)  # (B, 1), (B, K, d)
        z = self.noisy(h, gamma, eps)  # (B, K, d)
        fed = self.fed_back(denoiser, z, t, at, x)  # (B, K, d) or None
        out = self.output(denoiser, z, t, at, x, fed)  # (B, K, d)
        if self.outputs_h:
            error = self.loss_weight(gamma)[..., None] * (h - out).square()  # (B, K, d)
        else:  # as it stands, |v - v'|^2 loses no digits where 1 + SNR is large
            weight = self.loss_weight(gamma) / (1 + torch.exp(-gamma))  # (B, 1)
            error = weight[..., None] * (velocity(h, eps, gamma) - out).square()  # (B, K, d)
        return torch.where(at, error.mean((1, 2))[:, None], 0.0)  # (B, L)

    @torch.no_grad()
    def fed_back(self, denoiser, z, t, at, x, share=None):
        """h' of a first call for a share of the texts, 0 for the others. -> (B, K, d) or None"""
        share = self.self_condition if share is None else share
        if not self.self_condition:
            return None
        first = torch.rand(len(z), 1, 1, device=z.device) < share  # (B, 1, 1)
        return torch.where(first, self.estimate(denoiser, z, t, at, x), 0.0)  # (B, K, d)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (15.5): the words' own nats, and the rest spread over the free words of a
        text; without noise at the decoder what both stages minimize. -> (B, L) nats"""
        at = free_tokens(x, frozen)  # (B, L)
        h = self.encode(denoiser, x, at)  # (B, K, d)
        nats = self.word_nats(denoiser, h, x, at)  # (B, L)
        if not self.bounded:
            return nats + self.squared_error(denoiser, h, x, at)  # (B, L)
        return nats + spread_over(self.latent_nats(denoiser, h, x, at), at)  # (B, L)

    def latent_nats(self, denoiser, h, x, at):
        """The second and the third term of (15.5). -> (B,) nats"""
        ends = self.ends()
        gamma, weight = Logistic(ends, *SPREAD).draw(len(x), x.device)  # (B, 1) each
        t = self.process.schedule.time(gamma)  # (B, 1)
        z = self.noisy(h, gamma)  # (B, K, d)
        fed = self.fed_back(denoiser, z, t, at, x, share=1.0)  # (B, K, d) or None
        error = noise_nats(h, self.estimate(denoiser, z, t, at, x, fed), gamma)  # (B, K)
        return (weight * error + prior_nats(h, ends[1].to(h.device))).sum(-1)  # (B,)

    # ---- samples

    def prior(self, shape, device="cpu"):
        """Any words: the noise of a walk is drawn in `sample`. -> (B, L)"""
        return torch.zeros(shape, dtype=torch.long, device=device)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to z_0, where words are drawn; yields words (B, L) after each step."""
        yield from self.walk(denoiser, z, ~frozen, steps, sampler, to_probs)

    def walk(self, denoiser, x, at, steps, sampler, to_probs):
        """Write the words `at` of x (B, L); yields x after each step."""
        if not at.any():
            yield x
            return
        mover = DDPM(variance=self.variance) if isinstance(sampler, Ancestral) else sampler
        y, fed = torch.randn(self.shape(x), device=x.device), None  # (B, K, d)
        times = torch.linspace(1, self.decode_at, steps + 1, dtype=torch.float64, device=x.device)
        for i, (t, s) in enumerate(zip(times[:-1], times[1:]), 1):
            t, s = t.expand(len(x), 1), s.expand(len(x), 1)  # (B, 1) each
            fed = self.guess(denoiser, y, t, at, x, fed)  # (B, K, d)
            eps = torch.randn(y.shape, device=x.device)  # (B, K, d)
            y = mover.move(self.process, y, Prediction(None, fed), s, t, eps).to(fed.dtype)
            if i == steps:
                x = self.write(denoiser, y if self.bounded else fed, x, at, to_probs)  # (B, L)
            elif not self.ordered and i % -(-steps // SHOWN) == 0:  # what h' would be
                shown = self.decode(denoiser, signal(self.ends()[0])[0] * fed, x, at)  # (N, V)
                x = x.masked_scatter(at, shown.argmax(-1))  # (B, L)
            yield x

    def shape(self, x):
        """The shape of the latents of x (B, L). -> B, K, d"""
        return len(x), x.shape[1] if self.per_token else self.latents, self.dim

    def write(self, denoiser, z, x, at, to_probs):
        """Words at `at`, drawn from the decoder of z_0. -> (B, L)"""
        logits = self.decode(denoiser, z, x, at)  # (N, V)
        return x.masked_scatter(at, draw_from(to_probs, logits)[0])  # (B, L)

    @torch.no_grad()
    def measures(self, network, x, frozen=None, lengths=None):
        """Of texts: what the decoder makes of z_0, and the statistics of latents. The ends that
        fill up texts of some `lengths` (B,) are no words."""
        at = free_tokens(x, frozen)  # (B, L)
        h = self.encode(network, x, at)  # (B, K, d)
        found = self.write(network, self.for_decoder(h), x.masked_fill(at, 0), at, likeliest)
        place = torch.arange(x.shape[1], device=x.device)  # (L,)
        words = at if lengths is None else at & (place < lengths.to(x.device)[:, None])  # (B, L)
        right = ((found == x) & words).sum(-1) / words.sum(-1).clamp(min=1)  # (B,)
        whole = ((found == x) | ~at).all(-1).double()  # (B,)
        return [("reconstruction: words", right), ("reconstruction: whole texts", whole),
                ("variance of latents", h.square().mean((1, 2)))]

    # ---- the exact denoiser

    def oracle(self, language):
        """The exact denoiser of an autoencoder that is known: one vector a token, a row of a table.
        The decoder is exact for each word, so (15.6) holds; by default z_0 leaves 0.003 nats of a
        word open, and TC is less than all of them."""
        self.per_token, table = True, code_table(self.n_tokens, self.dim)  # (V, d)

        def denoiser(z, gamma, at=None, label=None, words=None, **layout):
            if not z.is_floating_point():
                return table.to(z.device)[z]  # (B, L, d)
            z = z[..., :self.dim].double()  # (B, L, d)
            noise = self.ends()[0] if gamma is None else gamma.double()  # () or (B, 1)
            evidence = log_evidence(z, noise.expand(z.shape[:2]), table.to(z.device))  # (B, L, V)
            p = self.posterior(language, as_likelihood(evidence), words, at, label)  # (B, L, V)
            if gamma is None:
                return select_rows(p.log(), at)
            h = p @ table.to(z.device)  # (B, L, d)
            return h if self.outputs_h else to_velocity(z, h, noise)  # (B, L, d)
        return denoiser

    def posterior(self, language, evidence, words, at, label):
        """p(x_l | z, given words) from q(z_l | x_l = v) (B, L, V). -> (B, L, V)"""
        evidence = torch.where(at[..., None], evidence, one_hot(words, self.n_tokens))  # (B, L, V)
        p = language.posterior(evidence, leave_one_out=False, topic=label)  # (B, L, V)
        return p.to(at.device)
