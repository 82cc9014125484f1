"""transformers' `generate`, and a policy-gradient step as one writes it by hand in PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.cases import LEARNING_RATE, MAX_GRAD_NORM, PROBE, SAMPLER, STEP, Case, prompts
from benchmarks.peers.server import serve


def contexts(case: Case, vocabulary: int) -> torch.Tensor:
    """Return every context repeated for its group, int64 [rows, context]."""
    return torch.tensor(prompts(case, vocabulary)).repeat_interleave(case.group, 0)


class Peer:
    """The exported models in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def model(self, name: str):
        """Load a model; no id ends its completions."""
        model = AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        return model

    def prepare(self, what: str, name: str) -> Callable[[], object]:
        """Return the call that a case times."""
        if what == "logits":
            return self._logits(name)
        return self._sampler(SAMPLER[name]) if what == "sampler" else self._step(STEP[name])

    def _logits(self, name: str) -> Callable[[], list[float]]:
        model = self.model(name).eval()

        def call() -> list[float]:
            with torch.no_grad():
                return model(torch.tensor([PROBE])).logits[0, -1].tolist()

        return call

    def _sampler(self, case: Case) -> Callable[[], int]:
        model = self.model(case.model).eval()
        ids = contexts(case, model.config.vocab_size)

        def call() -> int:
            with torch.no_grad():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=case.new,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    pad_token_id=0,
                )
            return out.shape[1] - case.context

        return call

    def _step(self, case: Case) -> Callable[[], float]:
        model = self.model(case.model).train()
        vocabulary = model.config.vocab_size
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        completions = torch.randint(3, vocabulary, (case.rows, case.new))
        ids = torch.cat([contexts(case, vocabulary), completions], 1)
        advantages = (torch.arange(case.rows) % 2).float() - 0.5

        def call() -> float:
            # Logits of the continuation alone, as a careful author asks for them.
            logits = model(ids, logits_to_keep=case.new + 1).logits[:, :-1]
            logprobs = torch.log_softmax(logits, -1).gather(2, ids[:, case.context :, None])[..., 0]
            loss = -(advantages[:, None] * logprobs).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            return loss.item()

        return call


if __name__ == "__main__":
    serve(Peer(Path(sys.argv[1])).prepare)
