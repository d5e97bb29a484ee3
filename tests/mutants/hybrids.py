"""Mutants of what joins diffusion with autoregression, and of schedules and clocks by token."""

FORCING = [
    ("methods/diffusion_forcing.py", "self.slope * w * (D - d)", "self.slope * w * d",
     "test_diffusion_forcing", "the last token is clean first"),
    ("methods/diffusion_forcing.py", "at, n * rate / rate.sum", "at, rate / rate.sum",
     "test_diffusion_forcing", "the bound of one token for that of the text"),
    ("methods/diffusion_forcing.py", "torch.minimum(place, n - 1 - place)",
     "torch.minimum(place, n - place)",
     "test_diffusion_forcing", "a trapezoid whose middle column is late"),
    ("methods/diffusion_forcing.py", "e.cpu()[rows, :l + 1]", "e.cpu()[rows]",
     "test_diffusion_forcing", "the oracle of a causal network sees to the right"),
]

SPINDLE = [
    ("methods/symbol_schedules.py", "w_x * (ce - 1) + (w * log_p.exp()).sum(-1)", "w_x * ce",
     "test_diffusionbert test_genmd4", "a weighted cross-entropy read as a bound"),
    ("methods/symbol_schedules.py", "leave_one_out=False", "leave_one_out=True",
     "test_diffusionbert", "the pattern of masks is no evidence for the oracle"),
    ("methods/symbol_schedules.py", "weight = n / w.sum", "weight = 1 / w.sum",
     "test_diffusionbert", "draws of a schedule by symbol stand for one token"),
    ("methods/symbol_schedules.py", "closed = coin(len(new)) * most[l]", "closed = coin(len(new))",
     "test_diffusionbert", "the second coin forgets that the first one came up"),
    ("methods/diffusionbert.py", "f - (counts * f).sum() / counts.sum()", "f - f.mean()",
     "test_diffusionbert", "centered by the vocabulary, not by the text"),
    ("methods/diffusionbert.py", "keepdim=True) if not self.bounded else c)", "keepdim=True))",
     "test_diffusionbert", "every schedule is centered by the text, as published"),
    ("methods/diffusionbert.py", "return t * (1 - self.k(", "return t * (1 + self.k(",
     "test_diffusionbert", "easy first for key first"),
    ("methods/diffusionbert.py", "slope / self.masked(t, v, place)", "slope / t",
     "test_diffusionbert", "the weight of the plain schedule"),
    ("methods/diffusionbert.py", '"counts": self.counts', '"counts": torch.ones(self.n_tokens)',
     "test_diffusionbert_runs", "a checkpoint forgets how frequent words are"),
    ("evaluation/held_out.py", "if not model.method.bounded:", "if False:",
     "test_diffusionbert_runs", "a loss is printed as a bound"),
    ("methods/rdm.py", "u[1] > 1 - low / high", "u[1] > low / high",
     "test_rdm", "a couple keeps the masks that it should open"),
    ("methods/rdm.py", "torch.where(first, less, more)", "less",
     "test_rdm", "both of a couple have the smaller share of masks"),
    ("methods/rdm.py", "zip((t1, t2), masks)", "zip((t2, t1), masks)",
     "test_rdm", "each of a couple has the weight of the other"),
    ("samplers/remasking.py", "(drawn == z) & (now < written)", "(drawn == z)",
     "test_rdm", "a conditional word goes back though it is surer than before"),
    ("samplers/remasking.py", "self.stochastic * rate * gumbel", "self.stochastic * gumbel",
     "test_rdm", "the noise of routing never fades"),
]

HYBRIDS = [*FORCING, *SPINDLE]
