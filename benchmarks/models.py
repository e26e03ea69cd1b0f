"""The full-size models that benchmarks run, by name."""

from __future__ import annotations

from collections.abc import Callable

from examples.case import Case
from examples.huggingface import bert, gpt2, llama
from examples.transformer import two_block_transformer


def gpt2_124m() -> Case:
    return gpt2(batch=2, length=128)


def bert_base() -> Case:
    return bert(batch=2, length=128)


def llama_small() -> Case:
    return llama(batch=2, length=128)


MODELS: dict[str, Callable[[], Case]] = {
    "gpt2_124m": gpt2_124m,
    "bert_base": bert_base,
    "llama_small": llama_small,
    "two_block_transformer": two_block_transformer,
}
