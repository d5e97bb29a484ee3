"""PGM: no token sees its own group, only what exists is encoded, and it is still masked diffusion."""
import pytest
import torch
import torch.nn.functional as F
import world
from test_theory import close_in_the_mean, exact_bound
from world import L, N, P, TEXTS

import partition
from data.toy import ToyCorpus
from masked import first_hitting
from methods import make_method, make_sampler
from oracle import oracle
from partition import PGM, Partition, angles, pack, weights
from sample import Counted

def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def random_net(seed=0, n_embd=16, **options):
    """Every weight random, so that nothing is hidden behind a closed gate."""
    torch.manual_seed(seed)
    net = Partition(12, n_head=2, n_embd=n_embd, **{"n_layer": 4, "cond_dim": 8, **options}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def random_case(B=6, L=9, seed=0):
    """Clean texts, and groups of every size: half, few, most, none, all, one."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.5, 0.2, 0.8, 0.0, 1.0, 0.5])[torch.arange(B) % 6, None]
    group = torch.rand(B, L, generator=g) < share
    group[5::6] = torch.arange(L) != L // 2
    return torch.randint(11, (B, L), generator=g), group


NETS = {"embeddings": dict(n_layer=1, decoder_share=1.0), "swap": dict(n_layer=2, decoder_share=0.0),
        "full": dict(), "no condition": dict(cond_dim=0), "qk_norm": dict(qk_norm=True), "one start": dict(n_start=1)}
each_net = pytest.mark.parametrize("options", NETS.values(), ids=NETS.keys())


# ---- no leak

@each_net
def test_no_layer_lets_a_token_reach_the_states_that_predict_its_group(options):
    """Exact zeros. In the encoder a state depends on its own group alone, from GroupSwap on only on the other."""
    net, (x, group) = random_net(**options), random_case()
    embedded, states = F.one_hot(x, 12).float().requires_grad_(), []
    layers = [(True, block) for block in net.blocks] + [(False, layer) for layer in (net.swap, *net.decoder, net)]
    for own, layer in layers:
        layer.register_forward_hook(lambda layer, args, out, own=own: states.append((own, out)))
    net(embedded, torch.rand(6, 1), group=group)
    assert len(states) == len(layers)
    for own, state in states:
        for side in (group, ~group):
            felt = torch.autograd.grad(state[side].square().sum(), embedded, retain_graph=True)[0].abs().sum(-1)
            reached = side if own else ~side
            assert (felt[~reached] == 0).all() and (felt[reached & side.any(-1, keepdim=True)] > 0).all()


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
    """Rows of every length, also of none; together, and split where lengths differ much."""
    net, (x, group) = random_net(**options), random_case(B=12)
    t = torch.rand(12, 1)
    at = group & (torch.rand(group.shape) < 0.6)
    at[7] = False                                            # a row that asks nothing
    hidden_otherwise = torch.where(group, torch.randint(11, x.shape), x)
    for spread in (64, 0):
        monkeypatch.setattr(partition, "SPREAD", spread)
        found = net(torch.where(group, 11, x), t, at=at)
        close(found, net(hidden_otherwise, t, group=group)[at], 1e-6)
        close(found, net(torch.where(group, 11, x), t)[at], 1e-6)
    assert net(torch.where(group, 11, x), t, at=at & False).shape == (0, 12)
    told = (net(x, t, group=group) - net(x, 1 - t, group=group)).abs().max() > 1e-3
    assert told == (net.noise_mlp is not None)


def test_packed_logits_feel_no_token_but_those_that_exist_in_their_row():
    """Exact zeros for the mask's embedding, with which shorter rows are filled up, and for what the others hold."""
    net = random_net()
    z = torch.tensor([[0, 11, 1, 11, 2, 3], [11, 4, 11, 11, 11, 11]])
    logits = net(z, at=z == 11)                              # rows of 2 and of 5
    for rows, tokens in ((slice(0, 2), [0, 1, 2, 3]), (slice(2, 7), [4])):
        felt = torch.autograd.grad(logits[rows].square().sum(), net.embed, retain_graph=True)[0].abs().sum(-1)
        assert (felt > 0).nonzero()[:, 0].tolist() == tokens


def test_a_packed_prediction_does_not_depend_on_which_others_are_asked_nor_on_the_batch():
    net, (x, group) = random_net(), random_case()
    z, every = torch.where(group, 11, x), net(torch.where(group, 11, x), at=group)
    row = group.nonzero()[:, 0]
    for i, (b, l) in enumerate(group.nonzero().tolist()):
        one = torch.zeros(1, 9, dtype=torch.bool).scatter(1, torch.tensor([[l]]), True)
        close(net(z[b:b + 1], at=one)[0], every[i], 1e-6)
    assert len(every) == len(row)


def test_a_lonely_token_is_seen_from_its_distance_and_nothing_from_ones_own_place():
    """Why there are two starts: with none, all attention goes to the one token, wherever it is."""
    for options, tells in ((dict(n_start=0), False), (dict(n_start=1), True), (dict(), True)):
        net, x = random_net(**options), torch.zeros(1, 8, dtype=torch.long)
        lonely = net(x, group=torch.arange(8)[None] != 3)[0, [0, 1, 6]]
        assert bool((lonely[0] - lonely[1:]).abs().max() > 1e-3) == tells
        if tells:
            empty = net(torch.full_like(x, 11), at=torch.ones(1, 8, dtype=torch.bool))
            assert empty.isfinite().all() and bool((empty[0] - empty[1:]).abs().max() > 1e-3) == (not options)


def test_the_starts_stand_before_the_text():
    net, places = random_net(), torch.tensor([[4, 0, 7]])
    found = net.view(torch.zeros(1, 3, 16), places, places)
    for ours, at in ((found.rotary_q, [4, 0, 7]), (found.rotary_k, [-2, -1, 4, 0, 7])):
        close(torch.cat(ours, -1)[:, 0], torch.cat(angles(torch.tensor([at]), 8), -1))
    assert torch.equal(found.states[0, :2], net.start)


def test_packing_keeps_the_reading_order_and_fills_up_shorter_rows():
    select = torch.rand(5, 300, generator=torch.Generator().manual_seed(0)) < torch.arange(5)[:, None] / 5
    places, n = pack(select)
    assert places.shape == (5, int(n.max())) and n.tolist() == select.sum(-1).tolist() and n[0] == 0
    for b in range(5):
        assert places[b, :n[b]].tolist() == select[b].nonzero()[:, 0].tolist() and len(places[b].unique()) == n.max()
    assert pack(select & False)[0].shape == (5, 1)


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
    """(22): P(g = 1) w(t) + P(g = 0) w(1 - t) = 2 at every t for the bound, in the mean over t for simple."""
    t = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    yes, no = torch.ones_like(t, dtype=torch.bool), torch.zeros_like(t, dtype=torch.bool)
    for weighting in ("bound", "simple"):
        mean = t * weights(yes, t, weighting) + (1 - t) * weights(no, t, weighting)
        close(mean.mean(), torch.tensor(2.0, dtype=torch.float64), 1e-6)
        assert weighting == "simple" or (mean - 2).abs().max() < 1e-9
    assert weights(torch.tensor([True, False]), t, "simple").max() < 6


def both_groups(denoiser):
    """A denoiser of masked texts in the clothes of pgm's network, at the noise level of each group."""
    def called(x, t, at=None, group=None):
        if group is None:
            return denoiser(x, t, at)
        sides = [denoiser(torch.where(side, N, x), noise) for side, noise in ((group, t), (~group, 1 - t))]
        return torch.where(group[..., None], *sides)[at]
    return called


def test_the_loss_on_both_groups_and_the_nelbo_are_the_bound_of_masked_diffusion():
    """In the mean, against the enumerated bound; with a wrong denoiser that watches its neighbours and the clock."""
    torch.manual_seed(0)
    method, x = PGM(N, weighting="bound"), TEXTS[14].expand(20_000, -1)
    target = exact_bound(method.process, world.vandal, nodes=200)[14]
    for score in (method.loss, method.nelbo):
        close_in_the_mean(torch.cat([score(both_groups(world.vandal), x).sum(-1) for _ in range(22)]), target)


def test_given_tokens_are_never_scored_and_with_them_the_loss_bounds_the_conditional():
    """Through the exact denoiser: -log p(x | x_0) in the mean of all texts, within 4.5 standard errors."""
    torch.manual_seed(0)
    method, exact = PGM(N, weighting="bound"), both_groups(world.oracle(PGM(N).process))
    given = torch.tensor([True, False, False]).expand(400, -1)
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(N)])[TEXTS[:, 0]]                     # (27,)
    for score in (method.loss, method.nelbo):
        nats = torch.stack([score(exact, x.expand(400, -1), given) for x in TEXTS])                     # (27, 400, L)
        assert (nats[..., 0] == 0).all()
        draws = nats.sum(-1)
        error = (P ** 2 * draws.var(-1) / 400).sum() ** 0.5
        assert abs((P * draws.mean(-1)).sum() + (P * (P / first).log()).sum()) < 4.5 * error < 0.2
    mixed = given.clone()
    mixed[::2] = False                                       # rows that have nothing given are scored in both groups
    nats = PGM(N).loss(both_groups(world.vandal), TEXTS[5].expand(400, -1), mixed)
    assert (nats[1::2, 0] == 0).all() and (nats[::2] > 0).all()


