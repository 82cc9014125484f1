"""Every field of a run, with its meaning.

The files in configs/ are short differences from this one.

The defaults are the paper's where it names one (arXiv 2601.18795) and fits any task; sizes are set
by each experiment.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A configuration with every field at its default."""
    c = ConfigDict()
    # presets of prefixrl_jax/methods.py, joined by "+": they set fields below; the command line
    # wins
    c.method = "prefixrl"
    # of everything before training: initial weights, base text, select, collect, cuts, evaluation
    c.seed = 0

    c.task = ConfigDict()
    # water_jugs, countdown, errand, gsm8k; arithmetic, sorting, math (which need model.path)
    c.task.name = "water_jugs"
    c.task.water_jugs = ConfigDict()
    c.task.water_jugs.max_capacity = 11  # largest jug, litres
    c.task.water_jugs.jugs = 2  # most jugs in a problem
    c.task.water_jugs.max_moves = 16  # moves allowed
    # random play: how much likelier a pour is than a fill or an emptying
    c.task.water_jugs.pour_weight = 5.0
    # generated problems: chance that random legal play solves them
    c.task.water_jugs.band = (1e-3, 1e-2)
    c.task.countdown = ConfigDict()
    c.task.countdown.numbers = 5  # given in a problem
    c.task.countdown.max_number = 10  # largest number given
    c.task.countdown.max_outcome = 30  # largest outcome of a move, and goal
    # generated problems: chance that random legal play solves them
    c.task.countdown.band = (1e-3, 5e-3)
    c.task.errand = ConfigDict()
    c.task.errand.size = 4  # cells a side
    c.task.errand.calls = 4  # cells to call at, in order
    c.task.errand.walls = 3  # cells that cannot be entered
    c.task.errand.max_moves = 20  # moves allowed
    # generated problems: chance that random legal play solves them
    c.task.errand.band = (1e-3, 1e-2)
    c.task.gsm8k = ConfigDict()
    c.task.gsm8k.base_path = ""  # JSONL of worked solutions for a base model trained from scratch
    c.task.arithmetic = ConfigDict()
    c.task.arithmetic.prompt = 'What is {question}? Finish with "The answer is" and the number.'
    c.task.arithmetic.terms = 3  # numbers in a problem
    c.task.arithmetic.largest = 50  # of them
    c.task.arithmetic.signs = "+-*"  # between them
    c.task.sorting = ConfigDict()
    c.task.sorting.system = "Sort the numbers from smallest to largest."
    c.task.sorting.prompt = "Sort: {question}"
    c.task.sorting.opening = "Sorted:"  # how every answer begins
    c.task.sorting.terms = 5  # numbers in a list, all different
    c.task.sorting.largest = 9  # of them; the least is 1

    c.task.math = ConfigDict()
    c.task.math.prompt = (
        "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    c.task.math.system = ""  # system message; empty: what the chat template says without one
    c.task.math.opening = ""  # how every answer begins, e.g. "<think>\n"
    # grader: "math" ([math] extra), "gsm8k" (numbers), or MODULE:FUNCTION (gold, response) -> bool
    c.task.math.kind = "math"
    c.task.math.question_field = "problem,question"  # of a row: the first of these that it has
    # likewise: the gold answer, or a worked solution that ends in #### and the answer
    c.task.math.answer_field = "answer"
    c.task.math.workers = 2  # grading processes
    c.task.math.timeout = 5.0  # seconds an answer may take to grade

    c.data = ConfigDict()
    # training problems: a .jsonl or .parquet file, a TFDS folder, tfds:NAME, hf:NAME; empty: the
    # generator
    c.data.path = ""
    c.data.split = "train"  # of a TFDS or Hugging Face dataset
    c.data.heldout_path = ""  # held-out problems, likewise; empty: a part of data.path
    c.data.heldout_split = "test"
    c.data.heldout_fraction = 0.5  # of data.path that is held out, when heldout_path is empty
    c.data.id_field = "id"  # of a row, if it has one; else its place in the set is its id
    # a number in the rows of data.path, e.g. "difficulty"; empty: no filter
    c.data.filter_field = ""
    # keeps rows with filter_field in it (the paper's difficulty of OMNI-MATH problems)
    c.data.filter_band = (6.0, 8.0)
    c.data.limit = 0  # rows of data.path to use at most, from the top; 0: all
    # pass malformed rows over, counted and listed, rather than refuse the set
    c.data.skip_bad = False
    c.data.train_candidates = 400  # problems generated for select to screen
    c.data.heldout_candidates = 400

    # see prefixrl_jax/model/config.py; the vocabulary size comes from the tokenizer
    c.model = ConfigDict()
    # a pretrained model (folder, hub id, GGUF file), whose sizes hold; empty: a base trained from
    # scratch
    c.model.path = ""
    c.model.hidden_size = 128
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 32
    c.model.intermediate_size = 512
    c.model.rope_theta = 10000.0
    c.model.norm_eps = 1e-5
    c.model.qk_norm = False
    c.model.attention_bias = False
    c.model.tie_embeddings = True
    c.model.param_dtype = "float32"
    c.model.dtype = "float32"
    c.model.remat = False
    c.model.unroll_layers = False

    c.mesh = ConfigDict()  # sizes must multiply to the number of devices; one may be -1
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.sampling = ConfigDict()
    c.sampling.temperature = 1.0  # of select, collect and training rollouts
    # training needs 1: the gradient is that of the distribution sampled from
    c.sampling.top_p = 1.0
    c.sampling.top_k = 0  # training needs 0 (off)
    c.sampling.max_new_tokens = 50
    # context lengths compiled for: prompt, and prompt + prefix
    c.sampling.context_buckets = (8, 48)
    c.sampling.rows = 64  # contexts in flight
    c.sampling.slots = 8  # samples in flight per context
    c.sampling.chunk = 4  # tokens decoded between refills of finished slots

    c.base = ConfigDict()  # the base model, trained from scratch on the task's text
    c.base.steps = 1100
    c.base.batch = 64  # texts per step
    c.base.learning_rate = 3e-3
    c.base.warmup_steps = 20
    c.base.schedule = "cosine"
    c.base.final_fraction = 0.1
    c.base.weight_decay = 0.01

    c.select = ConfigDict()
    # k: fresh samples of every candidate; the paper's is 512. 0: every candidate is taken for hard
    c.select.samples = 32
    c.select.band = (0.0, 0.0)  # pass rates that make a problem hard; (0, 0): never solved in k
    c.select.train_problems = 320  # at most so many hard problems to train on (paper: 1,000)
    c.select.heldout_problems = 320

    c.collect = ConfigDict()
    # samples of a hard problem before it is given up (paper: 2,500). 0: no corpus
    c.collect.cap = 256
    # traces instead of sampling: JSONL, or the corpus/dataset of a run; see corpus/import_traces.py
    c.collect.traces_path = ""

    # of corpus, prefixes and training; each later one samples the unsolved problems with the policy
    # it goes on from
    c.rounds = 1

    c.prefix = ConfigDict()
    c.prefix.cuts = 3  # per trace, drawn once and frozen
    c.prefix.band = (0.4, 0.8)  # each uniform in this part of the trace's tokens
    c.prefix.share = 0.75  # of the contexts in a batch; the paper's 3:1. 0 is plain RL
    # the paper's; or reverse, cosine, adaptive, shortest_solvable: see
    # prefixrl_jax/prefixes/schedules.py
    c.prefix.schedule = "band"
    # until a reverse or cosine schedule has no prefix left; 0: two thirds of train.schedule_steps
    c.prefix.anneal_steps = 0
    # or unrelated (a trace of another problem), wrong (a wrong response to this one): controls
    c.prefix.content = "own"
    # begun answer, the paper's; or user: the same content as a hint in the question
    c.prefix.place = "assistant"

    c.sft = ConfigDict()  # supervised fine-tuning on the traces, before RL
    c.sft.enabled = False
    c.sft.epochs = 4
    c.sft.batch = 32  # traces per step
    c.sft.learning_rate = 1e-5
    c.sft.warmup_steps = 0
    c.sft.schedule = "cosine"
    c.sft.final_fraction = 0.1
    c.sft.weight_decay = 0.0

    c.train = ConfigDict()
    c.train.seed = 0  # of batches and rollouts
    c.train.steps = 400  # paper: 400. 0: the base model is evaluated alone
    c.train.batch = 128  # contexts per step (paper: 128 prompts)
    c.train.group = 8  # rollouts per context (paper: n = 8)
    c.train.loss = "reinforce"  # or ppo_clip, gspo, cispo
    c.train.advantage = "group_mean"  # or leave_one_out, std_normalised
    c.train.aggregation = "token_mean"  # or sequence_mean, constant; not stated in the paper
    c.train.clip_low = 0.2  # of the losses with a ratio
    c.train.clip_high = 0.2
    # reinforce: largest weight pi/sampler of a token, for a sampler in bfloat16; 0: no weights
    c.train.truncate_ratio = 0.0
    c.train.kl_coef = 0.0  # of the KL divergence from the base model; the paper reports none
    c.train.kl_estimator = "k3"  # or k1, k2
    # of the prefixes' negative log-likelihood (UFT, Prefix-RFT); the paper has none
    c.train.prefix_coef = 0.0
    # of groups all right or all wrong: none, drop (not counted in means), refill (others are drawn)
    c.train.filter = "none"
    c.train.refills = 2  # batches drawn at most to refill one
    # a trace as one of the plain group: importance (pi/behaviour), shaped (LUFFY)
    c.train.off_policy = "none"
    # importance: log-probs as sampled, or acceptance (those of the correct ones: p/(success rate))
    c.train.behaviour = "sampled"
    # prefix.place=user: train the continuations at the plain problem (OC-GRPO)
    c.train.at_plain = False
    # optimizer steps on the same rollouts; above 1 use a loss with a ratio
    c.train.updates_per_batch = 1
    c.train.learning_rate = 1e-6  # paper: 1e-6 (8B and 4B models)
    c.train.warmup_steps = 0
    c.train.schedule = "constant"
    c.train.schedule_steps = 0  # length of the learning-rate schedule; 0: train.steps
    c.train.final_fraction = 0.0
    c.train.weight_decay = 0.0  # not stated in the paper
    c.train.b2 = 0.999  # not stated in the paper
    c.train.max_grad_norm = 1.0  # not stated in the paper
    c.train.micro_batches = 1  # gradient accumulation over whole groups
    c.train.logprob_chunk = 64  # positions whose logits exist at a time
    c.train.mask_truncated = False  # whether rollouts cut by the length limit carry no loss
    # nats: largest sampler/trainer gap of a token; above it for three steps the run stops. 0: off
    c.train.max_logp_diff = 0.5
    c.train.min_entropy = 0.0  # nats a token: below it a warning
    # stop training at this total (paper accounting, corpus included); 0: no budget
    c.train.flops_budget = 0.0

    c.eval = ConfigDict()
    c.eval.samples = 16  # fresh samples per problem, before and after (paper: 256)
    c.eval.temperature = 1.0  # paper: 0.7
    # of the held-out problems; or validation (every second one), test (the others)
    c.eval.heldout_part = "all"
    c.eval.k = (1, 2, 4, 8, 16)  # of pass@k
    c.eval.fractions = (0.0, 0.2, 0.4, 0.6, 0.8)  # of a trace given as prefix
    c.eval.fraction_samples = 8
    c.eval.every = 10  # training steps between short evaluations of plain accuracy; 0: none
    c.eval.every_samples = 2  # per problem in those

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10  # training steps
    c.checkpoint.keep = 2  # newest; the best by plain reward is kept besides

    c.log = ConfigDict()
    c.log.samples_every = 10  # training steps between readable samples
    return c


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 400, ...}; tuples as lists, as JSON gives them back."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out


def saved_config(path: Path) -> ConfigDict:
    """The configuration of a run from its config.json; raises ValueError if there is none, or it
    has unknown fields.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a work directory of a run is expected")
    config = get_config()
    try:
        config.update(_with_tuples(json.loads(path.read_text())))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a configuration of this version: {error}") from error
    return config


def _with_tuples(value: Any) -> Any:
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
