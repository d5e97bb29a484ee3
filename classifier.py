"""
A noise-aware classifier, what (38) and (39) of guidance.py ask: p_phi(y | z_t), the class of a text under noise.

    loss    -log p_phi(y | z_t),   z_t ~ q(z_t | x),   t one in each n-th of (0, 1)                              (40)

No language model: it has no bound and writes nothing. The network is that of model.py, whose head gives K numbers at
each position; their mean over the text are the logits. The least that (40) can be is the entropy of the class given
the noisy text; the toy language knows it (oracle.py), and `python evaluate.py` puts the two side by side.
"""
import torch
import torch.nn.functional as F

from diffusion import corrupt, stratified
from model import Transformer


class ClassifierNetwork(Transformer):
    """classifier(z, t) -> logits (B, K). z: ids (B, L), or weights over symbols (B, L, V)"""

    def __init__(self, vocab_size, *sizes, n_classes, **options):
        super().__init__(vocab_size, *sizes, **options)
        self.head = torch.nn.Linear(self.head.in_features, n_classes)
        torch.nn.init.zeros_(self.head.weight)               # as in model.py: all classes are equally likely at first
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, z, t):
        """t (B, 1), or (B, L) as guidance tells it: in training all tokens of a text have one time, so that the latest
        stands for all."""
        return super().forward(z, t.amax(-1, keepdim=True)).mean(1)                                 # (B, K)


class Classifier:
    """--method classifier. `noise` is the process of --noise_of: what guides a model must read its noise."""

    uses_time, mask_mod, network = True, None, ClassifierNetwork

    def __init__(self, process):
        self.process, self.n_tokens, self.vocab_size = process, process.n_tokens, process.V

    def loss(self, told, x, frozen=None):
        """(40). told: the network and the labels (model.Told), which are the answer here. -> (B, 1) nats per text"""
        t = stratified(len(x), x.device)                                                            # (B, 1)
        return self.cross_entropy(told, corrupt(self.process, x, t, frozen), t)                     # (B, 1)

    nelbo = loss

    def cross_entropy(self, told, z, t):
        """-> (B, 1) nats per text"""
        return F.cross_entropy(told.denoiser(z, t).float(), told.label, reduction="none")[:, None]  # (B, 1)


@torch.no_grad()
def examine(process, classifiers, x, label, times, batch_size=64, seed=1337):
    """Several classifiers on the same noise. -> {time: [(cross-entropy in nats, right or not), each (n,)]}"""
    torch.manual_seed(seed)
    results = {}
    for time in times:
        t = torch.full((len(x), 1), time, device=x.device)                                          # (n, 1)
        z, rows = corrupt(process, x, t), []                                                        # (n, L)
        for classifier in classifiers:
            parts = zip(z.split(batch_size), t.split(batch_size))
            log_p = torch.cat([classifier(*part).double().log_softmax(-1) for part in parts])       # (n, K)
            rows.append((-log_p.gather(-1, label[:, None])[:, 0], log_p.argmax(-1) == label))       # (n,), (n,)
        results[time] = rows
    return results
