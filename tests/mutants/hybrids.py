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

MIXED_BLOCKS = [
    ("methods/blockgen.py", "in_order = (query < L) | (key <= query)", "in_order = query >= 0",
     "test_blockgen", "a clean token sees its block to the right"),
    ("methods/blockgen.py", "place = query - block * (query >= start + block)", "place = query",
     "test_blockgen", "the view in order sees the word that it predicts"),
    ("methods/blockgen.py", "noisy = min(cache.read, cache.reach) + lo - cache.read",
     "noisy = lo", "test_blockgen", "in a window the noisy block is not where it is"),
    ("methods/bd3lm.py", "int(positions.max()) + 1", "(z.shape[1] + self.block_length) // 2",
     "test_blockgen", "the oracle of one size in place of all"),
    ("methods/blockgen.py", "BD3LM.loss(self.at_size(n), denoiser", "BD3LM.loss(self, denoiser",
     "test_blockgen", "training on the size of the bound alone"),
    ("samplers/ar_informed.py", "log_choice(self.rates(new, ~frozen), at) - log_choice(rate, at)",
     "0", "test_ar_informed", "doubtful words are chosen, and the way back is forgotten"),
    ("samplers/ar_informed.py", "log_q(z[at]) - log_q(words)", "log_q(words) - log_q(z[at])",
     "test_ar_informed", "the ratio of what is drawn, upside down"),
    ("samplers/ar_informed.py", "(self.remask * rate).masked_fill(~free, 0.0)",
     "self.remask * rate",
     "test_ar_informed test_sampler_table", "given words are changed"),
    ("samplers/ar_informed.py", "k = (n * left / steps).round().clamp(min=1)",
     "k = (n * (left + 1) / steps).round().clamp(min=1)",
     "test_ar_informed", "a step late: the first one writes nothing"),
    ("samplers/ar_informed.py", "q[at.flatten()] = probabilities(logits)",
     "q[at.flatten()] = p[at.flatten()]", "test_ar_informed", "new words are never doubtful"),
    ("flags.py", "made, _ = extend(config.script, {**vars(config), **values}, config.more)",
     "made, _ = extend(config.script, {**vars(config), **values})",
     "test_later_flags", "a flag of the trained model is lost when the sampler is chosen"),
    ("checkpoints/load.py", 'if f.metadata["later"]}', "}",
     "test_later_flags", "a trained causal network is used as one that sees all"),
]

HYBRIDS = [*FORCING, *MIXED_BLOCKS]
PUZZLES = [
    ("data/sudoku.py", "held == (side == HELD_OUT)", "held >= 0", "test_puzzles",
     "solutions of held-out puzzles are learned"),
    ("data/sudoku.py", ".sum(-1).amin(-1)", ".sum(-1)[:, 0]", "test_puzzles",
     "a held-out puzzle is learned turned around"),
    ("data/sudoku.py", "clues[fits == 1], solution[fits == 1]", "clues, solution", "test_puzzles",
     "puzzles with several solutions"),
    ("data/sudoku.py", "seen.sum(-1) == side - 1", "seen.sum(-1) >= side - 2", "test_puzzles",
     "a cell is emptied that may hold two digits"),
    ("data/countdown.py", "                left[row, used] -= 1\n", "", "test_puzzles",
     "a number may be used twice"),
    ("data/countdown.py", "start.sort(-1).values @", "start @", "test_puzzles",
     "numbers in another order are another puzzle"),
    ("data/planning.py", "is_edge.all(-1) & (way[:, -1] == x[:, self.prompt - 1])",
     "is_edge.all(-1)", "test_puzzles", "a way to anywhere"),
    ("methods/mgdm.py", "(-torch.expm1(-nats)).clamp(min=0) ** gamma * nats",
     "nats", "test_mgdm", "no focal factor"),
    ("methods/mgdm.py", "self.levels - i + 1.0", "self.levels - i", "test_mgdm",
     "texts that are all masks have no weight"),
    ("methods/mgdm.py", "2 * w(i) * every.sum()", "w(i) * every.sum()", "test_mgdm",
     "a loss of half the size"),
]

HYBRIDS = [*FORCING, *PUZZLES]
