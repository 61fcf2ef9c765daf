"""Log-likelihoods agree with lm-evaluation-harness and with a hand count, and do not depend on batching."""

from __future__ import annotations

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ctxft.benchmarks import FORMS, Question, render
from ctxft.examples import IGNORE_INDEX
from ctxft.runtime import InputError
from ctxft.scoring import encode_pair, score_choices, text_losses

torch.set_num_threads(1)
WORDS = (
    "the heart pumps blood through vessels and lungs take up oxygen while kidneys filter water, salts & acid".split()
)
WINDOW = 96


def make_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a small byte-level tokenizer without BOS, or a metaspace one (Llama's kind) that adds BOS."""
    rng = random.Random(0)
    texts = ["Question: Answer: A. B. C. D. " + make_text(rng, 30) for _ in range(200)]
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "bytes":
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = [chr(n) for n in range(32, 127)] + ["\n"]
    special = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    if kind == "metaspace":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make_llama(vocabulary: int = 500) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # Large initial weights: a near-uniform model would agree with anything.
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=WINDOW, initializer_range=0.3, **sizes)
    return LlamaForCausalLM(config)


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=500, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2LMHeadModel(config)


def make_lora() -> torch.nn.Module:
    return get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def make_gemma2() -> Gemma2ForCausalLM:
    """Return a model that caps its logits and attends to a sliding window shorter than the questions."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    window = {"max_position_embeddings": WINDOW, "sliding_window": 8, "num_key_value_heads": 2}
    caps = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "attn_implementation": "eager"}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=500, initializer_range=0.3, **sizes, **window, **caps))


def make_requests(form: str, count: int, words: int = 12) -> list[tuple[str, list[str]]]:
    rng = random.Random(form)
    requests = []
    for number in range(count):
        choices = tuple(make_text(rng, rng.randint(1, 5)) for _ in range(4))
        question = Question(str(number), make_text(rng, rng.randint(3, words)) + "?", choices, 0, "all")
        requests.append(render(question, form, "own"))
    return requests


def harness_scores(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, requests: list
) -> tuple[HFLM, list[float]]:
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    pairs = [(context, choice) for context, choices in requests for choice in choices]
    instances = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    return harness, [value for value, _ in harness.loglikelihood(instances, disable_tqdm=True)]


def by_hand(model: torch.nn.Module, ids: list[int], count: int) -> float:
    """The summed log-probability of the last ``count`` ids, one unpadded row with all its logits."""
    model.eval()
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probabilities[p - 1, ids[p]].item() for p in range(len(ids) - count, len(ids)))


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_lm_evaluation_harness(kind: str, form: str) -> None:
    model, tokenizer = make_llama(), make_tokenizer(kind)
    requests = [
        *make_requests(form, 20),
        ("Trailing space: ", ["the heart", "lungs"]),
        ("New line:\n", ["blood", "acid"]),
    ]
    harness, expected = harness_scores(model, tokenizer, requests)
    for context, choices in requests:
        for choice in choices:
            assert encode_pair(tokenizer, context, choice) == tuple(harness._encode_pair(context, choice))
    found = score_choices(model, tokenizer, requests)
    assert [v for scores in found for v in scores.log_likelihoods] == pytest.approx(expected, abs=1e-4)
    assert all(scores.truncated == 0 for scores in found)
    assert max(expected) - min(expected) > 1  # the comparison can fail


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_from_the_left_agrees_with_lm_evaluation_harness(form: str) -> None:
    model, tokenizer = make_llama(), make_tokenizer("metaspace")
    requests = make_requests(form, 4, words=5)
    requests += [("Long: " + make_text(random.Random(1), 200), [" blood", " salts & acid"])]
    found = score_choices(model, tokenizer, requests)
    _, expected = harness_scores(model, tokenizer, requests)
    assert [v for scores in found for v in scores.log_likelihoods] == pytest.approx(expected, abs=1e-4)
    context, choice = encode_pair(tokenizer, requests[-1][0], requests[-1][1][1])
    assert found[-1].truncated == len(context) + len(choice) - (WINDOW + 1) > 0
    assert [scores.truncated for scores in found[:-1]] == [0] * 4


def test_the_empty_context_agrees_with_lm_evaluation_harness() -> None:
    model, tokenizer = make_llama(), make_tokenizer("metaspace")
    requests = [("", ["the heart", "<s>lungs"])]
    _, expected = harness_scores(model, tokenizer, requests)
    assert score_choices(model, tokenizer, requests)[0].log_likelihoods == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("make_model", [make_llama, make_gpt2, make_gemma2, make_lora])
def test_scores_equal_a_hand_count_for_each_kind_of_model(make_model) -> None:
    model, tokenizer = make_model(), make_tokenizer("bytes")
    requests = make_requests("options", 5)
    found = score_choices(model, tokenizer, requests)
    for (context, choices), scores in zip(requests, found, strict=True):
        for choice, value, tokens in zip(choices, scores.log_likelihoods, scores.tokens, strict=True):
            context_ids, choice_ids = encode_pair(tokenizer, context, choice)
            assert value == pytest.approx(by_hand(model, context_ids + choice_ids, len(choice_ids)), abs=1e-4)
            assert tokens == len(choice_ids)


@pytest.mark.parametrize("form", FORMS)
def test_scores_do_not_depend_on_the_batch(form: str) -> None:
    model, tokenizer = make_llama(), make_tokenizer("bytes")
    requests = make_requests(form, 12)
    small, large = (score_choices(model, tokenizer, requests, token_budget=budget) for budget in (64, 4096))
    for a, b in zip(small, large, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-5)


def test_a_context_is_run_once_for_all_its_choices() -> None:
    seen = []
    requests = make_requests("lettered", 6)
    score_choices(make_llama(), make_tokenizer("bytes"), requests, token_budget=128, progress=lambda *p: seen.append(p))
    assert seen[-1] == (6, 6) and len(seen) > 1


def test_training_mode_is_restored_and_dropout_is_off() -> None:
    model, tokenizer = make_gpt2(), make_tokenizer("bytes")
    model.train()
    first, second = (score_choices(model, tokenizer, [("The heart", [" pumps"])]) for _ in range(2))
    assert first == second and model.training


def test_a_choice_that_merges_into_the_context_is_refused() -> None:
    tokenizer = make_tokenizer("bytes")
    assert len(tokenizer.tokenize(" oxygen")) == 1
    with pytest.raises(InputError, match="question '7': nothing is left to score of 'ygen' after 'The ox'"):
        score_choices(make_llama(), tokenizer, [("The ox", ["ygen"])], names=["question '7'"])


def test_a_choice_longer_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"request 0: a choice has .* tokens, but the model reads 4"):
        score_choices(make_llama(), make_tokenizer("bytes"), [("The", [" " + "heart lungs " * 5])], window=4)


def test_text_losses_equal_the_loss_of_the_model() -> None:
    model, rng = make_llama().eval(), random.Random(2)
    rows = []
    for length in (5, 40, 17, 2):
        ids = [rng.randrange(3, 500) for _ in range(length)]
        rows.append((ids, [IGNORE_INDEX if rng.random() < 0.3 else id_ for id_ in ids[:-1]] + [ids[-1]]))
    for (ids, labels), (loss, count) in zip(rows, text_losses(model, rows, token_budget=50), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        assert count == sum(label != IGNORE_INDEX for label in labels[1:])
        assert loss / count == pytest.approx(expected, abs=1e-4)


def test_text_losses_of_a_row_without_targets_and_of_a_bad_row() -> None:
    model = make_llama()
    assert text_losses(model, [([1, 2, 3], [IGNORE_INDEX] * 3), ([4], [4])]) == [(0.0, 0), (0.0, 0)]
    for ids, labels in (([1, 2, 3], [1, 2]), ([], [])):
        with pytest.raises(
            InputError, match=f"row 0 has {len(ids)} ids and {len(labels)} labels: they must be equally"
        ):
            text_losses(model, [(ids, labels)])
