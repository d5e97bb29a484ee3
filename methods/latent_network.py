"""
Chapter 15. The network of latent diffusion: an encoder, a decoder and a denoiser in one module.

    h_k     = sum over l in window k of A(u_l) encoder(x)_l, normalized  ids -> (B, K, d)    (15.15)
    logits  = decoder( B(u_l) z_k + word l, blank where it is wanted )   (B, K, d) -> (N, V)
    v'      = denoiser( [z ; given words] ), told gamma and the class    (B, K, d) -> (B, K, d)

One call does one of the three: `forward` sees from its arguments which. So whatever wraps, counts,
compiles or averages a network works as for any other. Each part is a Transformer that reads vectors
in place of ids. The denoiser reads given words through the embedding that the encoder learned, and
does not train it.

The text is cut into K windows, and each vector is read from one and written to one. u_l in [0, 1)
is the place of word l in its window, and the matrices A and B, which are learned at KNOTS places,
are interpolated between them. Attention mixes windows before and after. (The published resampler
has K learned queries that attend to all words instead. Which of 20 equal blanks is to read which
vector is then learned by attention alone, and a decoder first spends hundreds of steps at the
entropy of single words.)

Latents are normalized to mean 0 and variance 1 for each coordinate over the data, which is what
(15.7) wants, and none is farther from it than FARTHEST. In training the statistics are those of the
batch, and their average is kept beside the weights, so it is saved and averaged with them.
"""
import torch
import torch.nn as nn

from model import Transformer, causal

KEPT = 0.05  # share of a batch in the running statistics
KNOTS = 4  # places in a window at which matrices are learned
EPS = 1e-5  # of a variance: a coordinate that never changes would be divided by 0
FARTHEST = 4.0  # deviations: a window that is empty in 499 of 500 texts has 22 in the other one


class VectorTransformer(Transformer):
    """A Transformer of hidden states (B, n, D): its input has been embedded."""

    def __init__(self, outputs, *shape, **options):
        super().__init__(outputs, *shape, **options)
        self.embed = None

    def embedding(self, z):
        return z  # (B, n, D)


def only_seen(seen):
    """An attention pattern for each text: which keys any query sees. seen (B, n) bool"""
    return lambda batch, head, query, key: seen[batch, key]  # (B, 1, 1, n)


def windows(K, L, device=None):
    """How much knot m of window k has to do with word l: 0 but for the two knots beside its place.
    -> (K, KNOTS, L)"""
    l = torch.arange(L, device=device) * K  # (L,) in units of 1 / L windows
    window, place = l // L, l % L * (KNOTS - 1) / L  # (L,) each
    knot = torch.arange(KNOTS, device=device)[:, None]  # (KNOTS, 1)
    near = (1 - (place - knot).abs()).clamp(min=0)  # (KNOTS, L)
    return near * (window == torch.arange(K, device=device)[:, None, None])  # (K, KNOTS, L)


def statistics(rows):
    """The mean, and the log of the variance. rows (n, k, d) -> (k, d) each"""
    return rows.mean(0), (rows.var(0, unbiased=False) + EPS).log()


def of_blocks(options):
    """The flags of a network that its parts without a condition take, too."""
    return {key: options[key] for key in ("dropout", "qk_norm", "norm_bias") if key in options}


