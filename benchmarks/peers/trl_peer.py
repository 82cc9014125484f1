"""TRL's GRPOTrainer on CPU, which samples with transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers import torch_peer
from benchmarks.peers.cases import LEARNING_RATE, MAX_GRAD_NORM, RL, Case, prompts, rewards
from benchmarks.peers.server import Turns, serve

EPOCH = 1000  # steps; no step that is measured begins an epoch


class BeforeStep(TrainerCallback):
    """Calls a function before every step."""

    def __init__(self, function: Callable[[], None]):
        self._function = function

    def on_step_begin(self, args, state, control, **kwargs):
        """Call the function; of the step no more is done than its prompts drawn."""
        self._function()


class Peer(torch_peer.Peer):
    """The exported models in `folder`."""

    def prepare(self, what: str, name: str) -> Callable[[], object]:
        """Return the call that a case times."""
        if what == "rl":
            return Turns(lambda turn: self._train(RL[name], turn))
        return super().prepare(what, name)

    def _train(self, case: Case, turn: Callable[[], None]) -> None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder / case.model)
        model = self.model(case.model)
        contexts = prompts(case, model.config.vocab_size)
        texts = [tokenizer.decode(ids) for ids in contexts]
        if tokenizer(texts)["input_ids"] != contexts:
            raise ValueError("the prompts' text does not encode to their ids")
        # An id that the model does not have, so that nothing ends early.
        tokenizer.add_special_tokens({"eos_token": "<never>"})
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": texts * EPOCH}),
            reward_funcs=lambda completion_ids, **_: rewards(completion_ids, case.new),
            args=self._config(case),
            callbacks=[BeforeStep(turn)],
        )
        trainer.train()

    def _config(self, case: Case) -> GRPOConfig:
        """Settings with one update on every batch of rollouts, and nothing logged or saved."""
        return GRPOConfig(
            output_dir=str(self.folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            use_vllm=False,
            per_device_train_batch_size=case.rows,
            num_generations=case.group,
            max_completion_length=case.new,
            beta=0.0,
            temperature=1.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_GRAD_NORM,
            weight_decay=0.0,
            shuffle_dataset=False,
            max_steps=EPOCH,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )


if __name__ == "__main__":
    serve(Peer(Path(sys.argv[1])).prepare)
