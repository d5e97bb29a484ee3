"""Mutants of samplers, caches, guidance and generation: samplers/, model.py's Cache."""

SAMPLERS = [
    ("samplers/unmasking.py", "highest(score, k)",
     "(score.flatten().argsort(descending=True).argsort().view_as(score) < k.sum())",
     "test_unmasking test_samplers", "one ranking for a whole batch"),
    ("samplers/unmasking.py", "confidence.new_full(z.shape, -1.0)",
     "confidence.new_full(z.shape, 1.0)", "test_unmasking test_samplers test_exercises_more",
     "text takes the place of masks in the ranking"),
    ("samplers/base.py", "return (n / left).ceil()", "return (n / left).floor()",
     "test_unmasking test_samplers", "masks are left in the end"),
    ("samplers/unmasking.py", "Beta((n - k + 1).clamp(min=1), k.clamp(min=1))",
     "Beta((n - k + 1).clamp(min=1), (k + 1).clamp(min=1))",
     "test_unmasking test_samplers", "first-hitting reports the wrong times"),
    ("samplers/psi.py", '"rescale": eta * most.clamp(max=1)',
     '"rescale": eta * eta * most.clamp(max=1)', "test_psi",
     "eta squared (public code of rescale)"),
    ("samplers/psi.py", ">= process.alpha(s)", ">= process.alpha(t)",
     "test_psi", "corrected tokens are noised to t"),
    ("samplers/psi.py", "corrects = coin() >= kappa", "corrects = coin() < kappa",
     "test_psi", "kappa is the probability of a correction"),
    ("samplers/psi.py", "frozen | noised", "frozen",
     "test_psi", "the network is called for tokens that will be noised"),
    ("samplers/euler.py", "p = p.clamp(min=0)", "p = p",
     "test_euler test_sedd_samples", "negative probabilities"),
    ("samplers/euler.py", "i + 1 == steps  # (B, L)", "False  # (B, L)",
     "test_euler test_sedd_samples", "masks are left at the end"),
    ("samplers/remasking.py", "(-confidence).masked_fill", "confidence.masked_fill",
     "test_remasking", "the most confident words are masked again"),
    ("samplers/correctors.py",
     "hidden = z if process.mask is None else z.masked_fill(at, process.mask)", "hidden = z",
     "test_correctors", "gibbs sees the word that it redraws"),
    ("samplers/semi_ar.py", "((n + 1) * (1 - ranked) < factor)", "(n * (1 - ranked) < factor)",
     "test_semi_ar", "the factor rule counts one too few"),
    ("samplers/semi_ar.py", "masked & (lo <= place) & (place < lo + size)", "masked & (lo <= place)",
     "test_semi_ar", "later blocks open too"),
    ("samplers/semi_ar.py", "cache.start, cache.length = lo,", "cache.start, cache.length = hi,",
     "test_semi_ar test_cache", "the cache takes masks for text"),
]

CACHES = [
    ("methods/bd3lm.py", "torch.cat([past, z], 1), at, lo,",
     "torch.cat([past, z], 1), at, lo + z.shape[1],", "test_cache test_bd3lm",
     "the cache keeps noisy tokens"),
    ("model.py", "(cache.start if cache else 0)", "0",
     "test_cache", "positions start anew behind a cache"),
    ("model.py", "self.start, self.read = self.start + n, self.read + n",
     "self.start, self.read = self.start + n, self.read", "test_cache",
     "what was read is read again"),
]

GUIDANCE = [
    ("samplers/guidance.py", "(gamma * log_c + (1 - gamma) * log_u)",
     "((1 + gamma) * log_c - gamma * log_u)", "test_guidance",
     "the other convention of strength"),
    ("samplers/guidance.py", "times = t[i].scatter(1, l, s[i].gather(1, l))", "times = t[i]",
     "test_guidance", "the classifier reads one time for all tokens"),
    ("diffusion.py", "return at if frozen is None else at & ~frozen", "return at",
     "test_guidance test_methods", "given tokens are guided"),
    ("samplers/guidance.py", "label=label, **layout).chunk(2)",
     "label=label.flip(0), **layout).chunk(2)", "test_guidance",
     "with and without the class exchanged"),
]

GENERATION = [
    ("samplers/generate.py", "if id == end and not frozen[i]]", "if id == end]",
     "test_generate test_sample", "an end that is given ends a text"),
    ("samplers/generate.py", "torch.manual_seed(seed + 1_000_003 * first)",
     "torch.manual_seed(seed)", "test_generate test_sample_loop", "all batches of texts are one"),
    ("samplers/generate.py",
     "torch.where(begins & ~frozen, method.first_token, given), frozen | begins",
     "torch.where(begins & ~frozen, method.first_token, given), frozen",
     "test_generate test_hub_runs", "a first token that is given is scored"),
]

SAMPLING = [*SAMPLERS, *CACHES, *GUIDANCE, *GENERATION]
