"""
What holds for every row of METHODS: a new row is proven here without a new test.

Samplers are in tests/samplers/test_sampler_table.py, the toy language is in test_oracle.py.
"""
from types import SimpleNamespace

import pytest
import torch
from bounds import above_entropy, mean_of_batches
from kinds import bounds_differ, first_with
from networks import randomize

import world
from checkpoints.build import build_network
from diffusion import Labeled
from flags import flags_of, load_row
from methods import METHODS, make_method
from samplers import SAMPLERS
from world import TEXTS, L, N, P

MODELS = [name for name in METHODS if not load_row(METHODS, name).classifies]
BOUNDED = [name for name in MODELS if load_row(METHODS, name).bounded]
each_method = pytest.mark.parametrize("name", METHODS)
each_model = pytest.mark.parametrize("name", MODELS)
each_bound = pytest.mark.parametrize("name", bounds_differ(BOUNDED))
ENTROPY = -(P * P.log()).sum()
# flags for the world: texts are one block, and few steps would cost more than the error
WORLD = dict(diffusion_block=L, diffusion_steps=1024, dim=4, self_condition=0.0)
# texts, for an error below 1 %: draws of gidd have heavy tails, any order is exact at the exact law
BATCH = {"gidd": 16_000, "udlm": 5000, "sedd": 5000, "d3pm": 5000, "ggm": 5000, "maria": 200,
         "flexmdm": 4000, "ld4lg": 4000, "sigma_gpt": 200, "eso_lm": 200}
# second values of flags that have no choices, and where one more than the default will not do
SECOND = dict(diffusion_block=6, clip="0.3,0.8", embedding="a/mdlm", noise_of="udlm", top_k=0,
              block_sizes="1,3", size_weights="4,3,2,1", mask_rate=0.15, positions=16,
              self_condition=0.25, scheduled=0.5, coupled=0.5, noise_growth=0.5, reinforce=1.0,
              known=0.5, rows_from="out/toy-plaid", noise_from="out/toy-plaid", trained_at=1.0,
              ar="another-ar", masked="out/toy-radd")  # runs of what stands behind the last - or /
FLAGS = [(name, flag) for name in METHODS for flag in flags_of(load_row(METHODS, name))]
FIRST = {name: (name, flag) for name, flag in reversed(FLAGS)}
BESIDE = {"noise_from": dict(noise_of="plaid")}  # what a flag needs
WORDS, LENGTH = 7, 12
NETWORK = dict(n_layer=2, n_head=2, n_embd=8, cond_dim=4, dropout=0.0, qk_norm=True,
               norm_bias=False, time_input="auto")


# ---- the bound

@each_bound
def test_the_bound_of_the_oracle_is_the_entropy_of_the_world(name):
    """In the mean over texts and noise, within 4.5 standard errors of less than 1 %."""
    method = world.make_world_method(name, N, **WORLD)
    more, error = above_entropy(method, BATCH.get(name, 2000), enough=0.008 * ENTROPY)
    assert error < 0.01 * ENTROPY and abs(more) < 4.5 * error + 1e-9, (more, error)


@each_bound
def test_what_is_not_given_bounds_the_conditional(name):
    """With the first token given, and an exact denoiser that knows it: H(x_2, x_3 | x_1), within
    4.5 standard errors of less than 1 %."""
    method = world.make_world_method(name, N, **WORLD)
    likelihood = method.likelihood

    def knows_the_first(z, t, frozen=None):
        if z.is_floating_point():  # of embeddings: t says so
            return likelihood(z, t)
        clean = torch.nn.functional.one_hot(z[:, :1].clamp(max=N - 1), N)  # (n, 1, N)
        return torch.cat([clean, likelihood(z, t)[:, 1:]], 1)  # (n, L, N)
    method.likelihood = knows_the_first
    exact = method.oracle(world.LANGUAGE)
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]  # (27,)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, BATCH.get(name, 2000), replacement=True)  # (n,)
        given = torch.tensor([True, False, False]).expand(len(of), -1)  # (n, L)
        nats = method.nelbo(exact, TEXTS[of], given)  # (n, L)
        assert (nats[:, 0] == 0).all()
        return nats.sum(-1) + (P / first)[of].log()  # (n,) nats above -log p(x_2, x_3 | x_1)
    more, error = mean_of_batches(draw, enough=0.008 * ENTROPY)
    assert error < 0.01 * ENTROPY and abs(more) < 4.5 * error + 1e-9, (more, error)


