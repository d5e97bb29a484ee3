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

HYBRIDS = [*FORCING]
