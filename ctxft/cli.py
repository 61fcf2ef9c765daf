"""The command line: ``ctxft run | estimate | train | evaluate | compare | leaks | attribute | prompts | export | hosted | ...``.

Bad input ends with one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from ctxft import __version__
from ctxft.commands import experiments, hosted, prompts, studies
from ctxft.prompts.sets import PROMPT_SETS
from ctxft.run.processes import die_with_parent
from ctxft.storage import FailedError, InputError, explain
from ctxft.synthetic.config import ARMS as SYNTHETIC_ARMS

EXAMPLES = """examples:
  ctxft run                                            the whole course on the practice world, offline, on a CPU
  ctxft train mini --set name=first --set seeds=[0]    train the arms of an experiment (a profile or a YAML file)
  ctxft evaluate mini --set name=first --set seeds=[0] examine them
  ctxft estimate mini                                  what training takes: memory, tokens, steps
  ctxft compare first                                  the paired table, and a report that opens offline
  ctxft prompts show strategies                        the prompts, by family, with the idea behind each
  ctxft leaks first                                    which benchmark items stand in the training texts
  ctxft verify first                                   whether every result still follows from its inputs
  ctxft export mini --set name=first --out pairs.jsonl (prompt, passage) pairs for a tuning service
  ctxft hosted mini --server http://localhost:8000/v1 --model my-model  examine a model behind a server
  ctxft attribute first --arm cft --seed 0             what each prompt does to a model's loss and gradient
  ctxft synthetic --target sumdot --seeds 0            the synthetic experiment: what a context teaches
  ctxft check                                          versions, device, and self-tests of the kit's promises
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctxft",
        description="Contextual fine-tuning of language models: matched arms, trained, examined and compared.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ctxft {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="run the notebooks in order and print the results table")
    run.add_argument(
        "--profile", default="mini", help="profile of the kit, or the path of your own YAML (default: mini)"
    )
    run.add_argument("--name", help="name of the run folder (default: the profile's)")
    run.add_argument(
        "--notebook", action="append", default=[], metavar="NN_NAME", help="only this notebook; may be repeated"
    )
    run.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a notebook parameter; may be repeated",
    )
    run.set_defaults(call=experiments.run)
    course = verbs.add_parser("course", help="copy the notebooks into a folder of your own")
    course.add_argument("folder", help="a new or empty folder")
    course.set_defaults(call=experiments.course)

    train = verbs.add_parser("train", help="train the arms of an experiment")
    evaluate = verbs.add_parser("evaluate", help="examine the trained arms on the benchmarks and held-out text")
    for verb, call in ((train, experiments.train), (evaluate, experiments.evaluate)):
        verb.add_argument("config", help="a profile of the kit (mini) or the path of an experiment's YAML file")
        verb.add_argument(
            "--task",
            action="append",
            default=[],
            metavar="ARM:SEED|K",
            help="only this task (or number), in this process",
        )
        verb.add_argument("--workers", type=int, help="processes at a time (default: one a CPU core; one on a GPU)")
        verb.set_defaults(call=call)
    estimate = verbs.add_parser(
        "estimate", help="say what a training takes: memory, tokens, steps; no weights are read"
    )
    estimate.add_argument("config", help="a profile of the kit or the path of an experiment's YAML file")
    estimate.add_argument("--processes", type=int, default=1, help="GPUs that train one task together (default: 1)")
    estimate.add_argument("--device", choices=["cpu", "cuda"], help="default: the recipe's, on this machine")
    estimate.add_argument("--rate", type=float, metavar="TOKENS", help="tokens a second, as measured: gives the time")
    estimate.add_argument("--memory", type=float, metavar="GIB", help="memory of a device: names what makes it fit")
    estimate.set_defaults(call=experiments.estimate)
    leaks = verbs.add_parser("leaks", help="look for benchmark items in the training texts and prompts of a run")
    leaks.add_argument("config", help="a run; or a profile or YAML file, which is prepared if it is not yet")
    leaks.set_defaults(call=studies.leaks)
    verify = verbs.add_parser("verify", help="say of each result of a run whether it still follows from its inputs")
    verify.add_argument("run", help="name of a run below the run root, or its folder")
    verify.add_argument(
        "--data", metavar="DIR", help="folder with local benchmark files, instead of the run's or the hub"
    )
    verify.set_defaults(call=studies.verify)
    attribute = verbs.add_parser("attribute", help="say what each prompt does to a model's loss and gradient")
    attribute.add_argument("config", help="a run; or a profile or YAML file, which is prepared if it is not yet")
    attribute.add_argument("--arm", default="cft", help="the model: base, or a trained arm (default: cft)")
    attribute.add_argument("--seed", type=int, default=0, help="of its training (default: 0)")
    attribute.add_argument("--limit", type=int, default=256, help="passages whose losses are taken (default: 256)")
    attribute.add_argument(
        "--passages", type=int, default=64, help="passages whose gradients are compared, 0 for none (default: 64)"
    )
    attribute.set_defaults(call=studies.attribute)
    for verb in (run, train, evaluate, estimate, leaks, attribute, *_hosted_verbs(verbs)):
        _config_options(verb)

    _prompt_verbs(verbs)
    compare = verbs.add_parser("compare", help="print the paired table of a run and write its report")
    compare.add_argument("run", help="name of a run below the run root, or its folder")
    compare.add_argument(
        "--reference", default="cpt", metavar="ARM", help="the arm that others are compared with (default: cpt)"
    )
    compare.set_defaults(call=experiments.compare)
    synthetic = verbs.add_parser("synthetic", help="run the synthetic experiment: in-context regression, arm by arm")
    synthetic.add_argument("--size", default="mini", help="mini, for a laptop, or full, the paper's (default: mini)")
    synthetic.add_argument("--target", default="polynomial", help="the function to learn (default: polynomial)")
    synthetic.add_argument("--arms", nargs="+", default=list(SYNTHETIC_ARMS), metavar="ARM", help="default: all eight")
    synthetic.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    synthetic.add_argument("--name", help="name of the folder below the run root (default: synthetic-<size>)")
    synthetic.add_argument("--workers", type=int, help="processes at a time (default: one a CPU core; one on a GPU)")
    synthetic.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a config value")
    synthetic.add_argument("--out", type=Path, metavar="FILE", help="write the results, a small JSON file")
    synthetic.set_defaults(call=studies.synthetic)
    check = verbs.add_parser("check", help="print versions and device, and run the self-tests")
    check.set_defaults(call=studies.check)
    return parser


