"""The table of arms: what each reads before a passage, and everything else that the kit knows about it.

An arm is one way to train: the same passages in the same order in every arm, and only what is prepended differs. All code that
depends on an arm looks it up here by ``get_arm(name)``, so adding one is one ``Arm``: in ``ARMS`` below, in a list that a package
names in its entry points (group ``ctxft.arms``), or in a list ``ARMS`` of a Python file in a folder that the config key
``plugins`` (or the environment variable ``CTXFT_PLUGINS``) names.

An arm's name may end in ``-ift``: after its text it is fine-tuned on instructions (the paper's word for SFT on instructions).
"""

from __future__ import annotations

import functools
import os
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctxft.prompts.controls import control_prompt, prompt_tokens, shuffled_prompt
from ctxft.prompts.sets import FAMILY_NAME, ContextualPrompt, PromptSet, load_prompt_set
from ctxft.storage import InputError, check_known, nearest, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ctxft.data.documents import Document
    from ctxft.data.passages import Passage

    Text = TypeVar("Text", Document, Passage)

IFT = "-ift"
PLUGINS = "CTXFT_PLUGINS"
GROUP = "ctxft.arms"
NAMED: set[Path] = set()  # the folders of plugins that a config or the environment has named in this process
PARAMETERS = {"FAMILY": FAMILY_NAME, "N": r"[1-9][0-9]{0,8}"}  # what the last part of a name may be


@dataclass(frozen=True)
class PromptSources:
    """What the prompts of a run are sampled from.

    Args:
        seed: of the training.
        strategies, negative: the run's prompt sets.
        tokenizer: of the model; counts the tokens of a prompt.
        written: passage id -> the prompt that a model wrote for it (None where it was rejected); None where no model writes.
    """

    seed: int
    strategies: PromptSet
    negative: PromptSet
    tokenizer: PreTrainedTokenizerBase
    written: Mapping[str, ContextualPrompt | None] | None = None


