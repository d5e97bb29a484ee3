"""Mutants of guidance by gradients (samplers/gradients.py, classifiers of real numbers), and of
recipes: spans, TREC, DiffuSIA."""

GRADIENTS = [
    ("samplers/gradients.py", "torch.autograd.grad(log_p(a).sum(), a)",
     "torch.autograd.grad(log_p(a).mean(), a)",
     "test_gradients", "a gradient that depends on the size of the batch"),
    ("samplers/gradients.py", "x_hat = found.x_hat + (shift", "x_hat = found.x_hat - (shift",
     "test_gradients", "rows are guided away from the class"),
    ("samplers/gradients.py", "p = (found.log_p.exp() + shift)", "p = found.log_p.exp()",
     "test_gradients", "words are not guided, rows are"),
    ("samplers/gradients.py", "reward(u.softmax(-1)), logits)", "reward(u.exp()), logits)",
     "test_gradients", "the gradient of weights that are not normalized"),
    ("samplers/gradients.py", "squares = squares + gradient.square()",
     "squares = gradient.square()", "test_gradients", "a new Adagrad in each step"),
    ("samplers/gradients.py", "start, around = torch.zeros_like(t[:, :1])", "start, around = t",
     "test_gradients", "a classifier of clean text is told the noise of z"),
    ("samplers/gradients.py", "lambda a: log_p(weights * a.exp())", "lambda a: log_p(weights + a)",
     "test_gradients", "a gradient in weights, not in their logarithms"),
    ("checkpoints/load.py", "return (torch.equal(one.rows(), other.rows().to(one.rows()))",
     "return (True", "test_gradients_runs", "a classifier of another table guides"),
    ("methods/classifier.py", "self.process.load_state_dict(own)", "pass",
     "test_gradients_runs", "a classifier forgets its table"),
]

RECIPES = [
    ("data/spans.py", "place < i < place + width", "place < i <= place + width",
     "test_spans", "spans that are a word too long"),
    ("data/spans.py", "while is_held_out(table):", "while False:",
     "test_spans", "spans of texts that the task holds out"),
    ("methods/difformer.py", "return -gain * log_p", "return gain * log_p",
     "test_trec", "a policy gradient that prefers what is wrong"),
    ("methods/difformer.py", "/ at.sum(-1, keepdim=True).clamp(min=1)", "",
     "test_trec", "a reward that counts words, not their share"),
    ("methods/gammas.py", "self.schedule(t) + 2 * torch.log1p", "self.schedule(t) + torch.log1p",
     "test_trec", "noise that grows by the root"),
    ("samplers/sides.py", "self.of_target(h[:, self.source:])",
     "self.of_source(h[:, self.source:])",
     "test_spiral", "one set of weights for both sides"),
    ("samplers/sides.py", "network.supports_cache, last = False,", "last =",
     "test_spiral", "a cache of a source that changes"),
]
