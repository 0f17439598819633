"""Rules of vLLM and llama.cpp for adapters."""

import re

import pytest

from rankwise.tasks.text.card.serving import LLAMA_CPP_RULES, VLLM_RULES, objections, vllm_max_lora_rank

PLAIN = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj"], "bias": "none", "task_type": "CAUSAL_LM"} | {
    "use_dora": False, "use_rslora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip


def test_a_plain_adapter_is_taken():
    assert objections(PLAIN, VLLM_RULES) == []
    assert objections(PLAIN, LLAMA_CPP_RULES) == []


@pytest.mark.parametrize(
    ("change", "vllm", "llama_cpp"),
    [
        ({"use_dora": True}, "does not support DoRA", "does not support DoRA"),
        ({"modules_to_save": ["score"]}, "modules_to_save is score", "modules_to_save is score"),
        ({"bias": "all"}, "bias is all", "bias is all"),
        ({"lora_bias": True}, "biases of adapters", "biases of adapters"),
        ({"use_rslora": True}, None, r"not by alpha / sqrt\(r\)"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern has others", None),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern has others", "alpha_pattern has others"),
        ({"r": 512}, None, None),
        ({"r": 513}, "rank 513 is above 512", None),
        ({"target_modules": ["q_proj", "lm_head"]}, None, "lm_head is adapted"),
        ({"task_type": "SEQ_CLS"}, None, "classifier"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "encoder-decoders", None),
    ],
)
def test_what_is_refused_and_why(change, vllm, llama_cpp):
    for rules, reason in ((VLLM_RULES, vllm), (LLAMA_CPP_RULES, llama_cpp)):
        found = objections(PLAIN | change, rules)
        assert len(found) == (reason is not None)
        assert reason is None or re.search(reason, found[0])


@pytest.mark.parametrize(("r", "least"), [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (257, 320), (512, 512)])
def test_the_least_limit_on_the_rank(r, least):
    assert vllm_max_lora_rank(PLAIN | {"r": r}) == least
    assert vllm_max_lora_rank(PLAIN | {"r": 1, "rank_pattern": {"a": r}}) == least