def test_the_oracle_in_pgms_clothes_makes_the_loss_the_entropy():
    """The toy language, both groups at once: within four standard errors of at most half a percent."""
    corpus = ToyCorpus(block_size=16)
    method = PGM(corpus.encoding.n_vocab, weighting="bound")
    exact, x = oracle(corpus.language, method), corpus.windows("val", 2500)
    entropy, entropy_error = corpus.language.entropy(16)
    torch.manual_seed(0)
    nats = torch.stack([method.loss(exact, x).mean(-1) for _ in range(4)]).mean(0)                      # (n,)
    error = nats.std() / len(nats) ** 0.5
    assert error < 0.005 * entropy and abs(nats.mean() - entropy) < 4 * (error ** 2 + entropy_error ** 2) ** 0.5


def test_the_oracles_evidence_is_flat_on_the_own_group():
    corpus = ToyCorpus(block_size=9)
    exact, x = oracle(corpus.language, make_method("pgm", corpus.encoding.n_vocab)), corpus.windows("val", 6)
    group, t = random_case()[1], torch.rand(6, 1)
    law, mask = exact(x, t, group=group), corpus.encoding.n_vocab
    for side in (group, ~group):
        other = torch.where(side, torch.randint(mask, x.shape), x)
        assert torch.equal(exact(other, t, group=group)[side], law[side])
        close(law[side], exact(torch.where(side, mask, x), t, at=side), 1e-12)
        assert (exact(other, t, group=group)[~side] - law[~side]).abs().max() > 1e-3