@dataclass(frozen=True)
class Arm:
    """One way to train a model.

    Args:
        name: as in a config; it may end in a parameter, ``FAMILY`` or ``N``.
        reads: what it reads, in words that complete "cft reads ...".
        color: in all figures and tables.
        prompt: takes ``PromptSources``, a passage and, if the name has a parameter, its value; returns the prompt that is
            prepended to the passage, or None. An arm without such a function reads no prompt.
        after: takes the passages, the number of one of them, and the seed; returns pieces of text that follow this passage
            and are learned like it. As many of them as fit are kept.
        learn_prompt: the prompt is a target too.
        control: the ledger says how far its prompts differ in length from cft's.
        compared: ablation tables compare it with the arms that read a part of the prompt set.
        needs: of "family" and "prompts" (the parameter names a family, or at most as many prompts, of the strategy set),
            "families" (the strategy set has more than one), "label" (passages say whether they are reliable, or the config
            names a writer), "writer" (the config names one).
        written: takes the experiment and the seed; returns ``PromptSources.written``.
        written_state: takes the experiment; returns a hash of its written prompts, "" without a writer, None while some are
            missing.
        rank: place in tables.
        trained, reads_text, instructed: whether it is trained, on the passages, on instructions.
        argument: the value of the parameter.
    """

    name: str
    reads: str
    color: str = "#777777"
    prompt: Callable[..., ContextualPrompt | None] | None = None
    after: Callable[[Sequence[Passage], int, int], Sequence[str]] | None = None
    learn_prompt: bool = False
    control: bool = False
    compared: bool = True
    needs: tuple[str, ...] = ()
    written: Callable[[Any, int], Mapping[str, ContextualPrompt | None] | None] | None = None
    written_state: Callable[[Any], str | None] | None = None
    rank: int = 100
    reads_text: bool = True
    instructed: bool = False
    argument: str = ""

    @property
    def kind(self) -> str:
        """The name without the parameter and the second stage: "only" for only-critical-ift."""
        stage = self.name.removesuffix(IFT)
        return stage.removesuffix(f"-{self.argument or self.parameter}") if self.parameter or self.argument else stage

    @property
    def parameter(self) -> str:
        """The kind of parameter that the name still lacks, "FAMILY" or "N"; else ""."""
        last = self.name.rpartition("-")[2]
        return last if last in PARAMETERS else ""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the training: the name of the text stage, then "ift"; none for base."""
        return (self.name.removesuffix(IFT),) * self.reads_text + ("ift",) * self.instructed

    @property
    def start(self) -> str | None:
        """The arm whose model the last stage starts from; None for the base model."""
        return self.stages[0] if len(self.stages) > 1 else None

    @property
    def order(self) -> tuple:
        """The place in tables: base, the arms of one stage, ift, then those of two."""
        number = int(self.argument) if self.argument.isdecimal() else 0
        return (self.instructed, self.rank if self.reads_text else -1, number, self.argument, self.name)

    def prompt_of(self, sources: PromptSources, passage: Passage) -> ContextualPrompt | None:
        """Return the prompt that the arm's text stage reads before a passage.

        Raises:
            InputError: the passage lacks what the arm chooses by, or no prompt fits.
        """
        if self.prompt is None:
            return None
        return self.prompt(sources, passage, self.argument) if self.argument else self.prompt(sources, passage)


# --- prompts ----------------------------------------------------------------------------------------------------------


def strategy_prompt(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    """Sample a prompt of the strategy set: what arm cft reads."""
    return sources.strategies.sample(sources.seed, passage.id)


def negative_prompt(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    """Sample a prompt of the negative set: what arm neg reads."""
    return sources.negative.sample(sources.seed, passage.id)


def _random_words(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    suffix = sources.strategies.suffix
    tokens = prompt_tokens(sources.tokenizer, strategy_prompt(sources, passage).text + suffix)
    return control_prompt(sources.tokenizer, tokens, sources.seed, passage.id, suffix)


def _shuffled(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    prompt = strategy_prompt(sources, passage)
    return shuffled_prompt(sources.tokenizer, prompt, sources.seed, passage.id, sources.strategies.suffix)


def _neutral(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    return load_prompt_set("neutral").sample(sources.seed, passage.id)


def _of_others(sources: PromptSources, family: str) -> list[ContextualPrompt]:
    return [prompt for prompt in sources.strategies.prompts if prompt.family != family]


def _other_family(sources: PromptSources, passage: Passage) -> ContextualPrompt:
    others = _of_others(sources, strategy_prompt(sources, passage).family)
    return sources.strategies.sample(sources.seed, f"control-family {passage.id}", others)


# These keep cft's prompt where they may, so that they differ from cft only where they must.
def _only(sources: PromptSources, passage: Passage, family: str) -> ContextualPrompt:
    return sources.strategies.sample(sources.seed, passage.id, sources.strategies.members[family])


def _without(sources: PromptSources, passage: Passage, family: str) -> ContextualPrompt:
    return sources.strategies.sample(sources.seed, passage.id, _of_others(sources, family))


def _count(sources: PromptSources, passage: Passage, number: str) -> ContextualPrompt:
    # the prompts of a smaller N are among those of a larger
    chosen = sorted(sources.strategies.prompts, key=lambda prompt: prompt.id)
    seeded(sources.seed, sources.strategies.hash, "count").shuffle(chosen)
    return sources.strategies.sample(sources.seed, passage.id, chosen[: int(number)])


# --- the table --------------------------------------------------------------------------------------------------------

# Colors: Okabe and Ito's palette, which color-blind readers can tell apart; further arms have shades of related ones.
# Ranks 50, 90 and 110 belong to the arms of ctxft/extras.
ARMS = (
    Arm("base", "nothing: it is not trained", "#999999", reads_text=False, compared=False, rank=0),
    Arm("ift", "instructions alone", "#56B4E9", reads_text=False, instructed=True, compared=False, rank=1),
    Arm("cpt", "the text alone", "#0072B2", rank=10),
    Arm("cft", "a prompt that names a way of learning", "#D55E00", strategy_prompt, rank=20),
    Arm("neg", "a prompt that says not to learn", "#CC79A7", negative_prompt, rank=30),
    Arm("control", "random words, as many tokens as cft's prompt", "#009E73", _random_words, control=True, rank=40),
    Arm("control-shuffled", "the words of cft's prompt in another order", "#005C44", _shuffled, control=True, rank=60),
    Arm(
        "control-neutral", "a sentence about the text that asks for nothing", "#73C7AE", _neutral, control=True, rank=70
    ),
    Arm(
        "control-family",
        "a prompt of another family than cft's",
        "#3B9A84",
        _other_family,
        control=True,
        needs=("families",),
        rank=80,
    ),
    Arm("cft-learned", "cft's prompt, which it learns too", "#7A3600", strategy_prompt, learn_prompt=True, rank=100),
    Arm("only-FAMILY", "prompts of one family", "#D55E00", _only, needs=("family",), rank=120),
    Arm("without-FAMILY", "those of all families but one", "#E9A37A", _without, needs=("family", "families"), rank=130),
    Arm("count-N", "some N prompts of the set", "#A34800", _count, needs=("prompts",), rank=140),
)


@functools.cache
def table() -> dict[str, Arm]:
    """Return all arms by name: those above, those of installed packages, and those of the folders in ``CTXFT_PLUGINS``."""
    known = {arm.name: arm for arm in ARMS}
    for entry in entry_points(group=GROUP):
        _add(known, entry.load(), f"entry point {entry.name} = {entry.value}")
    _add_folders(known, filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)))
    return known


def add_plugins(folders: Iterable[str | Path]) -> None:
    """Add the arms that the Python files of some folders define to the table.

    Args:
        folders: each file ``*.py`` in them may hold a list ``ARMS``. The files are run: name folders that you trust.

    Raises:
        InputError: a folder is missing, a file fails, or an arm is no ``Arm`` or has a name that is taken.
    """
    _add_folders(table(), folders)


def require_named(folders: Iterable[str]) -> None:
    """Refuse plugins that only a run folder names: to read somebody's run must not run somebody's code.

    Raises:
        InputError: neither a config nor the environment has named a folder in this process.
    """
    table()
    if unknown := [folder for folder in folders if Path(folder) not in NAMED]:
        raise InputError(
            f"the run uses arms of {unknown[0]}, whose Python files would be run: if you trust them, set "
            f"{PLUGINS}={unknown[0]}, or give the experiment's YAML file in place of the run."
        )


def _add_folders(known: dict[str, Arm], folders: Iterable[str | Path]) -> None:
    for folder in folders:
        place = Path(folder).expanduser().resolve()
        if not place.is_dir():
            raise InputError(f"plugins: the folder {place} does not exist: check the path.")
        for path in sorted(place.glob("*.py")):
            _add(known, _arms_in(path), str(path))
        NAMED.add(place)


@functools.cache
def _arms_in(path: Path) -> list[Arm]:
    """Return the arms of a Python file, which is run once in a process."""
    try:
        return list(runpy.run_path(str(path)).get("ARMS", ()))
    except Exception as error:  # whatever a plugin raises is a fault of its file
        raise InputError(f"{path} cannot be used as a plugin: {type(error).__name__}: {error}.") from error


def _add(known: dict[str, Arm], arms: Iterable[Arm], where: str) -> None:
    for item in arms:
        if not isinstance(item, Arm) or not re.fullmatch(FAMILY_NAME, item.name) or item.name.endswith(IFT):
            raise InputError(
                f"{where}: ARMS must be a list of Arm, each with a name that could be a folder's: {item!r}."
            )
        if known.setdefault(item.name, item) is not item:
            raise InputError(f"{where}: there is another arm '{item.name}': choose another name.")


def get_arm(name: str, where: str = "") -> Arm:
    """Return the arm of a name.

    Args:
        name: such as "cft", "only-critical" or "cft-ift".
        where: begins the error, e.g. "runs/mini/evals: ".

    Raises:
        InputError: there is no such arm; the nearest one is named.

    Example:
        >>> get_arm("cft-ift").stages, get_arm("only-critical").kind, get_arm("only-critical").argument
        (('cft', 'ift'), 'only', 'critical')
    """
    stage, known = name.removesuffix(IFT), table()
    exact = [known[stage]] if stage in known else []
    for arm in exact or known.values():
        head = arm.name.removesuffix(arm.parameter)
        value = stage.removeprefix(head)
        fits = stage.startswith(head) and re.fullmatch(PARAMETERS.get(arm.parameter, ""), value)
        if fits and (stage == name or arm.reads_text):
            return replace(arm, name=name, argument=value, instructed=arm.instructed or stage != name)
    raise InputError(
        f"{where}unknown arm '{name}'{nearest(name, known)}; known: {', '.join(known)}, and each that reads text with "
        f"{IFT} appended. An arm of a plugin is known once its folder is named ({PLUGINS}, or the config key plugins)."
    )


def sort_arms(names: Iterable[str]) -> list[str]:
    """Return different arms in the order of all tables: base, the arms of one stage, ift, then those of two.

    Example:
        >>> sort_arms(["cft-ift", "only-critical", "neg", "ift", "base"])
        ['base', 'neg', 'only-critical', 'ift', 'cft-ift']
    """
    return sorted(set(names), key=lambda name: get_arm(name).order)


def text_stages(names: Iterable[str]) -> list[str]:
    """Return the arms of one stage that some arms begin with, in the order of all tables.

    Example:
        >>> text_stages(["base", "neg-ift", "ift", "cpt"])
        ['cpt', 'neg']
    """
    return sort_arms(get_arm(name).stages[0] for name in names if get_arm(name).reads_text)


def check_subsets(names: Iterable[str], prompt_set: PromptSet) -> None:
    """Refuse arms that ask for a family that the strategy set does not have, or for more prompts than it has.

    Raises:
        InputError: there is such an arm; the message says what the set has.
    """
    for name in names:
        arm = get_arm(name)
        if "family" in arm.needs:
            check_known(arm.argument, prompt_set.families, f"family in arm '{name}' (prompt set '{prompt_set.name}'):")
        if "families" in arm.needs and len(prompt_set.families) == 1:
            raise InputError(f"arm '{name}' has no other prompt to read: set '{prompt_set.name}' has one family alone.")
        if "prompts" in arm.needs and int(arm.argument) > len(prompt_set.prompts):
            size = len(prompt_set.prompts)
            raise InputError(f"arm '{name}' asks for more prompts than the {size} of prompt set '{prompt_set.name}'.")


def require_label(identity: str, reliable: bool | None) -> None:
    """Raise InputError if a passage or document has no truth label, by which arm adaptive chooses its prompt."""
    if reliable is None:
        raise InputError(
            f"arm adaptive chooses the prompt by a truth label, but '{identity}' has none: give every document of "
            "the corpus a field 'reliable' (true or false), name a model that writes the prompts (prompts.writer), or "
            "leave the arm out."
        )


def with_labels(names: Iterable[str], texts: Iterable[Text], writer: bool) -> Iterator[Text]:
    """Yield documents or passages, and refuse arms that need truth labels or a writer of prompts which are not there.

    Args:
        names: of the arms.
        texts: each with ``id`` and ``reliable``.
        writer: whether the config names a model that writes prompts.
    """
    needs = {need: name for name in names for need in get_arm(name).needs}
    if "writer" in needs and not writer:
        raise InputError(
            f"arm '{needs['writer']}' reads prompts that a model wrote: name one (prompts.writer), or leave the arm out."
        )
    for text in texts:
        if "label" in needs and not writer:
            require_label(text.id, text.reliable)
        yield text
