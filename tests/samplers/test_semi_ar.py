"""Semi-autoregressive decoding and Fast-dLLM's caches: published traces, rules, what is exact."""
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F

from diffusion import Absorbing, categorical, probabilities
from flags import UserError
from methods import make_method
from model import Transformer, attention, rotary_angles, rotate
from samplers import make_sampler
from samplers.base import highest
from samplers.semi_ar import SemiAR, above_threshold, within_factor

FIGURES = numpy.load(Path(__file__).parents[1] / "reference/block_reference.npz")
GREEDY = partial(probabilities, temperature=0)


def figure(name):
    return torch.from_numpy(FIGURES[name])


class LLaDA:
    """The tiny network of the published traces, called as ours is: RMS norms, gated feed-forward,
    rotary positions."""
    supports_cache = True

    def __init__(self):
        self.calls = 0

    def __call__(self, z, t, at=None, cache=None):
        self.calls += 1
        w = lambda name: figure(f"fast_net/w/model.transformer.{name}.weight")
        norm = lambda h, name: F.rms_norm(h, h.shape[-1:], w(name), 1e-5)
        heads = lambda h: h.unflatten(-1, (4, 8)).transpose(1, 2)  # (B, 4, L, 8)
        place = torch.arange(z.shape[1]) + (cache.start if cache else 0)  # (L,)
        rotary = rotary_angles(place, 8)
        h = w("wte")[z]  # (B, L, 32)
        for i in range(2):
            a = norm(h, f"blocks.{i}.attn_norm")  # (B, L, 32)
            q, k, v = (heads(a @ w(f"blocks.{i}.{x}_proj").T) for x in "qkv")  # (B, 4, L, 8) each
            q, k = rotate(q, *rotary), rotate(k, *rotary)  # (B, 4, L, 8) each
            k, v = cache.write(i, k, v) if cache else (k, v)
            mixed = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, L, 32)
            h = h + mixed @ w(f"blocks.{i}.attn_out").T  # (B, L, 32)
            a = norm(h, f"blocks.{i}.ff_norm")  # (B, L, 32)
            gate, up = (a @ w(f"blocks.{i}.{x}").T for x in ("ff_proj", "up_proj"))
            h = h + (F.silu(gate) * up) @ w(f"blocks.{i}.ff_out").T  # (B, L, 32)
        logits = norm(h, "ln_f") @ w("ff_out").T  # (B, L, 40)
        return logits if at is None else logits[at]


# ---- published figures

def test_the_network_of_the_traces_is_the_published_one():
    theirs = figure("fast_net/logits")  # (B, L, 40)
    torch.testing.assert_close(LLaDA()(figure("fast_net/x"), None), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["nocache", "prefix", "dual"])
@pytest.mark.parametrize("threshold", ["None", "0.9", "0.3", "0.1"])
def test_decoding_gives_the_published_tokens_in_no_more_calls(cache, threshold):
    """12 runs: 16 tokens after a prompt of 6, blocks of 4. A published block that is done in its
    first step costs a second call, which is not made here. (Its confidence counts the mask as a
    word; ours never does, and so is higher.)"""
    process = SimpleNamespace(mask=39, n_tokens=40)
    prompt, net, name = figure("fast_generate/prompt"), LLaDA(), f"{cache}_thr{threshold}"
    sampler = SemiAR(decode_block=4, cache=cache.replace("nocache", "none"),
                     threshold=0.0 if threshold == "None" else float(threshold))
    z = F.pad(prompt, (0, 16), value=39)  # (B, 22)
    *_, z = sampler(process, net, z, z < 39, 16, GREEDY)
    calls = int(figure(f"fast_generate/{name}/nfe"))
    assert torch.equal(z, figure(f"fast_generate/{name}/x")) and net.calls <= calls
    if threshold in ("None", "0.9", "0.3"):
        assert net.calls == calls


