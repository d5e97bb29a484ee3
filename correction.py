"""
Taking words back: a text that is being written, or is written, is looked at again, and what seems wrong is redrawn.

psi.py corrects at random, whatever the word. Here the network's own belief chooses. c_l is the probability that it
gave a word when that was drawn, whatever --temperature and --top_p made of it:

    ReMDM conf     while masks open, word l is masked again with probability                                       (46)
                   sigma_l = min(1, (1 - alpha_s) / alpha_t) softmax_l(-c_l), over the words so far  (arXiv:2503.00307)
    top-k          draw all masks; of all words, new and old, the k with the largest c_l stay        (2302.05737)
    self-correct   the text is complete: draw all words anew at temperature 0.1, and of those that change put in the
                   one that is believed in most; until nothing changes                               (GIDD, 2503.04482)
    gibbs          the text is complete: redraw one word anywhere from p(x_l | all others)

Of these only `gibbs` leaves the model's law alone: a Gibbs sampler, it may run for ever, and mends what a fast sampler
got wrong. `self-correct` climbs to the nearest likely text, and the other two favour what is easy: better looking
texts, and less varied ones. x_theta at t = 0 is p(x_l | all others), for masks with x_l masked, else as it is.
"""
import torch

from diffusion import ancestral, categorical, draw_at, probabilities
from masked import highest

T_CORRECT, PATIENCE = 0.1, 32                                # self-correct: temperature; rounds without a better text
ROUNDS = {"gibbs": 32, "self-correct": 128}                  # words to redraw at most


def opened(denoiser, process, z, t, at, law):
    """Draw the tokens `at` (B, L) from x_theta. -> z (B, L), c: the network's belief in them (N,)"""
    new, c = draw_at(denoiser, z, t, at, law, process.n_tokens)                                     # (N,) each
    return z.masked_scatter(at, new), c                                                             # (B, L), (N,)


def remask(belief, z, process, room):
    """Eq. (46): the probability of each word to be masked again. belief (B, L); room (B, 1) -> (B, L)"""
    word = z != process.mask                                                                        # (B, L)
    share = (-belief).masked_fill(~word, -torch.inf).softmax(-1).nan_to_num()                       # (B, L)
    return room.clamp(max=1) * share                                                                # (B, L)


@torch.no_grad()
def remdm_conf(process, denoiser, z, frozen, steps, law=probabilities):
    """Walk in equal steps from masks to text; a step may mask words again, those first that it doubts."""
    coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)                        # (B, L)
    belief = torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)                   # (B, L) given
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)                   # (steps + 1,)
    for t, s in zip(times[:-1], times[1:]):
        alpha_t, alpha_s = process.alpha(t), process.alpha(s)
        opens = (z == process.mask) & (coin() < (alpha_s - alpha_t) / (1 - alpha_t))                # (B, L)
        again = coin() < remask(belief, z, process, ((1 - alpha_s) / alpha_t).expand(len(z), 1))    # (B, L)
        again = again & (z != process.mask)                                                         # (B, L)
        if opens.any():
            z, c = opened(denoiser, process, z, t.float().expand(len(z), 1), opens, law)            # (B, L), (N,)
            belief = belief.masked_scatter(opens, c)                                                # (B, L)
        z = z.masked_fill(again, process.mask)                                                      # (B, L)
        yield z


@torch.no_grad()
def top_k(process, denoiser, z, frozen, steps, law=probabilities):
    """Draw all masks in each step, and keep the words believed in most, of all that were ever drawn and kept."""
    n = (z == process.mask).sum(-1, keepdim=True)                                                   # (B, 1)
    belief = torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)                   # (B, L) given
    for left in range(steps - 1, -1, -1):
        masked = z == process.mask                                                                  # (B, L)
        if not masked.any():
            return
        t = masked.sum(-1, keepdim=True) / z.shape[1]                                               # (B, 1)
        z, c = opened(denoiser, process, z, t, masked, law)                                         # (B, L), (N,)
        belief = belief.masked_scatter(masked, c)                                                   # (B, L)
        z = z.masked_fill(~highest(belief, z.shape[1] - n * left // steps), process.mask)           # (B, L)
        yield z


def all_others(process, denoiser, z, at):
    """Logits of x_theta at t = 0 for the tokens `at` (B, L), one a text where noise is masks. -> (N, n_tokens)"""
    hidden = z.masked_fill(at, process.mask) if hasattr(process, "mask") else z                     # (B, L)
    return denoiser(hidden, torch.zeros(len(z), 1, device=z.device), at=at)[:, :process.n_tokens]   # (N, n_tokens)


@torch.no_grad()
def gibbs(process, denoiser, z, frozen, steps, law=probabilities, walk=ancestral, rounds=ROUNDS["gibbs"]):
    """`walk` to the end, then redraw one word of each text, anywhere, `rounds` times; yields z after each."""
    for z in walk(process, denoiser, z, frozen, steps, law):
        yield z
    for _ in range(rounds if not frozen.all() else 0):
        at = highest(torch.rand(z.shape, device=z.device).masked_fill(frozen, -1), 1) & ~frozen     # (B, L)
        z = z.masked_scatter(at, categorical(law(all_others(process, denoiser, z, at))))            # (B, L)
        yield z


@torch.no_grad()
def self_correct(process, denoiser, z, frozen, steps, law=probabilities, walk=ancestral,
                 rounds=ROUNDS["self-correct"]):
    """`walk` to the end, then up to `rounds` times put in the new word that is believed in most; yields z after each.

    For noise that makes wrong words: a network that saw masks alone believes whatever stands there. A text is done
    when no share of its words that are their own likeliest has been larger for PATIENCE rounds.
    """
    for z in walk(process, denoiser, z, frozen, steps, law):
        yield z
    best, since = torch.full((len(z),), -1.0, device=z.device), torch.zeros(len(z), device=z.device)    # (B,) each
    free = ~frozen                                                                                  # (B, L)
    for _ in range(rounds if free.any() else 0):
        logits = denoiser(z, torch.full((len(z), 1), 0.01, device=z.device), at=free)[:, :process.n_tokens]
        p = probabilities(logits, T_CORRECT)                                                        # (N, n_tokens)
        right = torch.zeros(z.shape, device=z.device).masked_scatter(free, (logits.argmax(-1) == z[free]).float())
        share = right.sum(-1) / free.sum(-1).clamp(min=1)                                           # (B,)
        since, best = torch.where(share > best, 0, since + 1), share.maximum(best)                  # (B,) each
        if (since >= PATIENCE).all():
            return
        new = categorical(p)                                                                        # (N,)
        gain = p.gather(-1, new[:, None])[:, 0].masked_fill(new == z[free], 0)                      # (N,)
        score = torch.zeros(z.shape, dtype=p.dtype, device=z.device).masked_scatter(free, gain)     # (B, L)
        put = highest(score, 1) & (score > 0) & (since < PATIENCE)[:, None]                         # (B, L)
        z = torch.where(put, z.masked_scatter(free, new), z)                                        # (B, L)
        yield z
