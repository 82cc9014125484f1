"""Every field of a run: its meaning, its default, and what values it accepts.

The files in configs/ are short differences from this one. The defaults are the paper's (arXiv
2601.18795) where it names one that fits any task; sizes are set by each experiment. Upper bounds
keep out what overflows or cannot be meant; they are far above what any machine can do.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.fields import (
    Choice,
    Field,
    Flag,
    Interval,
    Location,
    Number,
    Several,
    Text,
    Whole,
    check_values,
    hint,
    shown,
)

# Of tasks/registry.py; arithmetic, math and sorting need model.path.
TASKS = ("arithmetic", "countdown", "math", "sorting", "water_jugs")
# Tasks of earlier versions, which a saved configuration may still have sections of.
REMOVED_TASKS = ("errand", "gsm8k")
RATE_SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("float32", "bfloat16", "float64")
SEED_MAX = 2**63 - 1  # JAX takes a seed as a signed 64-bit integer
SAMPLES_MAX = 1_000_000  # of one problem
BATCH_MAX = 2**20
TOKENS_MAX = 2**24  # in one sequence
# Below and above these, logits divided by a temperature leave nothing to draw from.
TEMPERATURE_MIN, TEMPERATURE_MAX = 1e-6, 1e6


def get_config() -> ConfigDict:
    """Return a configuration with every field at its default."""
    return _defaults(_declarations())


class Section(SimpleNamespace):
    """Declarations by name, in order; some are sections themselves."""


def _declarations() -> Section:
    """Return what a configuration looks like, with the declaration of each field in its place."""
    c = Section()
    # Presets of methods.py, joined by "+". They set fields below; the command line wins over them.
    c.method = Text("prefixrl", ".+", "names of methods and fields are expected, joined by +")
    # Of everything before training: initial weights, base text, select, collect, cuts, evaluation.
    c.seed = Whole(0, most=SEED_MAX)
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
    c.rounds = Whole(1, least=1, most=1000)
    c.prefix = _prefix()
    c.sft = _sft()
    c.train = _train()
    c.eval = _eval()
    c.checkpoint = _checkpoint()
    c.log = _log()
    return c


# A user's message, with the place of the problem.
QUESTION = {
    "form": r".*\{question\}.*",
    "expected": "a text with {question} in the place of the question is expected",
}
NAMES = "names of fields are expected, parted by commas"


def _task() -> Section:
    """The problems."""
    c = Section()
    c.name = Choice("water_jugs", TASKS, removed=REMOVED_TASKS)
    c.water_jugs = Section()
    # largest jug, litres; the generator takes no more than 250
    c.water_jugs.max_capacity = Whole(11, least=4, most=10_000)
    c.water_jugs.jugs = Whole(2, least=2, most=4)  # most jugs in a problem
    c.water_jugs.max_moves = Whole(16, least=1, most=1000)  # moves allowed
    # random play: how much likelier a pour is than a fill or an emptying
    c.water_jugs.pour_weight = Number(5.0, least=1e-6, most=1e6)
    # generated problems: chance that random legal play solves them
    c.water_jugs.band = Interval((1e-3, 1e-2), 0, 1, may_be_point=False)
    c.countdown = Section()
    c.countdown.numbers = Whole(5, least=2, most=8)  # given in a problem
    c.countdown.max_number = Whole(10, least=1, most=10_000)  # largest number given
    # largest outcome of a move, and goal
    c.countdown.max_outcome = Whole(
        30, least=1, most=10_000, why="each letter has a word for each outcome"
    )
    # generated problems: chance that random legal play solves them
    c.countdown.band = Interval((1e-3, 5e-3), 0, 1, may_be_point=False)
    c.arithmetic = Section()
    c.arithmetic.prompt = Text(
        'What is {question}? Finish with "The answer is" and the number.', **QUESTION
    )
    c.arithmetic.terms = Whole(3, least=2, most=100)  # numbers in a problem
    c.arithmetic.largest = Whole(50, least=2, most=10**9)  # of them
    # between them
    c.arithmetic.signs = Text("+-*", "[-+*]{1,100}", "some of the signs +-* are expected")
    c.sorting = Section()
    c.sorting.system = Text("Sort the numbers from smallest to largest.")
    c.sorting.prompt = Text("Sort: {question}", **QUESTION)
    c.sorting.opening = Text("Sorted:")  # how every answer begins
    c.sorting.terms = Whole(5, least=2, most=1000)  # numbers in a list, all different
    # of them; the least is 1
    c.sorting.largest = Whole(
        9, least=2, most=100_000, why="every list is drawn by shuffling all of them"
    )
    c.math = Section()
    c.math.prompt = Text(
        "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        **QUESTION,
    )
    c.math.system = Text("")  # system message; empty: what the chat template says without one
    c.math.opening = Text("")  # how every answer begins, e.g. "<think>\n"
    # grader: "math" ([math] extra), "gsm8k" (numbers), or MODULE:FUNCTION (gold, response) -> bool
    c.math.kind = Text("math", r"math|gsm8k|[^:]+:[^:]+", "one of math, gsm8k, MODULE:FUNCTION")
    # of a row: the first of these that it has
    c.math.question_field = Text("problem,question", ".+", NAMES)
    # likewise: the gold answer, or a worked solution that ends in #### and the answer
    c.math.answer_field = Text("answer", ".+", NAMES)
    c.math.workers = Whole(2, least=1, most=1024)  # grading processes
    c.math.timeout = Number(5.0, above=0, most=86_400)  # seconds an answer may take to grade
    return c


def _data() -> Section:
    """Problem sets that a user brings; how many problems a task generates."""
    c = Section()
    # training problems: a .jsonl or .parquet file, a TFDS folder, tfds:NAME, hf:NAME; empty: the
    # generator
    c.path = Location("")
    c.split = Text("train")  # of a TFDS or Hugging Face dataset
    c.heldout_path = Location("")  # held-out problems, likewise; empty: a part of data.path
    c.heldout_split = Text("test")
    # of data.path that is held out, when heldout_path is empty
    c.heldout_fraction = Number(0.5, least=0, most=1)
    c.id_field = Text("id")  # of a row, if it has one; else its place in the set is its id
    # a number in the rows of data.path, e.g. "difficulty"; empty: no filter
    c.filter_field = Text("")
    # keeps rows with filter_field in it (the paper's difficulty of OMNI-MATH problems)
    c.filter_band = Interval((6.0, 8.0))
    c.limit = Whole(0)  # rows of data.path to use at most, from the top; 0: all
    # pass malformed rows over, counted and listed, rather than refuse the set
    c.skip_bad = Flag(False)
    # problems generated for select to screen
    c.train_candidates = Whole(400, most=100_000)
    c.heldout_candidates = Whole(400, most=100_000)
    return c


def _model() -> Section:
    """The transformer (model/config.py); its vocabulary size comes from the tokenizer."""
    c = Section()
    # a pretrained model (folder, hub id, GGUF file), whose sizes hold; empty: a base trained from
    # scratch
    c.path = Location("")
    c.hidden_size = Whole(128, least=1, most=2**17)
    c.num_layers = Whole(2, least=1, most=1000)
    c.num_heads = Whole(4, least=1, most=4096)
    c.num_kv_heads = Whole(2, least=1, most=4096)
    c.head_dim = Whole(32, least=2, most=4096)
    c.intermediate_size = Whole(512, least=1, most=2**20)
    c.rope_theta = Number(10000.0, least=1, most=1e12)
    c.norm_eps = Number(1e-5, least=1e-12, most=1)
    c.qk_norm = Flag(False)
    c.attention_bias = Flag(False)
    c.tie_embeddings = Flag(True)
    c.param_dtype = Choice("float32", DTYPES)
    c.dtype = Choice("float32", DTYPES)
    c.remat = Flag(False)
    c.unroll_layers = Flag(False)
    return c


def _mesh() -> Section:
    """Devices: the sizes must multiply to their number; one may be -1."""
    c = Section()
    c.data = Whole(-1, least=1, also=(-1,))
    c.fsdp = Whole(1, least=1, also=(-1,))
    c.tensor = Whole(1, least=1, also=(-1,))
    return c


def _sampling() -> Section:
    """Sampling in select, collect and training."""
    c = Section()
    # of select, collect and training rollouts
    c.temperature = Number(1.0, least=TEMPERATURE_MIN, most=TEMPERATURE_MAX)
    # training needs 1: the gradient is that of the distribution sampled from
    c.top_p = Number(1.0, above=0, most=1)
    c.top_k = Whole(0)  # training needs 0 (off)
    c.max_new_tokens = Whole(50, least=1, most=TOKENS_MAX)
    # context lengths compiled for: prompt, and prompt + prefix
    c.context_buckets = Several((8, 48), Whole(0, least=1, most=TOKENS_MAX), most=100)
    c.rows = Whole(64, least=1, most=BATCH_MAX)  # contexts in flight
    c.slots = Whole(8, least=1, most=BATCH_MAX)  # samples in flight per context
    c.chunk = Whole(4, least=1, most=TOKENS_MAX)  # tokens decoded between refills of finished slots
    return c


def _base() -> Section:
    """The base model, trained from scratch on the task's text."""
    c = Section()
    c.steps = Whole(1100, least=1, most=10_000_000)
    c.batch = Whole(64, least=1, most=BATCH_MAX)  # texts per step
    c.learning_rate = Number(3e-3, above=0, most=1000)
    c.warmup_steps = Whole(20)
    c.schedule = Choice("cosine", RATE_SCHEDULES)
    c.final_fraction = Number(0.1, least=0, most=1)
    c.weight_decay = Number(0.01, most=1000)
    return c


