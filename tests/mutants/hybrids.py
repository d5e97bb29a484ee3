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
