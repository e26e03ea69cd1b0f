"""The command line: rewright optimize | run | show | why | doctor.

Exit codes: 0 done, 1 a check did not hold, 2 a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rewright.ir.errors import RewrightError

MODEL_HELP = "a .pt2 file, a .rw text, or pkg.mod:factory giving (module, inputs)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is a message on stderr, never a traceback."""
    arguments = _parser().parse_args(argv)
    from rewright import commands

    try:
        return int(getattr(commands, arguments.command)(arguments))
    except RewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    import rewright

    parser = argparse.ArgumentParser(
        prog="rewright", description="A graph compiler for PyTorch that works to stated budgets."
    )
    parser.add_argument("--version", action="version", version=f"rewright {rewright.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _optimize(commands.add_parser("optimize", help="optimize a model; write an artefact with -o"))
    _run(commands.add_parser("run", help="run a model or an artefact, checked and timed"))
    _show(
        commands.add_parser("show", help="print a graph at any stage, kernels, the call sequence")
    )
    _why(commands.add_parser("why", help="explain decisions and refusals"))
    doctor = commands.add_parser("doctor", help="what works on this machine, and what to do")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _compile_options(parser: argparse.ArgumentParser) -> None:
    """One flag for each option of `rewright.Options`."""
    from rewright.options import option_docs

    parser.add_argument("model", help=MODEL_HELP)
    for name, default, doc in option_docs():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, metavar="VALUE", help=f"{doc} (default: {default!r})")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _optimize(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="write an artefact there")


def _run(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    parser.add_argument(
        "--against", choices=("eager", "float64"), help="compare outputs; exit 1 when they differ"
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default: 20)")


def _show(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    parser.add_argument("--after", metavar="PASS", help="the graph after that pass")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--kernels", action="store_true", help="the source of the kernels")
    what.add_argument("--calls", action="store_true", help="the call sequence, as Python")
    what.add_argument("--python", action="store_true", help="the graph as a torch script")
    parser.add_argument("--node", metavar="NAME", help="only that node and what it reads")


def _why(parser: argparse.ArgumentParser) -> None:
    _compile_options(parser)
    parser.add_argument("node", nargs="?", help="a value's name; all decisions when left out")
    parser.add_argument("--pass", dest="of_pass", metavar="PASS", help="only that pass's decisions")


if __name__ == "__main__":
    sys.exit(main())
