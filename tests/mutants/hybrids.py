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

ANY_ORDER = [
    ("model.py", "(positions[:, :1], positions[:, -1:])", "(positions[:, -1:], positions[:, -1:])",
     "test_sigma_gpt", "a query turns by its own place, not by the one that it predicts"),
    ("methods/in_order.py", "seen[text, key] < rank[text, query]",
     "seen[text, key] <= rank[text, query]",
     "test_eso_lm", "a mask sees its own token in the clean half"),
    ("methods/sigma_gpt.py", "(key - frozen.float())", "(key + frozen.float())",
     "test_sigma_gpt", "given tokens come last in the order"),
    ("methods/sigma_gpt.py", "len(w) * w", "w",
     "test_sigma_gpt", "the sum of probabilities over orders for their mean"),
    ("methods/sigma_gpt.py", "nats.gather(1, order.argsort(-1))", "nats",
     "test_sigma_gpt test_methods", "nats stand in the order, not in their places"),
    ("methods/sigma_gpt.py", "cache.keep(i + 1 - cache.read)", "cache.keep(i - cache.read)",
     "test_sigma_gpt", "a cache that reads the last token twice"),
    ("methods/eso_lm.py", "K / k.clamp", "n / k.clamp",
     "test_eso_lm", "the weight of mdlm where diffusion writes a share"),
    ("methods/eso_lm.py", "torch.where(x == self.process.mask, nobody, rank)", "rank",
     "test_eso_lm", "masks of one step see each other without a cache"),
    ("methods/eso_lm.py", "masked_fill(~text | (index >= W)", "masked_fill(index >= W",
     "test_eso_lm", "the padding of shorter texts is seen"),
    ("methods/eso_lm.py", "steps + rank)", "torch.full_like(rank, steps))",
     "test_eso_lm", "the rest is written at once"),
    ("samplers/burst.py", "cache.keep(int(place.min()) - cache.read)",
     "cache.keep(int(place.max()) - cache.read)",
     "test_burst", "the cache keeps keys of refused tokens"),
    ("samplers/burst.py", "torch.stack([positions[:, 0], own], 1)", "torch.stack([own, own], 1)",
     "test_burst", "all words of a burst are drafted for one place"),
    ("samplers/guidance.py", "if torch.is_tensor(a) and a.dim() > 1}", "if a is None}",
     "test_eso_lm", "guided texts have the positions of others"),
]

HYBRIDS = [*FORCING, *ANY_ORDER]
