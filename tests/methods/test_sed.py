"""SED: a fixed table, and tables of bitmaps. (No public code was found, so no figures.)"""
import itertools

import pytest
import torch
import torch.nn.functional as F
from bounds import close
from test_plaid import NETWORK

from checkpoints.build import build_network
from data.tokenizer import chars, words
from flags import UserError
from methods import make_method
from methods.glyphs import FONT, PIXELS, draw_glyph


def data_of(encoding):
    return type("Data", (), {"encoding": encoding, "ids": lambda self, split: [0, 1]})()


def glyph_method(letters="abcdefg"):
    method = make_method("sed", len(letters), table="glyphs")
    method.on_data(data_of(chars(letters)))
    return method


def test_a_character_is_a_picture_and_no_two_are_the_same():
    f = draw_glyph(chars("F"), 0).view(7, 5)  # (7, 5)
    assert ["".join(".#"[int(p > 0)] for p in row) for row in f] == [
        "#####", "#....", "#....", "####.", "#....", "#....", "#...."]
    assert len(FONT) == 96 == len(set(FONT.values()))
    assert set(map(len, FONT.values())) == {7}
    differ = [sum(bin(int(a, 32) ^ int(b, 32)).count("1") for a, b in zip(*pair))
              for pair in itertools.combinations(FONT.values(), 2)]
    assert min(differ) >= 1 and sorted(differ)[4] >= 2


def test_rows_of_pictures_have_one_norm_and_similar_letters_are_near():
    rows = glyph_method("ceo#").process.rows()  # (4, 35) in the order # c e o
    close(rows.norm(dim=-1), torch.ones(4), 1e-6)
    near = rows @ rows.T
    assert near[1, 2] > near[1, 0] and near[1, 3] > near[0, 3]
    assert rows.shape == (4, PIXELS)


def test_few_glyphs_are_mistaken_at_the_end_of_the_walk():
    """In 10,000 draws at gamma_0, by the evidence alone, fewer than one in 1,000."""
    method = glyph_method("abcdefghijklmnopqrstuvwxyz .,'-")
    torch.manual_seed(0)  # once: the same stream of numbers again would tie noise and letters
    x = torch.randint(method.n_tokens, (1000, 10))  # (1000, 10)
    _, z, t = method.noisy(x, torch.zeros(1000, 1))
    assert (method.likelihood(z, t).argmax(-1) != x).double().mean() < 1e-3


def test_the_table_is_fixed_and_is_kept_with_the_weights():
    method = glyph_method()
    network = method.network(7, 1, 2, 16, cond_dim=8)
    assert not network.space.table.requires_grad and network.embed.requires_grad
    again = make_method("sed", 7, table="glyphs")
    other = again.network(7, 1, 2, 16, cond_dim=8)
    other.load_state_dict(network.state_dict())
    assert torch.equal(again.process.rows(), method.process.rows())


def test_tokens_that_are_no_characters_are_refused_in_one_line():
    method = make_method("sed", 2, table="glyphs")
    with pytest.raises(UserError, match="one printable character a token, and ' the' is none"):
        method.on_data(data_of(words(["the", "dog"])))
    with pytest.raises(UserError, match="5 x 7 pixels: leave --dim out"):
        make_method("sed", 2, table="glyphs", dim=20)


def test_the_loss_has_both_terms():
    """At a head that knows the answer both are 0; at one that knows nothing, log V and more."""
    method = make_method("sed", 7, self_condition=0.0)
    x = torch.randint(7, (50, 4))
    knows = lambda z, t, at: 50.0 * torch.nn.functional.one_hot(x, 7)[at].float()
    assert method.loss(knows, x).mean() < 1e-3
    torch.manual_seed(0)
    nothing = method.loss(lambda z, t, at: torch.zeros(int(at.sum()), 7), x).mean()
    torch.manual_seed(0)
    t, _ = method.draw_times(torch.ones_like(x, dtype=torch.bool))
    ce = method.cross_entropies(lambda z, t, at: torch.zeros(int(at.sum()), 7), x, t).mean()
    assert nothing > ce + 0.1


def test_rows_of_another_run_are_the_table():
    """Those of a table, or what the network reads of each token; of another width they are refused.
    """
    for name in ("plaid", "mdlm"):
        other = make_method(name, 7)
        network = build_network(NETWORK, other)
        model = type("Model", (), {"method": other, "denoiser": network})
        method = make_method("sed", 7, rows_from="another", dim=16)
        method.on_start(lambda option, folder: model)
        rows = other.process.rows() if name == "plaid" else network.embed[:7]  # (7, 16)
        close(method.process.rows(), F.normalize(rows, dim=-1), 1e-6)
        assert not method.process.table.requires_grad
        with pytest.raises(UserError, match="has rows of 16 numbers: give --dim 16"):
            make_method("sed", 7, rows_from="another", dim=4).on_start(lambda *_: model)
    with pytest.raises(UserError, match="--table glyphs has rows: leave out --rows_from"):
        make_method("sed", 7, table="glyphs", rows_from="another")
