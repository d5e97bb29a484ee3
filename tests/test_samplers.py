"""Samplers draw the law that the theory says: single steps of a tiny world, walks through its oracle, the draws."""
import pytest
import torch
import world
from world import L, N, P, PROCESSES, TEXTS, numbers, surprise

from diffusion import categorical, probabilities, reverse, step
from methods import SAMPLERS, make_method
from sample import Counted

NOTHING = lambda n: torch.zeros(n, L, dtype=torch.bool)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("s, t", [(0.2, 0.5), (0.6, 0.65), (0.0, 0.3), (0.7, 0.999)])
def test_the_lazy_step_draws_exactly_the_reverse_law(name, s, t):
    """Candidates, sources, acceptance, all of it: 200,000 draws against (3), from three different z."""
    process, n = PROCESSES[name], 200_000
    torch.manual_seed(1)
    for z in ([0, 1, 2], [process.V - 1] * 3, [1, process.V - 1, 0]):
        z = torch.tensor([z])
        t_, s_ = torch.tensor([[t]], dtype=torch.float64), torch.tensor([[s]], dtype=torch.float64)
        x_theta = world.carried_over(process, world.vandal(z, t_).exp(), z)                              # (1, L, V)
        p = reverse(process, x_theta, z, s_, t_)[0]                                                      # (L, V)
        law = torch.einsum("i,j,k->ijk", *p).flatten()                                                   # (V^3,)
        denoiser = lambda z, time, at: world.vandal(z, time.double(), at)
        new = step(process, denoiser, z.expand(n, -1), NOTHING(n), s_.expand(n, 1), t_.expand(n, 1))     # (n, L)
        assert surprise(numbers(new, process.V), law) < 4.5


@pytest.mark.parametrize("method, sampler, steps, most", [
    ("mdlm", "first-hitting", 3, 0.0), ("mdlm", "ancestral", 128, 0.004), ("udlm", "ancestral", 128, 0.004),
    ("gidd", "ancestral", 128, 0.004)])
def test_many_steps_through_the_oracle_draw_the_data(method, sampler, steps, most):
    """Total variation distance to the 27 probabilities, against that of as many exact draws.

    128 steps may open two positions at once, which is worth 0.004 at most.
    """
    torch.manual_seed(0)
    m, n = make_method(method, N), 20_000
    distance = lambda draws: (torch.bincount(draws, minlength=27) / n - P).abs().sum() / 2
    chance = torch.stack([distance(torch.multinomial(P, n, replacement=True)) for _ in range(30)])
    if method == "mdlm":                                 # in one step, positions are drawn apart: far from the data
        *_, z = m.sample(world.oracle(m.process), m.prior((n, L)), NOTHING(n), 1)
        assert distance(numbers(z, N)) > 0.05
    *_, z = m.sample(world.oracle(m.process), m.prior((n, L)), NOTHING(n), steps, SAMPLERS[sampler])
    assert distance(numbers(z, N)) < chance.mean() + 4 * chance.std() + most


def test_left_to_right_through_the_oracle_draws_the_data():
    def predict(z, t, at):
        x, l = z[:, 1:], z.shape[1] - 1
        match = (TEXTS[None, :, :l] == x[:, None]).all(-1) * P                                           # (B, 27)
        law = torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1)                    # (B, N)
        return law[at[:, -1]].log()
    torch.manual_seed(0)
    m, n = make_method("ar", N), 40_000
    *_, z = m.sample(predict, m.prior((n, L)), NOTHING(n), 1)
    assert surprise(numbers(z, N), P) < 4.5


def rough(z, t, at=None):
    """A denoiser of 5 symbols that knows nothing, of the network's shape for any method."""
    logits = torch.randn(*z.shape, 6, generator=torch.Generator().manual_seed(0))
    return logits[..., :5] if at is None else logits[at]


@pytest.mark.parametrize("method, sampler", [
    ("ar", "ancestral"), ("mdlm", "ancestral"), ("mdlm", "first-hitting"), ("mdlm", "confidence"), ("mdlm", "psi"),
    ("udlm", "ancestral"), ("udlm", "psi"), ("gidd", "ancestral"), ("gidd", "psi"), ("duo", "ancestral")])
def test_given_tokens_always_survive_and_the_end_is_text(method, sampler):
    torch.manual_seed(0)
    m, given = make_method(method, 5), torch.randint(5, (20, 12))
    frozen = torch.rand(20, 12) < 0.4
    frozen[0], frozen[1] = True, False                   # rows with everything and with nothing given
    z = torch.where(frozen, given, m.prior(given.shape))
    for steps in (1, 3, 50):
        for z_step in m.sample(rough, z, frozen, steps, SAMPLERS[sampler]):
            assert (z_step[frozen] == given[frozen]).all()
        assert (z_step < 5).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_given_means_no_network_call(sampler):
    m, x = make_method("mdlm", 5), torch.randint(5, (4, 8))
    spy, frozen = Counted(rough), torch.ones_like(x, dtype=torch.bool)
    assert all((z == x).all() for z in m.sample(spy, x, frozen, 10, SAMPLERS[sampler])) and spy.calls == 0


def test_the_masked_sampler_asks_only_where_a_mask_opens_and_not_at_all_when_none_does():
    """512 tokens are scored once each, whatever the steps; 1,000 steps on 16 tokens make at most 16 calls."""
    m = make_method("mdlm", 5)
    for sampler in ("ancestral", "first-hitting"):
        spy = Counted(rough)
        list(m.sample(spy, m.prior((8, 64)), torch.zeros(8, 64, dtype=torch.bool), 20, SAMPLERS[sampler]))
        assert spy.positions == 8 * 64
        spy = Counted(rough)
        list(m.sample(spy, m.prior((1, 16)), torch.zeros(1, 16, dtype=torch.bool), 1000, SAMPLERS[sampler]))
        assert spy.calls <= 16