# ---- sampling

@pytest.mark.parametrize("sampler", ["first-hitting", "ancestral", "psi", "confidence"])
def test_to_leave_out_what_does_not_exist_changes_no_sample(sampler):
    """The same draws as with the training pass at every step; with rows at different places."""
    net, method = random_net(), make_method("pgm", 11)
    given, frozen = torch.randint(11, (5, 12)), torch.rand(5, 12) < torch.tensor([0, 0.2, 0.5, 0.9, 1])[:, None]
    z = torch.where(frozen, given, method.prior((5, 12)))
    whole = lambda z, t, at: net(z, t, group=z == 11)[at]
    for steps in (1, 5, 40):
        walks = []
        for denoiser in (net, whole):
            torch.manual_seed(steps)
            walks.append(list(method.sample(denoiser, z, frozen, steps, make_sampler(sampler, "pgm"))))
        assert len(walks[0]) == len(walks[1]) and all(map(torch.equal, *walks))
        assert (walks[0][-1] < 11).all() and all((z_step[frozen] == given[frozen]).all() for z_step in walks[0])


def test_every_token_is_scored_once_and_the_encoder_sees_only_what_exists():
    """4 texts of 32 tokens in 8 steps: 4, 8, .. tokens are there, and none before the first step but the padding."""
    net, method, sizes = Counted(random_net()), make_method("pgm", 11), []
    net.denoiser.blocks[0].register_forward_hook(lambda layer, args, out: sizes.append(tuple(out.shape[:2])))
    walk = list(method.sample(net, method.prior((4, 32)), torch.zeros(4, 32, dtype=torch.bool), 8, first_hitting))
    assert sizes == [(4, 1)] + [(4, 4 * k) for k in range(1, 8)] and net.positions == 4 * 32
    assert [(z < 11).sum(-1).tolist() for z in walk] == [[4 * k] * 4 for k in range(1, 9)]
    sizes.clear()
    net(walk[3], None, at=(walk[3] == 11) & (torch.arange(4)[:, None] < 3))
    assert sizes == [(3, 16)]                                # a row that asks nothing is not encoded


def test_rows_that_differ_much_are_not_filled_up_to_the_longest():
    net, sizes = random_net(), []
    net.blocks[0].register_forward_hook(lambda layer, args, out: sizes.append(tuple(out.shape[:2])))
    z = torch.where(torch.arange(400) < torch.tensor([[0], [60], [70], [210], [300], [399]]), 1, 11)
    net(z, at=torch.arange(400).expand(6, -1) == 399)
    assert sorted(sizes) == [(1, 1), (2, 70), (3, 399)]


@pytest.mark.parametrize("sampler, steps, most", [("first-hitting", 3, 0.0), ("ancestral", 48, 0.01)])
def test_many_steps_through_the_oracle_draw_the_data(sampler, steps, most):
    """Total variation distance to the 27 probabilities, against that of as many exact draws; far off in one step."""
    torch.manual_seed(0)
    method, n = make_method("pgm", N), 8_000
    distance = lambda z: (torch.bincount((z * torch.tensor([9, 3, 1])).sum(-1), minlength=27) / n - P).abs().sum() / 2
    chance = torch.stack([distance(TEXTS[torch.multinomial(P, n, replacement=True)]) for _ in range(30)])
    walk = lambda steps: list(method.sample(both_groups(world.oracle(method.process)), method.prior((n, L)),
                                            torch.zeros(n, L, dtype=torch.bool), steps, make_sampler(sampler, "pgm")))
    assert distance(walk(1)[-1]) > 0.05
    assert distance(walk(steps)[-1]) < chance.mean() + 4 * chance.std() + most