def _select() -> Section:
    """Screening: which problems are hard."""
    c = Section()
    # k: fresh samples of every candidate; the paper's is 512. 0: every candidate is taken for hard
    c.samples = Whole(32, most=SAMPLES_MAX)
    # pass rates that make a problem hard; (0, 0): never solved in k
    c.band = Interval((0.0, 0.0), 0, 1)
    # at most so many hard problems to train on (paper: 1,000)
    c.train_problems = Whole(320, least=1)
    c.heldout_problems = Whole(320)
    return c


def _collect() -> Section:
    """Collecting: a correct trace of each hard problem."""
    c = Section()
    # samples of a hard problem before it is given up (paper: 2,500). 0: no corpus
    c.cap = Whole(256, most=SAMPLES_MAX)
    # traces instead of sampling: JSONL, or the corpus/dataset of a run; see corpus/trace_file.py
    c.traces_path = Location("")
    return c


def _prefix() -> Section:
    """Prefixes, and their share in training."""
    c = Section()
    c.cuts = Whole(3, least=1, most=10_000)  # per trace, drawn once and frozen
    # each uniform in this part of the trace's tokens
    c.band = Interval((0.4, 0.8), 0, 1, open_ends=True)
    # of the contexts in a batch; the paper's 3:1. 0 is plain RL
    c.share = Number(0.75, least=0, most=1)
    # the paper's, or one of the others in prefixrl_jax/prefixes/schedules.py
    c.schedule = Choice("band", ("band", "reverse", "cosine", "adaptive", "shortest_solvable"))
    # until a reverse or cosine schedule has no prefix left; 0: two thirds of train.schedule_steps
    c.anneal_steps = Whole(0)
    # or unrelated (a trace of another problem), wrong (a wrong response to this one): controls
    c.content = Choice("own", ("own", "unrelated", "wrong"))
    # begun answer, the paper's; or user: the same content as a hint in the question
    c.place = Choice("assistant", ("assistant", "user"))
    return c


