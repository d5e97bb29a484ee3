"""The denoiser: equal to the published network, and true to its contract: at, soft inputs, noise
per token, attention patterns."""
import pytest
import torch
import torch.nn.functional as F
from networks import random_net
from references import figure

from model import Transformer, attention, causal, dense_mask, texts_with


def published(name, n_classes=0):
    """A tiny network with the weights of the reference numbers."""
    net = Transformer(12, n_layer=2, n_head=2, n_embd=16, cond_dim=6, n_classes=n_classes).eval()
    net.load_state_dict(figure.weights(f"net/{name}/w/"))
    return net


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_network_is_the_published_dit():
    net = published("mdlm")
    close(net(figure("net/idx"), figure("net/sigma")[:, None]), figure("net/mdlm/out"))


def test_class_labels_enter_as_in_the_published_network():
    net = published("udlm_cfg", n_classes=3)
    ids, sigma = figure("net/idx"), figure("net/sigma")[:, None]
    close(net(ids, sigma, label=figure("net/udlm_cfg/cond")), figure("net/udlm_cfg/out_cond"))
    net.label_embed = None  # without a label theirs adds nothing, and ours means "no class"
    close(net(ids, sigma), figure("net/udlm_cfg/out_nocond"))


Z = torch.arange(14).view(2, 7) % 11
T = torch.tensor([[0.3], [0.8]])


@pytest.mark.parametrize("cond_dim", [0, 8])
def test_selected_positions_get_the_logits_they_have_among_all(cond_dim):
    net = random_net(cond_dim=cond_dim)
    at = torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    for noise in (None, T, T.expand(2, 7)):
        close(net(Z, noise, at=at), net(Z, noise)[at], 1e-6)
        close(net(Z, noise, at=at.flatten().nonzero()[:, 0]), net(Z, noise)[at], 1e-6)
    assert net(Z, T, at=torch.zeros_like(at)).shape == (0, 11)


def test_texts_without_selected_positions_are_not_read():
    net, at = random_net(), torch.tensor([[False] * 7, [False, True, True] + [False] * 4])
    seen = []
    net.blocks[0].register_forward_hook(lambda block, args, out: seen.append(len(out)))
    close(net(Z, T, at=at), net(Z, T)[at], 1e-6)
    assert seen == [1, 2]
    kept = texts_with(at, Z, T, T[:1], None)
    assert torch.equal(kept[0], Z[1:]) and torch.equal(kept[1], T[1:])
    assert torch.equal(kept[2], T[:1]) and kept[3] is None


def test_soft_inputs_that_are_certain_are_ids():
    net = random_net()
    one_hot = F.one_hot(Z, 11).float()
    close(net(one_hot, T), net(Z, T), 1e-6)
    ids, weights = torch.stack([Z, Z * 0], -1), torch.tensor([1.0, 0.0]).expand(2, 7, 2)
    close(net((ids, weights), T), net(Z, T), 1e-6)
    mixed = 0.25 * one_hot + 0.75 * F.one_hot(Z * 0, 11)
    close(net((ids, torch.tensor([0.25, 0.75]).expand(2, 7, 2)), T), net(mixed, T), 1e-6)


def test_one_noise_for_all_tokens_is_that_noise_for_each():
    """In float64: products of other shapes are rounded differently."""
    net = random_net().double()
    close(net(Z, T.expand(2, 7)), net(Z, T), 1e-12)
    mixed = T.expand(2, 7).clone()
    mixed[:, 3] = 0.1
    assert (net(Z, mixed) - net(Z, T)).abs().amax((0, 2))[3] > 1e-2  # and that token gets its own


def test_a_network_without_condition_never_sees_the_noise():
    net = random_net(cond_dim=0)
    assert torch.equal(net(Z, T), net(Z, None))


def attended(q, k, v, mask_mod):
    """The formula of attention, key by key."""
    score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, L, L)
    (B, H, L, _), number = score.shape, torch.tensor
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, (B, H, L, L))).tolist():
        if mask_mod and not bool(torch.as_tensor(mask_mod(number(b), number(h), i, j))):
            score[b, h, i, j] = -float("inf")
    return score.softmax(-1) @ v  # (B, H, L, hd)


def test_attention_is_its_formula_for_every_pattern_and_on_both_paths():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    blocks = lambda b, h, query, key: query // 4 >= key // 4
    heads = lambda b, h, query, key: (query >= key) | (h == 1) | (b == 1)
    for mask_mod in (None, causal, blocks, heads):
        exact = attended(q, k, v, mask_mod)
        close(attention(q, k, v, mask_mod), exact, 1e-5)
        half = attention(*(a.bfloat16() for a in (q, k, v)), mask_mod)
        close(half.float(), exact, 3e-2)  # bfloat16 has 8 bits
        try:
            torch.set_float32_matmul_precision("medium")  # products, which may be in bfloat16
            close(attention(q, k, v, mask_mod), exact, 3e-2)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert dense_mask(causal, q, k).sum() == 2 * 3 * 55


@pytest.mark.parametrize("precision, length, called", [
    ("highest", 8, True), ("medium", 8, False), ("medium", 1025, True)])
def test_the_librarys_kernel_is_left_where_products_are_faster(precision, length, called,
                                                               monkeypatch):
    """On CPUs in medium precision, up to lengths at which a matrix of scores is too large."""
    calls, library = [], F.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention",
                        lambda *a, **options: calls.append(1) or library(*a, **options))
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    q, k, v = torch.randn(3, 1, 1, length, 8)
    close(attention(q, k, v), (q @ k.mT / 8 ** 0.5).softmax(-1) @ v, 1e-5)
    assert bool(calls) == called


def test_under_causal_attention_no_logit_depends_on_a_later_token():
    net = random_net(mask_mod=causal)
    for l in range(6):
        other = Z.clone()
        other[:, l + 1:] = (other[:, l + 1:] + 1) % 11
        assert torch.equal(net(other, T)[:, :l + 1], net(Z, T)[:, :l + 1])


def test_without_a_pattern_every_logit_depends_on_every_token():
    net = random_net()
    embedded = F.one_hot(Z, 11).float().requires_grad_()
    for l in range(7):
        slope, = torch.autograd.grad(net(embedded, T)[:, l].square().sum(), embedded)
        assert (slope.abs().sum((0, 2)) > 0).all()


def test_positions_matter_only_by_their_distance():
    """Rotary: without other cues, shifting a text by one place shifts the logits."""
    net = random_net(mask_mod=lambda b, h, query, key: (query - key).abs() <= 1)
    long = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    close(net(long)[:, 4:6], net(long[:, 1:])[:, 3:5], 1e-5)


def test_a_fresh_network_predicts_uniformly_and_every_block_is_the_identity():
    for cond_dim in (0, 8):
        net = Transformer(11, n_layer=2, n_head=2, n_embd=16, cond_dim=cond_dim)
        assert torch.equal(net(Z, T), torch.zeros(2, 7, 11))
        h = torch.randn(2, 7, 16)
        c = None if cond_dim == 0 else torch.randn(2, 1, cond_dim)
        cos_sin = (torch.ones(7, 4), torch.zeros(7, 4))
        assert all(torch.equal(block(h, c, cos_sin, None), h) for block in net.blocks)


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ValueError, match="even number"):
        Transformer(11, n_head=3, n_embd=16)
    with pytest.raises(ValueError, match="cond_dim"):
        Transformer(11, cond_dim=0, n_classes=2)
