"""
Diffusion of Thoughts: its bound by sums, what its texts look like, and what its two ways of making
noise do to the best prediction. Reference figures: dot/* of tests/reference/dot_reference.npz, in a
world of 27 texts with other probabilities.
"""
from itertools import combinations, permutations
from types import SimpleNamespace

import pytest
import torch
from bounds import mean_of_batches
from references import Figures, same

import world
from flags import UserError
from methods import make_method
from model import Transformer
from world import L, N, P, TEXTS, chi_square, make_world_method, numbers, states

FIGURES = Figures("dot_reference")
MASK = N
DOT = make_world_method("dot", N)  # thoughts of 1 and 2 words
Z = states(DOT.process)  # (64, 3)
MASKED = Z == MASK  # (64, 3)
FITS = ((Z[:, None] == TEXTS) | MASKED[:, None]).all(-1)  # (64, 27) texts that z may have been
EXACT = world.by_state(DOT.oracle(world.LANGUAGE))


def predictions(joint):
    """p(x_l | z) from weights of texts (64, 27). -> (64, 3, 3)"""
    p = torch.stack([torch.stack([(joint * (TEXTS[:, l] == v)).sum(-1) for v in range(N)], -1)
                     for l in range(L)], 1)  # (64, 3, 3)
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)  # (64, 3, 3)


def noise_law(t):
    """q_t(z | x). -> (27, 64)"""
    k = MASKED.sum(-1).double()  # (64,)
    return FITS.T * t ** k * (1 - t) ** (L - k)  # (27, 64)


# ---- the bound

def test_all_thoughts_at_once_are_mdlm_bit_by_bit():
    torch.manual_seed(0)
    network = Transformer(8, 1, 2, 8)
    torch.nn.init.normal_(network.head.weight)
    x, frozen = torch.randint(7, (6, 9)), torch.rand(6, 9) < 0.3  # (6, 9) each
    for weighting in ("simple", "bound"):
        both = make_method("mdlm", 7, weighting=weighting), make_method(
            "dot", 7, weighting=weighting, passes="single")
        for name in ("loss", "nelbo"):
            for given in (None, frozen):
                nats = []
                for method in both:
                    torch.manual_seed(1)
                    nats.append(getattr(method, name)(network, x, given))
                assert torch.equal(*nats)


@pytest.mark.parametrize("given", [None, 1])
def test_draws_of_the_bound_of_thoughts_have_its_mean_for_any_denoiser(given):
    """(20.3) written out: of every text, thought, number of masks and choice of masks."""
    frozen = None if given is None else torch.arange(L) == given  # (L,)
    thoughts = [[l for l in part if l != given] for part in ([0], [1, 2])]
    n, exact = sum(map(len, thoughts)), torch.zeros(len(TEXTS), dtype=torch.float64)  # (27,)
    rough = lambda z, t, at=None: world.vandal(z, torch.full((1, 1), 0.5).double(), at)
    for i, part in enumerate(thoughts):
        behind = [l for later in thoughts[i + 1:] for l in later]
        for k in range(1, len(part) + 1):
            choices = list(combinations(part, k))
            for masks in choices:
                z = TEXTS.clone()  # (27, 3)
                z[:, [*masks, *behind]] = MASK
                log_p = rough(z, None).gather(-1, TEXTS[..., None])[..., 0]  # (27, 3)
                share = len(part) / n / len(part) / len(choices)
                exact -= share * n / k * log_p[:, list(masks)].sum(-1)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 4000, replacement=True)  # (n,)
        given = None if frozen is None else frozen.expand(len(of), -1)
        return DOT.nelbo(rough, TEXTS[of], given).double().sum(-1) - exact[of]  # (n,)
    more, error = mean_of_batches(draw)
    assert error < 0.01 and abs(more) < 4.5 * error


@pytest.mark.parametrize("name, options", [("nelbo", {}), ("loss", {}), ("loss", {"coupled": 1.0}),
                                           ("loss", {"scheduled": 1.0})])
