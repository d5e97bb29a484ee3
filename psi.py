"""
Psi-samplers: predict, and correct. For masks they are ReMDM (arXiv:2503.00307), for uniform noise Duo++ (2602.21185).

The walk of (3) never looks back at masks that it opened, and in many small steps it hardly revises a word. A Psi step
does either of two things to a token, and which one is a coin of probability kappa:

    predict    z_s ~ p(z_s | z_t)                                 the step of (3)
    correct    x ~ p(x | z_t), eq. (4);  z_s ~ alpha_s x + b_s    guess the end, then noise it again

    Psi(z_s | z_t) = kappa p(z_s | z_t) + (1 - kappa) [ alpha_s p(x | z_t) + b_s ]                              (10)

If z_t has the law q(z_t | x) and x_theta knows x, either line gives q(z_s | x), so any kappa keeps the marginals. And
p(x | z_t) is (3) itself with s = 0. So a corrected token takes the same lazy step, only all the way to s = 0, and is
then noised to s: each token has its own goal in time.

How often to correct (sigma = (1 - kappa) (1 - alpha_s) is ReMDM's chance that an open token is masked again):

    constant   kappa = 1 - eta
    cap        sigma = min(eta, (1 - alpha_s) / alpha_t)
    rescale    sigma = eta min(1, (1 - alpha_s) / alpha_t)
    loop       predict down to t = 0.1, stay there for half of all steps with sigma = eta, then predict on

and sigma is never more than 1 - alpha_s, since kappa is a probability.
(The public code of `rescale` multiplies by eta twice, and its last step in each phase of `loop` does nothing.)
"""
import torch

from diffusion import ancestral, probabilities, step

SCHEDULES = ["constant", "cap", "rescale", "loop"]
PLATEAU, DOWN, STAY = 0.1, 0.45, 0.5                         # loop: where it stays; shares of the steps


def kappa(schedule, eta, alpha_t, alpha_s):
    """The probability of a plain step of (3), from tensors alpha_t and alpha_s of one shape. -> same shape"""
    room = (1 - alpha_s) / alpha_t                           # more would mask what is not there
    sigma = {"constant": eta * (1 - alpha_s), "cap": room.clamp(max=eta), "rescale": eta * room.clamp(max=1),
             "loop": torch.full_like(room, eta)}[schedule]
    return torch.where(alpha_s < 1, 1 - sigma / (1 - alpha_s).clamp(min=1e-300), 1.0).clamp(0, 1)


def plan(process, schedule, eta, steps):
    """The times of the walk and kappa for each of its steps. -> t, s, kappa, each (steps,) float64"""
    if schedule != "loop":
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)                                # (steps + 1,)
        stays = torch.ones(steps, dtype=torch.bool)          # may correct at every step
    else:
        stay, down = round(STAY * steps), max(1, round(DOWN * steps))
        last = max(1, steps - stay - down)
        down, stay = min(down, steps - last), max(0, steps - last - down)
        ends = (1, PLATEAU, down), (PLATEAU, PLATEAU, stay), (PLATEAU, 0, last)
        times = [torch.linspace(a, b, n + 1, dtype=torch.float64)[1:] for a, b, n in ends]
        times = torch.cat([torch.ones(1, dtype=torch.float64), *times])                             # (steps + 1,)
        stays = times[1:] == times[:-1]                                                             # (steps,)
    t, s = times[:-1], times[1:]                                                                    # (steps,) each
    return t, s, torch.where(stays, kappa(schedule, eta, process.alpha(t), process.alpha(s)), 1.0)


def psi_step(process, denoiser, z, frozen, s, t, kappa, law=probabilities):
    """One draw of (10), as lazy as (3): a token that is noised again whatever the network says asks nothing."""
    corrects = torch.rand(z.shape, dtype=torch.float64, device=z.device) >= kappa                   # (B, L)
    to_noise = torch.rand(z.shape, dtype=torch.float64, device=z.device) >= process.alpha(s)        # (B, L)
    noised = corrects & to_noise & ~frozen                                                          # (B, L)
    z = step(process, denoiser, z, frozen | noised, torch.where(corrects, 0.0, s), t, law)          # (B, L)
    return torch.where(noised, process.draw_noise(s, z), z)                                         # (B, L)


def psi(process, denoiser, z, frozen, steps, law=probabilities, schedule="cap", eta=0.02):
    """Walk from t = 1 to 0 in steps of (10); yields z after each. With eta = 0 it is the walk of (3)."""
    for t, s, k in zip(*(row.to(z.device) for row in plan(process, schedule, eta, steps))):
        z = psi_step(process, denoiser, z, frozen, s.expand(len(z), 1), t.expand(len(z), 1), k, law)    # (B, L)
        yield z


@torch.no_grad()
def greedy_tail(process, denoiser, z, frozen, steps, law=probabilities, walk=ancestral):
    """`walk` to the end, and as the last of the steps the likeliest word at each token, given all others, at t = 0.

    That is the argmax of the leave-one-out law x_theta, not of p(x | z): near t = 0 the second holds each token's own
    evidence, with odds of V / t, and would keep all text as it is. x_theta asks what the *others* would have there,
    and so proofreads. Sure, and less varied: the entropy of texts falls, and must be given beside their likelihood.
    """
    for z in walk(process, denoiser, z, frozen, steps - 1, law) if steps > 1 else ():
        yield z
    t = torch.full((len(z), 1), 0.0 if steps > 1 else 1.0, device=z.device)                         # (B, 1)
    if not frozen.all():
        words = denoiser(z, t, at=~frozen)[:, :process.n_tokens].argmax(-1)                         # (N,)
        yield z.masked_scatter(~frozen, words)                                                      # (B, L)
