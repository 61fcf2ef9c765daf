"""What the notebooks print at small parameters, run by `ctxft run` without a network: recorded once, compared by a test.

    python tests/golden/notebooks.py    record notebooks_small.json again, after a change of what notebooks print

The run's folder, versions and pictures are left out; numbers may differ by one unit of their last printed digit.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ctxft.storage import write_json  # noqa: E402
from tests.offline import guarded  # noqa: E402

GOLDEN = Path(__file__).with_name("notebooks_small.json")
STUDY = {"pretrain_steps": 20, "finetune_steps": 20, "test_prompts": 32}
RECIPE = {"max_length": 96, "max_steps": 3, "train_batch_size": 8, "device": "cpu"}
PARAMETERS = {"document_number": 2, "question_number": 1, "arm": "neg", "lora_steps": 2, "settings": STUDY}
PARAMETERS |= {"passage_number": 1, "own_prompt": "", "families": ["creative"], "ablation_seeds": [2], "left_out": True}
PARAMETERS |= {"own_seeds": [3], "recipe": RECIPE}
SMALL = {"train.max_steps": 3, "corpus.limit": 12, "evaluation.limit": 8, "seeds": [4]}
WORDS = ["run", "--name", "small"]
WORDS += [word for key, value in PARAMETERS.items() for word in ("-p", f"{key}={json.dumps(value)}")]
WORDS += [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def run_small(place: Path) -> tuple[Path, str, list[str]]:
    """Run all notebooks; returns the run folder, what the command printed, and the connections that were refused."""
    done, refused = guarded([sys.executable, "-m", "ctxft", *WORDS], place, network=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place / "runs" / "small", done.stdout + done.stderr, refused


def texts_of(folder: Path) -> dict[str, list[str]]:
    """Return what each code cell of each executed notebook printed, or shows as text."""
    texts: dict[str, list[str]] = {}
    for path in sorted((folder / "notebooks").glob("[0-9]*.ipynb")):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        texts[path.stem] = ["" if "versions()" in cell.source else _text_of(cell) for cell in cells]
        texts[path.stem] = [text.replace(str(folder.parent), "RUNS") for text in texts[path.stem]]
    return texts


def _text_of(cell: nbformat.NotebookNode) -> str:
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(text.rstrip() for text in shown)


def differ(ours: str, theirs: str) -> bool:
    """Return whether two texts differ in more than the last printed digit of their numbers.

    Example:
        >>> differ("loss 1.234", "loss 1.235"), differ("loss 1.234", "loss 1.236"), differ("12 items", "13 item")
        (False, True, True)
    """
    if NUMBER.sub("0", ours) != NUMBER.sub("0", theirs):
        return True
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True)
    return any(a != b and ("." not in a or abs(float(a) - float(b)) > 1.01 * _last_digit(a)) for a, b in pairs)


def _last_digit(number: str) -> float:
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_json(GOLDEN, texts_of(run_small(Path(folder))[0]))