def test_a_thought_is_learned_from_those_before_it_and_sees_nothing_of_later_ones(name, options):
    method = make_method("dot", 9, **options)
    method.on_data(SimpleNamespace(thoughts=(2, 3, 2)))
    x = torch.arange(200)[:, None] % 3 * 3 + torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 1, 1])  # (n, 10)
    thought = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])  # three words are the question
    frozen, seen = (torch.arange(10) < 3).expand(200, -1), []

    def spy(z, t, at=None):
        assert t.shape == (200, 1)
        if torch.is_grad_enabled():
            seen.append((z, at))
            return 50 * torch.nn.functional.one_hot(x[at], 10).float()  # it knows the answer
        return torch.randn(int(at.sum()), 10)
    torch.manual_seed(0)
    assert (getattr(method, name)(spy, x, frozen) < 1e-6).all()  # the target is x, whatever z is
    (z, at), = seen
    first = thought.expand_as(at).masked_fill(~at, 9).amin(-1)  # (n,)
    last = thought.expand_as(at).masked_fill(~at, -1).amax(-1)  # (n,)
    rows = at.any(-1)  # (n,) one that has masks
    z, at, x, first, last = (a[rows] for a in (z, at, x, first[:, None], last[:, None]))
    assert (z == x)[:, :3].all() and (at == (z == MASK + 6))[(thought <= last)].all()
    assert ((z == x) | (thought >= first)).all() and (z == 9)[thought > last + method.coupled].all()
    assert set(first.unique().tolist()) == {0, 1, 2} and not (at & (thought > last)).any()
    together = (first < last).double().mean()
    assert 0.2 < together < 0.9 if options.get("coupled") else together == 0
    wrong = ((z != x) & (z != 9)).any()
    assert wrong == bool(options.get("scheduled"))


# ---- scheduled sampling

def guess_law(u, x_theta):
    """x^ of (20.4) given x, from z_u. -> (27, 27)"""
    opened = torch.stack([torch.where(MASKED[:, l, None], x_theta[:, l][:, TEXTS[:, l]],
                                      (Z[:, l, None] == TEXTS[:, l]).double()) for l in range(L)])
    return noise_law(u) @ opened.prod(0)  # (27, 27)


def test_the_text_that_is_drawn_follows_its_law():
    """x^ of one text at one time, with the exact denoiser: by (20.4), integrated over u."""
    method, i, t = make_world_method("dot", N, passes="single", scheduled=1.0), 14, 0.3
    x_theta = EXACT(Z, torch.full((64, 1), 0.5)).exp().nan_to_num()  # (64, 3, 3)
    nodes = t + (1 - t) * (torch.arange(200).double() + 0.5) / 200  # (200,)
    law = torch.stack([guess_law(u, x_theta)[i] for u in nodes]).mean(0)  # (27,)
    torch.manual_seed(0)
    x = TEXTS[i].expand(20_000, -1)  # (n, 3)
    here = torch.ones_like(x, dtype=torch.bool)  # (n, 3)
    drawn = method.draw(EXACT, x, torch.full((len(x), 1), t), here, ~here)  # (n, 3)
    chi, freedom = chi_square(numbers(drawn, N), law)
    assert chi < freedom + 4 * (2 * freedom) ** 0.5 and (drawn != x).any(-1).double().mean() > 0.2
    method.share_drawn = 0.25
    drawn = method.draw(EXACT, x, torch.full((len(x), 1), t), here, ~here)  # (n, 3)
    chi, freedom = chi_square(numbers(drawn, N), 0.25 * law + 0.75 * (numbers(TEXTS, N) == i))
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


def any_order_bound(p, x_theta):
    """(3.1) in the world with probabilities p (27,), by sums. -> ()"""
    log_p = torch.stack([x_theta[:, l][:, TEXTS[:, l]] for l in range(L)], -1).log()  # (64, 27, 3)
    nats = -(MASKED[:, None] * torch.where(FITS[..., None], log_p, 0)).sum(-1)  # (64, 27)
    k = MASKED.sum(-1)  # (64,)
    ways = torch.tensor([1, 3, 3, 1])[k]  # (64,)
    weight = 1 / (k.clamp(min=1) * ways).double()  # (64,)
    return (nats * FITS * p * weight[:, None])[k > 0].sum()  # ()


def law_of_one_by_one(x_theta):
    """Texts that open one mask at a time, in random order. -> (27,)"""
    law, power = torch.zeros(len(TEXTS), dtype=torch.float64), 4 ** torch.arange(L).flip(0)
    for order in permutations(range(L)):
        p, z = torch.ones(len(TEXTS), dtype=torch.float64), torch.full_like(TEXTS, MASK)  # (27,)
        for l in order:
            p = p * x_theta[z @ power, l, TEXTS[:, l]]  # (27,)
            z[:, l] = TEXTS[:, l]
        law += p / 6
    return law  # (27,)


@pytest.mark.parametrize("kind, gold, more, far", [
    ("denoised", 0.95, 0.0013, 0.012), ("denoised", 0.5, 0.057, 0.116),
    ("scratch", 0.95, 0.0028, 0.018), ("scratch", 0.5, 0.113, 0.178)])
