"""DiffuGPT: at r = 0 the AR network, at r = 1 masked diffusion, and a bound in between; the figures
of the public code; and the way from a run of ar.

adapt_reference.npz, adapt/: what the public code (DiffuLLaMA, commit c17e897) makes of given
numbers, PUB_*, and figures computed apart from this code, OURS_*; batch_scale has its loss at a
cross-entropy of 1 for batches of 1, 2, 4, 16 and 64 texts, with standard errors.
"""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import world
from bounds import close, mean_of_batches
from networks import random_net, randomize
from references import Figures
from runs import complaint, elsewhere, cache, fit, metrics, tiny  # noqa: F401
from world import LANGUAGE, P, TEXTS, L, N

import train
from checkpoints import hub
from checkpoints.load import load_model
from checkpoints.tensor_layouts import write_safetensors
from data.tokenizer import chars
from flags import UserError
from methods import make_method
from methods.diffugpt import ShiftedTransformer, annealed
from methods.mdlm import masked_weight
from model import causal, dense_mask

figure = Figures("adapt_reference")
STATES = torch.cartesian_prod(*[torch.arange(N + 1)] * L)  # (64, L)
ENTROPY = -(P * P.log()).sum()
PAIRS = [(0, 1), (0, 2), (1, 2)]  # (l, k): may row l look at z_k, to its right?
WORDS, ALL = 10, dict(n_layer=2, n_head=2, n_embd=16, cond_dim=0)


def made(r=1.0, n_tokens=WORDS, **flags):
    method = make_method("diffugpt", n_tokens, **flags)
    method.opened = r
    return method


def allowed(pattern, n):
    """A mask_mod as a table. -> (n, n) bool"""
    q = torch.zeros(1, 1, n, 8)  # (1, 1, n, 8)
    return dense_mask(pattern, q, q)[0, 0]  # (n, n)


def adapted_from(ar, method):
    """The network of diffugpt with the weights of an AR network."""
    net = randomize(ShiftedTransformer(method.vocab_size, **ALL), seed=5)
    theirs = make_method("ar", method.n_tokens), ar.state_dict()
    net.load_state_dict(method.weights_from(*theirs, net.state_dict()))
    return net


# ---- attention

@pytest.mark.parametrize("r", [0.0, 0.3, 0.7, 1.0])
def test_the_pattern_is_that_of_the_public_code(r, monkeypatch):
    """Causal at r = 0, full at 1, and never closed to the left."""
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: figure("adapt/anneal_u"))
    pattern = annealed(r, 8)
    found = allowed(pattern, 8) if pattern else torch.ones(8, 8, dtype=torch.bool)  # (8, 8)
    assert torch.equal(found, figure(f"adapt/PUB_anneal_allowed_{r}")) and found.tril().sum() == 36


@pytest.mark.parametrize("anneal, due", [(0.5, [0.2, 0.4, 0.6, 0.8, 1, 1]), (0.0, [1] * 6),
                                         (1.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])])
def test_attention_opens_over_a_share_of_the_steps(anneal, due):
    method, found = made(anneal=anneal), []
    trainer = type("Trainer", (), {"config": type("Config", (), {"max_iters": 10})})
    method.on_start(None)
    assert method.opened == (0 if anneal else 1)  # at the first report
    for step in range(6):
        method.on_step(step, trainer)
        found.append(method.opened)
    assert found == pytest.approx(due)
    other = made()
    other.load_extra_state(method.extra_state())
    assert other.opened == method.opened


def test_at_ratio_0_a_row_before_masks_is_that_of_the_ar_network():
    """In float64: in float32 some processors round products of other shapes in other ways."""
    ar, method = random_net(cond_dim=0, mask_mod=causal), made(r=0.0)  # of 11 symbols, 10 is start
    net, x = adapted_from(ar, method).double(), torch.randint(WORDS, (4, 9))  # (4, 9)
    theirs = ar.double()(F.pad(x, (1, 0), value=WORDS), None)  # (4, 10, V)
    see = method.seen_by(net, x)
    for l in range(9):
        z = torch.where(torch.arange(9) < l, x, method.process.mask)  # (4, 9)
        ours = see(z, None)[:, l, :WORDS]  # (4, V)
        torch.testing.assert_close(ours, theirs[:, l, :WORDS], rtol=0, atol=1e-13)
        at = torch.arange(9).expand(4, 9) == l  # (4, 9)
        torch.testing.assert_close(see(z, None, at=at)[:, :WORDS], theirs[:, l, :WORDS])


