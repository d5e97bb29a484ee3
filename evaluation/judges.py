"""
Models that rate samples: one of this code with an exact likelihood, or one of `transformers`.

    judge = load_judge("out/python-ar", model, device)     reads the same ids, so its nats are exact
    judge = load_judge("gpt2-large", model, device)        a name on the hub, or a local folder

Generative perplexity by another model depends on conventions, more than on samplers. Ours are those
of MDLM (arXiv:2406.07524), in float32 whatever the precision of the weights:

    text       decoded, then tokenized by the judge's own tokenizer, with the special tokens that it
               adds by itself
    length     cut to the context of the judge
    first      the first token is read but not scored, since the judge has seen nothing before it
    end        every token counts but ends of text after the first; what follows an end counts
    padding    is never scored (MDLM scores the first one if a text has no end)
"""
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

from checkpoints.load import load_model
from data.tokenizer import to_json
from evaluation.likelihood import nats_of
from flags import UserError


def load_judge(name, model, device, mauve=False):
    """The judge of that name for the samples of a model, or None if no judge is named.

    mauve: it is also to compute MAUVE; UserError if it cannot
    """
    needs = "--mauve needs a --judge of transformers, such as gpt2-large, to read the texts"
    if mauve and not name:
        raise UserError(needs)
    if mauve and find_spec("mauve") is None:  # before gigabytes are downloaded
        raise UserError("--mauve needs a package that is not here: pip install mauve-text")
    if not name:
        return None
    is_checkpoint = Path(name).suffix == ".pt" or (Path(name) / "ckpt.pt").exists()
    judge = ExactJudge(name, model, device) if is_checkpoint else TransformersJudge(name, device)
    if mauve and not judge.has_states:
        raise UserError(needs)
    return judge


class ExactJudge:
    """A checkpoint whose likelihood is exact. It scores all tokens, the first one included."""
    has_states = False

    def __init__(self, where, model, device):
        self.where, self.judge = where, load_model(where, device)
        if not self.judge.method.exact or to_json(self.judge.encoding) != to_json(model.encoding):
            raise UserError(f"--judge {where} must be an autoregressive checkpoint with the same "
                            "tokens, or a model of transformers")

    def nats(self, x, texts, batch_size):
        """-log p of each text of x (n, L), and how many of its tokens were scored. -> (n,), (n,)"""
        return nats_of(self.judge.method, self.judge.denoiser, x, batch_size=batch_size)


class TransformersJudge:
    """A causal model of transformers, which reads texts as strings."""
    has_states = True  # hidden states, which MAUVE compares

    def __init__(self, name, device):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer  # an extra
        except ImportError:
            raise UserError(f"there is no checkpoint {name}/ckpt.pt; for the model {name} of "
                            "transformers pip install transformers") from None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForCausalLM.from_pretrained(name).float().to(device).eval()
        except (OSError, ValueError) as error:  # no such name, or not a causal model
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"--judge {name}: there is no checkpoint {name}/ckpt.pt, and "
                            f"transformers says: {reason}") from None
        self.where, self.device = name, device
        limit = getattr(self.model.config, "max_position_embeddings", None)  # some have none
        self.context = min(self.tokenizer.model_max_length, limit or 1024)

    def batches(self, texts, batch_size):
        """The texts in their order, padded on the right.

        Yields ids (b, n), and where they are text (b, n) bool.
        """
        for lo in range(0, len(texts), batch_size):
            rows = [self.tokenizer(text, truncation=True, max_length=self.context)["input_ids"]
                    for text in texts[lo:lo + batch_size]]
            n = max(2, *map(len, rows))
            padded = [row + [0] * (n - len(row)) for row in rows]
            lengths = torch.tensor([len(row) for row in rows], device=self.device)  # (b,)
            is_text = torch.arange(n, device=self.device) < lengths[:, None]  # (b, n)
            yield torch.tensor(padded, device=self.device), is_text  # (b, n) each

    @torch.no_grad()
    def nats(self, x, texts, batch_size):
        """-log p of each text, and how many tokens of it were scored; ignores x. -> (n,), (n,)"""
        nats, scored, eos = [], [], self.tokenizer.eos_token_id
        for ids, is_text in self.batches(texts, batch_size):
            output = self.model(input_ids=ids, attention_mask=is_text.long())
            logits = output.logits.float()  # (b, n, V)
            nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:],
                                  reduction="none")  # (b, n - 1)
            end = torch.zeros_like(is_text) if eos is None else (ids == eos) & is_text  # (b, n)
            counts = (is_text & (~end | (end.cumsum(-1) == 1)))[:, 1:]  # (b, n - 1)
            nats.append((nll.double() * counts).sum(-1).cpu())  # (b,)
            scored.append(counts.sum(-1).cpu())  # (b,)
        return torch.cat(nats), torch.cat(scored)  # (n,), (n,)

    @torch.no_grad()
    def states(self, texts, batch_size):
        """The last hidden state of the last token of each text. -> (n, D) on the CPU"""
        states = []
        for ids, is_text in self.batches(texts, batch_size):
            layers = self.model(input_ids=ids, attention_mask=is_text.long(),
                                output_hidden_states=True).hidden_states
            last = is_text.sum(-1).clamp(min=1) - 1  # (b,)
            states.append(layers[-1][torch.arange(len(ids)), last].float().cpu())  # (b, D)
        return torch.cat(states)  # (n, D)
