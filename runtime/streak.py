"""
Chapter 18. Streak distillation: a masked model learns to draft for an AR model (SpecDiff-2,
arXiv:2511.00606).

A call of the AR model keeps the words of a draft up to the first that it refuses. So a draft should
not agree often, but for long: with beta_j the share of words j that stay, given those before them,

    E[kept] = sum_(i=1..gamma) prod_(j<=i) beta_j,   beta_j = sum_v min(p_j(v), q_j(v)),     (18.15)
    loss    = 1 - E[kept] / gamma

p_j is that of the AR model after the first j - 1 words from place l on of a text of the data, l any
place, and q_j what the student predicts there in one call, which sees x_<l and masks. The first
word counts in all gamma products, the last in one. (Words that a draft got accepted have the law
min(p, q)/beta, not that of the data: the loss is a surrogate for that difference.)
"""
import torch

from checkpoints.load import assemble
from data.tokenizer import to_json
from flags import UserError
from methods.base import to_float32
from runtime.teacher import Student, batch_mean


def kept_streaks(p, q, at):
    """prod_(j<=i) beta_j of (18.15) at each drafted place. p, q (N, V) probabilities at `at` (B, L)
    -> (N,)"""
    beta = torch.minimum(p, q).sum(-1).clamp(min=1e-30)  # (N,) its log is finite
    log = beta.new_zeros(at.shape).masked_scatter(at, beta.log())  # (B, L)
    return log.cumsum(-1).exp()[at]  # (N,)


class Streak(Student):
    """The student is what drafts; --judge is the ar that will check it."""

    def on_start(self, read_model):
        if not self.settings.judge:
            raise UserError("--method streak needs --judge FOLDER, the ar that will check drafts")
        self.judge = read_model("--judge", self.settings.judge)
        if not (self.judge.method.exact and self.judge.method.left_to_right):
            raise UserError(f"--judge {self.settings.judge} is a run of {self.judge.method.name}: "
                            "give one of ar")

    def loss(self, denoiser, x, frozen=None):
        """(18.15); its loss_per_token is the mean over drafted places. -> (B, L)"""
        g, n, (B, L) = self.settings.gamma, self.process.n_tokens, x.shape
        first = torch.randint(L, (B, 1), device=x.device)  # (B, 1)
        place = torch.arange(L, device=x.device)  # (L,)
        free = place >= first if frozen is None else (place >= first) & ~frozen  # (B, L)
        z, at = torch.where(free, self.process.mask, x), free & (place < first + g)  # (B, L) each
        if not at.any():
            return torch.zeros(B, L, device=x.device, requires_grad=True)  # (B, L) all is given
        to_p = lambda logits: to_float32(logits[:, :n]).softmax(-1)
        t = free.sum(-1, keepdim=True) / L  # (B, 1) the share of masks
        q = to_p(denoiser(z, t, at=at))  # (N, n_tokens)
        with torch.no_grad():
            judge = self.judge.denoiser.to(x.device)
            p = to_p(judge(self.judge.method.shift(x), None, at=at))  # (N, n_tokens)
        return batch_mean(1 - kept_streaks(p, q, at), at, frozen)  # (B, L)

    def extra_state(self):
        """Also the judge, so that a run is resumed without its folder."""
        judge = self.judge
        state = {"config": vars(judge.config), "encoding": to_json(judge.encoding),
                 "ema": judge.denoiser.state_dict(), "step": judge.step, "classes": judge.classes,
                 **judge.method.extra_state()}
        return {**super().extra_state(), "judge": state}

    def load_extra_state(self, state):
        super().load_extra_state(state)
        self.judge = assemble(state["judge"], "--judge")
