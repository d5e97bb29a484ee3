"""Block diffusion as its users meet it: training, tuning another run's weights, long texts, plain refusals."""
import json
import signal

import pytest
import torch
from runs import assert_same, cache, complaint, elsewhere, fit  # noqa: F401
from test_resume import interrupt

import checkpoint
import evaluate
import sample
import train

BD3LM = dict(method="bd3lm", diffusion_block=4)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Two folders with checkpoints: bd3lm tuned from mdlm."""
    root = tmp_path_factory.mktemp("blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "final", lambda learner: None)
        fit(root / "mdlm", method="mdlm", max_iters=20, learning_rate=0.01)
        fit(root / "bd3lm", **BD3LM, max_iters=3, init_from=str(root / "mdlm"))
    return root


@pytest.mark.parametrize("flags", [
    dict(), dict(diffusion_block=1), dict(diffusion_block=8), dict(weighting="bound"), dict(clip="0.45,0.95"),
    dict(clip="0,1", weighting="bound"), dict(clip_search=True, eval_interval=1), dict(dtype="bfloat16", dropout=0.2),
    dict(clip_search=True, diffusion_block=1, weighting="bound")], ids=str)
def test_training_takes_two_steps_with_every_flag_of_blocks(flags):
    state = fit("out", **{**BD3LM, **flags})
    assert state["step"] == 2 and all(p.isfinite().all() for p in state["ema"].values())
    assert bool(state["config"]["clip"]) == ("clip" in flags or "clip_search" in flags)


def test_a_search_for_the_clip_means_nothing_to_other_methods():
    assert fit("out", method="mdlm", clip_search=True)["config"]["clip"] == ""


@pytest.mark.parametrize("flags", [dict(), dict(clip_search=True)], ids=str)
def test_a_stopped_run_goes_on_bit_by_bit_with_the_clip_that_it_had_found(flags, monkeypatch):
    """Stopped at step 6, between two searches at 4 and 8."""
    flags = dict(BD3LM, max_iters=10, learning_rate=0.01, warmup_iters=3, eval_interval=4, eval_iters=4, **flags)
    whole = fit("whole", **flags)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, signal.SIGTERM)
        stopped = fit("parts", **flags)
    resumed = fit("parts", init_from="resume")
    assert stopped["step"] == 6 and resumed["config"]["clip"] == whole["config"]["clip"]
    assert_same(whole, resumed)


def test_a_run_starts_at_step_0_from_the_averaged_weights_of_another(blocks):
    first = checkpoint.load(blocks / "mdlm")["ema"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        step = train.Learner.step
        patch.setattr(train.Learner, "step", lambda self, n: seen.append(
            (n, {name: p.clone() for name, p in self.model.state_dict().items()})) or step(self, n))
        state = fit("tuned", **BD3LM, init_from=str(blocks / "mdlm"))
    assert [n for n, _ in seen] == [0, 1] and state["step"] == 2
    torch.testing.assert_close(seen[0][1], first, rtol=0, atol=0)
    resumed = fit("tuned", init_from="resume", max_iters=3)      # goes on with its own weights
    assert resumed["step"] == 3 and resumed["config"]["init_from"] == "resume"
    torch.testing.assert_close(resumed["ema"], state["ema"], rtol=1, atol=0.05)


@pytest.mark.parametrize("flags, says", [
    (["--n_head", "1"], "it has --n_head 2, not 1"), (["--qk_norm", "False"], "it has --qk_norm True, not False"),
    (["--n_embd", "32"], "it has --n_embd 16, not 32"), (["--data", "names"], "other tokens than names"),
    (["--method", "udlm"], "a network of mdlm, and udlm needs another"), (["--init_from", "nowhere"], "no checkpoint"),
    (["--diffusion_block", "3"], "--block_size 8 must be a multiple of --diffusion_block 3"),
    (["--clip", "half"], "--clip half must be two rates")])
def test_what_does_not_fit_is_refused_in_one_line(flags, says, blocks, capsys):
    tiny = dict(data="toy", block_size=8, n_layer=1, n_embd=16, n_head=2, max_iters=1, device="cpu", **BD3LM)
    words = [f"--{name}={value}" for name, value in dict(tiny, init_from=blocks / "mdlm").items()]
    assert says in complaint(train, *words, *flags, capsys=capsys)


def texts(capsys, **flags):
    sample.main(sample.Config(**{**dict(num_samples=2, json=True, device="cpu", steps=2), **flags}))
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("sampler", ["ancestral", "psi", "first-hitting", "confidence"])
def test_texts_of_any_length_come_without_a_warning_and_with_the_prompt_in_them(sampler, blocks, capsys):
    found, err = texts(capsys, out_dir=str(blocks / "bd3lm"), length=40, prompt="the cat _ the", sampler=sampler)
    assert "leap" not in err
    for text in found:
        words = text["text"].split()
        assert len(text["ids"]) == 40 and words[:2] == ["the", "cat"] and words[3] == "the" and "_" not in words


def test_a_window_is_what_is_remembered(blocks, capsys):
    """A longer window changes a long text, and one that holds all of it changes nothing more."""
    long = [texts(capsys, out_dir=str(blocks / "bd3lm"), length=64, window=window)[0][0]["ids"]
            for window in (0, 8, 32, 64, 128)]
    assert long[0] == long[1] != long[3] == long[4] and long[0][:8] == long[3][:8]


@pytest.mark.parametrize("flags, says", [
    (["--length", "10"], "10 tokens are no whole number of blocks of 4: make it 12 with --length"),
    (["--prompt", "the _ cat"], "3 tokens are no whole number"),
    (["--window", "2"], "--window 2 must be a multiple of the block of 4 tokens"),
    (["--window", "6"], "--window 6 must be a multiple"), (["--sampler", "semi-ar"], "masks of mdlm"),
    (["--cache", "dual"], "go with --sampler semi-ar"), (["--tail", "greedy"], "leave alone")])
def test_what_cannot_be_sampled_in_blocks_is_one_line(flags, says, blocks, capsys):
    assert says in complaint(sample, "--out_dir", blocks / "bd3lm", *flags, capsys=capsys)


@pytest.mark.parametrize("flags", [
    dict(), dict(cache="prefix", threshold=0.2), dict(cache="dual", factor=1.0), dict(cache="dual", temperature=0.0)],
    ids=str)
def test_semi_autoregressive_decoding_is_a_sampler_of_every_script(flags, blocks, capsys):
    flags = dict(flags, out_dir=str(blocks / "mdlm"), sampler="semi-ar", decode_block=4)
    (text, _), _ = texts(capsys, prompt="the cat", **flags)
    assert text["text"].split()[:2] == ["the", "cat"] and len(text["ids"]) == 8 and text["network_calls"] <= 8
    evaluate.main(evaluate.Config(num_samples=2, max_texts=4, draws=1, steps=2, device="cpu", **flags))
    assert "semi-ar, 2 steps" in capsys.readouterr().out


def test_bd3lm_is_evaluated_from_its_checkpoint_and_through_the_oracle(blocks, capsys):
    for source in (dict(out_dir=str(blocks / "bd3lm")), dict(oracle="bd3lm")):
        evaluate.main(evaluate.Config(**source, max_texts=8, num_samples=2, draws=1, steps=2, device="cpu", json=True))
        result = json.loads(capsys.readouterr().out)
        assert result["method"] == "bd3lm" and not result["exact"] and result["gap"] < 3
    assert len(texts(capsys, oracle="bd3lm")[0][0]["ids"]) == 32


def test_end_of_text_cuts_the_text_and_encodings_without_one_have_none():
    from data.tokenizer import byte_level
    assert sample.end_of_text(byte_level()) is None
    encoding = type("", (), dict(special_tokens_set={"<|endoftext|>"}, eot_token=7))
    assert sample.end_of_text(encoding) == 7
    given = [True, False, False, False]
    assert sample.until([7, 1, 7, 2], given, 7) == [7, 1] and sample.until([7, 1, 2, 2], given, None) == [7, 1, 2, 2]
