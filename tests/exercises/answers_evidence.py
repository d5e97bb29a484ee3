"""Answers to exercises 25 and 26: see answers.py."""

RIGHT = {
    25: ["return lam * F.one_hot(x, eps.shape[-1]) + lam ** 0.5 * eps",
         "y = lam.sqrt() * eps\nreturn y + torch.zeros_like(y).scatter(-1, "
         "x.expand(y.shape[:-1])[..., None], lam.expand(*y.shape[:-1], 1).clone())",
         "return torch.where(F.one_hot(x, eps.shape[-1]) > 0, lam, 0.0) + lam.sqrt() * eps"],
    26: ["return dy.gather(-1, x[..., None])[..., 0] - (log_p + dy).logsumexp(-1)",
         "p = (log_p + dy).log_softmax(-1) - log_p\nreturn p.gather(-1, x[..., None])[..., 0]",
         "word = F.one_hot(x, dy.shape[-1])\nreturn (dy * word).sum(-1) - torch.logsumexp("
         "log_p + dy, -1)"],
}

WRONG = {
    25: [("return lam * F.one_hot(x, eps.shape[-1]) + lam * eps", "lam is the variance"),
         ("return F.one_hot(x, eps.shape[-1]) + lam.sqrt() * eps", "the mean is 1, not lam"),
         ("return lam * (2 * F.one_hot(x, eps.shape[-1]) - 1) + lam.sqrt() * eps",
          "all other words get -lam"),
         ("return lam * F.one_hot(x, eps.shape[-1])", "there is no noise"), ("pass", "tensor")],
    26: [("return (log_p + dy).logsumexp(-1) - dy.gather(-1, x[..., None])[..., 0]",
          "the sign is wrong"),
         ("return dy.gather(-1, x[..., None])[..., 0] - dy.logsumexp(-1)",
          "the receiver does not know"),
         ("return -(log_p + dy).log_softmax(-1).gather(-1, x[..., None])[..., 0]",
          "cross-entropy after the evidence"),
         ("return dy.gather(-1, x[..., None])[..., 0] - (log_p.exp() * dy).sum(-1)",
          "the mean of dy stands in place of")],
}