def test_scheduled_sampling_is_biased(kind, gold, more, far):
    """The best predictions under it, their bound above the entropy, and how far their texts are
    from the language. `denoised` is (20.4) in 8 levels, here by sums; `scratch` is the code, whose
    x^ tells nothing of x: its best predictions are those of the reference."""
    p = FIGURES("dot/p")  # (27,)
    best = FIGURES(f"dot/optimum_{kind}_gold{gold}")  # (64, 3, 3)
    if kind == "denoised":
        x_theta, joint, T = predictions(FITS * p), 0, 8  # (64, 3, 3)
        same_text = torch.eye(len(TEXTS)).double()  # (27, 27)
        laws = [guess_law((i + 1) / T, x_theta) for i in range(T)]  # (27, 27) each
        for i in range(T):
            later = laws[i + 1:] or [same_text]  # at t = 1 all is masked
            of = gold * same_text + (1 - gold) * sum(later) / len(later)  # (27, 27)
            joint = joint + T / (i + 1) * (of @ noise_law((i + 1) / T)).T * p  # (64, 27)
        same(predictions(joint)[MASKED], best[MASKED], 1e-10)
    entropy = -(p * p.log()).sum()  # ()
    assert abs(any_order_bound(p, predictions(FITS * p)) - entropy) < 1e-12
    above = any_order_bound(p, best)  # ()
    same(above, FIGURES(f"dot/bound_{kind}_gold{gold}"), 1e-10)
    assert abs(above - entropy - more) < 6e-5 * (1 + 9 * (gold < 0.9))
    law = law_of_one_by_one(best)  # (27,)
    same(law, FIGURES(f"dot/law_{kind}_gold{gold}"), 1e-10)
    assert abs((law - p).abs().sum() / 2 - far) < 6e-4


def losses(method, n=30_000):
    """The mean loss of the exact denoiser, and of a flatter one, on the same noise, which is made
    with the exact one. -> their difference, its standard error"""
    x, nats = TEXTS[torch.multinomial(P, n, replacement=True)], []  # (n, L)
    for flatter in (1.0, 0.8):
        scale = lambda a: a * flatter if torch.is_grad_enabled() else a
        torch.manual_seed(0)
        other = lambda z, t, at: scale(EXACT(z, None, at).clamp(min=-30))
        nats.append(method.loss(other, x).sum(-1))  # (n,)
    more = nats[1] - nats[0]  # (n,)
    return more.mean(), more.std() / n ** 0.5


def test_coupling_two_thoughts_does_not_move_the_optimum_and_scheduled_sampling_does():
    torch.manual_seed(0)
    more, error = losses(make_world_method("dot", N, coupled=1.0))
    assert more > 5 * error
    more, error = losses(make_world_method("dot", N, passes="single", scheduled=0.5))
    assert more < -5 * error


def test_the_share_of_drawn_texts_grows_and_no_gradient_passes_through_them():
    method = make_method("dot", 9, scheduled=0.4)
    trainer = SimpleNamespace(config=SimpleNamespace(max_iters=10))
    shares = [method.on_step(step, trainer) or method.share_drawn for step in (0, 5, 10)]
    assert shares == [0, 0.2, 0.4]
    calls = []

    def spy(z, t, at=None):
        calls.append(torch.is_grad_enabled())
        return torch.zeros(int(at.sum()), 10)
    x = torch.randint(9, (40, 6))
    method.loss(spy, x)
    assert calls == [False, True]
    method.on_step(0, trainer)
    method.loss(spy, x)
    assert calls == [False, True, True]
    fixed = make_method("dot", 9, scheduled=1.0)

    def network(z, t, at=None):
        assert at.dtype == torch.long and (calls.append(len(at)) or True)
        return torch.randn(len(at), 10)
    network.fixed_shapes = True
    torch.manual_seed(0)
    assert fixed.loss(network, x).isfinite().all() and calls[3] == x.numel()


# ---- flags and state

def test_thoughts_are_kept_with_the_weights_and_flags_that_clash_are_refused():
    method, again = make_method("dot", 9), make_method("dot", 9)
    method.on_data(SimpleNamespace(thoughts=(5, 5, 4)))
    again.load_extra_state(method.extra_state())
    assert again.lengths == (5, 5, 4) and method.first_choice == "thoughts"
    single = make_method("dot", 9, passes="single", scheduled=0.1)
    assert single.samplers is None and single.takes_steps and single.first_choice == "spread"
    with pytest.raises(UserError, match="--coupled joins two thoughts"):
        make_method("dot", 9, passes="single", coupled=0.1)
    with pytest.raises(UserError, match="leave out --dropout"):
        single.check(SimpleNamespace(dropout=0.1))
    method.check(SimpleNamespace(dropout=0.1))
    joined, data = make_method("dot", 9, coupled=0.1), "boolean-thoughts"
    joined.check(SimpleNamespace(data=data))
    with pytest.raises(UserError, match="and toy has none: leave it out, or try --data"):
        joined.check(SimpleNamespace(data="toy"))
