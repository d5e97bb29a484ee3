"""
Chapter 11. A noise-aware classifier p(y | z_t) that guides diffusion (samplers/guidance.py).

    loss    -log p(y | z_t),   z_t ~ q(z_t | x),   y the class of x, t stratified in (0, 1)   (11.5)

It is no language model: it has no bound on -log p(x) and writes no text. Its network is that of
model.py with K outputs for K classes at each position; the logits are their mean over the text. The
least possible (11.5) is the entropy of the class given the noisy text. For the toy language it is
known (oracle.py), and `python evaluate.py` shows both.

Where noise is of real numbers it reads what they say of each word, as probabilities: for embeddings
exp (13.2), normalized. A table that was learned is that of a run: `--noise_from`.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import corrupt, stratified
from flags import UserError, flag, load_row
from methods import METHODS, make_method
from methods.base import Method
from model import Transformer


class ClassifierNetwork(Transformer):
    """classifier(z, t) -> logits (B, K). z: ids (B, L), or weights over symbols (B, L, V)"""

    def __init__(self, vocab_size, *sizes, n_classes, **options):
        super().__init__(vocab_size, *sizes, **options)
        self.head = torch.nn.Linear(self.head.in_features, n_classes)
        torch.nn.init.zeros_(self.head.weight)  # uniform at first, as in model.py
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, z, t):
        """t (B, 1), or (B, L), of which the latest counts: a text has a single time in training."""
        return super().forward(z, t.amax(-1, keepdim=True)).mean(1)  # (B, K)


@dataclass(eq=False)
class Classifier(Method):
    """--method classifier: trained on the noise of another method, whose models it can guide."""
    noise_of: str = flag("mdlm", "the method whose noise it reads; mdlm serves radd, pgm and ar, "
                         "udlm duo", table=METHODS, fixed=True)
    noise_from: str = flag("", "the folder of a run of that method whose table of embeddings, or "
                           "other noise that was learned, it reads", fixed=True)
    noise: object = None  # that method, with flags of its own
    predicts = "the class of a text"
    uses_time, classifies = True, True
    network = ClassifierNetwork
    defaults = {"labels": True, "label_dropout": 0.0}  # the class is the target

    @classmethod
    def build(cls, n_tokens, options):
        noise_of = options.get("noise_of", cls.noise_of)
        if load_row(METHODS, noise_of).classifies:
            raise UserError(f"no classifier can guide {noise_of}: give another --noise_of")
        return cls(n_tokens, noise_of, options.get("noise_from", ""),
                   make_method(noise_of, n_tokens, **options))

    def __post_init__(self):
        self.noise = self.noise or make_method(self.noise_of, self.n_tokens)
        self.process = self.noise.classifier_process
        if self.process is None:
            raise UserError(f"no classifier can guide {self.noise_of}: give another --noise_of")
        if self.noise_from and not isinstance(self.process, torch.nn.Module):
            raise UserError(f"--noise_from: {self.noise_of} learns no noise: leave it out")
        self.vocab_size = self.process.V

    def on_data(self, data):
        if self.noise.draw_evidence:
            self.noise.on_data(data)

    def on_start(self, read_model):
        if not self.noise_from:
            return
        theirs = read_model("--noise_from", self.noise_from)
        if theirs.method.name != self.noise_of:
            raise UserError(f"--noise_from {self.noise_from} is a run of {theirs.method.name}, and "
                            f"not of --noise_of {self.noise_of}")
        self.noise, self.process = theirs.method, theirs.method.process

    def extra_state(self):
        """Noise that has a table: that, its schedule and what else it counted."""
        if not isinstance(self.process, torch.nn.Module):
            return {}
        own = {f"noise.{name}": a for name, a in self.process.state_dict().items()}
        return {**own, **self.noise.extra_state()}

    def load_extra_state(self, state):
        if isinstance(self.process, torch.nn.Module):
            own = {name[6:]: a for name, a in state.items() if name.startswith("noise.")}
            self.process.load_state_dict(own)
            self.noise.load_extra_state(state)

    def check(self, config):
        if not config.labels or config.label_dropout:
            raise UserError("a classifier learns the class of every text: leave out --no_labels "
                            "and --label_dropout")

    def usage(self, folder, classes):
        return {"label": classes[0], "classifier": folder}

    @torch.no_grad()
    def noisy(self, x, t, frozen=None):
        """What it reads of a text at times t (B, 1). -> ids (B, L), or weights (B, L, V)"""
        if self.noise.draw_evidence:
            return self.noise.draw_evidence(x, t, frozen)  # (B, L, V)
        return corrupt(self.process, x, t, frozen)  # (B, L)

    def loss(self, labeled, x, frozen=None):
        """(11.5). labeled: a Labeled, the network and the classes of x. -> (B, 1) nats per text"""
        t = stratified(len(x), x.device)  # (B, 1)
        logits = labeled.denoiser(self.noisy(x, t, frozen), t).float()  # (B, K)
        return F.cross_entropy(logits, labeled.label, reduction="none")[:, None]  # (B, 1)

    nelbo = loss
