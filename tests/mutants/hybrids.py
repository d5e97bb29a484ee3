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

ADAPTED = [
    ("methods/diffugpt.py", "(query >= key) | opened[query, key]", "opened[query, key]",
     "test_diffugpt", "annealing closes the causal part, too"),
    ("methods/diffugpt.py", "self.start, self.vocab_size = self.n_tokens + 1, self.n_tokens + 2",
     "self.start, self.vocab_size = self.n_tokens, self.n_tokens + 2",
     "test_diffugpt", "start is the mask"),
    ("methods/diffugpt.py", "offset_positions(at, L, L + 1)", "F.pad(at, (1, 0))",
     "test_diffugpt", "each row is one place off"),
    ("methods/diffugpt.py", "(step + 1) / steps", "step / steps",
     "test_diffugpt", "attention is never open in a run that anneals to its end"),
    ("methods/diffugpt.py", "insert_row(theirs[name], fresh[name], self.process.mask)",
     "insert_row(theirs[name], fresh[name], self.process.mask + 1)",
     "test_diffugpt", "the mask gets the vector of start"),
    ("checkpoints/load.py", "if other.method.predicts in method.adapts:", "if False:",
     "test_diffugpt", "weights of ar do not fit diffugpt"),
    ("methods/ar2diff.py", "self.draw(denoiser, z, frozen), x, 0.5", "z, x, 0.5",
     "test_ar2diff", "the second term sees the same noise"),
    ("methods/ar2diff.py", "leave_one_out=False", "leave_one_out=True",
     "test_ar2diff", "the exact denoiser of a network that reads z_l does not know z_l"),
    ("methods/ar2diff.py", "torch.where(frozen, z, words)", "words",
     "test_ar2diff", "given words are drawn again"),
    ("samplers/unroll.py", "better = score > most", "better = score < most",
     "test_ar2diff", "the least likely of several texts is kept"),
    ("evaluation/held_out.py", "if not model.method.has_bound:", "if False:",
     "test_ar2diff", "a loss is reported as a bound"),
    ("methods/diffusion_llm.py", "6 * (T - (t - 1)) / T", "6 * (T - t) / T",
     "test_diffusion_llm", "levels from 0 in the weights, from 1 in the masks"),
    ("methods/diffusion_llm.py", "torch.where(t1 == t2, corrupt(process, x, t2 / T, frozen), fewer)",
     "fewer", "test_diffusion_llm", "equal levels give one text twice"),
    ("methods/diffusion_llm.py", "< t2 / t1, z1, x)", "< t2 / T, z1, x)",
     "test_diffusion_llm", "the second text of a pair has too few masks"),
]

HYBRIDS = [*FORCING, *ADAPTED]
