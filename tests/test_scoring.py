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
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from ctxft.data.rows import IGNORE_INDEX
from ctxft.evaluation.benchmarks import FORMS, Question, render
from ctxft.evaluation.outcomes import parse_answer
from ctxft.evaluation.scoring import (
    Prompt,
    encode_pair,
    encode_requests,
    encode_texts,
    generate_answers,
    reads_trees,
    score_choices,
    share_headers,
    text_losses,
)
from ctxft.models import window_of
from ctxft.storage import InputError

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
        requests.append(render(question, form))
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
    found = score_choices(model, tokenizer, requests, chat=True)[0]  # the harness reads control tokens in every text
    assert found.log_likelihoods == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("make_model", [make_llama, make_gpt2, make_gemma2, make_lora])
def test_scores_equal_a_hand_count_for_each_kind_of_model(make_model) -> None:
    model, tokenizer = make_model(), make_tokenizer("bytes")
    requests = make_requests("cloze", 5)
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
    small, large = (score_choices(model, tokenizer, requests, max_batch_tokens=budget) for budget in (64, 4096))
    for a, b in zip(small, large, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-5)


def test_a_context_is_run_once_for_all_its_choices_and_its_scores_are_given_at_once() -> None:
    model, seen, passes = make_llama(), [], []
    model.register_forward_pre_hook(lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True)
    found = score_choices(
        model, make_tokenizer("bytes"), make_requests("mcf", 6), 128, done=lambda n, _: seen.append((n, len(passes)))
    )
    assert sorted(number for number, _ in seen) == list(range(len(found))) and seen[0][1] < seen[-1][1] == len(passes)
    assert sum(passes[-(seen[-1][1] - seen[0][1] + 1) :]) == 6


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
    with pytest.raises(InputError, match=r"request 0: a choice has .* tokens, but the model reads 96"):
        score_choices(make_llama(), make_tokenizer("bytes"), [("The", [" " + "heart lungs " * 50])])


