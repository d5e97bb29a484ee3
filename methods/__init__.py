"""
The table of methods, by family. What a method is: methods/base.py.

A row is "module:Class", imported when it is chosen. The fields of the class are its flags.
"""
from collections import ChainMap

from flags import load_row

METHODS = {
    "ar": "methods.ar:AR",  # autoregression: from left to right

    "mdlm": "methods.mdlm:MDLM",  # masks
    "md4": "methods.md4:MD4",  # masks by a schedule
    "genmd4": "methods.genmd4:GenMD4",  # masks by a learned schedule for each symbol
    "diffusionbert": "methods.diffusionbert:DiffusionBERT",  # masks in the order of word frequency
    "rdm": "methods.rdm:RDM",  # masks, with weights over steps and pairs of times
    "radd": "methods.radd:RADD",  # masks: four forms of one bound
    "mgdm": "methods.mgdm:MGDM",  # masks, with weights on what is hard: puzzles
    "dot": "methods.dot:DoT",  # masks in one thought after the other
    "pgm": "methods.pgm:PGM",  # no masks: two groups of tokens predict each other
    "bd3lm": "methods.bd3lm:BD3LM",  # masks inside blocks, autoregression across them
    "blockgen": "methods.blockgen:BlockGen",  # the same in blocks of several sizes
    "maria": "methods.maria:MARIA",  # gaps from left to right: a head on an ar and a masked model
    "diffusion_forcing": "methods.diffusion_forcing:DiffusionForcing",  # a time for each token

    "sigma_gpt": "methods.sigma_gpt:SigmaGPT",  # autoregression in any order
    "eso_lm": "methods.eso_lm:EsoLM",  # masks in any order, then autoregression around them

    "udlm": "methods.udlm:UDLM",  # random words
    "audm": "methods.audm:AUDM",  # random words, marked as noise: masks that show a word
    "gidd": "methods.gidd:GIDD",  # masks and random words
    "duo": "methods.duo:Duo",  # random words, learned from relaxed inputs at first
    "dfm": "methods.dfm:DFM",  # flows from masks or random words, and which bound belongs to which

    "plaid": "methods.plaid:Plaid",  # Gaussian noise on embeddings: the bound
    "cdcd": "methods.cdcd:CDCD",  # the same: cross-entropies at times that are learned
    "diffusion_lm": "methods.diffusion_lm:DiffusionLM",  # the same: vectors, rounded to words
    "sed": "methods.sed:SED",  # the same: a table that is fixed, random or pictures of letters
    "difformer": "methods.difformer:Difformer",  # the same: an anchor, and more noise

    "ld4lg": "methods.ld4lg:LD4LG",  # Gaussian noise on a few vectors that encode a text
    "latent_planner": "methods.latent_planner:LatentPlanner",  # the same, written out in order
    "lcm": "methods.lcm:LCM",  # the same: a sentence from the vectors of those before
    "dglm": "methods.dglm:DGLM",  # the same: vectors of what follows a prefix
    "bfn": "methods.bfn:BFN",  # evidence: Gaussian noise on beliefs
    "tess": "methods.tess:TESS",  # the same as logits, with self-conditioning; from ar: TESS 2
    "ssd_lm": "methods.ssd_lm:SSDLM",  # the same in blocks, from left to right
    "rdlm": "methods.rdlm:RDLM",  # points of a sphere: a walk from one point to each word

    "sedd": "methods.sedd:SEDD",  # ratios of probabilities
    "d3pm": "methods.d3pm:D3PM",  # any transition matrices, in finitely many steps
    "ggm": "methods.ggm:GGM",  # one token at a time, from its neighbors

    "flexmdm": "methods.flexmdm:FlexMDM",  # masks that are inserted, and then opened: any length
    "ilm": "methods.ilm:ILM",  # words that are inserted, one at a time

    "planner": "methods.planner:Planner",  # mdlm or udlm, and a head for wrong words

    "energy": "methods.energy:Energy",  # text or draws? chooses among those of a masked model
    "diffugpt": "methods.diffugpt:DiffuGPT",  # masks, from the weights of ar
    "ar2diff": "methods.ar2diff:AR2Diff",  # random words, from the weights of ar
    "diffusion_llm": "methods.diffusion_llm:DiffusionLLM",  # masks, from a masked language model

    "classifier": "methods.classifier:Classifier",  # p(class | noisy text), which guides the others
}

FOR_SOME_DATA = {  # METHODS learn any texts, these only what has trees, or a source to edit
    "tree_diffusion": "methods.tree_diffusion:TreeDiffusion",  # edits of trees, while it sees them
    "diffuser": "methods.diffuser:Diffuser",  # words of the source are replaced, lost and added
}
EVERY_METHOD = ChainMap(FOR_SOME_DATA, METHODS)


def make_method(name, n_tokens, **options):
    """The method `name` for texts of n_tokens symbols, with those options that are its flags."""
    return load_row(EVERY_METHOD, name).build(n_tokens, options)
