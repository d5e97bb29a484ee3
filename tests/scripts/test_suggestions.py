"""Did you mean ...? What people type who know other programs, and what is only a slip of the keys.
A flag that the script lacks is never suggested, and neither is one that is merely not too far."""
import re

import pytest

import chat
import distill
import evaluate
import rl
import sample
import train
from flags import UserError, flags_of, load_row, parse
from methods import METHODS
from samplers import CORRECTORS, SAMPLERS
from suggest import USUAL

TYPED = {
    train: "lr learning_rate|learning-rat learning_rate|epochs max_iters|steps max_iters|"
           "iters max_iters|bs batch_size|batch batch_size|seq_len block_size|"
           "max_length block_size|hidden_size n_embd|d_model n_embd|layers n_layer|"
           "num-heads n_head|warmup_steps warmup_iters|max_grad_norm grad_clip|wd weight_decay|"
           "resume init_from|model method|output_dir out_dir|dataset data|bf16 dtype|gpu device|"
           "max_itres max_iters|dropuot dropout",
    sample: "method out_dir|model out_dir|n num_samples|n_samples num_samples|temp temperature|"
            "topp top_p|num_steps steps|cfg guidance|class label|max_new_tokens length|"
            "block_size length|question prompt",
    distill: "max_iters iters_per_round|epochs iters_per_round|lr learning_rate|model teacher",
    rl: "model start|lr learning_rate|epochs max_iters|temp temperature",
    evaluate: "method out_dir|n num_samples|model out_dir|text data|temp temperature",
    chat: "model out_dir|question prompt|max_tokens length",
}
VALUES = [(train, "method", "masked mdlm|absorbing mdlm|uniform udlm|d3pm-uniform d3pm|"
                            "autoregressive ar|gpt ar|block bd3lm|mdml mdlm"),
          (train, "optimizer", "adam adamw"), (train, "dtype", "bf16 bfloat16"),
          (sample, "sampler", "remdm remdm-conf|maskgit confidence|gibs"),
          (sample, "oracle", "masked mdlm|udml udlm")]
NOTHING = {train: "temperature foo num_samples config evaluation", distill: "n_layer foo",
           sample: "lr max_iters epochs foo bar topk methode", chat: "lr foo sampling"}


def said(script, words, capsys):
    """What the script suggests, or None."""
    with pytest.raises(SystemExit):
        parse(script.Config, words)
    return (re.findall(r"\(did you mean (.+?)\?\)", capsys.readouterr().err) or [None])[0]


@pytest.mark.parametrize("script", TYPED, ids=lambda script: script.__name__)
def test_what_people_type_elsewhere_leads_to_our_flag(script, capsys):
    for pair in TYPED[script].split("|"):
        typed, ours = pair.split()
        assert said(script, [f"--{typed}", "3"], capsys) == f"--{ours}", typed


@pytest.mark.parametrize("script, flag, pairs", VALUES)
def test_what_a_method_or_sampler_is_called_elsewhere_leads_to_our_row(script, flag, pairs, capsys):
    for pair in pairs.split("|"):
        typed, *ours = pair.split()
        assert said(script, [f"--{flag}", typed], capsys) == (ours or [None])[0], typed


@pytest.mark.parametrize("script", NOTHING, ids=lambda script: script.__name__)
def test_what_is_like_no_flag_of_the_script_gets_no_suggestion(script, capsys):
    for typed in NOTHING[script].split():
        assert said(script, [f"--{typed}", "3"], capsys) is None, typed


@pytest.mark.parametrize("table", [METHODS, SAMPLERS, CORRECTORS], ids=len)
def test_what_a_row_is_called_elsewhere_leads_to_this_row(table):
    """And to no row that only inherits from it."""
    for row in table:
        for name in set(vars(load_row(table, row)).get("also_called", ())) - set(table):
            with pytest.raises(UserError, match=rf"\(did you mean {row}\?\)"):
                load_row(table, name)


def test_every_name_of_the_table_is_a_flag_or_a_row_of_ours():
    flags = {name for script in TYPED for name in flags_of(script.Config)}
    rows = {row for script in TYPED for f in flags_of(script.Config).values()
            for row in [*(f.metadata["table"] or ()), *(f.metadata["choices"] or ())]}
    assert set(USUAL) <= flags | rows | {"absorbing", "uniform"}