def test_text_losses_equal_the_loss_of_the_model() -> None:
    model, rng = make_llama().eval(), random.Random(2)
    rows = []
    for length in (5, 40, 17, 2):
        ids = [rng.randrange(3, 500) for _ in range(length)]
        rows.append((ids, [IGNORE_INDEX if rng.random() < 0.3 else id_ for id_ in ids[:-1]] + [ids[-1]]))
    for (ids, labels), (loss, count) in zip(rows, text_losses(model, rows, max_batch_tokens=50), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        assert count == sum(label != IGNORE_INDEX for label in labels[1:])
        assert loss / count == pytest.approx(expected, abs=1e-4)


def test_text_losses_of_a_row_without_targets() -> None:
    model = make_llama()
    assert text_losses(model, [([1, 2, 3], [IGNORE_INDEX] * 3), ([4], [4])]) == [(0.0, 0), (0.0, 0)]


# --- what does not change a score -------------------------------------------------------------------------------------


def make_shots(count: int, subjects: int = 2) -> list[tuple[str, list[str]]]:
    """Return lettered questions behind three solved ones, which the questions of a subject share."""
    headers = []
    for subject in range(subjects):
        solved = make_requests("mcf", 3 + subject, words=4)[subject:]
        headers.append("".join(f"{context}{choices[n % 4]}\n\n" for n, (context, choices) in enumerate(solved)))
    requests = make_requests("mcf", count, words=4)
    return [(headers[n % subjects] + context, choices) for n, (context, choices) in enumerate(requests)]


def make_wide(make_model=None, window: int = 1024, **values) -> torch.nn.Module:
    """Return a Llama whose window holds questions behind solved ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=500, max_position_embeddings=window, initializer_range=0.3, **sizes | values)
    return LlamaForCausalLM(config)


def values_of(scores: list) -> list[float]:
    return [value for score in scores for value in score.log_likelihoods]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("form", FORMS)
def test_five_shots_agree_with_lm_evaluation_harness(kind: str, form: str) -> None:
    model, tokenizer = make_wide(), make_tokenizer(kind)
    solved = make_requests(form, 5, words=4)
    header = "".join(f"{context}{choices[n % 4]}\n\n" for n, (context, choices) in enumerate(solved))
    requests = [(header + context, choices) for context, choices in make_requests(form, 12)]
    pairs = [(context, choice) for context, choices in requests for choice in choices]
    harness, expected = harness_scores(model, tokenizer, requests)
    encoded = [pair for request in encode_requests(tokenizer, requests) for pair in request]
    assert encoded == [tuple(harness._encode_pair(*pair)) for pair in pairs]
    found = values_of(score_choices(model, tokenizer, requests))
    assert found == pytest.approx(expected, abs=1e-4)
    picks = [[max(range(4), key=lambda k: row[n + k]) for n in range(0, len(row), 4)] for row in (found, expected)]
    assert picks[0] == picks[1] and max(expected) - min(expected) > 1


def test_a_common_header_is_read_once_and_changes_no_score() -> None:
    model, tokenizer = make_wide(), make_tokenizer("bytes")
    requests = make_shots(12)
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, options: read.append(options["input_ids"].numel()), with_kwargs=True)
    shared, tokens = score_choices(model, tokenizer, requests), sum(read)
    read.clear()
    alone = [score_choices(model, tokenizer, [request])[0] for request in requests]  # nothing to share
    assert values_of(shared) == pytest.approx(values_of(alone), abs=1e-5)
    assert tokens < sum(read) / 2


@pytest.mark.parametrize("form", [*FORMS, "shots"])
def test_in_float64_nothing_but_rounding_is_left_of_the_difference(form: str) -> None:
    model, tokenizer = make_wide().double(), make_tokenizer("metaspace")
    requests = make_shots(8) if form == "shots" else make_requests(form, 8)
    _, expected = harness_scores(model, tokenizer, requests)
    assert values_of(score_choices(model, tokenizer, requests)) == pytest.approx(expected, abs=1e-6)


def make_prompt(*ids: int) -> Prompt:
    return Prompt(ids, [])


def test_headers_are_cut_where_they_save_most() -> None:
    instruction, first, second = tuple(range(40)), tuple(range(100, 200)), tuple(range(200, 300))
    prompts = [make_prompt(*instruction, *shots, 400 + n, 5) for n in range(5) for shots in (first, second)]
    prompts.append(make_prompt(1, 2, 3))
    groups = share_headers(prompts)
    assert sorted((group.header, len(group.prompts)) for group in groups) == [(0, 1), (140, 5), (140, 5)]
    assert {id(p) for group in groups for p in group.prompts} == {id(p) for p in prompts}
    nested = [make_prompt(*range(n)) for n in range(200, 206)]  # each begins with the whole one before
    (group,) = share_headers(nested)
    assert group.header == 199 and len(group.prompts) == 6  # the shortest keeps an id of its own
    assert [group.header for group in share_headers([make_prompt(*range(30), n) for n in range(50)])] == [0]


@pytest.mark.parametrize("form", ["cloze", "mcf", "shots"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_depend_on_nothing_but_the_item(form: str, attention: str) -> None:
    model, tokenizer = make_wide(attn_implementation=attention), make_tokenizer("metaspace")
    requests = make_shots(10) if form == "shots" else make_requests(form, 10)
    expected = score_choices(model, tokenizer, requests)
    order = random.Random(3).sample(range(10), 10)
    tokenizer.padding_side = "left" if tokenizer.padding_side == "right" else "right"
    for budget in (1, 200, 1000, 100000):
        shuffled = score_choices(model, tokenizer, [requests[n] for n in order], max_batch_tokens=budget)
        assert values_of(shuffled) == pytest.approx(values_of([expected[n] for n in order]), abs=1e-5)
    for part in (requests[:1], requests[3:7]):
        start = requests.index(part[0])
        found = values_of(score_choices(model, tokenizer, part))
        assert found == pytest.approx(values_of(expected[start : start + len(part)]), abs=1e-5)


# --- ways to read -----------------------------------------------------------------------------------------------------


class Deaf(LlamaForCausalLM):
    """A model that takes the tree's mask and positions and ignores them, as one may that does not know them."""

    def forward(self, *args, attention_mask=None, position_ids=None, **options):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        return super().forward(*args, attention_mask=attention_mask, **options)


def make_bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=500, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    return BloomForCausalLM(config)


def make_mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, initializer_range=0.3))