def test_the_uniform_sampler_asks_at_few_positions():
    """Thinning: over 128 steps each position is a candidate about 9.8 times, not 128; within 4.5 standard errors.

    At t = 1 a word says nothing of what it was: there only those are asked for that become text, one in 128."""
    torch.manual_seed(0)
    m, spy = make_method("udlm", 50), Counted(lambda z, t, at: torch.zeros(int(at.sum()), 50))
    list(m.sample(spy, m.prior((16, 64)), torch.zeros(16, 64, dtype=torch.bool), 128))
    t = torch.arange(1, 129) / 128
    moves = (1 / 128) / (t * (1 - t + 1 / 128))          # beta / b_t = (t - s) / (t (1 - s))
    moves[-1] = 1 / 128
    error = ((moves * (1 - moves)).sum() / (16 * 64)) ** 0.5
    assert abs(spy.positions / (16 * 64) - moves.sum()) < 4.5 * error


@pytest.mark.parametrize("sampler", ["first-hitting", "confidence"])
def test_orders_open_the_same_number_at_each_step(sampler):
    m = make_method("mdlm", 5)
    walk = m.sample(rough, m.prior((6, 20)), torch.zeros(6, 20, dtype=torch.bool), 5, SAMPLERS[sampler])
    opened = torch.stack([(z < 5).sum(-1) for z in walk], -1)                                           # (6, 5)
    assert opened.tolist() == [[4, 8, 12, 16, 20]] * 6


def test_confidence_opens_what_the_network_believes_in_most():
    """The network is sure of position 2 and of nothing else."""
    def sure_of_two(z, t, at):
        logits = torch.zeros(*z.shape, 6)
        logits[:, 2, 3] = 20.
        return logits[at]
    m = make_method("mdlm", 5)
    walk = m.sample(sure_of_two, m.prior((30, 6)), torch.zeros(30, 6, dtype=torch.bool), 6, SAMPLERS["confidence"])
    first = next(walk)
    assert (first[:, 2] == 3).all() and ((first < 5).sum(-1) == 1).all()


def test_the_model_is_told_the_true_noise_level():
    """While sampling, the share of masks is the time that goes with it, as it was in training.

    In the mean of 300 texts, which strays by up to 0.005; a time that is one step late would be 0.024 off, or 0.1.
    """
    torch.manual_seed(0)
    m = make_method("mdlm", 5)
    def spy(z, t, at):
        due = (z == 5).double().mean()
        if sampler == "first-hitting":                   # told when the next of n masks opens: the n-th smallest of
            due = due * 40 / 41                          # 40 uniform times, n/41 in the mean
        assert abs(due - t.double().mean()) < 0.02
        return rough(z, t, at)
    for sampler, steps in (("ancestral", 10), ("first-hitting", 40), ("confidence", 10)):
        list(m.sample(spy, m.prior((300, 40)), torch.zeros(300, 40, dtype=torch.bool), steps, SAMPLERS[sampler]))


def test_rare_symbols_own_exactly_their_slice(monkeypatch):
    """V = 50,000, all but one of 1e-8: the inverse CDF gives each symbol the u's of its own slice, up to its ends."""
    V = 50_000
    p = torch.full((V,), 1e-8, dtype=torch.float64)
    p[17] = 1 - (V - 1) * 1e-8
    cdf, rare = p.cumsum(-1), torch.cat([torch.arange(18, 18 + 60), torch.arange(V - 60, V)])
    for inside in (0.01, 0.5, 0.99):
        u = ((cdf[rare] - (1 - inside) * p[rare]) / cdf[-1])[:, None]
        monkeypatch.setattr(torch, "rand", lambda shape, dtype, device: u.to(dtype))     # float32 would miss the slice
        assert torch.equal(categorical(p.expand(len(rare), -1)), rare)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor([[1 - 2.0 ** -53]], dtype=torch.float64))
    dead_end = torch.tensor([[0.3, 0.7, 0.0]], dtype=torch.float64) / 3
    assert categorical(dead_end).item() == 1             # never a symbol of probability zero, not even by rounding


def test_rare_events_happen_as_often_as_they_should():
    """50,000 symbols of 2e-6 each beside a big one get a tenth of 10,000 draws, within 4.5 standard errors."""
    torch.manual_seed(0)
    V, n, rounds = 50_000, 400, 25
    p = torch.full((V,), 2e-6, dtype=torch.float64)
    p[0] = 1 - (V - 1) * 2e-6
    hits = sum(int((categorical(p.expand(n, -1)) != 0).sum()) for _ in range(rounds))
    expected = n * rounds * (V - 1) * 2e-6
    assert abs(hits - expected) < 4.5 * (expected * 0.9) ** 0.5


def test_temperature_and_nucleus_are_what_their_names_say():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    p = logits.double().softmax(-1)
    torch.testing.assert_close(probabilities(logits).float(), p.float())
    torch.testing.assert_close(probabilities(logits, 0.5).float(), (2 * logits).softmax(-1))
    assert probabilities(logits, 0).tolist() == [1, 0, 0, 0]
    nucleus = probabilities(logits, top_p=0.7)           # .64 + .24: the token that crosses .7 belongs to it
    torch.testing.assert_close(nucleus.float(), torch.tensor([p[0], p[1], 0, 0]).float() / (p[0] + p[1]).float())
    assert probabilities(logits.flip(0), top_p=0.1).tolist() == [0, 0, 0, 1]
    assert torch.equal(probabilities(logits.bfloat16()), probabilities(logits))          # widened before the softmax