class LatentText(nn.Module):
    """Encoder, decoder and denoiser of texts as K vectors of d numbers.

    inputs       numbers of a vector that the denoiser reads: 2 d with self-conditioning
    ordered      the decoder writes from left to right, and has all K vectors in front of it
    hides_given  the encoder reads the words that are not given, and no others
    """
    supports_cache = supports_fused_head = fixed_shapes = False
    source, mask_mod = 0, None
    in_stages = True  # a step trains some of the weights only

    def __init__(self, vocab_size, n_layer, n_head, n_embd, latents, dim, inputs, ordered=False,
                 hides_given=False, cond_dim=128, n_classes=0, **options):
        super().__init__()
        self.vocab_size, self.blank, self.K = vocab_size, vocab_size - 1, latents
        self.ordered, self.hides_given = ordered, hides_given
        shape = n_layer, n_head, n_embd
        plain = of_blocks(options)
        self.embed = nn.Parameter(0.5 * torch.randn(vocab_size, n_embd))
        self.encoder = VectorTransformer(n_embd, *shape, cond_dim=0, **plain)
        self.encoder.head.reset_parameters()
        self.gather = nn.Linear(KNOTS * n_embd, dim)  # A of (15.15)
        self.mean = nn.Parameter(torch.zeros(latents, dim), requires_grad=False)  # (k, d)
        self.log_variance = nn.Parameter(torch.zeros(latents, dim), requires_grad=False)  # (k, d)
        self.spread = nn.Linear(dim, KNOTS * n_embd)  # B of (15.15)
        if ordered:
            self.read = nn.Linear(dim, n_embd)
            self.read_places = nn.Parameter(0.5 * torch.randn(latents, n_embd))
        self.text_decoder = VectorTransformer(vocab_size - 1, *shape, cond_dim=0, **plain)
        self.read_noisy = nn.Linear(inputs, n_embd)  # by the denoiser
        self.places = nn.Parameter(0.5 * torch.randn(latents, n_embd))
        self.denoiser = VectorTransformer(dim, *shape, cond_dim=cond_dim, n_classes=n_classes,
                                          **plain)

    def forward(self, z, noise=None, at=None, label=None, words=None):
        """Latents (B, K, d) of ids z; logits (N, V) at `at` from latents z; or, with the noise
        gamma (B, 1), v' or h' (B, K, d).

        at (B, L) bool: the words that are wanted, None for all; the other `words` are given
        """
        if not z.is_floating_point():
            at = torch.ones_like(z, dtype=torch.bool) if at is None else at  # (B, L)
            return self.normalize(self.encode(z, at))
        at = torch.ones_like(words, dtype=torch.bool) if at is None else at  # (B, L)
        if noise is None:
            return self.decode(z, words, at)
        return self.denoise(z, noise, words, at, label)

    # ---- words to latents

    def encode(self, x, at):
        """Latents (B, K, d), not normalized, of x (B, L)."""
        pattern = only_seen(at | ~at.any(-1, keepdim=True)) if self.hides_given else None
        h = self.encoder(self.embed[x], mask_mod=pattern)  # (B, L, D)
        h = h * at[..., None] if self.hides_given else h  # (B, L, D)
        near = windows(self.K, x.shape[1], x.device).to(h.dtype)  # (K, KNOTS, L)
        return self.gather(torch.einsum("kml,bld->bkmd", near, h).flatten(2))  # (B, K, d)

    def beside_latents(self, seen):
        """Which of [K latents ; L words] are seen: all latents. (B, L) -> (B, K + L)"""
        return torch.cat([seen.new_ones(len(seen), self.K), seen], 1)  # (B, K + L)

    def normalize(self, h):
        """Mean 0 and variance 1 of each coordinate; in training, over the batch. -> (B, K, d)"""
        rows = h.reshape(-1, *self.mean.shape).float()  # (B', k, d)
        mean, log_variance = self.mean, self.log_variance  # (k, d) each
        if self.training and torch.is_grad_enabled() and len(rows) > 1:
            mean, log_variance = statistics(rows)  # (k, d) each
            with torch.no_grad():
                self.mean.lerp_(mean, KEPT)
                self.log_variance.lerp_(log_variance, KEPT)
        rows = (rows - mean) * (-log_variance / 2).exp()  # (B', k, d)
        return rows.clamp(-FARTHEST, FARTHEST).reshape(h.shape)  # (B, K, d)

    @torch.no_grad()
    def set_statistics(self, h):
        """Normalize by the statistics of these latents (n, K, d), which are not normalized."""
        for kept, found in zip((self.mean, self.log_variance),
                               statistics(h.reshape(-1, *self.mean.shape))):
            kept.copy_(found)  # (k, d)

    # ---- latents to words

    def decode(self, z, words, at):
        """Logits (N, V) at `at`, of all words at once, or each from those to its left."""
        if not self.ordered:
            h = self.embed[words.masked_fill(at, self.blank)] + self.beside_words(z, words.shape[1])
            return self.text_decoder(h, at=at)  # (N, V)
        words = torch.cat([torch.full_like(words[:, :1], self.blank), words[:, :-1]], 1)  # (B, L)
        h = self.embed[words] + self.beside_words(z, words.shape[1])  # (B, L, D)
        h = torch.cat([self.read(z.to(h.dtype)) + self.read_places, h], 1)  # (B, K + L, D)
        wanted = torch.cat([at.new_zeros(len(at), self.K), at], 1)  # (B, K + L)
        rows = wanted.flatten().nonzero()[:, 0]  # (N,) of all rows, so that no text is left out
        return self.text_decoder(h, at=rows, mask_mod=causal)  # (N, V)

    def beside_words(self, z, L):
        """What the vectors add to the words of their windows: B(u_l) z_k. -> (B, L, D)"""
        h = self.spread(z.to(self.embed.dtype)).view(len(z), self.K, KNOTS, -1)  # (B, K, KNOTS, D)
        near = windows(self.K, L, z.device).to(h.dtype)  # (K, KNOTS, L)
        return torch.einsum("kml,bkmd->bld", near, h)  # (B, L, D)

    # ---- noisy latents to latents

    def denoise(self, z, gamma, words, at, label):
        """-> (B, K, d) what the method predicts. No word that is not given is read."""
        h, pattern = self.read_noisy(z.to(self.embed.dtype)) + self.places, None  # (B, K, D)
        if not at.all():
            h = torch.cat([h, self.embed.detach()[words]], 1)  # (B, K + L, D)
            pattern = only_seen(self.beside_latents(~at))
        return self.denoiser(h, gamma, label=label, mask_mod=pattern)[:, :self.K]  # (B, K, d)