def make_mistral() -> MistralForCausalLM:
    """Return a model whose sliding window holds a short question, but not a long one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=500, num_key_value_heads=2, sliding_window=48, initializer_range=0.3, **sizes)
    return MistralForCausalLM(config)


def make_deaf() -> Deaf:
    return Deaf(make_wide().config)


def make_eager() -> LlamaForCausalLM:
    return make_wide(attn_implementation="eager")


TREES = {  # model -> whether it reads trees
    make_llama: True,
    make_eager: True,
    make_gpt2: True,
    make_lora: True,
    make_mistral: True,
    make_gemma2: False,
    make_deaf: False,
    make_bloom: False,
    make_mamba: False,
}


@pytest.mark.parametrize("make_model", list(TREES))
def test_each_model_is_read_in_the_quickest_way_that_is_right(make_model) -> None:
    model, tokenizer = make_model(), make_tokenizer("bytes")
    assert reads_trees(model) is TREES[make_model]
    requests = [*make_requests("cloze", 4), ("Long: " + make_text(random.Random(1), 40), [" blood", " salts & acid"])]
    found = score_choices(model, tokenizer, requests)
    for (context, texts), scores in zip(requests, found, strict=True):
        for text, value in zip(texts, scores.log_likelihoods, strict=True):
            context_ids, ids = encode_pair(tokenizer, context, text)
            kept = (context_ids + ids)[-((window_of(model) or 10**6) + 1) :]
            assert value == pytest.approx(by_hand(model, kept, len(ids)), abs=1e-4)


def test_a_model_in_bfloat16_is_read_as_a_tree_too() -> None:
    model, tokenizer = make_wide(), make_tokenizer("bytes")
    requests = make_requests("cloze", 6)
    fine = values_of(score_choices(model, tokenizer, requests))
    model.to(torch.bfloat16)
    assert reads_trees(model)
    assert values_of(score_choices(model, tokenizer, requests)) == pytest.approx(fine, rel=0.05)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" causal", 1),
        ("Causal.\nText: more", 1),
        ("**noise**", 0),
        ("\n\n(noise)", 0),
        ("causal, as far as I see", 1),
        ("not causal", None),
        ("non-causal", None),
        ("causality", None),
        ("causal or noise", None),
        ("causal, not noise", None),
        ("The answer is causal", None),
        ("", None),
    ],
)
def test_answers_are_read_strictly(text: str, answer: int | None) -> None:
    assert parse_answer(text, ("noise", "causal")) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" B", 1),
        ("B) Vitamin A", 1),
        ("B. Vitamin A.", 1),
        ("C: both", 2),
        ("A patient", None),
        ("b", None),
        ("A, B", None),
        ("B. Vitamin C, or A", None),
        ("B is wrong", None),
        ("AB", None),
    ],
)
def test_letters_are_read_strictly(text: str, answer: int | None) -> None:
    assert parse_answer(text, ("A", "B", "C"), ("Vitamin C", "Vitamin A", "both")) == answer


def test_the_longer_of_two_labels_that_begin_alike_is_found() -> None:
    labels = ("causal", "not causal", "causal chain")
    assert [parse_answer(text, labels) for text in ("Not causal", "causal chain.", "causal")] == [1, 2, 0]


@pytest.mark.parametrize("make_model", [make_llama, make_gpt2, make_lora])
def test_written_answers_are_greedy_and_do_not_depend_on_the_batch(make_model) -> None:
    model, tokenizer = make_model(), make_tokenizer("bytes")
    plain = model.get_base_model() if make_model is make_lora else model
    plain.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0)
    prompts = [context for context, _ in make_requests("cloze", 5)]
    found = generate_answers(model, tokenizer, prompts, 4)
    assert generate_answers(model, tokenizer, prompts, 4, max_batch_tokens=1) == found
    for prompt, answer in zip(prompts, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(4):
            with torch.no_grad():
                ids.append(model.eval()(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert answer.text == tokenizer.decode(
            ids[-len(ids) + len(tokenizer(prompt)["input_ids"]) :], skip_special_tokens=True
        )
        assert answer.truncated == 0
    assert plain.generation_config.do_sample and len({answer.text for answer in found}) > 1


def test_a_long_prompt_is_cut_so_that_the_answer_fits() -> None:
    model, tokenizer = make_llama(), make_tokenizer("bytes")
    prompt = "Long: " + make_text(random.Random(1), 200)
    kept = tokenizer(prompt)["input_ids"][-(WINDOW - 4) :]
    cut, whole = generate_answers(model, tokenizer, [prompt, tokenizer.decode(kept)], 4)
    assert (
        cut.text == whole.text
        and whole.truncated == 0
        and cut.truncated == len(tokenizer(prompt)["input_ids"]) - (WINDOW - 4)
    )
    with pytest.raises(InputError, match="the model reads 96 tokens, so 96 new ones leave no room"):
        generate_answers(model, tokenizer, [prompt], WINDOW)
    with pytest.raises(InputError, match="prompt 1 has no token"):
        generate_answers(model, tokenizer, ["a", ""], 2)


def test_a_text_with_an_end_token_is_told_from_one_that_was_cut_off() -> None:
    model, tokenizer = make_llama(), make_tokenizer("bytes")
    prompts = ["the heart", "a bone in the arm", "blood"]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for row in ids:
        for _ in range(6):
            with torch.no_grad():
                row.append(model.eval()(torch.tensor([row])).logits[0, -1].argmax().item())
    written = [row[-6:] for row in ids]
    model.generation_config.eos_token_id = ends = [written[0][2], tokenizer.eos_token_id]
    found = generate_answers(model, tokenizer, prompts, 6)
    sizes = [next((place for place, token in enumerate(row, 1) if token in ends), None) for row in written]
    assert sizes[0] is not None and None in sizes
    assert [(one.tokens, one.ended) for one in found] == [(size or 6, size is not None) for size in sizes]
    texts = [tokenizer.decode(row[:size], skip_special_tokens=True) for row, size in zip(written, sizes, strict=True)]
    assert [one.text for one in found] == texts


def test_a_text_that_begins_with_bos_gets_no_second_one() -> None:
    model, tokenizer = make_llama(), make_tokenizer("metaspace")
    wrapped, plain = (generate_answers(model, tokenizer, [f"{bos}the heart"], 3, chat=True) for bos in ("<s>", ""))
    assert wrapped == plain and wrapped[0].text
    assert encode_texts(tokenizer, ["<s>the heart", "the heart"], chat=True)[0].count(1) == 1
    alone = [encode_texts(tokenizer, [text], chat=True)[0] for text in "abc"]
    assert encode_texts(tokenizer, ["a", "<s>b", "c"], chat=True) == alone
