"""Steps of a flow in the enumerated world: their marginals, their rates, whole ways to text."""
import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close
from test_psi import times
from world import L, N, from_texts, numbers, surprise

from diffusion import Absorbing, Uniform, posterior_x0, probabilities
from flags import UserError
from methods import make_method
from methods.dfm import FullPosterior
from samplers import make_sampler
from samplers.flow import Flow, draw_words

PROCESSES = {"mask": Absorbing(N), "uniform": Uniform(N)}
each_process = pytest.mark.parametrize("name", PROCESSES)
each_rate = pytest.mark.parametrize("redraw_rate", ["ends", "end"])


def law(flow, process, p, z, s, t):
    """Probabilities of z_s of a step: p (B, L, N) is p(x_l | z). -> (B, L, V)"""
    jump, again = flow.chances(process, s[0, 0], t[0, 0])  # () each
    symbols, here = torch.arange(process.V), F.one_hot(z, process.V)  # (V,), (B, L, V)
    p = F.pad(p, (0, process.V - N))  # (B, L, V)
    if process.text_stays:
        p = torch.where((z == process.mask)[..., None], p, here)  # (B, L, V)
    level = t if flow.form == "rates" and s[0, 0] > 0 else s  # (B, 1)
    noisy = process.alpha(level)[..., None] * p + process.b(level[..., None], symbols)  # (B, L, V)
    return again * noisy + (1 - again) * (jump * p + (1 - jump) * here)  # (B, L, V)


def vandals_posterior(process, z, t):
    return posterior_x0(process, world.vandal(z, t).exp(), z, t).nan_to_num()  # (B, L, N)


# ---- one step

@each_process
@each_rate
@pytest.mark.parametrize("eta", [0.0, 0.5, 3.0])
def test_any_redraws_keep_the_marginals_in_steps_of_any_length(name, redraw_rate, eta):
    """sum_z q(z_t | x) p(z_s | z_t) = q(z_s | x), in exact sums, where p knows x."""
    process, flow = PROCESSES[name], Flow(eta=eta, redraw_rate=redraw_rate)
    z, symbols = torch.arange(process.V)[:, None], torch.arange(process.V)  # (V, 1), (V,)
    for s, t in (times(0.2, 0.5), times(0.0, 0.7), times(0.3, 1.0)):
        for x in torch.eye(N).double():
            q = lambda time: process.alpha(time) * F.pad(x, (0, process.V - N)) + process.b(
                time, symbols)  # (1, V)
            rows = law(flow, process, x.expand(process.V, 1, N), z, s, t)[:, 0]  # (V, V)
            close(q(t) @ rows, q(s))


def test_what_others_say_becomes_the_posterior_before_a_word_is_drawn():
    process, z = Uniform(N), torch.tensor([[0, 1, 2], [2, 2, 0]])  # (2, L)
    at, t = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool(), torch.full((2, 1), 0.4).double()
    seen = []

    def spy(logits):
        seen.append(logits.softmax(-1).double())
        return probabilities(logits)
    draw_words(process, lambda z, t, at: world.vandal(z, t.double())[at], z, t.float(), at, spy)
    close(seen[0], vandals_posterior(process, z, t.float().double())[at], 1e-6)


@each_rate
def test_short_steps_have_the_rates(redraw_rate):
    """(14.26), of both forms; under masks those of the end are Campbell's."""
    process, eta, h = Absorbing(N), 0.8, 1e-6
    for u in (0.2, 0.6, 0.9):
        t = torch.tensor(1 - u, dtype=torch.float64)  # ()
        again = eta / (u * (1 - u)) if redraw_rate == "ends" else eta / (1 - u)
        for form in ("exact", "rates"):
            flow = Flow(form, eta, redraw_rate)
            jump, redrawn = (float(a) / h for a in flow.chances(process, t - h, t))
            assert jump == pytest.approx(1 / (1 - u), rel=1e-4)
            assert redrawn == pytest.approx(again, rel=1e-4)
        if redraw_rate == "end":
            assert jump + redrawn * u == pytest.approx((1 + eta * u) / (1 - u), rel=1e-4)
            assert redrawn * (1 - u) == pytest.approx(eta, rel=1e-4)


# ---- whole ways

def law_after(flow, process, steps):
    """The distribution of texts from noise with the exact posterior, as a product. -> (V^3,)"""
    z, exact = world.states(process), world.oracle(process, leave_one_out=False)
    p = (z == process.V - 1).all(-1).double()  # (V^3,) all masks
    p = torch.full_like(p, 1 / len(p)) if process.mask is None else p  # (V^3,)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64).clamp(max=1 - 1e-9)  # (n + 1,)
    for t, s in zip(grid[:-1], grid[1:]):
        t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (V^3, 1) each
        rows = law(flow, process, exact(z, t).exp().nan_to_num(), z, s, t)  # (V^3, L, V)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (V^3,)
    return p


@pytest.mark.parametrize("name, flags, table", [
    ("mask", {}, [0.318, 0.047, 0.006]), ("mask", dict(eta=1.0), [0.318, 0.055, 0.008]),
    ("uniform", {}, [0.318, 0.064, 0.008]), ("uniform", dict(eta=1.0), [0.318, 0.079, 0.013]),
    ("uniform", dict(form="rates"), [0.318, 0.074, 0.016])])
def test_many_steps_end_in_the_language(name, flags, table):
    """The table: total variation from the 27 probabilities after 1, 8 and 64 steps."""
    process = PROCESSES[name]
    far = [from_texts(law_after(Flow(**flags), process, n), process.V) for n in (1, 8, 64)]
    assert [round(a, 3) for a in far] == table


@pytest.mark.parametrize("name, flags", [
    ("mask", dict(eta=0.7)), ("uniform", {}), ("uniform", dict(eta=0.7, redraw_rate="end")),
    ("uniform", dict(eta=0.7, form="rates"))])
def test_texts_have_the_law_of_their_steps(name, flags):
    """20,000 texts in three steps, by what the others say and by the posterior itself."""
    process, flow, n = PROCESSES[name], Flow(**flags), 20_000
    p, z = law_after(flow, process, 3), torch.full((n, L), process.V - 1)  # (V^3,), (n, L)
    torch.manual_seed(0)
    for own in (False, True):
        denoiser = world.by_state(world.oracle(process, leave_one_out=not own))
        z = process.draw_noise(1.0, z)  # (n, L)
        *_, end = flow(process, FullPosterior(denoiser) if own else denoiser, z,
                       torch.zeros_like(z).bool(), 3)
        assert abs(surprise(numbers(end, process.V), p)) < 4.5


def test_it_refuses_noise_that_changes_its_kind_and_none_at_all():
    for method, says in (("gidd", "needs one kind of noise at all times, and gidd mixes two"),
                         ("ar", "--sampler flow does not work with ar")):
        with pytest.raises(UserError, match=says):
            make_sampler("flow", make_method(method, 5))


def test_redraws_revise_text_that_steps_without_them_leave():
    process, z = Absorbing(N), torch.full((200, L), N)
    changed = []
    for eta in (0.0, 2.0):
        torch.manual_seed(0)
        nothing, flow = torch.zeros_like(z).bool(), Flow(eta=eta)
        states = list(flow(process, world.vandal, z, nothing, 20))
        changed.append(any(((a < N) & (a != b)).any() for a, b in zip(states, states[1:])))
        assert flow.rewrites == changed[-1]
    assert changed == [False, True]