def test_at_ratio_1_no_output_depends_on_the_pattern():
    """The network is called as it is, and an open table gives the same."""
    net, z = randomize(ShiftedTransformer(12, **ALL)), torch.randint(11, (3, 9))  # (3, 9)
    method = made(r=1.0)
    assert method.seen_by(net, z) is net and net.mask_mod is None
    near = made(r=1 - 1e-9)
    torch.manual_seed(0)
    torch.testing.assert_close(near.seen_by(net, z)(z, None), net(z, None))


@pytest.mark.parametrize("r", [0.0, 0.4, 1.0])
def test_no_row_reads_its_own_token(r):
    """By the gradient of row l in what stands where: start and z_(l-1) always, z_k further right if
    that is open; and what stands for a token that is scored is a mask, before the network."""
    method, seen = made(r=r), {}
    net, x = randomize(ShiftedTransformer(12, **ALL)), torch.randint(WORDS, (2, 6))  # (2, 6)
    embed = net.embedding

    def spy(z):
        seen["z"], seen["h"] = z, embed(z).detach().requires_grad_()  # (2, 7), (2, 7, D)
        return seen["h"]
    net.embedding = spy
    torch.manual_seed(1)
    nats = method.nelbo(net, x)  # (2, 6)
    start, z = seen["z"].split([1, 6], 1)  # (2, 1), (2, 6)
    assert (start == method.start).all() and torch.equal(nats != 0, z == method.process.mask)
    torch.manual_seed(1)
    rows = method.seen_by(net, x)(x, None)  # (2, 6, V)
    for l in range(6):
        slope = torch.autograd.grad(rows[:, l].sum(), seen["h"], retain_graph=True)[0]  # (2, 7, D)
        reached = slope.abs().sum(-1)[0] > 0  # (7,)
        assert reached[:l + 1].all() and (r > 0 or not reached[l + 1:].any())
        assert r < 1 or reached.all()


def test_start_and_mask_are_apart_and_one_draw_serves_all_texts():
    net = randomize(ShiftedTransformer(12, **ALL))
    method, z = made(r=0.5), torch.randint(WORDS, (1, 8)).expand(5, 8).clone()  # (5, 8)
    assert {method.start, method.process.mask} == {10, 11}
    assert not torch.equal(net.embed[method.start], net.embed[method.process.mask])
    torch.manual_seed(0)
    logits = method.seen_by(net, z)(z, None)  # (5, 8, V)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


# ---- the bound

def restricted(opened):
    """log x_theta of the exact denoiser whose row l sees z_<l and those z_k with opened[l, k].
    opened (L, L) -> (64, L, N)"""
    e, rows = F.one_hot(STATES, N + 1)[..., :N].double(), []  # (64, L, N)
    e = torch.where((STATES == N)[..., None], 1.0, e)  # (64, L, N)
    for l in range(L):
        sees = opened[l] | (torch.arange(L) < l)  # (L,)
        flat = torch.where(sees[:, None], e, 1.0)  # (64, L, N)
        rows.append(LANGUAGE.posterior(flat)[:, l])
    return torch.stack(rows, 1).clamp(min=1e-300).log()  # (64, L, N)


def enumerated(log_p):
    """The mean over texts of (3.1), as a sum over all sets of masks. log_p (64, L, N) -> ()"""
    total = torch.zeros((), dtype=torch.float64)
    for masked in torch.cartesian_prod(*[torch.tensor([False, True])] * L)[1:]:  # (L,)
        k = int(masked.sum())
        z = torch.where(masked, N, TEXTS)  # (27, L)
        rows = log_p[(z * 4 ** torch.arange(L).flip(0)).sum(-1)]  # (27, L, N)
        ce = -rows.gather(-1, TEXTS[..., None])[..., 0]  # (27, L)
        total += (P @ (ce * masked).sum(-1)) / k / math.comb(L, k)
    return total


def bound_at(r):
    """Over all 8 patterns that (18.9) may draw. -> ()"""
    total = torch.zeros((), dtype=torch.float64)
    for chosen in torch.cartesian_prod(*[torch.tensor([False, True])] * len(PAIRS)):
        opened, n = torch.zeros(L, L, dtype=torch.bool), int(chosen.sum())
        for (l, k), is_open in zip(PAIRS, chosen):
            opened[l, k] = is_open
        total += r ** n * (1 - r) ** (len(PAIRS) - n) * enumerated(restricted(opened))
    return total


