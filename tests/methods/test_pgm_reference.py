"""
PGM against its public code (branch text_pretrain, commit 8886193), number by number, to 1e-5.

partition_reference.npz holds masks, a tiny network of 2 + 2 blocks and its outputs, losses, and two
runs of its samplers with all that they drew. The network is compared in float64, since processors
round its float32 sums differently.
"""
import functools

import pytest
import torch
from references import RENAME, Figures

import diffusion
import model
from methods import make_method, pgm
from methods.pgm import PGM, Partition, rotary_angles_at
from samplers import unmasking
from samplers.unmasking import FirstHitting

figure = Figures("partition_reference")
NAMES = {"vocab_embed.embedding": "embed", "sigma_map.mlp.": "noise_mlp.",
         "encoder.blocks.": "blocks.", "decoder.group_swap.base_embedding": "query",
         "decoder.group_swap.": "swap.", "pre_query_norm": "norm", "query_processor": "q",
         "hidden_to_key_value": "kv", "output_linear": "out", "decoder.layers.": "decoder.",
         "q_norm1": "norm1", "kv_norm1": "norm_kv", "attn_qkv": "qkv", "attn_kv": "kv",
         "attn_q": "q", **RENAME}


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=tolerance, rtol=tolerance)


@functools.cache
def published():
    """The tiny network of the reference numbers, in float64."""
    weights = {"start": torch.zeros(0, 32), **figure.weights("pgm_dit/w/", NAMES)}
    net = Partition(12, n_layer=4, n_head=4, n_embd=32, cond_dim=8, n_start=0).eval()
    net.load_state_dict(weights)
    return net.double()


def test_the_network_is_the_published_one_in_the_training_pass():
    logits = published()(figure("pgm_dit/x"), group=figure("pgm_dit/group_idxs").bool())
    close(logits, figure("pgm_dit/train_logits"))


def test_the_network_is_the_published_one_on_packed_tokens_in_any_order_and_with_padding():
    net, x, clean = published(), figure("pgm_dit/x"), figure("pgm_dit/clean_positions")
    noisy, nothing = figure("pgm_dit/noisy_positions"), (None, None, None)
    states = net.states(x.gather(1, clean), clean, noisy, None, None, *nothing)
    close(net.head(states), figure("pgm_dit/inference_logits"))
    short = figure("pgm_dit/padded_concrete_lengths")
    real = lambda b, head, q, k: k < short[b]
    places, queries = figure("pgm_dit/padded_clean_positions"), torch.tensor([[1, 4, 5, 7]])
    padded = figure("pgm_dit/padded_x"), places, queries
    states = net.states(*padded, real, real, *nothing)
    close(net.head(states), figure("pgm_dit/padded_inference_logits"))


def test_the_network_packs_as_the_published_sampler_does_by_hand():
    net, x, clean = published(), figure("pgm_dit/x"), figure("pgm_dit/clean_positions")
    noisy = figure("pgm_dit/noisy_positions")
    z = torch.full_like(x, 11).scatter(1, clean, x.gather(1, clean))
    found = net(z, at=torch.zeros(1, 8, dtype=torch.bool).scatter(1, noisy, True))
    close(found, figure("pgm_dit/inference_logits")[0][noisy[0].argsort()])


def seen_masks(monkeypatch, run):
    """Which keys each query may look at, layer by layer, in the network calls of run()."""
    seen, plain = [], model.attention

    def spy(q, k, v, mask_mod=None, dropout=0.0, first=0, rotary=None):
        everything = torch.ones(len(q), q.shape[2], k.shape[2], dtype=torch.bool)
        seen.append(everything if mask_mod is None else model.dense_mask(mask_mod, q, k)[:, 0])
        return plain(q, k, v, mask_mod, dropout, first, rotary)
    for module in (model, pgm):
        monkeypatch.setattr(module, "attention", spy)
    run()
    return seen


def test_attention_may_look_where_the_published_masks_allow_it(monkeypatch):
    """Two encoder blocks, GroupSwap, two decoder blocks. Our packed rows end with the longest."""
    group, x = figure("pgm_mask/group_idxs").bool(), torch.randint(11, (2, 8))
    seen = seen_masks(monkeypatch, lambda: published()(x, group=group))
    assert all(torch.equal(mask, figure("pgm_mask/self")) for mask in seen[:2])
    assert all(torch.equal(mask, figure("pgm_mask/cross")) for mask in seen[2:]) and len(seen) == 5
    z = torch.where(torch.arange(8) < figure("pgm_mask/concrete_lengths")[:, None], x, 11)
    at = torch.arange(8).expand(2, -1) > 3 + (z[:, 3:4] < 11)
    seen = seen_masks(monkeypatch, lambda: published()(z, at=at))
    inner = figure("pgm_mask/inference_self")[:, :5, :5]
    assert all(torch.equal(mask, inner) for mask in seen[:2])
    for mask in seen[2:]:
        assert torch.equal(mask[:, :1], figure("pgm_mask/inference_cross")[:, :1, :5])