def _hosted_verbs(verbs: argparse._SubParsersAction) -> tuple[argparse.ArgumentParser, ...]:
    """Add what has to do with models that others host."""
    export = verbs.add_parser("export", help="write what an arm reads as (prompt, passage) pairs for a tuning service")
    export.add_argument("config", help="a profile or YAML file whose run is prepared, e.g. by `ctxft train`")
    export.add_argument("--arm", default="cft", help="an arm with one stage of text (default: cft)")
    export.add_argument("--seed", type=int, default=0, help="draws the prompts (default: 0)")
    export.add_argument("--form", default="chat", help="chat (OpenAI), gemini (Vertex AI) or csv (AI Studio)")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file; a manifest goes beside it")
    export.set_defaults(call=hosted.export)
    ask = verbs.add_parser("hosted", help="ask a model behind an OpenAI-compatible server an experiment's benchmarks")
    ask.add_argument("config", help="a profile of the kit (mini) or the path of an experiment's YAML file")
    ask.add_argument("--server", required=True, metavar="URL", help="base URL, such as http://localhost:8000/v1")
    ask.add_argument("--model", required=True, help="the model's name on that server")
    ask.add_argument("--completions", action="store_true", help="plain text in place of a chat, for a base model")
    ask.add_argument("--key-variable", metavar="NAME", help="environment variable that holds the server's key")
    ask.add_argument("--price-in", type=float, metavar="X", help="price of a million tokens read")
    ask.add_argument("--price-out", type=float, metavar="Y", help="price of a million tokens written")
    ask.add_argument("--parallel", type=int, default=1, help="requests under way at a time (default: 1)")
    ask.add_argument("--yes", action="store_true", help="go on without a question after the cost is told")
    ask.set_defaults(call=hosted.hosted)
    return export, ask


def _prompt_verbs(verbs: argparse._SubParsersAction) -> None:
    """Add ``ctxft prompts list | show | validate | write | adapt``."""
    prompt_sets = verbs.add_parser("prompts", help="list, show, check and write prompt sets; let a model write prompts")
    kinds = prompt_sets.add_subparsers(title="prompts", dest="kind", required=True, metavar="ACTION")
    kinds.add_parser("list", help="the prompt sets of the kit").set_defaults(call=prompts.list_prompt_sets)
    show = kinds.add_parser("show", help="a prompt set's families, the ideas behind them, and their prompts")
    show.add_argument("prompt_set", metavar="SET", help="a prompt set of the kit, or a YAML file")
    show.add_argument("--family", help="this family alone")
    show.add_argument("--model", help="say how many tokens each prompt has for this model's tokenizer")
    show.set_defaults(call=prompts.show)
    validate = kinds.add_parser("validate", help="check a prompt set of your own: file and line of what is wrong")
    validate.add_argument("prompt_set", metavar="SET", help="a YAML file, or a prompt set of the kit")
    validate.add_argument("--model", help="count tokens with this model's tokenizer, in its chat template if need be")
    validate.add_argument(
        "--window", type=int, metavar="TOKENS", help="with --model: refuse prompts that leave too little"
    )
    validate.set_defaults(call=prompts.validate)
    write = kinds.add_parser("write", help="start a prompt set of your own from one of the kit")
    write.add_argument("file", type=Path, help="the YAML file to write; it must not exist")
    write.add_argument(
        "--set",
        dest="prompt_set",
        metavar="SET",
        default="strategies",
        choices=PROMPT_SETS,
        help="the prompt set to start from (default: strategies)",
    )
    write.set_defaults(call=prompts.write)
    adapt = kinds.add_parser("adapt", help="let a model write the prompt of each passage, for arm adaptive")
    adapt.add_argument("config", help="a profile or YAML file with prompts.writer; it is prepared if it is not yet")
    adapt.add_argument("--estimate", action="store_true", help="say what it takes, and stop")
    adapt.add_argument("--yes", action="store_true", help="ask a server without a question after the cost is told")
    _config_options(adapt)
    adapt.set_defaults(call=prompts.adapt)


def _config_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a config value, e.g. train.epochs=3; may be repeated",
    )
    verb.add_argument("--data", metavar="DIR", help="folder with local benchmark files, instead of the hub")


def _stop_on_signals() -> None:
    """Take a scheduler's stop or a closed terminal as Ctrl-C: workers end too, and finished work is kept."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failed, 2 bad input, 128 + N stopped by signal N)."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    _stop_on_signals()
    die_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return options.call(options) or 0
    except InputError as error:
        print(f"ctxft: {error}", file=sys.stderr)
        return 2
    except FailedError as error:
        print(f"ctxft: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has enough, as in `ctxft compare run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print("ctxft: stopped; what was finished is kept, and the same command goes on from there.", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT)
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise  # a defect of ours: its traceback is what we need
        print(f"ctxft: {sentence}", file=sys.stderr)
        return 1
