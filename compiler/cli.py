"""The command line: rewright optimize | run | show | why | diff | report | bisect | rules |
estimate | calibrate | pareto | plan-memory | doctor.

Exit codes: 0 done, 1 a check did not hold, 2 a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from rewright.ir.errors import OptionError, RewrightError, did_you_mean

MODEL_HELP = (
    "a .pt2 file, a .rw text, a .mlir or .mlirbc file, or pkg.mod:factory giving (module, inputs)"
)

OR_TRACE = f"{MODEL_HELP}, or the folder of a trace"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is a message on stderr, never a traceback."""
    try:
        arguments = _parse(argv)
        from rewright import commands

        with warnings.catch_warnings():
            # torch.export copies its tree specs, which torch itself has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            return int(getattr(commands, arguments.command.replace("-", "_"))(arguments))
    except RewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has gone; without this, Python complains when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """One that raises OptionError, so that every mistake reads alike."""

    def error(self, message: str) -> NoReturn:
        choice = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if choice is not None:
            message = f"no command '{choice[1]}'{did_you_mean(choice[1], COMMANDS)}"
        raise OptionError(message, help=f"see {self.prog} --help")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, commands = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = commands[arguments.command]._option_string_actions
        raise OptionError(
            f"{arguments.command} takes no argument '{flag}'{did_you_mean(flag, known)}",
            help=f"see rewright {arguments.command} --help",
        )
    return arguments


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and that of each command."""
    import rewright

    parser = _Parser(
        prog="rewright",
        description="A graph compiler for PyTorch that works to stated budgets.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rewright {rewright.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name, (summary, arguments) in COMMANDS.items():
        made[name] = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False
        )
        made[name].add_argument("--json", action="store_true", help="print JSON")
        arguments(made[name])
    return parser, made


def command_parser(name: str) -> argparse.ArgumentParser:
    """What parses the arguments of a command; the reference is made from it."""
    return _parser()[1][name]


def _compile_options(parser: argparse.ArgumentParser, model: str = MODEL_HELP) -> None:
    """One flag for each option of `rewright.Options`."""
    from rewright.options import Options, option_docs

    parser.add_argument("model", help=model)
    group = parser.add_argument_group("options of a compile")  # below those of the command
    for name, default, doc in option_docs():
        flag = f"--{name.replace('_', '-')}"
        shown = f" (default: {default})" if default else ""
        choices = Options.__dataclass_fields__[name].metadata.get("choices", ())
        metavar = "|".join(choices) or "VALUE"
        group.add_argument(flag, dest=name, metavar=metavar, help=f"{doc}{shown}")


def _optimize(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="write an artefact to that folder; the optimized graph, when it ends with .mlir",
    )
    _profile(parser)


def _profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", action="store_true", help="time each call, and print the slowest"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, f"{MODEL_HELP}, or the folder of an artefact")
    parser.add_argument(
        "--check", action="store_true", help="compare outputs with float64; exit 1 when they differ"
    )
    parser.add_argument("--rounds", type=_count, default=20, help="timed rounds (default: 20)")
    _profile(parser)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a count from 1 on, not '{text}'")
    return int(text)


def _show(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, OR_TRACE)
    parser.add_argument("--after", metavar="PASS", help="the graph after that pass")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--kernels", action="store_true", help="the source of the kernels")
    what.add_argument("--loops", action="store_true", help="the loop nests of the kernels")
    what.add_argument("--calls", action="store_true", help="the call sequence, as Python")
    what.add_argument(
        "--quantization", action="store_true", help="the format of each layer, and what it adds"
    )
    what.add_argument("--python", action="store_true", help="the graph as a torch script")
    what.add_argument("--mlir", action="store_true", help="the graph in MLIR's torch dialect")
    what.add_argument("--linalg", action="store_true", help="the graph as linalg on tensors")
    what.add_argument(
        "--source", action="store_true", help="the graph beside the lines of its model's source"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--node",
        metavar="NAME",
        help="only that node and what it reads; of kernels, the one that computes it",
    )
    part.add_argument(
        "--around", metavar="NAME[:STEPS]", help="only the nodes near a value (default: 1)"
    )
    part.add_argument(
        "--uses",
        metavar="NAME[:STEPS]",
        help="only the nodes that read a value, in so many steps (default: 1) or all",
    )


def _why(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, OR_TRACE)
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="NODE|KERNEL|PASS",
        help="the name of a value, a kernel's function or a pass; all decisions when left out",
    )
    parser.add_argument("--pass", dest="of_pass", metavar="PASS", help="only that pass's decisions")
    parser.add_argument("--all", action="store_true", help="each of the decisions that are alike")


def _diff(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, OR_TRACE)
    parser.add_argument(
        "other",
        nargs="?",
        metavar="OTHER",
        help="a second model or trace; two stages of the first are compared when left out",
    )
    parser.add_argument(
        "--before",
        metavar="PASS",
        help="from the graph before that pass (default: as it came)",
    )
    parser.add_argument(
        "--after",
        metavar="PASS",
        help="to the graph after that pass (default: the last); of two models, both after it",
    )
    parser.add_argument(
        "--all", action="store_true", help="a line for every change, also where many are alike"
    )


def _report(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, OR_TRACE)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="report.html",
        help="where to write the page (default: report.html)",
    )
    parser.add_argument("--profile", action="store_true", help="run the model, and time each call")


def _bisect(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--crash", action="store_true", help="look for crashes only")
    what.add_argument("--slow", action="store_true", help="look for what costs time, as measured")
    what.add_argument("--slow-predicted", action="store_true", help="the same by the cost model")
    parser.add_argument("-o", "--output", metavar="DIR", help="write a case and a script there")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=120.0,
        help="to look for a smaller graph, at most (default: 120)",
    )


def _rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("check", "list", "fire"),
        help="check: evidence for every rule, or a counterexample; list: the rules; fire: which "
        "rules apply to models",
    )
    parser.add_argument("names", nargs="*", help=".rules files and sets; models for fire")
    parser.add_argument("-o", "--output", metavar="DIR", help="write counterexamples there")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--rules", default="fastmath", help="sets and files that fire (default: fastmath)"
    )


def _estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "call",
        nargs="?",
        help="such as 'aten.mm(bf16[4096, 4096], bf16[4096, 4096])'; without one, each line of "
        "standard input is one",
    )
    parser.add_argument(
        "--device",
        default="host",
        help="host, or a target such as h200 or cpu:avx2 (default: host)",
    )


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=_count, default=30, help="that it may take at most (default: 30)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw predicted against measured, as .svg or .png"
    )


def _pareto(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser, "pkg.mod:factory giving (module, inputs)")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves, as .svg or .png")
    parser.add_argument(
        "--timeline", metavar="FILE", help="draw memory over the step, as .svg or .png"
    )


def _plan_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", help="a CSV file with the columns id, lower, upper, size")
    parser.add_argument(
        "--capacity", metavar="BYTES", help="what the arena may take; the smallest when left out"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan there, as CSV")
    parser.add_argument("--picture", metavar="FILE", help="draw the plan, as .svg or .png")
    parser.add_argument(
        "--alignment",
        type=_count,
        default=1,
        help="what offsets, and the bytes that a buffer takes, are multiples of (default: 1)",
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="after which a search ends (default: 10)",
    )


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"seconds, such as 30 or 0.5, not '{text}'")
    return float(text)


def _doctor(parser: argparse.ArgumentParser) -> None:
    """Takes nothing more."""


COMMANDS: Final[dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]] = {
    "optimize": ("optimize a model; write an artefact with -o", _optimize),
    "run": ("run a model or an artefact, checked and timed", _run),
    "show": ("print a graph at any stage, kernels, the call sequence", _show),
    "why": ("explain decisions and refusals, and what they cost", _why),
    "diff": ("what differs between two stages or two compiles, node by node", _diff),
    "report": ("write a compile as a page for a browser", _report),
    "bisect": ("find the pass, the rule and the node that break a model", _bisect),
    "rules": ("check rewrite rules, list them, see which fire", _rules),
    "estimate": ("how long a call takes, between which bounds, and why", _estimate),
    "calibrate": ("measure this machine for the cost model, once", _calibrate),
    "pareto": ("time against memory of a training step, beside PyTorch's partitioner", _pareto),
    "plan-memory": ("place the buffers of a trace in the smallest arena", _plan_memory),
    "doctor": ("what works on this machine, and what to do", _doctor),
}


if __name__ == "__main__":
    sys.exit(main())
