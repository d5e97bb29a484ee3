"""PLANNER: its weight, and the noise on the words that its encoder reads."""
import torch
from bounds import close
from references import Figures
from test_ld4lg import V, built, texts

from methods import make_method
from methods.gammas import PlainCosine

figure = Figures("latent")


def test_the_loss_is_p2_of_the_public_code():
    """P2's weight of the error in eps is alpha^2 for that in h."""
    t, h, other = (figure(f"planner/{key}").double() for key in ("t", "x0", "pred_x"))
    gamma = PlainCosine()(0.0005 + 0.999 * t)[:, None, None]  # they squeeze the times
    ours = make_method("latent_planner", V).loss_weight(gamma) * (h - other).square()
    close(ours, figure("planner/loss_p2_eps").double(), 1e-4)


def test_stage_two_minimizes_this_loss():
    """At h' = 0, which a fresh network says: alpha^2 h^2, in the mean over times."""
    method, net = built("latent_planner", self_condition=0.0)
    method.progress, x = 1.0, texts(4000)
    torch.manual_seed(0)
    loss = method.loss(net, x).mean()
    t = method.decode_at + (1 - method.decode_at) * (torch.arange(4000) + 0.5) / 4000
    h = net.eval()(x)
    close(loss, torch.sigmoid(-method.gamma(t)).mean() * h.square().mean(), 0.03)


def test_the_encoder_reads_wrong_words_and_the_decoder_blanks_in_training_only():
    method, net = built("latent_planner", noisy_words=0.3, word_dropout=0.5)
    x, read = texts(2000), {}
    at = torch.ones_like(x, dtype=torch.bool)
    at[:, 0] = False  # given

    def spy(z, gamma, at=None, words=None, **layout):
        if gamma is None and not z.is_floating_point():
            read["encoder"] = z
        elif gamma is None:
            read["decoder"] = words
        return net(z, gamma, at=at, words=words)
    torch.manual_seed(0)
    method.loss(spy, x, ~at)
    wrong = (read["encoder"] != x)[:, 1:].double().mean()
    blank = (read["decoder"] == V)[:, 1:].double().mean()
    assert abs(wrong - 0.3 * (V - 1) / V) < 0.02 and abs(blank - 0.5) < 0.02
    assert torch.equal(read["encoder"][:, 0], x[:, 0])
    assert torch.equal(read["decoder"][:, 0], x[:, 0])
    method.nelbo(spy, x, ~at)
    assert torch.equal(read["encoder"], x) and torch.equal(read["decoder"], x)