@each_bound
def test_any_other_denoiser_gives_more_in_the_world(name):
    """Sharper, flatter, or confused: on the same noise, each by five standard errors."""
    method = world.make_world_method(name, N, **WORLD)
    exact = method.oracle(world.LANGUAGE)
    vectors = {"ddpm", "bfn"} & {*(method.samplers or ())}
    n = 20_000 if BATCH.get(name, 0) >= 5000 or vectors else 5000
    x = TEXTS[torch.multinomial(P, n, replacement=True)]  # (n, L)

    def draw(change):
        torch.manual_seed(0)
        other = lambda *call, **layout: change(exact(*call, **layout).clamp(min=-30))
        return method.nelbo(other, x).sum(-1)  # (n,)
    least = draw(lambda logits: logits)
    for change in (lambda a: 1.7 * a, lambda a: 0.6 * a, lambda a: 0.7 * a + 0.3 * a.roll(1, -1)):
        more = draw(change) - least  # (n,)
        assert more.mean() > max(5 * more.std() / len(x) ** 0.5, 0.01)


@each_model
def test_a_method_is_exact_if_it_says_so(name):
    """Then its nelbo is -log p(x) of each text, without noise; else two draws differ."""
    method = world.make_world_method(name, N, **WORLD)
    draws = [method.nelbo(method.oracle(world.LANGUAGE), TEXTS).sum(-1) for _ in range(2)]
    assert torch.equal(*draws) == method.exact
    if method.exact:
        torch.testing.assert_close(draws[0], -P.log(), atol=1e-10, rtol=0)


# ---- training

def built(name, **flags):
    """A tiny method, and its network, as train.py makes them."""
    method = make_method(name, WORDS, **{"embedding": "out/toy-mdlm", **flags})
    method.on_data(world.Corpus())
    method.on_start(lambda flag, folder: another_run(folder))
    torch.manual_seed(0)
    n_classes = 3 if method.classifies else 0
    return method, build_network(SimpleNamespace(**NETWORK), method, n_classes)


def another_run(folder):
    """A model in the form of load_model, of the method whose name ends that of the folder."""
    torch.manual_seed(1)
    method = make_method(folder.replace("/", "-").rpartition("-")[2], WORDS)
    config = SimpleNamespace(**NETWORK, block_size=LENGTH)
    network = build_network(config, method)
    torch.nn.init.normal_(network.embed)  # no two symbols alike
    return SimpleNamespace(config=config, method=method, denoiser=network, classes=[])


def denoiser_of(method, network, n):
    return Labeled(network, torch.arange(n) % 3) if method.classifies else network


def trainer_of(network):
    """What `on_step` may read of a trainer."""
    config = SimpleNamespace(max_iters=4, eval_interval=1, eval_iters=1, batch_size=4, seed=1)
    data = SimpleNamespace(windows=lambda split, most: torch.randint(WORDS, (most, LENGTH)))
    return SimpleNamespace(config=config, data=data, average=network, model=network, device="cpu")


def per_token(nats, frozen=None):
    """The mean that a loss promises to its kernels: of texts, each per token that is not given."""
    if frozen is None:
        return nats.mean()
    return (nats.sum(-1) / (~frozen).sum(-1).clamp(min=1)).mean()


def texts(n=6, seed=1):
    """-> x (n, LENGTH), frozen (n, LENGTH): a text is given in full, another one not at all"""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(WORDS, (n, LENGTH), generator=g)
    frozen = torch.rand(n, LENGTH, generator=g) < 0.4
    frozen[0], frozen[1] = True, False
    return x, frozen


def values(name, flag):
    """Two values of a flag; all of its choices for the method that has it first."""
    f = flags_of(load_row(METHODS, name))[flag]
    if choices := f.metadata["choices"]:
        return choices if first_with(name, flag) == name else [choices[0], choices[-1]]
    if f.type is bool:
        return [False, True]
    if flag in SECOND:
        return [f.default, SECOND[flag]]
    return [f.default, f.default + 1 if f.type is int else f.default / 2]