def test_every_ratio_gives_a_bound_and_at_1_it_is_tight():
    bounds = [bound_at(r).item() for r in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [round(b, 4) for b in bounds] == [2.9360, 2.8910, 2.8449, 2.7978, 2.7496]
    assert all(a > b for a, b in zip(bounds, bounds[1:])) and bounds[-1] >= ENTROPY - 1e-12
    close(torch.tensor(bounds[-1], dtype=torch.float64), ENTROPY)


def reader(z, t, at, mask_mod=None):
    """The exact denoiser of a row that sees what the pattern allows."""
    pattern = allowed(mask_mod, L + 1) if mask_mod else torch.ones(L + 1, L + 1, dtype=torch.bool)
    log_p = restricted(pattern[:L, 1:])  # (64, L, N)
    return log_p[(z * 4 ** torch.arange(L).flip(0)).sum(-1)][at]  # (n, N)


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_draws_of_the_bound_have_its_mean(r):
    """Within 4.5 standard errors, each of less than 1 %."""
    method = made(r=r, n_tokens=N)
    torch.manual_seed(0)

    def draw():
        of = torch.multinomial(P, 600, replacement=True)  # (n,)
        return method.nelbo(reader, TEXTS[of]).sum(-1)  # (n,)
    mean, error = mean_of_batches(draw, batches=50)
    assert error < 0.01 * ENTROPY and abs(mean - bound_at(r)) < 4.5 * error


# ---- the loss of the public code

@pytest.mark.parametrize("shift", [0, 1])
def test_the_loss_is_that_of_the_public_code_but_for_what_it_is_divided_by(shift):
    """And but for the first token, which has no row there: our texts of 8 tokens have 8 terms."""
    x, t, masked = (figure(f"adapt/{key}") for key in ("x", "t", "masked"))
    logits = figure("adapt/logits").double()  # (4, 8, 12)
    method = made(n_tokens=12, weighting="bound")
    z, t = torch.where(masked, method.process.mask, x), t[:, None].double()  # (4, 8), (4, 1)
    rows = F.pad(logits, (0, 0, 1, 0))[:, :8] if shift else logits  # (4, 8, 12) row l at z_(l-1)
    weight = masked_weight(method.process, t)  # (4, 1)
    nats = method.cross_entropy(lambda z, t, at: rows[at], x, z, t, weight)  # (4, 8)
    assert ((nats > 0) == masked).all()
    per_text = nats[:, shift:].sum(-1)  # (4,)
    close(per_text, figure(f"adapt/OURS_bound_per_text_shift{shift}"))
    over_masked = per_text.sum() / masked[:, shift:].sum()
    close(over_masked, figure(f"adapt/OURS_over_masked_shift{shift}"))
    close(over_masked.float(), figure(f"adapt/PUB_loss_shift{shift}"), 1e-6)


@pytest.mark.parametrize("row, B", [(0, 1), (1, 2), (3, 16), (4, 64)])
def test_a_loss_over_the_number_of_masks_depends_on_the_batch_and_ours_does_not(row, B):
    """A cross-entropy of c reads 6.7 c, 2.74 c, 2.04 c, 2.01 c in batches of 1, 2, 16, 64 texts of
    1,024 tokens there (within 5 standard errors of both), and c here."""
    torch.manual_seed(0)
    t = torch.rand(20_000 // B, B).clamp(min=1e-3)  # (n, B)
    masks = torch.distributions.Binomial(1024, t).sample()  # (n, B)
    theirs = (masks / t).sum(-1) / masks.sum(-1).clamp(min=1)  # (n,)
    mean, error = figure("adapt/batch_scale")[row]
    assert abs(theirs.mean() - mean) < 5 * (error**2 + theirs.var() / len(theirs)) ** 0.5
    method = made(weighting="bound", n_tokens=2)
    flat = lambda z, t, at: torch.zeros(int(at.sum()), 4)
    ours = torch.stack([method.loss(flat, torch.zeros(B, 64).long()).mean()
                        for _ in range(640 // B)]) / math.log(2)  # (n,)
    assert abs(ours.mean() - 1) < 4.5 * ours.std() / len(ours) ** 0.5


# ---- from a run of ar

def test_a_run_of_ar_is_taken_over_and_its_bound_begins_as_that_of_ar():
    """Words and start keep their vectors, and the mask has a new one. At r = 0, the last token
    costs what it costs ar, given all before it."""
    fit("ar", method="ar", max_iters=8, learning_rate=0.01)
    fit("new", method="diffugpt", init_from="ar", max_iters=1, learning_rate=0.0, muon_lr=0.0)
    ar, new = load_model("ar"), load_model("new")
    theirs, ours = ar.denoiser.state_dict(), new.denoiser.state_dict()
    start, mask = new.method.start, new.method.process.mask
    for name in ("embed", "head.weight"):
        torch.testing.assert_close(ours[name][:mask], theirs[name][:-1])
        torch.testing.assert_close(ours[name][start], theirs[name][-1])
    assert not torch.equal(ours["embed"][mask], ours["embed"][start])
    x, new.method.opened = torch.randint(100, (5, 8)), 0.0  # (5, 8)
    frozen = torch.arange(8).expand(5, 8) < 7  # (5, 8)
    with torch.no_grad():
        torch.testing.assert_close(new.method.nelbo(new.denoiser, x, frozen)[:, 7],
                                   ar.method.nelbo(ar.denoiser, x, frozen)[:, 7])
    first = metrics("new", "val_bound")[0]
    assert first < metrics("new", "val_bound")[1]  # at r = 0; then r = 1, untrained


@pytest.mark.parametrize("method", ["mdlm", "radd"])
def test_a_method_that_cannot_adapt_them_says_who_can(method, capsys):
    fit("ar", method="ar", max_iters=1)
    said = complaint(train, *tiny(init_from="ar", method=method, out_dir="o"), capsys=capsys)
    assert "leave --init_from out, or take --method tess or diffugpt or ar2diff" in said
    fit("sedd", method="sedd", max_iters=1)
    said = complaint(train, *tiny(init_from="sedd", method="diffugpt", out_dir="o"), capsys=capsys)
    assert "a network of sedd, and diffugpt needs another" in said


# ---- from GPT-2

def tiny_gpt2(V=13, D=8, layers=2, places=7):
    """Random weights under the published names, with the buffers that published files have."""
    torch.manual_seed(0)
    shapes = {"wte.weight": (V, D), "wpe.weight": (places, D), "ln_f.weight": (D,),
              "ln_f.bias": (D,)}
    parts = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D),
             "mlp.c_proj": (4 * D, D), "ln_1": (D,), "ln_2": (D,)}
    for i in range(layers):
        for part, shape in parts.items():
            shapes |= {f"h.{i}.{part}.weight": shape, f"h.{i}.{part}.bias": shape[-1:]}
    weights = {name: torch.randn(shape) / 2 for name, shape in shapes.items()}
    return weights | {f"h.{i}.attn.bias": torch.ones(1, 1, places, places) for i in range(layers)}


def gpt2_logits(w, ids, heads=2):
    """GPT-2 as its paper and its published names have it: ids (B, n) -> (B, n, V)"""
    (B, n), D = ids.shape, w["wte.weight"].shape[1]
    h = w["wte.weight"][ids] + w["wpe.weight"][:n]  # (B, n, D)
    norm = lambda h, name: F.layer_norm(h, (D,), w[f"{name}.weight"], w[f"{name}.bias"])
    linear = lambda h, name: h @ w[f"{name}.weight"] + w[f"{name}.bias"]
    for i in range(2):
        qkv = linear(norm(h, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").view(B, n, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, n, D / heads) each
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, n, n)
        score = score.masked_fill(~torch.ones(n, n).tril().bool(), -math.inf)
        y = (score.softmax(-1) @ v).transpose(1, 2).reshape(B, n, D)
        h = h + linear(y, f"h.{i}.attn.c_proj")  # (B, n, D)
        inner = F.gelu(linear(norm(h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        h = h + linear(inner, f"h.{i}.mlp.c_proj")  # (B, n, D)
    return norm(h, "ln_f") @ w["wte.weight"].T  # (B, n, V)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_is_read_and_is_itself_at_ratio_0(prefix, tmp_path, monkeypatch):
    """Its end of text, the last word, is start; with everything from l on masked, row l is that of
    GPT-2."""
    weights, name = tiny_gpt2(), "openai-community/gpt2"
    row = replace(hub.find_row(name), size=(2, 2, 8), length=6,
                  more={"norm_bias": True, "positions": 7})
    monkeypatch.setitem(hub.PUBLISHED, name, row)
    monkeypatch.setattr(hub, "encoding_of", lambda tokens, source: chars("abcdefghijklm"))
    with open(tmp_path / "model.safetensors", "wb") as file:
        write_safetensors(file, {prefix + key: a for key, a in weights.items()})
    model = load_model(f"{name}={tmp_path}/model.safetensors")
    method, x = model.method, torch.randint(13, (3, 6))  # (3, 6)
    method.opened = 0.0
    theirs = gpt2_logits(weights, F.pad(x, (1, 0), value=12))  # (3, 7, V)
    with torch.no_grad():
        for l in range(6):
            z = torch.where(torch.arange(6) < l, x, method.process.mask)  # (3, 6)
            ours = method.seen_by(model.denoiser, z)(z, None)[:, l, :13]  # (3, V)
            torch.testing.assert_close(ours, theirs[:, l], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="texts of 7 tokens need --positions 8"):
        model.denoiser(torch.zeros(1, 7).long(), None)


def test_the_positions_of_gpt2_must_hold_the_text_and_start(capsys):
    words = tiny(method="diffugpt", positions=8, out_dir="o")
    assert "--positions 8 must be more than --block_size 8" in complaint(train, *words,
                                                                         capsys=capsys)
