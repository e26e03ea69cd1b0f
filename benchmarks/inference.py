"""Whole models in inference, per backend."""

from __future__ import annotations

import argparse
import sys

from benchmarks.models import MODELS
from benchmarks.options import add_choice, parse
from benchmarks.report import fail
from benchmarks.steady import WrongAnswer, options, run


def arguments() -> argparse.Namespace:
    asked = options("inference", "Time one forward pass of whole models, in turn.")
    add_choice(asked, "models", list(MODELS), default=["gpt2_124m", "bert_base", "llama_small"])
    return parse(asked)


def main() -> int:
    asked = arguments()
    try:
        run("inference", {model: MODELS[model] for model in asked.models}, asked)
    except WrongAnswer as wrong:
        return fail(str(wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
