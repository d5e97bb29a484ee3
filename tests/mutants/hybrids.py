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

ENERGY = [
    ("samplers/energy.py", "log_w.softmax(-1)", "(-log_w).softmax(-1)",
     "test_energy_sampler", "an energy of the wrong sign (public code)"),
    ("samplers/energy.py", "x[at][:, None])[:, 0].log()).sum(-1)", "x[at][:, None])[:, 0]).sum(-1)",
     "test_energy_sampler", "probabilities of the draft for their logarithms (public code)"),
    ("samplers/energy.py", "torch.stack(texts, 1)[torch.arange(len(z), device=z.device), best]",
     "torch.stack(texts).view(len(z), -1, z.shape[1])"
     "[torch.arange(len(z), device=z.device), best]",
     "test_energy_sampler", "candidates of a batch in another order (public code)"),
    ("samplers/energy.py", "given = ~at if self.carry else None", "given = ~at",
     "test_energy_sampler", "the whole energy is blind to the right"),
    ("samplers/energy.py", "        if self.carry:", "        if False:",
     "test_energy_runs", "the perplexity of the AR model for that of --carry (public code)"),
    ("samplers/energy.py", "log_w.append(rate(texts[-1]) - log_q(texts[-1]))",
     "log_w.append(rate(texts[-1]))",
     "test_energy_sampler", "the draft's probabilities are left out"),
    ("samplers/energy.py", "(log_w[:, k] - log_w.gather", "(log_w[:, k] - 0 * log_w.gather",
     "test_energy_sampler", "Metropolis forgets the text that it has"),
    ("samplers/energy.py", "opens = opening(process, z, s, t)", "opens = z == process.mask",
     "test_energy_sampler", "all masks open in the first step"),
    ("methods/energy.py", "F.softplus(of_text) + F.softplus(-of_draw)",
     "F.softplus(-of_text) + F.softplus(of_draw)",
     "test_energy test_energy_runs", "text and draws are exchanged"),
    ("methods/energy.py", "return total - network(z, t, text=x)",
     "return -network(z, t, text=x)",
     "test_energy", "the law of the draws is left out of a trained energy"),
    ("methods/energy.py", "module.register_buffer(name, p.detach())",
     "module.register_parameter(name, p)",
     "test_energy test_methods", "the frozen network is trained"),
]

HYBRIDS = [*FORCING, *ENERGY]
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
