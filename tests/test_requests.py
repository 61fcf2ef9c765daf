"""Questions read word for word as in lm-evaluation-harness, with examples and chat templates, and as labelled texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import lm_eval
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.medmcqa.utils_medmcqa import doc_to_text as medmcqa_text
from lm_eval.tasks.medqa.preprocess_medqa import doc_to_text as medqa_text
from lm_eval.tasks.pubmedqa.preprocess_pubmedqa import doc_to_text as pubmedqa_text

from ctxft.config import EvaluationConfig as Options
from ctxft.evaluation.benchmarks import Benchmark, Question, Wording, render, requests_of, style_of, wording_of
from ctxft.evaluation.outcomes import read_outcomes
from ctxft.storage import InputError
from tests.runs import evaluate_task, is_examined, load_benchmarks, prepare

ITEMS = [
    ("Which vessel carries blood away from the heart?", ["vein", "artery", "nerve", "duct"], 1),
    ('A "dished face", it is said,\nis a sign of', ["age", "it's, rare", "acromegaly", "10\\4"], 2),
    ("Stem with spaces? ", ["1", "2", "3", "4"], 3),
]
DEV = [(f"Example number {n}?", [f"{n}a", f"{n}b", f"{n}c", f"{n}d"], n % 4) for n in range(6)]
SUBJECTS = [
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
]
FOLDERS = {"mcf": "default", "cloze": "continuation"}


class ChatTokenizer:
    """Stands in for a tokenizer with a chat template."""

    chat_template = "a template"
    added_tokens_decoder: ClassVar[dict] = {}
    all_special_tokens = ()

    def apply_chat_template(self, turns: list[dict], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        said = "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns)
        return said + ("<assistant>" if add_generation_prompt else "")


def harness_requests(
    form: str, subject: str, folder: Path, shots: int = 0, chat: bool = False
) -> list[tuple[str, str]]:
    """Return the requests that lm-evaluation-harness's own MMLU task builds from files in the hub's shape."""
    files = {}
    for split, items in (("test", ITEMS), ("dev", DEV)):
        rows = [{"question": q, "choices": c, "answer": a, "subject": subject} for q, c, a in items]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / FOLDERS[form]
    config = yaml.safe_load((root / f"mmlu_{subject}.yaml").read_text())
    config = {**yaml.safe_load((root / config.pop("include")).read_text()), **config}
    config.pop("tag")
    options = {"data_files": files, "cache_dir": str(folder / "cache")}
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": options, "num_fewshot": shots}
    if chat:  # there the line about the subject is a turn of the system: the one known difference
        config.pop("description")
    task = ConfigurableTask(config=config)
    tokenizer = ChatTokenizer()

    def template(turns: list[dict], add_generation_prompt: bool = True) -> str:
        return tokenizer.apply_chat_template(turns, False, add_generation_prompt)

    said = {"apply_chat_template": True, "fewshot_as_multiturn": False, "chat_template": template} if chat else {}
    task.build_all_requests(limit=None, rank=0, world_size=1, **said)
    return [instance.args for instance in task.instances]


def mmlu(subject: str) -> Benchmark:
    questions = [Question(f"{n}", q, tuple(c), a, subject) for n, (q, c, a) in enumerate(ITEMS)]
    dev = [Question(f"d{n}", q, tuple(c), a, subject) for n, (q, c, a) in enumerate(DEV)]
    other = Question("other", "Of another subject?", ("a", "b", "c", "d"), 0, "another")
    return Benchmark(
        f"mmlu-{subject}", tuple(questions), "a test", dev=(other, *dev), wording=wording_of(f"mmlu-{subject}")
    )


def flat(requests: list[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    return [(context, text) for context, texts in requests for text in texts]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("form", FOLDERS)
def test_mmlu_reads_as_in_lm_evaluation_harness(tmp_path: Path, subject: str, form: str) -> None:
    assert flat(requests_of(mmlu(subject), Options(form=form))) == harness_requests(form, subject, tmp_path)
    assert requests_of(mmlu(subject), Options(form=form)) == [
        render(q, form, wording_of("mmlu-medical")) for q in mmlu(subject).questions
    ]


@pytest.mark.parametrize("form", FOLDERS)
def test_five_examples_before_the_question_as_in_lm_evaluation_harness(tmp_path: Path, form: str) -> None:
    found = flat(requests_of(mmlu("college_biology"), Options(form=form, num_fewshot=5)))
    assert found == harness_requests(form, "college_biology", tmp_path, shots=5)
    assert "Example number 4?" in found[0][0] and "Example number 5?" not in found[0][0]
    with pytest.raises(InputError, match="'mmlu-college_biology' has 6 solved examples to show, but 7 are wanted"):
        requests_of(mmlu("college_biology"), Options(form=form, num_fewshot=7))


@pytest.mark.parametrize("form", FOLDERS)
def test_a_chat_template_as_in_lm_evaluation_harness(tmp_path: Path, form: str) -> None:
    found = requests_of(mmlu("anatomy"), Options(form=form, num_fewshot=2, apply_chat_template=True), ChatTokenizer())
    about = render(mmlu("anatomy").questions[0], form, wording_of("mmlu-anatomy"))[0].partition("\n\n")[0] + "\n\n"
    bare = [(context.replace(about, ""), texts) for context, texts in found]
    assert flat(bare) == harness_requests(form, "anatomy", tmp_path, shots=2, chat=True)
    assert found[0][0].startswith(f"<user>{about}") and found[0][0].endswith("Answer:</><assistant>")
    assert not found[0][1][0].startswith(" ")
    plain = ChatTokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match=r"has no chat template: set evaluation.apply_chat_template to false"):
        requests_of(mmlu("anatomy"), Options(apply_chat_template=True), plain)


def test_medqa_reads_as_in_lm_evaluation_harness() -> None:
    question = Question("1", " A man\nfalls. ", ("rest", "x-ray", "cast", "ice"), 1, "medqa")
    context, texts = render(question, "mcf")
    endings = {f"ending{n}": choice for n, choice in enumerate(question.choices)}
    assert context == medqa_text({"sent1": question.question, **endings})
    assert texts == [" A", " B", " C", " D"]
    assert render(question, "cloze", wording_of("medqa")) == (
        "Question: A man\nfalls.\nAnswer:",
        [" rest", " x-ray", " cast", " ice"],
    )


def test_medmcqa_and_pubmedqa_read_as_in_lm_evaluation_harness() -> None:
    question = Question("1", "Which of these?", ("w", "x", "y", "z"), 2, "Anatomy")
    doc = {"question": question.question, **dict(zip(("opa", "opb", "opc", "opd"), question.choices, strict=True))}
    assert render(question, "mcf", wording_of("medmcqa")) == (medmcqa_text(doc), [" A", " B", " C", " D"])
    question = Question("1", "Does it help?", ("yes", "no", "maybe"), 0, "pubmedqa", "We asked.\nThey said.")
    doc = {"CONTEXTS": ["We asked.", "They said."], "QUESTION": question.question}
    assert render(question, "labels", wording_of("pubmedqa")) == (pubmedqa_text(doc), [" yes", " no", " maybe"])


def test_own_questions_have_as_many_letters_as_choices() -> None:
    context, texts = render(Question("1", "Which?", ("x", "y", "z"), 0, "all"), "mcf")
    assert context == "Question: Which?\nA. x\nB. y\nC. z\nAnswer:" and texts == [" A", " B", " C"]
    assert wording_of("mmlu-mine") == Wording()
    with pytest.raises(InputError, match="unknown form 'letter'; known: mcf, cloze, labels"):
        render(Question("1", "Which?", ("x", "y"), 0, "all"), "letter")


def test_labelled_texts_name_their_labels_once() -> None:
    texts = [Question(str(n), f"Shares {n}", ("positive", "neutral", "negative"), n, "fiqa") for n in range(3)]
    benchmark = Benchmark(
        "fiqa", tuple(texts[:2]), "a test", form="labels", dev=(texts[2],), wording=wording_of("fiqa")
    )
    (context, labels), _ = requests_of(benchmark, Options(form="mcf", num_fewshot=1))
    assert context == (
        "Tell the sentiment of a financial text towards what it speaks of. Answer with positive, neutral or negative.\n\n"
        "Text: Shares 2\nAnswer: negative\n\nText: Shares 0\nAnswer:"
    )
    assert labels == [" positive", " neutral", " negative"]
    own = render(Question("1", "Rain", ("wet", "dry"), 0, "all"), "labels")[0]
    assert own == "Tell which label fits a text. Answer with wet or dry.\n\nText: Rain\nAnswer:"


def test_a_model_that_writes_is_told_the_answers_after_the_examples() -> None:
    rules = ("generate_until", "loglikelihood")
    asked = Options(form="mcf", num_fewshot=2)
    found, scored = (requests_of(mmlu("anatomy"), asked.replace(output_type=rule))[0] for rule in rules)
    told = "Answer with exactly one of these and nothing else: A; B; C; D\n\n"
    assert found[0].index("Example number 1?") < found[0].index(told) < found[0].index(ITEMS[0][0])
    assert (found[0].replace(told, ""), found[1]) == scored
    in_chat = requests_of(mmlu("anatomy"), Options(output_type=rules[0], apply_chat_template=True), ChatTokenizer())[0][
        0
    ]
    assert in_chat.startswith("<user>The following") and "nothing else: vein; artery; nerve; duct\n\n" in in_chat


def test_a_benchmarks_own_form_goes_before_the_experiments() -> None:
    own, free = Benchmark("fiqa", (), "", form="labels"), Benchmark("mine", (), "")
    assert style_of(own, Options(num_fewshot=5, apply_chat_template=True)) == "labels, 5-shot, chat template"
    assert style_of(free, Options(output_type="generate_until")) == "cloze, written answers"
    assert style_of(free, Options()) == "cloze"  # as in metrics.json of older runs


def test_an_experiment_asks_with_examples(experiment, questions_file: Path) -> None:
    example = {"id": "d1", "question": "What stands at no place?", "choices": ["nothing", "all"], "answer": 0}
    questions_file.with_suffix(".dev.jsonl").write_text(json.dumps(example) + "\n")
    asked = {"benchmarks": [str(questions_file)]}
    plain, shown = experiment(evaluation=asked), experiment(evaluation=asked | {"num_fewshot": 1})
    prepare(plain)
    found = [evaluate_task(config, "base", 0)["benchmarks"]["own-questions"] for config in (plain, shown)]
    assert [one["form"] for one in found] == ["cloze", "cloze, 1-shot"]
    assert found[0]["calibration"] != found[1]["calibration"], "the example must reach the model"
    assert not is_examined(plain, "base", 0, load_benchmarks(plain)), "scores of another style are not reused"
    asked |= {"output_type": "generate_until"}
    written = evaluate_task(experiment(evaluation=asked), "base", 0)["benchmarks"]["own-questions"]
    assert (written["form"], written["rule"]) == ("cloze, written answers", "generate_until")
    assert "calibration" not in written and not list(plain.folder.rglob("*.partial"))
    rows = read_outcomes(plain.folder / "evals" / "base" / "seed-0" / "own-questions.jsonl")
    assert all(isinstance(row["written"], str) for row in rows) and len(rows) == written["n"]
    with pytest.raises(InputError, match="has no chat template"):
        evaluate_task(experiment(evaluation=asked | {"apply_chat_template": True}), "base", 0)
    with pytest.raises(InputError, match="has no chat template"):
        prepare(experiment(name="chat", evaluation=asked | {"apply_chat_template": True}))
    with pytest.raises(InputError, match="num_fewshot must be greater than or equal to 0"):
        experiment(evaluation=asked | {"num_fewshot": -1})


def test_a_wording_keeps_its_line_breaks_and_names_the_question_that_it_does_not_fit():
    wording = Wording(task="Choose", description={"cloze": "{{ task }}\n\n"})
    own = Benchmark("own", (Question("q1", "Which?", ("x", "y"), 0, "all"),), "a file", wording=wording)
    assert requests_of(own, Options(form="cloze"))[0][0] == "Choose\n\nQuestion: Which?\nAnswer:"
    wrong = replace(own, wording=Wording(question={"cloze": "{{ choices[4] }}"}))
    with pytest.raises(InputError, match=r"question 'q1': the wording '.*choices\[4\].*' cannot be filled in"):
        requests_of(wrong, Options(form="cloze"))
