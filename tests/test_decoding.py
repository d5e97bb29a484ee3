"""Semi-autoregressive decoding and the caches of Fast-dLLM: the published traces, each rule, what is exact."""
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
from test_model import random_net

from correction import top_k
from data import BadInput
from decoding import by_factor, semi_ar, surer_than
from diffusion import categorical, probabilities
from masked import Absorbing, confidence, highest, transfer
from methods import make_method, make_sampler
from model import attention, rotary_angles, rotate

FIGURES = numpy.load(Path(__file__).parent / "block_reference.npz")
GREEDY = partial(probabilities, temperature=0)


def figure(name):
    return torch.from_numpy(FIGURES[name])


class LLaDA:
    """The tiny network of the published traces, called as ours is: RMS norms, gated feed-forward, rotary positions."""
    caches = True

    def __init__(self):
        self.calls = 0

    def __call__(self, z, t, at=None, cache=None):
        self.calls += 1
        w = lambda name: figure(f"fast_net/w/model.transformer.{name}.weight")
        norm = lambda h, name: F.rms_norm(h, h.shape[-1:], w(name), 1e-5)
        heads = lambda h: h.unflatten(-1, (4, 8)).transpose(1, 2)                                       # (B, 4, L, 8)
        rotary = rotary_angles(torch.arange(z.shape[1]) + (cache.start if cache else 0), 8)
        h = w("wte")[z]                                                                                 # (B, L, 32)
        for i in range(2):
            a = norm(h, f"blocks.{i}.attn_norm")
            q, k, v = (heads(a @ w(f"blocks.{i}.{x}_proj").T) for x in "qkv")
            q, k = rotate(q, *rotary), rotate(k, *rotary)
            k, v = cache.write(i, k, v) if cache else (k, v)
            h = h + attention(q, k, v).transpose(1, 2).flatten(2) @ w(f"blocks.{i}.attn_out").T
            a = norm(h, f"blocks.{i}.ff_norm")
            gate, up = (a @ w(f"blocks.{i}.{x}").T for x in ("ff_proj", "up_proj"))
            h = h + (F.silu(gate) * up) @ w(f"blocks.{i}.ff_out").T
        logits = norm(h, "ln_f") @ w("ff_out").T                                                        # (B, L, 40)
        return logits if at is None else logits[at]