def test_positions_are_the_published_sinusoid():
    ours = torch.cat(rotary_angles_at(torch.arange(8)[None], 32), -1)[0]
    close(ours, figure("pgm_pos/sinusoid_L8_d32"))


def recorded_loss(monkeypatch, name, group, logits):
    """PGM.loss with the times and groups of the file, and the network's output."""
    u = figure(f"pgm_loss/{name}/tape/000_rand")
    t = 1e-3 + (1 - 1e-3) * ((u + torch.arange(2)) / 2 % 1)[:, None]  # (B, 1)
    monkeypatch.setattr(pgm, "stratified", lambda n, device: t)
    monkeypatch.setattr(pgm, "corrupt", lambda process, x, t, frozen: torch.where(
        group, process.mask, x))
    denoiser = lambda x, t, at, group: logits[at]
    return PGM(11, weighting="bound").loss(denoiser, figure("pgm_loss/x0"))


def test_the_loss_is_the_published_one(monkeypatch):
    group, logits = figure("pgm_loss/train/group_idxs").bool(), figure("pgm_loss/logits")
    nats = recorded_loss(monkeypatch, "train", group, logits)
    close(nats, figure("pgm_loss/train/token_nll"))
    close(nats.mean(), figure("pgm_loss/train/loss_mean"))
    one = torch.where(group, 2 * nats, 0.0)  # mdlm's bound: group 1 alone, without the 1/2
    close(one, figure("pgm_loss/eval/token_nll"))


def test_the_loss_is_that_of_a_masked_model_on_a_text_and_its_complement(monkeypatch):
    inputs, logits = (figure(f"pgm_loss/complement/{name}_2B") for name in ("net_input", "logits"))
    x = figure("pgm_loss/x0")
    group = inputs[:2] == 11
    both = torch.cat([torch.where(group, 11, x), torch.where(group, x, 11)])
    assert torch.equal(inputs, both)
    merged = torch.where(group[..., None], *logits.chunk(2))
    nats = recorded_loss(monkeypatch, "complement", group, merged)
    close(nats, figure("pgm_loss/complement/token_nll"))


@pytest.mark.parametrize("order", ["uniform", "non_uniform"])
def test_our_sampler_writes_what_the_published_one_does_from_the_same_draws(order, monkeypatch):
    """first-hitting with the recorded choice of places, and the recorded Gumbel noise."""
    prefix, steps = f"pgm_sample/{order}", []
    calls = sorted({key.split("/")[2] for key in figure.keys(f"{prefix}/call")})
    tapes = [figure(key) for key in figure.keys(f"{prefix}/tape")]
    races = [tape for tape in tapes if tape.ndim == 3]
    places = [figure(f"{prefix}/{call}/noisy_positions") for call in calls]
    ids = [figure(f"{prefix}/{call}/clean_positions") for call in calls]
    exist = [torch.zeros(2, 8, dtype=torch.bool).scatter(1, row, True) for row in ids]
    exist += [torch.ones(2, 8).bool()]

    def choose(score, k):
        steps.append(exist[len(steps) + 1] & ~exist[len(steps)])
        return steps[-1]

    def race(p):
        """Rows in reading order, as ours; the public code draws in the order of its places."""
        place, draws = places[len(steps) - 1], races[len(steps) - 1]
        u = torch.stack([draws[b, (place[b] == l).nonzero()[0, 0]]
                         for b, l in steps[-1].nonzero()])  # (N, 12)
        return (p / (1e-10 - (u[:, :11] + 1e-10).log())).argmax(-1)  # (N,)

    monkeypatch.setattr(unmasking, "highest", choose)
    monkeypatch.setattr(diffusion, "categorical", race)
    method = make_method("pgm", 11)
    frozen = torch.arange(8).expand(2, -1) == 0
    z = torch.where(frozen, 10, method.prior((2, 8)))
    run = list(method.sample(published(), z, frozen, len(calls), FirstHitting()))
    assert torch.equal(run[-1], figure(f"{prefix}/x")) and len(run) == len(calls)
    assert all(torch.equal(z < 11, then) for z, then in zip(run, exist[1:]))
