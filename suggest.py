"""
"Did you mean ...?": the nearest of the names that exist, or what other programs call it.

The table has, for each flag and its choices, the names that people type for it elsewhere. Rows of
tables, such as methods, have theirs as `also_called`.
"""
import difflib

USUAL = """max_iters: epochs num_epochs steps iters iterations num_steps max_steps train_steps
iters_per_round: max_iters epochs steps iters max_steps; learning_rate: lr; min_lr: lr_min
steps: num_steps iters n_steps sampling_steps diffusion_steps timesteps t nfe; top_p: p nucleus
batch_size: bs batch batchsize micro_batch_size; weight_decay: wd; ema: ema_decay; muon_lr: lr_muon
gradient_accumulation_steps: grad_accum accumulation_steps; lr_schedule: scheduler lr_scheduler
warmup_iters: warmup warmup_steps; grad_clip: clip max_grad_norm gradient_clipping
n_layer: layers n_layers num_layers depth num_hidden_layers; n_head: heads n_heads num_heads
n_embd: hidden_size hidden dim d_model width embed_dim n_embed embd emb hidden_dim
length: seq_len seq_length max_length max_len max_tokens max_new_tokens block_size context
block_size: seq_len seq_length sequence_length context_length context ctx max_length length
num_samples: n num count samples n_samples num_texts; temperature: temp; seed: random_seed
guidance: cfg cfg_scale guidance_scale w; label: class y topic category; prompt: question text
teacher: model checkpoint ckpt init_from; init_from: resume pretrained load weights finetune
start: model checkpoint ckpt
data: dataset dataset_name text input corpus file train_file path; tokenizer: tok tokeniser
method: model algo loss; out_dir: method model checkpoint ckpt output output_dir save_dir outdir out
dtype: precision fp16 bf16 amp half; device: gpu cuda cpu; optimizer: opt optim; vocab_size: vocab
eval_interval: eval_every save_every save_interval eval_steps; log_interval: log_every log_steps
absorbing: masked mask absorb masks; uniform: words; adamw: adam; float32: fp32 float
bfloat16: bf16 fp16 half float16"""
USUAL = {ours: names.split() for ours, _, names in
         (entry.strip().partition(": ") for entry in USUAL.replace("\n", ";").split(";"))}


def suggest(word, words, also_called=lambda name: ()):
    """' (did you mean ...?)' where a word is close, or others have that name for it; else ''.

    also_called: (one of the words) -> what others call it, beside the table above
    """
    bare = lambda name: str(name).lstrip("-").lower().replace("-", "_")
    known = {bare(name): name for name in words}
    elsewhere = [bare(ours) for ours, names in USUAL.items() if bare(word) in names]
    elsewhere += [key for key, name in known.items() if bare(word) in also_called(name)]
    near = [*elsewhere, *difflib.get_close_matches(bare(word), known, n=1, cutoff=0.7)]
    return next((f" (did you mean {known[name]}?)" for name in near if name in known), "")
