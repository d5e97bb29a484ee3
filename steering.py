"""
From flags to what samples: the law of a draw, the walk, and what guides it; BadInput where they do not go together.
"""
import inspect
from functools import partial

from checkpoint import restore
from data import BadInput
from data.tokenizer import to_json
from data.toy import ToyCorpus
from diffusion import probabilities
from guidance import by_classifier, by_label, label_of, noise_read
from methods import make_sampler
from model import Transformer
from oracle import classifier
from positions import Bucketed


def law_of(config):
    return partial(probabilities, temperature=config.temperature, top_p=config.top_p)


def compiled_by(config, model):
    """The denoiser of a checkpoint, through torch.compile if the flags say so."""
    if not config.compile:
        return model.denoiser
    if (not isinstance(model.denoiser, Transformer) or model.config.method in ("ar", "bd3lm", "pgm")
            or config.cache != "none"):
        raise BadInput("--compile is for networks that read whole texts: not for ar, bd3lm and pgm, not for the exact "
                       "denoiser, and not with --cache")
    return Bucketed(model.denoiser, config.compile)


def end_of_text(encoding):
    """The id that ends a text, for encodings that have one (gpt2, chats), else None."""
    return encoding.eot_token if "<|endoftext|>" in encoding.special_tokens_set else None


def sampler_of(config, method, encoding):
    """The sampler that the flags describe. method: its name"""
    if config.eos_last and (config.sampler != "semi-ar" or end_of_text(encoding) is None):
        raise BadInput("--eos_last goes with --sampler semi-ar, and with tokens that have an end, as --data chat")
    names = list(inspect.signature(make_sampler).parameters)[2:-1]
    flags = {name: getattr(config, name) for name in names}
    return make_sampler(config.sampler, method, **flags, last=end_of_text(encoding) if config.eos_last else None)


def steer(config, model, denoiser, sampler, device):
    """The denoiser and the sampler, guided towards --label as the flags say, or BadInput."""
    if not config.label:
        if config.classifier:
            raise BadInput("--classifier needs a --label, the class to ask for")
        return denoiser, sampler
    if config.classifier:
        judge, classes, length = classifier_of(config.classifier, model, device)
        label = label_of(config.label, classes, device)
        return by_classifier(model.method, denoiser, sampler, label, config.guidance, judge, config.classifier_order,
                             length, config.candidates)
    label = label_of(config.label, model.classes, device)
    return by_label(model.method, denoiser, sampler, label, len(model.classes), config.guidance)


def classifier_of(where, model, device):
    """-> classifier(z, t), the names of its classes, and the length of its texts; BadInput if it reads other noise."""
    process = noise_read(model.method)
    if where == "exact":
        if model.config.data != "toy":
            raise BadInput(f"--classifier exact knows the toy language alone: train one for {model.config.data}")
        corpus = ToyCorpus(model.config.block_size)
        return classifier(corpus.language, process), corpus.classes, corpus.block_size
    judge = restore(where, device)
    if judge.config.method != "classifier" or to_json(judge.encoding) != to_json(model.encoding):
        raise BadInput(f"--classifier {where} must be a run of train.py --method classifier with the same tokens")
    theirs = judge.method.process
    if (type(theirs), vars(theirs)) != (type(process), vars(process)):
        raise BadInput(f"--classifier {where} reads the noise of {judge.config.noise_of}, which is not that of "
                       f"{model.config.method}: train one with another --noise_of, or the flags of that method")
    return judge.denoiser, judge.classes, judge.config.block_size
