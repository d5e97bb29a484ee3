"""The denoiser: equal to the published network, and true to its call: at, soft inputs, noise per token, patterns."""
from pathlib import Path

import numpy
import pytest
import torch

from model import Transformer, attention, causal, dense

FIGURES = numpy.load(Path(__file__).parent / "reference.npz")
# the names of the published DiT (SEDD, MDLM, UDLM) and ours: loading one is a rename
RENAME = {"vocab_embed.embedding": "embed", "sigma_map.mlp.": "noise_mlp.", "cond_map.embedding_table": "label_embed",
          "attn_qkv": "qkv", "attn_out": "out", "adaLN_modulation": "adaln", "output_layer.norm_final": "norm",
          "output_layer.linear": "head", "output_layer.": ""}


def figure(name):
    return torch.from_numpy(FIGURES[name])


def published(name, n_classes=0):
    """A tiny network with the weights of the reference figures."""
    weights = {}
    for key in FIGURES:
        if key.startswith(f"net/{name}/w/") and "inv_freq" not in key:
            ours = key.removeprefix(f"net/{name}/w/")
            for theirs, new in RENAME.items():
                ours = ours.replace(theirs, new)
            weights[ours] = figure(key)
    net = Transformer(12, n_layer=2, n_head=2, n_embd=16, cond_dim=6, n_classes=n_classes).eval()
    net.load_state_dict(weights)
    return net


def random_net(seed=0, **options):
    """Every weight random, those that start at zero too, so that nothing is hidden behind a closed gate."""
    torch.manual_seed(seed)
    net = Transformer(11, n_layer=2, n_head=2, n_embd=16, **{"cond_dim": 8, **options}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_network_is_the_published_dit():
    close(published("mdlm")(figure("net/idx"), figure("net/sigma")[:, None]), figure("net/mdlm/out"))


def test_class_labels_enter_as_in_the_published_network():
    net = published("udlm_cfg", n_classes=3)
    ids, sigma = figure("net/idx"), figure("net/sigma")[:, None]
    close(net(ids, sigma, label=figure("net/udlm_cfg/cond")), figure("net/udlm_cfg/out_cond"))
    net.label_embed = None                               # no label there: nothing is added. Ours means "none"
    close(net(ids, sigma), figure("net/udlm_cfg/out_nocond"))


Z = torch.arange(14).view(2, 7) % 11
T = torch.tensor([[0.3], [0.8]])


@pytest.mark.parametrize("cond_dim", [0, 8])
def test_selected_positions_get_the_logits_they_have_among_all(cond_dim):
    net, at = random_net(cond_dim=cond_dim), torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    for noise in (None, T, T.expand(2, 7)):
        close(net(Z, noise, at=at), net(Z, noise)[at], 1e-6)
    assert net(Z, T, at=torch.zeros_like(at)).shape == (0, 11)


def test_soft_inputs_that_are_certain_are_ids():
    net = random_net()
    one_hot = torch.nn.functional.one_hot(Z, 11).float()
    close(net(one_hot, T), net(Z, T), 1e-6)
    ids, weights = torch.stack([Z, Z * 0], -1), torch.tensor([1.0, 0.0]).expand(2, 7, 2)
    close(net((ids, weights), T), net(Z, T), 1e-6)
    mixed = 0.25 * one_hot + 0.75 * torch.nn.functional.one_hot(Z * 0, 11)
    close(net((ids, torch.tensor([0.25, 0.75]).expand(2, 7, 2)), T), net(mixed, T), 1e-6)


def test_one_noise_for_all_tokens_is_that_noise_for_each():
    net = random_net()
    close(net(Z, T.expand(2, 7)), net(Z, T), 1e-6)
    mixed = T.expand(2, 7).clone()
    mixed[:, 3] = 0.1
    assert (net(Z, mixed) - net(Z, T)).abs().amax((0, 2))[3] > 1e-2      # and a token that differs is told so


def test_a_network_without_condition_never_sees_the_noise():
    net = random_net(cond_dim=0)
    assert torch.equal(net(Z, T), net(Z, None))


def test_attention_is_its_formula_for_every_pattern_and_on_both_paths():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    blocks = lambda b, h, query, key: query // 4 >= key // 4
    heads = lambda b, h, query, key: (query >= key) | (h == 1) | (b == 1)
    for mask_mod in (None, causal, blocks, heads):
        score = q @ k.transpose(-1, -2) / 8 ** 0.5
        if mask_mod:
            for b in range(2):
                for h in range(3):
                    for i in range(10):
                        for j in range(10):
                            if not bool(torch.as_tensor(mask_mod(torch.tensor(b), torch.tensor(h), i, j))):
                                score[b, h, i, j] = -float("inf")
        exact = score.softmax(-1) @ v
        close(attention(q, k, v, mask_mod), exact, 1e-5)
        close(attention(*(a.bfloat16() for a in (q, k, v)), mask_mod).float(), exact, 3e-2)     # bfloat16 has 8 bits
        try:
            torch.set_float32_matmul_precision("medium")                     # by products; they may be bfloat16's
            close(attention(q, k, v, mask_mod), exact, 3e-2)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert dense(causal, q, k).sum() == 2 * 3 * 55


@pytest.mark.parametrize("precision, length, called", [("highest", 8, True), ("medium", 8, False),
                                                       ("medium", 1025, True)])
def test_the_librarys_kernel_is_left_where_products_are_faster(precision, length, called, monkeypatch):
    """On CPUs in medium precision, up to lengths at which a matrix of scores is too large."""
    calls, library = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention",
                        lambda *a, **options: calls.append(1) or library(*a, **options))
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    q, k, v = torch.randn(3, 1, 1, length, 8)
    close(attention(q, k, v), (q @ k.mT / 8 ** 0.5).softmax(-1) @ v, 1e-5)
    assert bool(calls) == called


def test_under_causal_attention_no_logit_feels_a_later_token():
    net = random_net(mask_mod=causal)
    for l in range(6):
        other = Z.clone()
        other[:, l + 1:] = (other[:, l + 1:] + 1) % 11
        assert torch.equal(net(other, T)[:, :l + 1], net(Z, T)[:, :l + 1])


def test_without_a_pattern_every_logit_feels_every_token():
    net = random_net()
    embedded = torch.nn.functional.one_hot(Z, 11).float().requires_grad_()
    for l in range(7):
        felt = torch.autograd.grad(net(embedded, T)[:, l].square().sum(), embedded)[0].abs().sum((0, 2))     # (L,)
        assert (felt > 0).all()


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