def _sft() -> Section:
    """Supervised fine-tuning on the traces, before reinforcement learning."""
    c = Section()
    c.enabled = Flag(False)
    c.epochs = Whole(4, least=1, most=100_000)
    c.batch = Whole(32, least=1, most=BATCH_MAX)  # traces per step
    c.learning_rate = Number(1e-5, above=0, most=1000)
    c.warmup_steps = Whole(0)
    c.schedule = Choice("cosine", RATE_SCHEDULES)
    c.final_fraction = Number(0.1, least=0, most=1)
    c.weight_decay = Number(0.0, most=1000)
    return c


def _train() -> Section:
    """Reinforcement learning."""
    c = Section()
    c.seed = Whole(0, most=SEED_MAX)  # of batches and rollouts
    c.steps = Whole(400)  # paper: 400. 0: the base model is evaluated alone
    c.batch = Whole(128, least=1, most=BATCH_MAX)  # contexts per step (paper: 128 prompts)
    c.group = Whole(8, least=1, most=BATCH_MAX)  # rollouts per context (paper: n = 8)
    c.loss = Choice("reinforce", ("reinforce", "ppo_clip", "gspo", "cispo"))
    c.advantage = Choice("group_mean", ("group_mean", "leave_one_out", "std_normalised", "none"))
    # not stated in the paper
    c.aggregation = Choice("token_mean", ("token_mean", "sequence_mean", "constant"))
    c.clip_low = Number(0.2, above=0, most=1)  # of the losses with a ratio
    c.clip_high = Number(0.2, above=0)
    # reinforce: largest weight pi/sampler of a token, for a sampler in bfloat16; 0: no weights
    c.truncate_ratio = Number(0.0)
    c.kl_coef = Number(
        0.0, most=1e6
    )  # of the KL divergence from the base model; the paper reports none
    c.kl_estimator = Choice("k3", ("k1", "k2", "k3"))
    # of the prefixes' negative log-likelihood (UFT, Prefix-RFT); the paper has none
    c.prefix_coef = Number(0.0, most=1e6)
    # of groups all right or all wrong: none, drop (not counted in means), refill (others are drawn)
    c.filter = Choice("none", ("none", "drop", "refill"))
    c.refills = Whole(2, least=1, most=1000)  # batches drawn at most to refill one
    # a trace as one of the plain group: importance (pi/behaviour), shaped (LUFFY)
    c.off_policy = Choice("none", ("none", "importance", "shaped"))
    # importance: log-probs as sampled, or acceptance (those of the correct ones: p/(success rate))
    c.behaviour = Choice("sampled", ("sampled", "acceptance"))
    # prefix.place=user: train the continuations at the plain problem (OC-GRPO)
    c.at_plain = Flag(False)
    # optimizer steps on the same rollouts; above 1 use a loss with a ratio
    c.updates_per_batch = Whole(1, least=1, most=10_000)
    c.learning_rate = Number(1e-6, above=0, most=1000)  # paper: 1e-6 (8B and 4B models)
    c.warmup_steps = Whole(0)
    c.schedule = Choice("constant", RATE_SCHEDULES)
    c.schedule_steps = Whole(0)  # length of the learning-rate schedule; 0: train.steps
    c.final_fraction = Number(0.0, least=0, most=1)
    c.weight_decay = Number(0.0, most=1000)  # not stated in the paper
    # not stated in the paper
    c.b2 = Number(0.999, most=0.999999, why="1 - b2 must not vanish in float32")
    # not stated in the paper; a large one, e.g. 1e9, clips nothing
    c.max_grad_norm = Number(1.0, least=1e-12)
    # gradient accumulation over whole groups
    c.micro_batches = Whole(1, least=1, most=BATCH_MAX)
    c.logprob_chunk = Whole(64, least=1, most=TOKENS_MAX)  # positions whose logits exist at a time
    c.mask_truncated = Flag(False)  # whether rollouts cut by the length limit carry no loss
    # nats: largest sampler/trainer gap of a token; above it for three steps the run stops. 0: off
    c.max_logp_diff = Number(0.5)
    c.min_entropy = Number(0.0)  # nats a token: below it a warning
    # stop training at this total (paper accounting, corpus included); 0: no budget
    c.flops_budget = Number(0.0)
    return c


