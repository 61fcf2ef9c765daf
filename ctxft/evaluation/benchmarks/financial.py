"""Financial texts with labels: FiQA, Causal20, MultiFin and the Financial PhraseBank, from the hub or from files.

All are asked in form "labels". On the hub three of them lie in one shape (id, query, answer, text, choices, gold) in
repositories that ask users to accept conditions; older copies without that question have ``ChanceFocus`` for ``TheFinAI``.

Sources: FiQA 2018 (Maia et al., doi 10.1145/3184558.3192301); FinCausal 2020 (Mariko et al., arXiv 2012.02505); MultiFin
(Jørgensen et al., Findings of EACL 2023); Financial PhraseBank (Malo et al., arXiv 1307.5336); the hub's test splits: PIXIU
(Xie et al., arXiv 2306.05443).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ctxft.evaluation.benchmarks.files import Origin, check_columns, open_rows, pin, table_rows, walk
from ctxft.evaluation.benchmarks.records import Benchmark, Rows, labelled, note_of, questions_of
from ctxft.storage import InputError, read_json, read_text, shown

SENTIMENTS = ("positive", "neutral", "negative")
CAUSAL = ("causal", "noise")
TOPICS = (
    "Business & Management",
    "Finance",
    "Government & Controls",
    "Industry",
    "Tax & Accounting",
    "Technology",
)
CAUSAL20 = {"causal20": ("trial", 8580), "causal20-practice": ("practice", 13478)}  # folder, items
CAUSAL20_HUB_ITEMS = 8628
MULTIFIN = {"multifin": ("test", 546), "multifin-train": ("train", 1747), "multifin-validation": ("val", 437)}
PHRASEBANK = {  # annotators who agree, in per cent -> file, items
    "phrasebank-50agree": ("Sentences_50Agree.txt", 4846),
    "phrasebank-66agree": ("Sentences_66Agree.txt", 4217),
    "phrasebank-75agree": ("Sentences_75Agree.txt", 3453),
    "phrasebank-allagree": ("Sentences_AllAgree.txt", 2264),
}
FIQA_ITEMS, ABSA_SENTENCES, ABSA_ITEMS = 235, 1111, 1173
HUB_COLUMNS = ("id", "text", "choices", "gold")


def _origin(what: str, put: str, repo: str | None = None) -> Origin:
    return Origin(what, f"{put} and pass --data DIR", repo, columns=HUB_COLUMNS if repo else ())


def _hub_record(row: dict, number: int, name: str, labels: tuple[str, ...], where: str) -> dict:
    """Turn a row with choices and gold into a record with our labels; one that the rows do not know is an error."""
    check_columns(row, HUB_COLUMNS, where)
    choices, gold = row["choices"], row["gold"]
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{where}: 'choices' must be a list of texts, found {shown(choices)}.")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise InputError(f"{where}: gold {shown(gold)} is outside the choices 0 to {len(choices) - 1}.")
    named = {label.lower(): label for label in labels}
    return labelled(f"{name}-{number:05d}", row["text"], named.get(choices[gold].lower(), choices[gold]), labels, where)


def _benchmark(
    name: str,
    labels: tuple[str, ...],
    expected: int,
    rows: Rows,
    source: str,
    revision: str | None,
    record: Callable[[dict, int, str], dict],
    blank: bool = False,
) -> Benchmark:
    """Make the benchmark; rows in the hub's shape are known by their column gold, all others go through ``record``."""
    records = (
        (where, _hub_record(row, n, name, labels, where) if "gold" in row else record(row, n, where))
        for n, (where, row) in enumerate(rows)
    )
    questions = questions_of(((where, {"subject": name, **row}) for where, row in records), source, blank)
    notes = [note_of(expected, len(questions))]
    if empty := sum(not question.question for question in questions):
        notes.append(f"{empty} without text, as published")
    return Benchmark(name, questions, source, revision, "; ".join(filter(None, notes)), form="labels")


