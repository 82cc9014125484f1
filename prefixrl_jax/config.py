"""Every field of a run, with its meaning.

The files in configs/ are short differences from this one. The defaults are the paper's (arXiv
2601.18795) where it names one that fits any task; sizes are set by each experiment.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return a configuration with every field at its default."""
    c = ConfigDict()
    # Presets of methods.py, joined by "+". They set fields below; the command line wins over them.
    c.method = "prefixrl"
    # Of everything before training: initial weights, base text, select, collect, cuts, evaluation.
    c.seed = 0
    c.task = _task()
    c.data = _data()
    c.model = _model()
    c.mesh = _mesh()
    c.sampling = _sampling()
    c.base = _base()
    c.select = _select()
    c.collect = _collect()
    # Of corpus, prefixes and training. Each later round samples the problems without a trace
    # with the policy it goes on from.
    c.rounds = 1
    c.prefix = _prefix()
    c.sft = _sft()
    c.train = _train()
    c.eval = _eval()
    c.checkpoint = _checkpoint()
    c.log = _log()
    return c


def _task() -> ConfigDict:
    """The problems."""
    c = ConfigDict()
    # water_jugs, countdown; arithmetic, sorting, math (which need model.path)
    c.name = "water_jugs"
    c.water_jugs = ConfigDict()
    c.water_jugs.max_capacity = 11  # largest jug, litres
    c.water_jugs.jugs = 2  # most jugs in a problem
    c.water_jugs.max_moves = 16  # moves allowed
    # random play: how much likelier a pour is than a fill or an emptying
    c.water_jugs.pour_weight = 5.0
    # generated problems: chance that random legal play solves them
    c.water_jugs.band = (1e-3, 1e-2)
    c.countdown = ConfigDict()
    c.countdown.numbers = 5  # given in a problem
    c.countdown.max_number = 10  # largest number given
    c.countdown.max_outcome = 30  # largest outcome of a move, and goal
    # generated problems: chance that random legal play solves them
    c.countdown.band = (1e-3, 5e-3)
    c.arithmetic = ConfigDict()
    c.arithmetic.prompt = 'What is {question}? Finish with "The answer is" and the number.'
    c.arithmetic.terms = 3  # numbers in a problem
    c.arithmetic.largest = 50  # of them
    c.arithmetic.signs = "+-*"  # between them
    c.sorting = ConfigDict()
    c.sorting.system = "Sort the numbers from smallest to largest."
    c.sorting.prompt = "Sort: {question}"
    c.sorting.opening = "Sorted:"  # how every answer begins
    c.sorting.terms = 5  # numbers in a list, all different
    c.sorting.largest = 9  # of them; the least is 1
    c.math = ConfigDict()
    c.math.prompt = (
        "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    c.math.system = ""  # system message; empty: what the chat template says without one
    c.math.opening = ""  # how every answer begins, e.g. "<think>\n"
    # grader: "math" ([math] extra), "gsm8k" (numbers), or MODULE:FUNCTION (gold, response) -> bool
    c.math.kind = "math"
    c.math.question_field = "problem,question"  # of a row: the first of these that it has
    # likewise: the gold answer, or a worked solution that ends in #### and the answer
    c.math.answer_field = "answer"
    c.math.workers = 2  # grading processes
    c.math.timeout = 5.0  # seconds an answer may take to grade
    return c


def _data() -> ConfigDict:
    """Problem sets that a user brings; how many problems a task generates."""
    c = ConfigDict()
    # training problems: a .jsonl or .parquet file, a TFDS folder, tfds:NAME, hf:NAME; empty: the
    # generator
    c.path = ""
    c.split = "train"  # of a TFDS or Hugging Face dataset
    c.heldout_path = ""  # held-out problems, likewise; empty: a part of data.path
    c.heldout_split = "test"
    c.heldout_fraction = 0.5  # of data.path that is held out, when heldout_path is empty
    c.id_field = "id"  # of a row, if it has one; else its place in the set is its id
    # a number in the rows of data.path, e.g. "difficulty"; empty: no filter
    c.filter_field = ""
    # keeps rows with filter_field in it (the paper's difficulty of OMNI-MATH problems)
    c.filter_band = (6.0, 8.0)
    c.limit = 0  # rows of data.path to use at most, from the top; 0: all
    # pass malformed rows over, counted and listed, rather than refuse the set
    c.skip_bad = False
    c.train_candidates = 400  # problems generated for select to screen
    c.heldout_candidates = 400
    return c


def _model() -> ConfigDict:
    """The transformer (model/config.py); its vocabulary size comes from the tokenizer."""
    c = ConfigDict()
    # a pretrained model (folder, hub id, GGUF file), whose sizes hold; empty: a base trained from
    # scratch
    c.path = ""
    c.hidden_size = 128
    c.num_layers = 2
    c.num_heads = 4
    c.num_kv_heads = 2
    c.head_dim = 32
    c.intermediate_size = 512
    c.rope_theta = 10000.0
    c.norm_eps = 1e-5
    c.qk_norm = False
    c.attention_bias = False
    c.tie_embeddings = True
    c.param_dtype = "float32"
    c.dtype = "float32"
    c.remat = False
    c.unroll_layers = False
    return c


def _mesh() -> ConfigDict:
    """Devices: the sizes must multiply to their number; one may be -1."""
    c = ConfigDict()
    c.data = -1
    c.fsdp = 1
    c.tensor = 1
    return c


def _sampling() -> ConfigDict:
    """Sampling in select, collect and training."""
    c = ConfigDict()
    c.temperature = 1.0  # of select, collect and training rollouts
    # training needs 1: the gradient is that of the distribution sampled from
    c.top_p = 1.0
    c.top_k = 0  # training needs 0 (off)
    c.max_new_tokens = 50
    # context lengths compiled for: prompt, and prompt + prefix
    c.context_buckets = (8, 48)
    c.rows = 64  # contexts in flight
    c.slots = 8  # samples in flight per context
    c.chunk = 4  # tokens decoded between refills of finished slots
    return c


def _base() -> ConfigDict:
    """The base model, trained from scratch on the task's text."""
    c = ConfigDict()
    c.steps = 1100
    c.batch = 64  # texts per step
    c.learning_rate = 3e-3
    c.warmup_steps = 20
    c.schedule = "cosine"
    c.final_fraction = 0.1
    c.weight_decay = 0.01
    return c


def _select() -> ConfigDict:
    """Screening: which problems are hard."""
    c = ConfigDict()
    # k: fresh samples of every candidate; the paper's is 512. 0: every candidate is taken for hard
    c.samples = 32
    c.band = (0.0, 0.0)  # pass rates that make a problem hard; (0, 0): never solved in k
    c.train_problems = 320  # at most so many hard problems to train on (paper: 1,000)
    c.heldout_problems = 320
    return c


def _collect() -> ConfigDict:
    """Collecting: a correct trace of each hard problem."""
    c = ConfigDict()
    # samples of a hard problem before it is given up (paper: 2,500). 0: no corpus
    c.cap = 256
    # traces instead of sampling: JSONL, or the corpus/dataset of a run; see corpus/import_traces.py
    c.traces_path = ""
    return c


def _prefix() -> ConfigDict:
    """Prefixes, and their share in training."""
    c = ConfigDict()
    c.cuts = 3  # per trace, drawn once and frozen
    c.band = (0.4, 0.8)  # each uniform in this part of the trace's tokens
    c.share = 0.75  # of the contexts in a batch; the paper's 3:1. 0 is plain RL
    # the paper's; or reverse, cosine, adaptive, shortest_solvable: see
    # prefixrl_jax/prefixes/schedules.py
    c.schedule = "band"
    # until a reverse or cosine schedule has no prefix left; 0: two thirds of train.schedule_steps
    c.anneal_steps = 0
    # or unrelated (a trace of another problem), wrong (a wrong response to this one): controls
    c.content = "own"
    # begun answer, the paper's; or user: the same content as a hint in the question
    c.place = "assistant"
    return c


def _sft() -> ConfigDict:
    """Supervised fine-tuning on the traces, before reinforcement learning."""
    c = ConfigDict()
    c.enabled = False
    c.epochs = 4
    c.batch = 32  # traces per step
    c.learning_rate = 1e-5
    c.warmup_steps = 0
    c.schedule = "cosine"
    c.final_fraction = 0.1
    c.weight_decay = 0.0
    return c


def _train() -> ConfigDict:
    """Reinforcement learning."""
    c = ConfigDict()
    c.seed = 0  # of batches and rollouts
    c.steps = 400  # paper: 400. 0: the base model is evaluated alone
    c.batch = 128  # contexts per step (paper: 128 prompts)
    c.group = 8  # rollouts per context (paper: n = 8)
    c.loss = "reinforce"  # or ppo_clip, gspo, cispo
    c.advantage = "group_mean"  # or leave_one_out, std_normalised
    c.aggregation = "token_mean"  # or sequence_mean, constant; not stated in the paper
    c.clip_low = 0.2  # of the losses with a ratio
    c.clip_high = 0.2
    # reinforce: largest weight pi/sampler of a token, for a sampler in bfloat16; 0: no weights
    c.truncate_ratio = 0.0
    c.kl_coef = 0.0  # of the KL divergence from the base model; the paper reports none
    c.kl_estimator = "k3"  # or k1, k2
    # of the prefixes' negative log-likelihood (UFT, Prefix-RFT); the paper has none
    c.prefix_coef = 0.0
    # of groups all right or all wrong: none, drop (not counted in means), refill (others are drawn)
    c.filter = "none"
    c.refills = 2  # batches drawn at most to refill one
    # a trace as one of the plain group: importance (pi/behaviour), shaped (LUFFY)
    c.off_policy = "none"
    # importance: log-probs as sampled, or acceptance (those of the correct ones: p/(success rate))
    c.behaviour = "sampled"
    # prefix.place=user: train the continuations at the plain problem (OC-GRPO)
    c.at_plain = False
    # optimizer steps on the same rollouts; above 1 use a loss with a ratio
    c.updates_per_batch = 1
    c.learning_rate = 1e-6  # paper: 1e-6 (8B and 4B models)
    c.warmup_steps = 0
    c.schedule = "constant"
    c.schedule_steps = 0  # length of the learning-rate schedule; 0: train.steps
    c.final_fraction = 0.0
    c.weight_decay = 0.0  # not stated in the paper
    c.b2 = 0.999  # not stated in the paper
    c.max_grad_norm = 1.0  # not stated in the paper
    c.micro_batches = 1  # gradient accumulation over whole groups
    c.logprob_chunk = 64  # positions whose logits exist at a time
    c.mask_truncated = False  # whether rollouts cut by the length limit carry no loss
    # nats: largest sampler/trainer gap of a token; above it for three steps the run stops. 0: off
    c.max_logp_diff = 0.5
    c.min_entropy = 0.0  # nats a token: below it a warning
    # stop training at this total (paper accounting, corpus included); 0: no budget
    c.flops_budget = 0.0
    return c


def _eval() -> ConfigDict:
    """Evaluation."""
    c = ConfigDict()
    c.samples = 16  # fresh samples per problem, before and after (paper: 256)
    c.temperature = 1.0  # paper: 0.7
    # of the held-out problems; or validation (every second one), test (the others)
    c.heldout_part = "all"
    c.k = (1, 2, 4, 8, 16)  # of pass@k
    c.fractions = (0.0, 0.2, 0.4, 0.6, 0.8)  # of a trace given as prefix
    c.fraction_samples = 8
    c.every = 10  # training steps between short evaluations of plain accuracy; 0: none
    c.every_samples = 2  # per problem in those
    return c


def _checkpoint() -> ConfigDict:
    """Checkpoints of training."""
    c = ConfigDict()
    c.every = 10  # training steps
    c.keep = 2  # newest; the best by plain reward is kept besides
    return c


def _log() -> ConfigDict:
    """What is written besides metrics."""
    c = ConfigDict()
    c.samples_every = 10  # training steps between readable samples
    return c


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Return {"train.steps": 400, ...}, tuples as lists, as JSON gives them back."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out


# Tasks of earlier versions, which a saved configuration may still have sections of.
REMOVED_TASKS = ("errand", "gsm8k")


def saved_config(path: Path) -> ConfigDict:
    """Return the configuration of a run from its config.json.

    Sections of tasks that were removed since are ignored; a run of such a task is refused by
    `make_task`. Raises ValueError if there is no such file, or it has unknown fields.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a work directory of a run is expected")
    config = get_config().lock()  # so that unknown fields are refused
    try:
        fields = _with_tuples(json.loads(path.read_text()))
        for name in REMOVED_TASKS:
            fields["task"].pop(name, None)
        config.update(fields)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a configuration of this version: {error}") from error
    return config


def _with_tuples(value: Any) -> Any:
    """Turn lists into tuples: JSON has none, and ConfigDict does not take the one for the other."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