def _eval() -> Section:
    """Evaluation."""
    c = Section()
    # fresh samples per problem, before and after (paper: 256)
    c.samples = Whole(16, least=1, most=SAMPLES_MAX)
    # paper: 0.7; 0 is greedy
    c.temperature = Number(1.0, least=TEMPERATURE_MIN, most=TEMPERATURE_MAX, also=(0,))
    # of the held-out problems; or validation (every second one), test (the others)
    c.heldout_part = Choice("all", ("all", "validation", "test"))
    # of pass@k; one above eval.samples is left out
    c.k = Several((1, 2, 4, 8, 16), Whole(0, least=1, most=SAMPLES_MAX))
    # of a trace given as prefix
    c.fractions = Several((0.0, 0.2, 0.4, 0.6, 0.8), Number(0.0, least=0, below=1))
    c.fraction_samples = Whole(8, least=1, most=SAMPLES_MAX)
    c.every = Whole(10)  # training steps between short evaluations of plain accuracy; 0: none
    c.every_samples = Whole(2, least=1, most=SAMPLES_MAX)  # per problem in those
    return c


def _checkpoint() -> Section:
    """Checkpoints of training."""
    c = Section()
    c.every = Whole(10)  # training steps; 0: only at the end
    c.keep = Whole(2, least=1)  # newest; the best by plain reward is kept besides
    return c


