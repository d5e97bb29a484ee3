"""PGM: no token sees its own group, only tokens that exist are encoded, and it is still masked
diffusion. The public code: test_pgm_reference.py."""
import pytest
import torch
import torch.nn.functional as F
from bounds import close_in_the_mean, exact_bound
from networks import randomize

import world
from data.toy import ToyCorpus
from methods import make_method, pgm
from methods.pgm import PGM, Partition, group_weights, pack_rows, rotary_angles_at
from samplers import make_sampler
from samplers.generate import CallCounter
from samplers.unmasking import FirstHitting
from world import TEXTS, L, N, P

NETS = {"embeddings": dict(n_layer=1, decoder_share=1.0),
        "swap": dict(n_layer=2, decoder_share=0.0), "full": dict(),
        "no condition": dict(cond_dim=0), "qk_norm": dict(qk_norm=True),
        "one start": dict(n_start=1)}
each_net = pytest.mark.parametrize("options", NETS.values(), ids=NETS.keys())


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def random_net(seed=0, n_embd=16, **options):
    torch.manual_seed(seed)
    net = Partition(12, n_head=2, n_embd=n_embd, **{"n_layer": 4, "cond_dim": 8, **options})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval()


def random_case(B=6, L=9, seed=0):
    """Clean texts, and groups of every size: half, few, most, none, all, all but one."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.5, 0.2, 0.8, 0.0, 1.0, 0.5])[torch.arange(B) % 6, None]
    group = torch.rand(B, L, generator=g) < share
    group[5::6] = torch.arange(L) != L // 2
    return torch.randint(11, (B, L), generator=g), group


# ---- no leak

@each_net
def test_no_layer_lets_a_token_reach_the_states_that_predict_its_group(options):
    """Exact zeros. In the encoder a state depends on its own group alone, then on the other."""
    net, (x, group) = random_net(**options), random_case()
    embedded, states = F.one_hot(x, 12).float().requires_grad_(), []
    layers = [(True, block) for block in net.blocks]
    layers += [(False, layer) for layer in (net.swap, *net.decoder, net)]
    for own, layer in layers:
        layer.register_forward_hook(lambda layer, args, out, own=own: states.append((own, out)))
    net(embedded, torch.rand(6, 1), group=group)
    assert len(states) == len(layers)
    for own, state in states:
        for side in (group, ~group):
            total = state[side].square().sum()
            slope = torch.autograd.grad(total, embedded, retain_graph=True)[0].abs().sum(-1)
            reached = side if own else ~side
            assert (slope[~reached] == 0).all()
            assert (slope[reached & side.any(-1, keepdim=True)] > 0).all()


@each_net
def test_to_change_a_group_never_changes_a_bit_of_its_own_predictions(options):
    net, (x, group) = random_net(**options), random_case()
    logits = net(x, group=group)
    for side in (group, ~group):
        other = torch.where(side, (x + 1 + torch.randint(10, x.shape)) % 11, x)
        changed = net(other, group=group)
        assert torch.equal(changed[side], logits[side])
        moved = side.any(-1, keepdim=True) & ~side
        assert (changed[moved] != logits[moved]).any(-1).all()


@each_net
def test_packed_tokens_get_the_logits_of_the_training_pass_whatever_is_hidden(options, monkeypatch):
    """Rows of every length, also of none; together, and apart where lengths differ. In float64,
    since packed sums are rounded differently."""
    net, (x, group) = random_net(**options).double(), random_case(B=12)
    t, at = torch.rand(12, 1), group & (torch.rand(group.shape) < 0.6)
    at[7] = False  # a row without selected positions
    hidden_otherwise = torch.where(group, torch.randint(11, x.shape), x)
    z = torch.where(group, 11, x)
    for spread in (64, 0):
        monkeypatch.setattr(pgm, "SPREAD", spread)
        found = net(z, t, at=at)
        close(found, net(hidden_otherwise, t, group=group)[at], 1e-10)
        close(found, net(z, t)[at], 1e-10)
    assert net(z, t, at=at & False).shape == (0, 12)
    reads_t = (net(x, t, group=group) - net(x, 1 - t, group=group)).abs().max() > 1e-3
    assert reads_t == (net.noise_mlp is not None)


def test_packed_logits_depend_on_no_token_but_those_that_exist_in_their_row():
    """Exact zeros for the embedding of the mask, which pads shorter rows, and for other rows."""
    net = random_net()
    z = torch.tensor([[0, 11, 1, 11, 2, 3], [11, 4, 11, 11, 11, 11]])
    logits = net(z, at=z == 11)  # rows of 2 and of 5
    for rows, tokens in ((slice(0, 2), [0, 1, 2, 3]), (slice(2, 7), [4])):
        total = logits[rows].square().sum()
        slope = torch.autograd.grad(total, net.embed, retain_graph=True)[0].abs().sum(-1)
        assert (slope > 0).nonzero()[:, 0].tolist() == tokens


def test_a_packed_prediction_depends_neither_on_the_others_that_are_decoded_nor_on_the_batch():
    net, (x, group) = random_net().double(), random_case()
    z = torch.where(group, 11, x)
    every = net(z, at=group)
    for i, (b, l) in enumerate(group.nonzero().tolist()):
        one = torch.zeros(1, 9, dtype=torch.bool).scatter(1, torch.tensor([[l]]), True)
        close(net(z[b:b + 1], at=one)[0], every[i], 1e-10)
    assert len(every) == group.sum()


def test_the_distance_of_a_single_token_is_visible_and_ones_own_position_without_any():
    """Why there are two starts: with none, all attention goes to the one token, wherever it is."""
    for options, visible in ((dict(n_start=0), False), (dict(n_start=1), True), (dict(), True)):
        net, x = random_net(**options), torch.zeros(1, 8, dtype=torch.long)
        single = net(x, group=torch.arange(8)[None] != 3)[0, [0, 1, 6]]
        assert bool((single[0] - single[1:]).abs().max() > 1e-3) == visible
        if visible:
            empty = net(torch.full_like(x, 11), at=torch.ones(1, 8, dtype=torch.bool))
            differs = bool((empty[0] - empty[1:]).abs().max() > 1e-3)
            assert empty.isfinite().all() and differs == (not options)


def test_the_starts_are_at_positions_before_the_text():
    net, places = random_net(), torch.tensor([[4, 0, 7]])
    found = net.view(torch.zeros(1, 3, 16), places, places)
    for ours, at in ((found.rotary_q, [4, 0, 7]), (found.rotary_k, [-2, -1, 4, 0, 7])):
        exact = torch.cat(rotary_angles_at(torch.tensor([at]), 8), -1)
        close(torch.cat(ours, -1)[:, 0], exact)
    assert torch.equal(found.states[0, :2], net.start)


def test_packing_keeps_the_reading_order_and_pads_shorter_rows():
    u = torch.rand(5, 300, generator=torch.Generator().manual_seed(0))
    select = u < torch.arange(5)[:, None] / 5
    places, n = pack_rows(select)
    assert places.shape == (5, int(n.max())) and n.tolist() == select.sum(-1).tolist() and n[0] == 0
    for b in range(5):
        assert places[b, :n[b]].tolist() == select[b].nonzero()[:, 0].tolist()
        assert len(places[b].unique()) == n.max()
    assert pack_rows(select & False)[0].shape == (5, 1)


def test_with_qk_norm_the_size_of_queries_and_keys_does_not_matter_and_that_of_values_does():
    x, group = random_case()
    for qk_norm in (True, False):
        net = random_net(qk_norm=qk_norm)
        before = net(x, group=group)
        with torch.no_grad():
            for layer in (net.swap, *net.decoder):
                for p in (*layer.q.parameters(), *(p[:16] for p in layer.kv.parameters())):
                    p.mul_(7)
        assert torch.allclose(net(x, group=group), before, atol=1e-3) == qk_norm
        with torch.no_grad():
            net.swap.kv.weight[16:].mul_(2)
        assert not torch.allclose(net(x, group=group), before, atol=1e-3)


def test_a_fresh_network_predicts_uniformly_and_every_decoder_block_is_the_identity():
    for cond_dim in (0, 8):
        net, h = Partition(12, n_layer=4, n_head=2, n_embd=16, cond_dim=cond_dim), []
        net.swap.register_forward_hook(lambda layer, args, out: h.append(out))
        net.decoder[-1].register_forward_hook(lambda layer, args, out: h.append(out))
        x, group = random_case()
        assert torch.equal(net(x, group=group), torch.zeros(6, 9, 12)) and torch.equal(*h)


# ---- loss, bound and oracle

def test_the_weights_are_one_in_the_mean_and_simple_ones_are_bounded():
    """P(g = 1) w(t) + P(g = 0) w(1 - t) is 2, at every t for bound, in the mean for simple."""
    t = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    yes, no = torch.ones_like(t, dtype=torch.bool), torch.zeros_like(t, dtype=torch.bool)
    for weighting in ("bound", "simple"):
        mean = t * group_weights(yes, t, weighting) + (1 - t) * group_weights(no, t, weighting)
        close(mean.mean(), torch.tensor(2.0, dtype=torch.float64), 1e-6)
        assert weighting == "simple" or (mean - 2).abs().max() < 1e-9
    assert group_weights(torch.tensor([True, False]), t, "simple").max() < 6


def both_groups(denoiser):
    """A denoiser of masked texts, called as the network of pgm, at the noise of each group."""
    def called(x, t, at=None, group=None):
        if group is None:
            return denoiser(x, t, at)
        sides = [denoiser(torch.where(side, N, x), noise)
                 for side, noise in ((group, t), (~group, 1 - t))]
        return torch.where(group[..., None], *sides)[at]
    return called


def test_the_loss_on_both_groups_and_the_nelbo_are_the_bound_of_masked_diffusion():
    """In the mean, against the enumerated bound of a wrong denoiser that reads the time."""
    torch.manual_seed(0)
    method, denoiser = PGM(N, weighting="bound"), both_groups(world.vandal)
    target = exact_bound(method.process, world.vandal, nodes=200)[14]
    for score, n in ((method.loss, 20_000), (method.nelbo, 1000)):
        x = TEXTS[14].expand(n, -1)
        close_in_the_mean(lambda: score(denoiser, x).sum(-1), target, batches=22)


def test_given_tokens_are_never_scored_and_with_them_the_loss_bounds_the_conditional():
    """Through the exact denoiser -log p(x | x_0), in the mean of all texts, within 4.5 errors."""
    torch.manual_seed(0)
    method = PGM(N, weighting="bound")
    exact = both_groups(world.oracle(method.process))
    given = torch.tensor([True, False, False]).expand(400, -1)
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]  # (27,)
    for score in (method.loss, method.nelbo):
        nats = torch.stack([score(exact, x.expand(400, -1), given) for x in TEXTS])  # (27, 400, L)
        assert (nats[..., 0] == 0).all()
        draws = nats.sum(-1)  # (27, 400)
        error = (P ** 2 * draws.var(-1) / 400).sum() ** 0.5
        conditional = (P * (P / first).log()).sum()
        assert abs((P * draws.mean(-1)).sum() + conditional) < 4.5 * error < 0.2
    mixed = given.clone()
    mixed[::2] = False  # rows without given tokens are scored in both groups
    nats = PGM(N).loss(both_groups(world.vandal), TEXTS[5].expand(400, -1), mixed)
    assert (nats[1::2, 0] == 0).all() and (nats[::2] > 0).all()


def test_through_the_oracle_the_loss_on_both_groups_is_the_entropy():
    """The toy language: within four standard errors of at most half a percent, of 20 batches."""
    data = ToyCorpus(block_size=16)
    method = PGM(data.encoding.n_vocab, weighting="bound")
    exact, x = method.oracle(data.language), data.windows("val", 4000)
    nats = -data.language.log_prob(x) / 16  # (n,)
    torch.manual_seed(0)
    more = torch.stack([(method.loss(exact, part).mean(-1) - truth).mean()
                        for part, truth in zip(x.split(200), nats.split(200))])  # (20,)
    error = more.std() / len(more) ** 0.5
    assert error < 0.005 * nats.mean() and abs(more.mean()) < 4 * error


def test_the_evidence_of_the_oracle_is_flat_on_the_own_group():
    data = ToyCorpus(block_size=9)
    mask, x = data.encoding.n_vocab, data.windows("val", 6)
    exact, group = make_method("pgm", mask).oracle(data.language), random_case()[1]
    t = torch.rand(6, 1)
    log_p = exact(x, t, group=group)
    for side in (group, ~group):
        other = torch.where(side, torch.randint(mask, x.shape), x)
        assert torch.equal(exact(other, t, group=group)[side], log_p[side])
        close(log_p[side], exact(torch.where(side, mask, x), t, at=side), 1e-12)
        assert (exact(other, t, group=group)[~side] - log_p[~side]).abs().max() > 1e-3


# ---- sampling

@pytest.mark.parametrize("sampler", ["first-hitting", "ancestral", "psi", "confidence"])
def test_to_leave_out_what_does_not_exist_changes_no_sample(sampler):
    """The same draws as with the training pass at every step, in rows of different kinds."""
    net, method = randomize(random_net()).double(), make_method("pgm", 11)
    given = torch.randint(11, (5, 12))
    frozen = torch.rand(5, 12) < torch.tensor([0, 0.2, 0.5, 0.9, 1])[:, None]
    z = torch.where(frozen, given, method.prior((5, 12)))
    whole = lambda z, t, at: net(z, t, group=z == 11)[at]
    for steps in (1, 5, 40):
        runs = []
        for denoiser in (net, whole):
            torch.manual_seed(steps)
            sample = method.sample(denoiser, z, frozen, steps, make_sampler(sampler, method))
            runs.append(list(sample))
        assert len(runs[0]) == len(runs[1]) and all(map(torch.equal, *runs))
        assert (runs[0][-1] < 11).all()
        assert all((state[frozen] == given[frozen]).all() for state in runs[0])


def test_every_token_is_scored_once_and_the_encoder_sees_only_what_exists():
    """4 texts of 32 tokens in 8 steps: 4, 8, .. tokens exist, and at first one of padding."""
    net, method, sizes = CallCounter(random_net()), make_method("pgm", 11), []
    encoder = net.denoiser.blocks[0]
    encoder.register_forward_hook(lambda layer, args, out: sizes.append(tuple(out.shape[:2])))
    nothing = torch.zeros(4, 32, dtype=torch.bool)
    run = list(method.sample(net, method.prior((4, 32)), nothing, 8, FirstHitting()))
    assert sizes == [(4, 1)] + [(4, 4 * k) for k in range(1, 8)] and net.positions == 4 * 32
    assert [(z < 11).sum(-1).tolist() for z in run] == [[4 * k] * 4 for k in range(1, 9)]
    sizes.clear()
    net(run[3], None, at=(run[3] == 11) & (torch.arange(4)[:, None] < 3))
    assert sizes == [(3, 16)]  # a row without selected positions is not encoded


def test_rows_that_differ_much_are_not_padded_to_the_longest():
    net, sizes = random_net(), []
    net.blocks[0].register_forward_hook(lambda layer, args, out: sizes.append(out.shape[:2]))
    lengths = torch.tensor([[0], [60], [70], [210], [300], [399]])
    net(torch.where(torch.arange(400) < lengths, 1, 11), at=torch.arange(400).expand(6, -1) == 399)
    assert sorted(sizes) == [(1, 1), (2, 70), (3, 399)]


@pytest.mark.parametrize("sampler, steps, most", [
    ("first-hitting", 3, 0.0), ("ancestral", 48, 0.001)])
def test_many_steps_through_the_oracle_draw_the_data_and_one_does_not(sampler, steps, most):
    """Chi-square distance to the 27 probabilities, within 4 standard errors."""
    torch.manual_seed(0)
    method, n = make_method("pgm", N), 8_000
    denoiser, nothing = method.oracle(world.LANGUAGE), torch.zeros(n, L, dtype=torch.bool)

    def distance(steps):
        *_, z = method.sample(denoiser, method.prior((n, L)), nothing, steps,
                              make_sampler(sampler, method))
        return world.distance(world.numbers(z, N), P)
    (far, error), (near, little) = distance(1), distance(steps)
    assert far > 0.01 + 4 * error and near < 4 * little + most
