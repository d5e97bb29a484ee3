"""
Who rates samples: an ar model of this code with the same tokens, or any causal model of `transformers` (an extra).

    judge = judge_of("out/python-ar", model, device)       exact on the very tokens, ids as they are
    judge = judge_of("gpt2-large", model, device)          a name on the hub, or a local folder

Generative perplexity by a foreign model has conventions, which change it more than samplers do. Ours are MDLM's
(arXiv:2406.07524), in float32 whatever precision the weights have:

    text       decoded, and tokenised anew by the judge's own tokenizer, with the special tokens that it adds by itself
    length     cut to the judge's context
    first      the first token is read, not scored: the judge has seen nothing before it
    end        every token counts but ends of text beyond the first; what follows an end counts
    padding    is never scored (MDLM scores the first one, where a text has no end)
"""
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from bounds import nats_of
from checkpoint import restore
from data import BadInput
from data.tokenizer import to_json


def judge_of(name, model, device):
    """An object with .where and nats(x, texts, batch_size), or None where no judge is named."""
    if not name:
        return None
    if Path(name).suffix == ".pt" or (Path(name) / "ckpt.pt").exists():
        return ours(name, model, device)
    return Pretrained(name, device)


def ours(out_dir, model, device):
    """An ar checkpoint: it scores all tokens, the first one given nothing."""
    judge = restore(out_dir, device)
    if judge.config.method != "ar" or to_json(judge.encoding) != to_json(model.encoding):
        raise BadInput(f"--judge {out_dir} must be an ar checkpoint with the same tokens, or a model of transformers")
    return SimpleNamespace(where=out_dir, nats=lambda x, texts, batch_size: nats_of(
        judge.method, judge.denoiser, x, batch_size=batch_size))


class Pretrained:
    """A causal model of transformers."""

    def __init__(self, name, device):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise BadInput(f"there is no checkpoint {name}/ckpt.pt; for the model {name} of transformers "
                           f"pip install transformers") from None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForCausalLM.from_pretrained(name).float().to(device).eval()
        except (OSError, ValueError) as error:               # no such name, no network, no causal model
            reason = str(error).strip().split("\n")[0]
            raise BadInput(f"--judge {name}: there is no checkpoint {name}/ckpt.pt, and transformers says: {reason}"
                           ) from None
        self.where, self.device = name, device
        self.context = min(self.tokenizer.model_max_length,
                           getattr(self.model.config, "max_position_embeddings", None) or 1024)

    def batches(self, texts, batch_size):
        """Texts in their order. -> ids (b, n), there (b, n) bool: False at padding, which stands on the right"""
        for lo in range(0, len(texts), batch_size):
            rows = [self.tokenizer(text, truncation=True, max_length=self.context)["input_ids"]
                    for text in texts[lo:lo + batch_size]]
            n = max(2, *map(len, rows))
            ids = torch.tensor([row + [0] * (n - len(row)) for row in rows], device=self.device)        # (b, n)
            lengths = torch.tensor([len(row) for row in rows], device=self.device)                      # (b,)
            yield ids, torch.arange(n, device=self.device) < lengths[:, None]                           # (b, n) each

    @torch.no_grad()
    def nats(self, x, texts, batch_size):
        """-log p of each text, and how many of its tokens were scored; x is not looked at. -> (n,), (n,) on the CPU"""
        nats, scored = [], []
        for ids, there in self.batches(texts, batch_size):
            logits = self.model(input_ids=ids, attention_mask=there.long()).logits.float()              # (b, n, V)
            nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")         # (b, n - 1)
            end = ids == self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else ids < 0
            counts = (there & (~end | ((end & there).cumsum(-1) == 1)))[:, 1:]                          # (b, n - 1)
            nats.append((nll.double() * counts).sum(-1).cpu())                                          # (b,)
            scored.append(counts.sum(-1).cpu())                                                         # (b,)
        return torch.cat(nats), torch.cat(scored)                                                       # (n,), (n,)

    @torch.no_grad()
    def states(self, texts, batch_size):
        """The last hidden state of the last token of each text: what MAUVE compares. -> (n, D) on the CPU"""
        last = []
        for ids, there in self.batches(texts, batch_size):
            h = self.model(input_ids=ids, attention_mask=there.long(), output_hidden_states=True).hidden_states[-1]
            last.append(h[torch.arange(len(h)), there.sum(-1).clamp(min=1) - 1].float().cpu())          # (b, D)
        return torch.cat(last)                                                                          # (n, D)