def _log() -> Section:
    """What is written besides metrics."""
    c = Section()
    c.samples_every = Whole(10)  # training steps between readable samples; 0: none
    return c


def _defaults(section: Section) -> ConfigDict:
    """Return a section with every field at its default."""
    c = ConfigDict()
    for name, declared in vars(section).items():
        c[name] = _defaults(declared) if isinstance(declared, Section) else declared.default
    return c


def _by_name(section: Section, prefix: str = "") -> dict[str, Field]:
    """Return the declarations of a section by dotted name."""
    out: dict[str, Field] = {}
    for name, declared in vars(section).items():
        if isinstance(declared, Section):
            out |= _by_name(declared, f"{prefix}{name}.")
        else:
            out[prefix + name] = declared
    return out


# Every field's declaration, by dotted name.
FIELDS = _by_name(_declarations())


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Return {"train.steps": 400, ...}, tuples as lists, as JSON gives them back."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out


def check_fields(config: ConfigDict) -> None:
    """Raise ValueError unless the configuration has every field, no other, and accepted values.

    The sentence names the first field that is wrong, its value, and what would be accepted.
    """
    values = flatten(config)
    for name, field in FIELDS.items():
        if name not in values:
            raise ValueError(f"{name} is missing from the configuration; {field.expected}")
        field.check(name, values.pop(name))
    for name, value in values.items():
        raise ValueError(f"{name}={shown(value)}: there is no such field; {hint(name, FIELDS)}")


def check_section(section: str, values: dict[str, Any]) -> None:
    """Raise ValueError for the first value that a field of a section, such as "train", refuses.

    values: by name within the section; some may be left out.
    """
    check_values(FIELDS, {f"{section}.{name}": value for name, value in values.items()})


def saved_config(path: Path) -> ConfigDict:
    """Return the configuration of a run from its config.json.

    Sections of tasks that were removed since are ignored; a run of such a task is refused by
    `check_fields`. Raises ValueError if there is no such file, it is damaged, or it has unknown
    fields.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a work directory of a run is expected")
    config = get_config().lock()  # so that unknown fields are refused
    try:
        fields = _with_tuples(json.loads(path.read_text(encoding="utf-8")))
        for name in REMOVED_TASKS:
            fields["task"].pop(name, None)
        config.update(fields)
    # Not JSON, not UTF-8, or too deeply nested; then no object, no such field, another type.
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a configuration of this version: {reason}") from error
    return config


def _with_tuples(value: Any) -> Any:
    """Turn lists into tuples: JSON has none, and ConfigDict does not take the one for the other."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
