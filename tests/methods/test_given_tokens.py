"""Given tokens, as the prompts of fine-tuning on answers: never noised, never a target."""
import pytest
import torch

import methods.mdlm as mdlm
from diffusion import Absorbing, corrupt, stratified
from methods import METHODS, load_row, make_method
from methods.embedding import Embedding
from methods.latent import Latent
from methods.mdlm import MDLM
from methods.rdlm import RDLM
from methods.simplex import Simplex
from train import loss_per_token


def test_the_loss_of_fine_tuning_is_lladas(monkeypatch):
    """Sum over masked tokens of the answer, ends included, of (cross-entropy / p), over the tokens
    of the answer, the mean over texts. Their p = (1 - eps) t + eps is t here, eps = 0."""
    monkeypatch.setattr(mdlm, "stratified", lambda n, device: stratified(n).double())
    torch.manual_seed(0)
    B, length, V = 6, 16, 11
    x = torch.randint(V, (B, length))  # (B, L)
    logits = torch.randn(B, length, V + 1, dtype=torch.float64)  # (B, L, V + 1)
    frozen = torch.arange(length) < torch.tensor([3, 5, 2, 9, 12, 4])[:, None]  # (B, L)
    torch.manual_seed(1)
    nats = MDLM(V, "bound").loss(lambda z, t, at: logits[at], x, frozen)  # (B, L)
    ours = loss_per_token(nats, frozen)
    torch.manual_seed(1)
    p = stratified(B).double()  # (B, 1)
    z, theirs = corrupt(Absorbing(V), x, p, frozen), 0.0  # (B, L)
    for b in range(B):
        answer = [l for l in range(length) if not frozen[b, l]]
        for l in answer:
            if z[b, l] == V:
                nll = logits[b, l, :V].logsumexp(-1) - logits[b, l, x[b, l]]
                theirs += nll / p[b, 0] / len(answer) / B
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert (z[frozen] == x[frozen]).all() and theirs > 0


# given tokens come first in their input, or stand in that of two networks: test_methods.py; those
# that are vectors: test_plaid.py, test_methods.py (given tokens cost nothing), test_ld4lg.py
IN_ORDER = ("sigma_gpt", "eso_lm", "maria")
VECTORS = Embedding, Simplex, Latent, RDLM


@pytest.mark.parametrize("name", [name for name in METHODS if name not in IN_ORDER
                                  and not load_row(METHODS, name).classifies
                                  and not issubclass(load_row(METHODS, name), VECTORS)])
def test_a_prompt_is_never_noised_and_never_a_target(name):
    """The gradient at every logit of a given token is exactly 0, and no noise reaches one."""
    method, seen = make_method(name, 7, curriculum=0.0), []
    x = torch.randint(7, (16, 8), generator=torch.Generator().manual_seed(2))  # (16, 8)
    frozen = torch.arange(8) < torch.arange(16)[:, None] % 6 + 1  # (16, 8)
    logits = torch.zeros(16, 12, 9, requires_grad=True)

    def denoiser(z, t, at=None, **layout):
        seen.append(z)
        out = logits[:, :z.shape[1], :method.vocab_size]  # (16, L, V)
        return out if at is None else out[at]  # (N, V)
    for objective in (method.loss, method.nelbo):
        torch.manual_seed(0)
        logits.grad = None
        nats = objective(denoiser, x, frozen)  # (16, 8)
        assert (nats[frozen] == 0).all() and (nats[~frozen] != 0).any()
        nats.sum().backward()
        gradient = logits.grad[:, :8]  # (16, 8, 9)
        assert (gradient[frozen] == 0).all() and (gradient[~frozen] != 0).any()
    for z in seen if not method.exact else []:  # next-token input is shifted
        assert (z[:, :8][frozen] == x[frozen]).all()


def test_a_block_of_an_answer_sees_its_prompt_clean():
    method, inputs = make_method("bd3lm", 7, diffusion_block=4), []
    x = torch.arange(8).expand(4, 8) % 7  # (4, 8)
    frozen = torch.arange(8).expand(4, 8) < 5  # (4, 8)

    def denoiser(z, t, at, **layout):
        inputs.append(z)
        return torch.zeros(int(at.sum()), 8)  # (N, 8)
    method.nelbo(denoiser, x, frozen)
    assert (inputs[0][:, :5] == x[:, :5]).all() and (inputs[0][:, 8:] == x[:, :4]).all()
    assert (inputs[0][:, 5:8] == 7).any()