# --- FiQA -------------------------------------------------------------------------------------------------------------


def load_fiqa(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the sentiment test set of FiQA as PIXIU published it: 235 news lines and posts."""
    put = "put the test questions (JSON Lines with context and target, or the hub's file) into DIR/fiqa/"
    origin = _origin("the FiQA sentiment test questions", put, "TheFinAI/flare-fiqasa")
    revision = pin(origin, data, revision)

    def fits(path: Path) -> bool:
        return (
            path.suffix == ".jsonl" and "fiqa" in path.name.lower() and "test" in path.name and "flare" not in path.name
        )

    rows, source = open_rows(origin, data, revision, (fits, lambda path: table_rows(path, ("context", "target"))))
    return _benchmark(name, SENTIMENTS, FIQA_ITEMS, rows, source, revision, _fiqa)


def _fiqa(row: dict, number: int, where: str) -> dict:
    _, start, rest = str(row["context"]).partition("\nInput: ")
    text, end, _ = rest.rpartition("\nAnswer:")
    if not start or not end:
        raise InputError(
            f"{where}: the context must hold the text between 'Input:' and 'Answer:', each on its own line."
        )
    return labelled(f"fiqa-{number:05d}", text, row["target"], SENTIMENTS, where)


def load_fiqa_absa(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load all targets of FiQA's task 1, one question each: a score above 0.1 is positive, one below -0.1 negative."""
    origin = _origin("the FiQA task 1 files", "put task1_headline_ABSA_train.json and its three fellows into DIR")
    pin(origin, data, revision)
    paths = [p for p in walk(data) if p.name.startswith("task1_") and "ABSA" in p.name and p.suffix == ".json"]
    if not paths:
        raise InputError(f"{origin.what} were not found under {data}: {origin.put}.")
    rows = [row for path in paths for row in _absa_rows(path)]
    source = ", ".join(map(str, paths))
    questions = questions_of(rows, source)
    sentences = len({question.id.rpartition("-")[0] for question in questions})
    note = note_of(ABSA_ITEMS, len(questions))
    if sentences != ABSA_SENTENCES:
        note = f"{note}; {ABSA_SENTENCES} sentences expected, {sentences} found".removeprefix("; ")
    return Benchmark(name, questions, source, None, note, form="labels")


def _absa_rows(path: Path) -> Rows:
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: an object of sentences by id is needed, found {type(table).__name__}.")
    for key, row in table.items():
        check_columns(row, ("sentence", "info"), f"{path}, sentence {key}")
        if not isinstance(row["sentence"], str) or not isinstance(row["info"], list):
            raise InputError(f"{path}, sentence {key}: 'sentence' must be a text and 'info' a list of targets.")
        for number, target in enumerate(row["info"]):
            where = f"{path}, sentence {key}, target {number}"
            check_columns(target, ("target", "sentiment_score"), where)
            score = _score(target["sentiment_score"], where)
            label = "positive" if score > 0.1 else "negative" if score < -0.1 else "neutral"
            text = f"{row['sentence'].strip()}\nTarget: {target['target']}"
            subject = "post" if "post" in path.name else "headline"
            yield where, {**labelled(f"{key}-{number}", text, label, SENTIMENTS, where), "subject": subject}


def _score(value: object, where: str) -> float:
    """Return a sentiment as a number from -1 to 1; the files hold it as text."""
    try:
        score = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not -1 <= score <= 1:
        raise InputError(f"{where}: sentiment_score must be a number from -1 to 1, found {shown(value)}: mend it.")
    return score


# --- Causal20 ---------------------------------------------------------------------------------------------------------


def load_causal20(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load FinCausal 2020, task 1: does a passage state a cause?

    ``causal20`` is the trial file (8580 items), or from the hub PIXIU's test split (8628 items); ``causal20-practice`` the
    practice file (13478), of which 206 texts stand in the trial file too. Both hold a few items without a text (1 and 3),
    which are kept, since published results count them.
    """
    folder, expected = CAUSAL20[name]
    put = f"put the task 1 file of FinCausal 2020 (*task1.csv) into DIR/{folder}/"
    repo = "TheFinAI/flare-causal20-sc" if name == "causal20" else None
    origin = _origin(f"the {folder} questions of FinCausal 2020, task 1,", put, repo)
    revision = pin(origin, data, revision)
    inside = Path(data).resolve().name if data is not None else ""

    def fits(path: Path) -> bool:
        return path.name.endswith("task1.csv") and folder in (inside, *path.parts)

    rows, source = open_rows(origin, data, revision, (fits, _semicolon_rows))
    rows = list(rows)
    hub = bool(rows) and "gold" in rows[0][1]
    expected = CAUSAL20_HUB_ITEMS if hub else expected
    return _benchmark(name, CAUSAL, expected, iter(rows), source, revision, _causal20, blank=True)


def _semicolon_rows(path: Path) -> Rows:
    """Yield the records of a file "Index; Text; Gold": fields start with a space, and no text holds a semicolon."""
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")  # a text may hold other line ends
    header = [field.strip() for field in lines[0].split(";")]
    check_columns(header, ("Index", "Text", "Gold"), str(path))
    for number, line in enumerate(lines[1:], start=2):
        fields = [field.strip() for field in line.split(";")]
        if len(fields) != len(header):
            raise InputError(f"{path}, line {number}: {len(header)} fields are needed, found {len(fields)}.")
        yield f"{path}, line {number}", dict(zip(header, fields, strict=True))


def _causal20(row: dict, number: int, where: str) -> dict:
    if row["Gold"] not in ("0", "1"):
        raise InputError(f"{where}: Gold {shown(row['Gold'])} is neither 0 (noise) nor 1 (causal).")
    return labelled(row["Index"], row["Text"], "causal" if row["Gold"] == "1" else "noise", CAUSAL, where)


# --- MultiFin, Financial PhraseBank -----------------------------------------------------------------------------------


def load_multifin(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the English headlines of MultiFin with their six topics: test (546), train (1747) or validation (437)."""
    split, expected = MULTIFIN[name]
    put = f"put {split}.json of the high-level labels into DIR/multifin/"
    repo = "TheFinAI/flare-multifin-en" if name == "multifin" else None
    origin = _origin(f"the MultiFin {split} headlines", put, repo)
    revision = pin(origin, data, revision)
    inside = Path(data).resolve().name.lower() if data is not None else ""

    def fits(path: Path) -> bool:
        return path.name == f"{split}.json" and "multifin" in f"{inside}/{path}".lower()

    columns = ("id", "text", "label", "lang")
    rows, source = open_rows(origin, data, revision, (fits, lambda path: table_rows(path, columns)))
    english = ((where, row) for where, row in rows if row.get("lang", "English") == "English")
    return _benchmark(name, TOPICS, expected, english, source, revision, _multifin)


def _multifin(row: dict, number: int, where: str) -> dict:
    return labelled(row["id"], row["text"], row["label"], TOPICS, where)


def load_phrasebank(name: str, data: Path | None, revision: str | None, dev: bool) -> Benchmark:
    """Load the Financial PhraseBank from its text files (Latin-1, sentence@label); it has no split of its own."""
    file, expected = PHRASEBANK[name]
    origin = _origin("the sentences of the Financial PhraseBank", f"put {file} into DIR")
    pin(origin, data, revision)
    rows, source = open_rows(origin, data, None, (lambda path: path.name == file, _phrasebank_rows))
    return _benchmark(name, SENTIMENTS, expected, rows, source, None, _phrasebank)


def _phrasebank_rows(path: Path) -> Rows:
    for number, line in enumerate(path.read_bytes().decode("latin-1").split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", {"line": line.strip()}


def _phrasebank(row: dict, number: int, where: str) -> dict:
    text, _, label = row["line"].rpartition("@")
    return labelled(f"phrasebank-{number:05d}", text, label, SENTIMENTS, where)