def test_the_published_rules_choose_these_masks():
    """Top three, and all above .9, .5 and .1, of the confidence in the likeliest word; the mask
    counts as a word there."""
    x, p = figure("fast_transfer/x"), figure("fast_transfer/logits").double().softmax(-1)
    confidence = torch.where(x == 8, p.amax(-1), -1.0)  # (2, 10)
    chosen = {"k3": highest(confidence, torch.tensor([[3], [2]])),
              "thr09": above_threshold(confidence, 0.9),
              "thr05": above_threshold(confidence, 0.5),
              "thr01": above_threshold(confidence, 0.1)}
    for rule, rows in chosen.items():
        assert torch.equal(rows, figure(f"fast_transfer/{rule}/transfer_index")), rule


def test_lladas_noisy_argmax_is_a_draw_from_the_sharpened_law():
    """Their argmax of exp(z) / (-log u)^T is a race whose winner has the distribution
    softmax(z / T), which is ours: 40,000 draws within 4.5 standard errors, and at T = 0 the
    likeliest word."""
    logits, n = figure("llada_gumbel/logits")[0, :1].double(), 40_000  # (1, V)
    torch.manual_seed(0)
    u = torch.rand(n, logits.shape[-1], dtype=torch.float64)  # (n, V)
    for T in (0.5, 1.0):
        race = (logits.exp() / (-u.log()) ** T).argmax(-1)  # (n,)
        p = probabilities(logits, T)[0]  # (V,)
        for draws in (race, categorical(p.expand(n, -1))):
            seen = torch.bincount(draws, minlength=len(p)) / n  # (V,)
            assert ((seen - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1 / n).all()
        theirs, u_theirs = figure(f"llada_gumbel/T{T}"), figure("llada_gumbel/u")
        ours = figure("llada_gumbel/logits").double().exp() / (-u_theirs.log()) ** T
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    likeliest = GREEDY(figure("llada_gumbel/logits")).argmax(-1)
    assert torch.equal(figure("llada_gumbel/T0.0").argmax(-1), likeliest)


# ---- the rules

def test_the_factor_rule_opens_the_largest_number_that_the_theorem_allows():
    """(3.8) against its definition, row by row; with factor 1, n words of confidence above 1 - e
    have (n + 1) e <= 1."""
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, 12, generator=generator).double() ** 0.1  # (200, 12) near 1
    confidence[:, ::3] = -1.0  # no masks
    for factor in (0.5, 1.0, 3.0, 100.0):
        for row, chosen in zip(confidence, within_factor(confidence, factor)):
            ranked = sorted((c for c in row.tolist() if c >= 0), reverse=True)
            allowed = [n for n in range(1, 9) if (n + 1) * (1 - ranked[n - 1]) < factor]
            most = max(allowed, default=1)
            assert chosen.sum() == most and (row[chosen] >= ranked[most - 1]).all()
    words = torch.tensor([0.95, 0.9, 0.8, 0.6]).double()  # (4,)
    # 4 x .2 < 1 <= 5 x .4
    assert within_factor(words[None], 1.0)[0].tolist() == [True, True, True, False]


# ---- our own network

def random_net():
    """A Transformer with random weights, those that start at zero too."""
    torch.manual_seed(0)
    net = Transformer(11, n_layer=2, n_head=2, n_embd=16, cond_dim=0).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def run(cache, net=None, steps=8, **options):
    """Two texts of 24 tokens, of which 5 in front and one later are given, in blocks of 8.

    -> their states, the first one, what is given
    """
    place = torch.arange(24).expand(2, -1)  # (2, 24)
    frozen = (place < 5) | (place == 20)  # (2, 24)
    z = torch.where(frozen, place % 10, 10)  # (2, 24)
    sampler = SemiAR(decode_block=8, cache=cache, **options)
    states = list(sampler(Absorbing(10), net or random_net(), z, frozen, steps, GREEDY))
    return states, z, frozen


@pytest.mark.parametrize("options", [dict(), dict(threshold=0.3), dict(factor=1.5)])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_given_tokens_survive_and_blocks_open_from_left_to_right(cache, options):
    states, given, frozen = run(cache, **options)
    assert (states[-1] < 10).all() and all((z[frozen] == given[frozen]).all() for z in states)
    assert len(states) <= SemiAR(decode_block=8, **options).count_states(24, 8)
    for z in states:
        for lo in (5, 13):  # nothing behind a block opens before it is done
            done = (z[:, lo:lo + 8] < 10).all()
            assert done or ((z[:, lo + 8:] == 10) | frozen[:, lo + 8:]).all()


