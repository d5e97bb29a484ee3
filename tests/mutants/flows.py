"""Mutants of flows: chapter 14."""

DFM = [
    ("methods/dfm.py", "return torch.where(z == x, 1.0, -at_x) - own",
     "return torch.where(z == x, 0.0, -at_x) - own",
     "test_dfm", "the generalized KL without its constant"),
    ("methods/dfm.py", "return torch.where(z == x, 1.0, -at_x) - own",
     "return torch.where(z == x, 1 - own, -at_x)",
     "test_dfm", "jumps of wrong words that stay wrong cost nothing"),
    ("methods/dfm.py", "2 * v * flow_factor(self.process, t)", "flow_factor(self.process, t)",
     "test_dfm", "times of a flow without their density"),
    ("methods/dfm.py", "self.sign * own.to(logits.dtype)", "own.to(logits.dtype)",
     "test_dfm", "evidence is added where it should be taken off"),
    ("methods/dfm.py", "return denoiser if known else WithEvidence(denoiser, self.process, -1)",
     "return denoiser",
     "test_dfm", "the full posterior in the bound of the reversal"),
    ("methods/dfm.py", "t = 1 - (1 - masks.clamp(1e-6, 1)) ** (1 / self.power)",
     "t = masks.clamp(1e-6, 1)",
     "test_dfm", "the time of a flow with kappa = u for all kappa"),
    ("methods/dfm.py", "/ (1 if process.mask else process.V)", "",
     "test_dfm", "the rate of one wrong word for that of all"),
    ("methods/dfm.py", "return -self.power * (1 - t) ** (self.power - 1)",
     "return -(1 - t) ** (self.power - 1)",
     "test_dfm", "the slope of kappa without its power"),
]

STEPS = [
    ("samplers/flow.py", "p = posterior_x0(process, x_theta, own, times)[:, 0]",
     "p = x_theta[:, 0]",
     "test_flow", "a flow that jumps to what the others say"),
    ("samplers/flow.py", "return (late - early) / (1 - early)", "return (late - early)",
     "test_flow", "jumps of a flow as a share of all tokens"),
    ("samplers/flow.py", "if self.form == \"euler\" and s > 0 else s  # () of a redraw",
     "if s > 0 else s  # () of a redraw",
     "test_flow", "redraws to the noise that was"),
    ("samplers/flow.py", "coin() >= process.alpha(level)", "coin() < process.alpha(level)",
     "test_flow", "redraws keep what they should noise"),
    ("samplers/flow.py", "again = rate / early if", "again = rate if",
     "test_flow", "one rate of redraws for both"),
    ("samplers/flow.py", "moves = (redrawn | (coin() < jump)) & ~noised",
     "moves = (coin() < jump) & ~noised",
     "test_flow", "redraws that are no noise stay as they are"),
]

FLOWS = [*DFM, *STEPS]