def test_the_network_of_the_traces_is_the_published_one():
    torch.testing.assert_close(LLaDA()(figure("fast_net/x"), None), figure("fast_net/logits"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["nocache", "prefix", "dual"])
@pytest.mark.parametrize("threshold", ["None", "0.9", "0.3", "0.1"])
def test_decoding_gives_the_published_tokens_in_no_more_calls(cache, threshold):
    """12 runs: 16 tokens behind a prompt of 6, blocks of 4. A published block that is done in its first step costs a
    second call, which is not made here. (Its belief counts the mask as a word; ours never does, and so is higher.)"""
    process = SimpleNamespace(mask=39, n_tokens=40)
    prompt, net, name = figure("fast_generate/prompt"), LLaDA(), f"fast_generate/{cache}_thr{threshold}"
    z = F.pad(prompt, (0, 16), value=39)
    *_, z = semi_ar(process, net, z, z < 39, 16, GREEDY, 4, cache.replace("nocache", "none"),
                    0.0 if threshold == "None" else float(threshold))
    assert torch.equal(z, figure(f"{name}/x")) and net.calls <= int(figure(f"{name}/nfe"))
    if threshold in ("None", "0.9", "0.3"):
        assert net.calls == int(figure(f"{name}/nfe"))


def test_the_published_rules_choose_these_masks():
    """Top three, and all above .9, .5 and .1, of the belief in the likeliest word; the mask counts as a word there."""
    x, p = figure("fast_transfer/x"), figure("fast_transfer/logits").double().softmax(-1)
    belief = torch.where(x == 8, p.amax(-1), -1.0)                                                      # (2, 10)
    chosen = {"k3": highest(belief, torch.tensor([[3], [2]])), "thr09": surer_than(belief, 0.9),
              "thr05": surer_than(belief, 0.5), "thr01": surer_than(belief, 0.1)}
    for rule, rows in chosen.items():
        assert torch.equal(rows, figure(f"fast_transfer/{rule}/transfer_index")), rule


@pytest.mark.parametrize("name", ["n10_steps4", "n7_steps7", "n3_steps5", "n32_steps8", "n13_steps1", "n0_steps3",
                                  "batched_n9_n6_steps4"])
def test_the_share_of_the_masks_that_a_step_opens_is_lladas_schedule(name):
    theirs = figure(f"llada_transfer/{name}")                # (B, steps)
    left = theirs.sum(-1)                                                                               # (B,)
    for step in range(theirs.shape[1]):
        opens = transfer(left, theirs.shape[1] - step)
        assert torch.equal(opens.long(), theirs[:, step])
        left = left - opens


def test_lladas_noisy_argmax_is_a_draw_from_the_sharpened_law():
    """Their argmax of exp(z) / (-log u)^T: a race whose winner has the law softmax(z / T), which is ours; by 40,000
    draws within 4.5 standard errors, and at T = 0 the likeliest word."""
    logits, n = figure("llada_gumbel/logits")[0, :1].double(), 40_000
    torch.manual_seed(0)
    u = torch.rand(n, logits.shape[-1], dtype=torch.float64)
    for T in (0.5, 1.0):
        race = (logits.exp() / (-u.log()) ** T).argmax(-1)
        law = probabilities(logits, T)[0]
        for draws in (race, categorical(law.expand(n, -1))):
            seen = torch.bincount(draws, minlength=len(law)) / n
            assert ((seen - law).abs() < 4.5 * (law * (1 - law) / n).sqrt() + 1 / n).all()
        theirs = figure(f"llada_gumbel/T{T}")
        ours = figure("llada_gumbel/logits").double().exp() / (-figure("llada_gumbel/u").log()) ** T
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert torch.equal(figure("llada_gumbel/T0.0").argmax(-1), GREEDY(figure("llada_gumbel/logits")).argmax(-1))


def test_the_factor_rule_opens_the_largest_number_that_the_theorem_allows():
    """Against its definition, row by row; with factor 1, n words of belief above 1 - e have (n + 1) e <= 1."""
    belief = torch.rand(200, 12, generator=torch.Generator().manual_seed(0)).double() ** 0.1            # near 1
    belief[:, ::3] = -1.0                                                                               # no masks
    for factor in (0.5, 1.0, 3.0, 100.0):
        for row, chosen in zip(belief, by_factor(belief, factor)):
            ranked = sorted((b for b in row.tolist() if b >= 0), reverse=True)
            most = max([n for n in range(1, 9) if (n + 1) * (1 - ranked[n - 1]) < factor], default=1)
            assert chosen.sum() == most and (row[chosen] >= ranked[most - 1]).all()
    words = torch.tensor([0.95, 0.9, 0.8, 0.6]).double()
    assert by_factor(words[None], 1.0)[0].tolist() == [True, True, True, False]      # 4 x .2 < 1 <= 5 x .4


# ---- on our own network

def run(cache, net=None, seed=0, steps=8, law=GREEDY, **options):
    net = net or random_net(cond_dim=0)
    frozen = torch.arange(24).expand(2, -1) % 24 < 5
    frozen = frozen | (torch.arange(24) == 20)
    z = torch.where(frozen, torch.arange(24).expand(2, -1) % 10, 10)
    torch.manual_seed(seed)
    return list(semi_ar(Absorbing(10), net, z, frozen, steps, law, 8, cache, **options)), z, frozen


@pytest.mark.parametrize("options", [dict(), dict(threshold=0.3), dict(factor=1.5)])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_given_tokens_survive_and_blocks_open_from_left_to_right(cache, options):
    walk, given, frozen = run(cache, **options)
    assert (walk[-1] < 10).all() and all((z[frozen] == given[frozen]).all() for z in walk)
    for z in walk:
        for lo in (5, 13):                                   # nothing behind a block opens before it is done
            assert (z[:, lo:lo + 8] < 10).all() or ((z[:, lo + 8:] == 10) | frozen[:, lo + 8:]).all()


def test_a_cache_is_exact_in_the_first_step_of_a_block_and_off_after_it_by_what_has_opened_since():
    """What the network says, asked with a cache and without, at the same states."""
    net, states = random_net(cond_dim=0), []

    def asked(z, t, at, cache=None):
        logits = net(z, t, at, cache=cache)
        states.append((z.clone(), at, cache.start if cache else 0, logits))
        return logits
    asked.caches = True
    for cache in ("prefix", "dual"):
        states.clear()
        run(cache, asked)
        whole, errors = None, []
        for z, at, lo, logits in states:
            first = z.shape[1] == 24 and lo == 0
            whole = z if first else torch.cat([whole[:, :lo], z, whole[:, lo + z.shape[1]:]], 1)
            full = torch.nn.functional.pad(at, (0 if first else lo, 24 - at.shape[1] - (0 if first else lo)))
            errors.append((first, (net(whole, None, full) - logits).abs().max().item()))
        assert max(off for first, off in errors if first) < 1e-5
        assert max(off for first, off in errors if not first) > 0.01
        assert len([first for first, _ in errors if first]) == 3                     # blocks


def test_a_cached_step_reads_the_block_and_prefix_also_what_follows():
    sizes = []
    net = random_net(cond_dim=0)

    def spy(z, t, at, cache=None):
        sizes.append(z.shape[1])
        return net(z, t, at, cache=cache)
    spy.caches = True
    run("dual", spy, steps=6)                                # blocks at 5, 13 and 21, two steps each
    run("prefix", spy, steps=6)
    assert sizes == [24, 8, 24, 8, 24, 3] + [24, 19, 24, 11, 24, 3]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("law", [GREEDY, partial(probabilities, top_p=0.2)], ids=["greedy", "nucleus"])
@pytest.mark.parametrize("sampler", [semi_ar, confidence, top_k], ids=["semi-ar", "confidence", "top-k"])
def test_belief_is_the_networks_own_and_not_the_sharpened_one(sampler, law, fused):
    """At temperature 0 every draw has probability one in the sharpened law; the surest masks still open first."""
    sureness, places = torch.tensor([3.0, 5.0, 1.0, 6.0, 2.0, 4.0]), torch.arange(6)                    # (6,) each
    weight = torch.eye(7)[:, 1:2]                            # logits: the sureness of symbol 1, and 0 of the others

    def surer_and_surer(z, t, at, head=None):
        h = sureness.expand(len(z), 6)[at][:, None]                                                     # (N, 1)
        return head(h, weight, torch.zeros(7)) if head else h @ weight.T
    surer_and_surer.fuses = fused
    z = torch.full((3, 6), 6)
    for opened, z in enumerate(sampler(Absorbing(6), surer_and_surer, z, z < 6, 6, law), 1):
        assert ((z == 1) == (sureness[places] > 6 - opened)).all()


def test_through_the_exact_denoiser_it_runs_without_a_cache_and_refuses_one_in_words():
    method, flat = make_method("mdlm", 10), lambda z, t, at: torch.zeros(int(at.sum()), 11)
    z, nothing = method.prior((2, 8)), torch.zeros(2, 8, dtype=torch.bool)
    *_, text = method.sample(flat, z, nothing, 4, make_sampler("semi-ar", "mdlm"))
    assert (text < 10).all()
    with pytest.raises(BadInput, match="keeps no keys and values: --cache dual needs a network"):
        next(method.sample(flat, z, nothing, 4, make_sampler("semi-ar", "mdlm", cache="dual")))


@pytest.mark.parametrize("name, method, options, says", [
    ("semi-ar", "bd3lm", {}, "among the masks of mdlm"), ("semi-ar", "udlm", {}, "among the masks of mdlm"),
    ("first-hitting", "gidd", {}, "mdlm or md4"), ("ancestral", "mdlm", dict(cache="dual"), "go with --sampler"),
    ("confidence", "mdlm", dict(threshold=0.9), "go with"), ("ancestral", "bd3lm", dict(tail="greedy"), "leave alone"),
    ("semi-ar", "mdlm", dict(threshold=0.9, factor=1.0), "give one of them")])
def test_samplers_that_cannot_be_are_refused_in_words(name, method, options, says):
    with pytest.raises(BadInput, match=says):
        make_sampler(name, method, **options)