@pytest.mark.parametrize("name, flag", FLAGS)
def test_two_values_of_every_flag_build_and_train_two_steps(name, flag):
    found, default = values(name, flag), flags_of(load_row(METHODS, name))[flag].default
    assert len(set(found)) >= 2
    for value in found:
        if value == default and (name, flag) != FIRST[name]:
            continue  # the same method again
        method, network = built(name, **{flag: value, **BESIDE.get(flag, {})})
        optimizer, (x, frozen) = torch.optim.SGD(network.parameters(), lr=0.1), texts()
        before = [p.clone() for p in network.parameters()]
        for step in range(2):
            method.on_step(step, trainer_of(network))
            given = frozen if step and not method.classifies else None
            loss = method.loss(denoiser_of(method, network, len(x)), x, given)
            optimizer.zero_grad()
            per_token(loss, given).backward()
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            assert loss.isfinite().all() and all(g.isfinite().all() for g in gradients)
            optimizer.step()
        assert any((p != q).any() for p, q in zip(before, network.parameters()))


@each_method
def test_every_weight_gets_a_finite_gradient(name):
    """If it is trained. From random weights, so that no gate is closed. (The bias of keys has none
    in a softmax.)"""
    method, network = built(name)
    (x, _), randomized = texts(24), randomize(network, std=0.2)
    torch.manual_seed(0)
    for step in (0, 3):  # the first and the last: a method may train in stages
        method.on_step(step, trainer_of(network))
        method.loss(denoiser_of(method, randomized, len(x)), x).mean().backward()
    for key, p in network.named_parameters():
        if not p.requires_grad:
            assert p.grad is None, key
            continue
        assert p.grad is not None and p.grad.isfinite().all() and (p.grad != 0).any(), key


@each_model
def test_given_tokens_are_never_scored(name):
    """Not in the loss and not in the bound, and a text that is given in full costs nothing."""
    method, network = built(name)
    randomize(network)
    x, frozen = texts(200)
    torch.manual_seed(0)
    for score in (method.loss, method.nelbo):
        nats = score(network, x, frozen)
        assert nats.shape == x.shape and nats.isfinite().all()
        assert (nats[frozen] == 0).all() and (nats[~frozen] != 0).any()
        assert nats[~frozen].mean() > 0


@each_method
def test_the_number_of_positions_is_fixed_if_a_method_says_so(name):
    """Then a network of fixed shapes is called at K indices, whatever the noise is."""
    method, network = built(name)
    if method.classifies:
        return  # it reads whole texts
    calls, (x, frozen) = [], texts(16)

    def spy(z, t, at=None, **layout):
        calls.append(at)
        return network(z, t, at=at, **layout)
    spy.fixed_shapes = True
    for seed in range(5):
        torch.manual_seed(seed)
        assert method.loss(spy, x, frozen).isfinite().all()
    assert all((at.dtype == torch.long) == method.fixed_positions for at in calls)
    if method.fixed_positions:
        assert len({len(at) for at in calls}) == 1


# ---- facts

@each_method
def test_what_a_checkpoint_holds_besides_flags_and_weights_restores_the_method(name):
    """The same noise gives the same loss, after a step of the trainer; most hold nothing."""
    flags = dict(clip_search=True, transition=values(name, "transition")[-1]) if (
        name, "transition") in FLAGS else dict(clip_search=True)
    (method, network), (x, _) = built(name, **flags), texts()
    method.on_step(2, trainer_of(network))
    other = make_method(name, WORDS, **flags)
    other.load_extra_state(method.extra_state())
    other.on_step(3, SimpleNamespace(config=SimpleNamespace(max_iters=6, eval_interval=5)))
    losses = []
    for each in (method, other):
        torch.manual_seed(2)
        losses.append(each.loss(denoiser_of(method, network, len(x)), x))
    assert torch.equal(*losses)


@each_model
def test_pure_noise_is_made_of_symbols_of_the_network(name):
    method = make_method(name, WORDS, **WORLD)
    noise = method.prior((50, 8))
    assert noise.dtype == torch.long and 0 <= noise.min() and noise.max() < method.vocab_size
    assert method.vocab_size >= method.n_tokens == WORDS


@each_method
def test_facts_name_what_there_is(name):
    method = make_method(name, WORDS)
    assert method.name == name and set(method.samplers or ()) <= set(SAMPLERS)
    assert (method.block_length or 1) >= 1 and method.count_states(12, 5) >= 1
    assert all(isinstance(getattr(method, fact), bool) for fact in (
        "uses_time", "bidirectional", "shardable", "exact", "bounded", "classifies",
        "fixed_positions", "one_by_one", "takes_steps", "counts_padding", "opens_masks",
        "scores_ratios", "left_to_right", "revises_text", "uniform_at_first"))
    assert method.bounded or method.unbounded_reason
    with pytest.raises(TypeError):
        type(method)(WORDS, no_such_flag=1)
