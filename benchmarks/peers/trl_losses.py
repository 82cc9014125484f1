"""The losses and advantages that TRL's trainers compute for given numbers.

The methods are the trainers' own; there is no model and no tokenizer.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.peers.server import serve

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
# What the trainers call the share of clipped tokens or rows.
CLIPPED = ("clip_ratio/region_mean", "cispo_clip_ratio")


def stand_in(kind: str, fields: dict):
    """Return a trainer that was never set up, in one process and with one batch a step.

    It has no attributes but those that are read here, so one that another version of TRL reads
    besides is an AttributeError and not a silent default. What is not in `fields` is as in the
    trainer's own configuration; the "args" in `fields` change that.
    """
    trainer, config = TRAINERS[kind]
    made = object.__new__(trainer)
    made.args = config(output_dir="unused", use_cpu=True, bf16=False, report_to="none")
    made.args.steps_per_generation = made.args.gradient_accumulation_steps = 1
    one_process = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    vars(made).update(
        accelerator=one_process,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        use_vllm=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    vars(made.args).update(fields.get("args", {}))
    vars(made).update({name: value for name, value in fields.items() if name != "args"})
    return made


def loss(case: dict) -> dict:
    """Return a loss's "value", its "gradient" with respect to the log-probs, and a share "clipped".

    `case` has the "trainer" and its "fields", and by row the log-probs "now", "old" (null: the same
    as now) and "reference", "advantages" and "lengths". All is float64.
    """
    now = torch.tensor(case["now"], dtype=torch.float64, requires_grad=True)
    old = now.detach() if case["old"] is None else torch.tensor(case["old"], dtype=torch.float64)
    mask = (torch.arange(now.shape[1]) < torch.tensor(case["lengths"])[:, None]).long()
    trainer = stand_in(case["trainer"], case["fields"])
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (now, torch.zeros_like(now), None)
    ids = torch.zeros_like(mask)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(case["advantages"], dtype=torch.float64),
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": torch.tensor(case["reference"], dtype=torch.float64),
        "num_items_in_batch": mask.sum(),
    }
    if case["old"] is not None:
        inputs["old_per_token_logps"] = old
    value = trainer._compute_loss(trainer.model, inputs)
    value.backward()
    clipped = [
        trainer._metrics["train"][name][0] for name in CLIPPED if trainer._metrics["train"][name]
    ]
    return {"value": value.item(), "gradient": now.grad.tolist(), "clipped": clipped[0]}


def advantages(case: dict) -> list[float]:
    """Return the trainer's advantages for "rewards", which come in groups of equal size.

    The batch that it is made to score consists of id 0 alone.
    """
    rows = sum(map(len, case["rewards"]))
    group = len(case["rewards"][0])
    scores = torch.tensor(case["rewards"], dtype=torch.float64).reshape(-1, 1)
    ids = [[0]] * rows
    # What each trainer's `_generate` returns.
    generated = (ids, ids, None, [""] * rows, None, {}, None, None)
    if case["trainer"] == "rloo":
        generated = (ids, ids, [""] * rows)
    trainer = stand_in(
        case["trainer"],
        {
            "environment_factories": None,
            "environments": None,
            "tools": None,
            "pad_to_multiple_of": None,
            "beta": 0.0,
            "mask_truncated_completions": False,
            "num_iterations": 1,
            "num_generations": group,
            "reward_func_names": ["reward"],
            "reward_weights": torch.ones(1, dtype=torch.float64),
            "reward_clip_range": None,
            "log_multimodal": False,
            "multi_objective_aggregation": "sum_then_normalize",
            "normalize_advantages": False,
            "_tokenizer": SimpleNamespace(pad_token_id=0),
            "_pending_extra_logs": {},
            "_pending_metrics": {},
            "_logs": {
                "prompt": [],
                "completion": [],
                "advantages": [],
                "rewards": defaultdict(list),
                "extra": defaultdict(list),
            },
            **case["fields"],
        },
    )
    trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer._generate = lambda prompts: generated
    trainer._calculate_rewards = lambda *_: scores
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (torch.zeros(rows, 1), None, None)
    return trainer._generate_and_score_completions([{"prompt": ""}] * rows)["advantages"].tolist()


def prepare(what: str, name: str) -> Callable[[], object]:
    """Return the call that answers for a case of losses.json, which the asking process wrote."""
    case = json.loads((Path(sys.argv[1]) / "losses.json").read_text())[what][name]
    compute = {"loss": loss, "advantages": advantages}[what]
    return lambda: compute(case)


if __name__ == "__main__":
    serve(prepare)