def test_a_cache_is_exact_in_the_first_step_of_a_block_and_off_after_it_by_what_has_opened_since():
    """What the network says with a cache and without, in the same states."""
    net, calls = random_net(), []

    def recorded(z, t, at, cache=None):
        logits = net(z, t, at, cache=cache)
        calls.append((z.clone(), at, cache.start if cache else 0, logits))
        return logits
    recorded.supports_cache = True
    for cache in ("prefix", "dual"):
        calls.clear()
        run(cache, recorded)
        whole, errors = None, []
        for z, at, lo, logits in calls:
            first = z.shape[1] == 24 and lo == 0
            lo = 0 if first else lo
            whole = z if first else torch.cat([whole[:, :lo], z, whole[:, lo + z.shape[1]:]], 1)
            at = F.pad(at, (lo, 24 - at.shape[1] - lo))  # (2, 24)
            errors.append((first, (net(whole, None, at) - logits).abs().max().item()))
        assert max(off for first, off in errors if first) < 1e-5
        assert max(off for first, off in errors if not first) > 0.01
        assert len([first for first, _ in errors if first]) == 3  # blocks


@pytest.mark.parametrize("options", [dict(), dict(threshold=0.3), dict(factor=1.5)])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_text_with_another_prompt_beside_it_is_what_it_is_alone(cache, options):
    """Blocks follow the prompt of each text; a cache holds those that begin at the same place."""
    place, net = torch.arange(24), random_net().double()  # (24,)
    frozen = place < torch.tensor([5, 2, 9, 5])[:, None]  # (4, 24)
    z = torch.where(frozen, (place + torch.arange(4)[:, None]) % 10, 10)  # (4, 24)
    sampler = SemiAR(decode_block=8, cache=cache, **options)
    write = lambda rows: list(sampler(Absorbing(10), net, z[rows], frozen[rows], 9, GREEDY))
    states = write(slice(0, 4))
    assert len(states) <= sampler.count_states(24, 9)
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(1, 3)):
        assert torch.equal(write(rows)[-1], states[-1][rows])


def test_a_cached_step_reads_the_block_and_prefix_also_what_follows():
    sizes, net = [], random_net()

    def spy(z, t, at, cache=None):
        sizes.append(z.shape[1])
        return net(z, t, at, cache=cache)
    spy.supports_cache = True
    run("dual", spy, steps=6)  # blocks at 5, 13 and 21, two steps each
    run("prefix", spy, steps=6)
    assert sizes == [24, 8, 24, 8, 24, 3] + [24, 19, 24, 11, 24, 3]


def test_through_the_exact_denoiser_it_runs_without_a_cache_and_refuses_one_in_words():
    method, flat = make_method("mdlm", 10), lambda z, t, at: torch.zeros(int(at.sum()), 11)
    z, nothing = method.prior((2, 8)), torch.zeros(2, 8, dtype=torch.bool)  # (2, 8) each
    *_, text = method.sample(flat, z, nothing, 4, make_sampler("semi-ar", method))
    assert (text < 10).all()
    with pytest.raises(UserError, match="keeps no keys and values: --cache dual needs a network"):
        next(method.sample(flat, z, nothing, 4, make_sampler("semi-ar", method, cache="dual")))


def test_two_rules_at_once_are_refused_in_words():
    with pytest.raises(UserError, match="--threshold and --factor .*: give one"):
        make_sampler("semi-ar", make_method("mdlm", 5), threshold=0.9, factor=1.0)


def test_the_end_opens_last_needs_tokens_that_have_an_end():
    method, chars = make_method("mdlm", 5), SimpleNamespace(special_tokens_set=set())
    with pytest.raises(UserError, match="--eos_last needs tokens with an end of text"):
        SemiAR(eos_last=True).prepare(SimpleNamespace(method=method, encoding=chars))
