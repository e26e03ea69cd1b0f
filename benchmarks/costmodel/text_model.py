"""The baseline that the learned model has to beat: a network that reads operations as words.

    python -m benchmarks.costmodel.text_model

After Das and Mannarswamy, "ML-driven Hardware Cost Model for MLIR" (arXiv 2302.11405): the MLIR of
a call, cut into words, goes through an embedding, one-dimensional convolutions, a maximum over all
places, and fully connected layers; out comes the logarithm of the time. It learns from the same
calls as the learned model and is judged on the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.costmodel.dataset import load
from benchmarks.costmodel.judging import Judged, show
from rewright.ir import Kind
from rewright.ir.mlir_export import to_mlir
from rewright.ir.parse import parse

WORD: Final = re.compile(r"[A-Za-z_][\w.]*|\d+")
# Of a call's words, what is read; a rarer word than this counts as unknown.
MOST_WORDS: Final = 320
FEWEST: Final = 3
WIDTH: Final = 64
EPOCHS: Final = 14
BATCH: Final = 64
# Batches among which texts are sorted by length.
ALIKE: Final = 32


class TextModel(nn.Module):
    """[calls, words] -> [calls]."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, taps, padding="same") for taps in (3, 3, 5)
        )
        self.layers = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words).transpose(1, 2)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        logs: Tensor = self.layers(x.amax(2))
        return logs.squeeze(1)


def words_of(text: str) -> list[str]:
    """The words of a call's MLIR; a kernel is what it computes."""
    graph = parse(text)
    (node,) = graph.nodes
    if node.op.kind is Kind.REGION:
        graph = node.graph("body")
    function = to_mlir(graph).partition("func.func")[2]
    words = WORD.findall(function.partition("\n#")[0])
    return [w for w in words if w != "loc" and not w.startswith("rewright.")][:MOST_WORDS]


class Vocabulary:
    """Words by number; 0 pads, 1 is unknown."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        counts = Counter(word for text in texts for word in text)
        known = sorted(word for word, count in counts.items() if count >= FEWEST)
        self.number = {word: i + 2 for i, word in enumerate(known)}

    def numbers(self, texts: Sequence[Sequence[str]]) -> Tensor:
        found = torch.zeros(len(texts), MOST_WORDS, dtype=torch.long)
        for i, text in enumerate(texts):
            found[i, : len(text)] = torch.tensor([self.number.get(word, 1) for word in text])
        return found


def fit(words: Tensor, logs: Tensor, vocabulary: int) -> TextModel:
    torch.manual_seed(0)
    model = TextModel(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    lengths = (words > 0).sum(1)
    steps = EPOCHS * -(-len(words) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in _alike(lengths):
            texts = words[batch, : int(lengths[batch].max())]
            loss = nn.functional.l1_loss(model(texts), logs[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _alike(lengths: Tensor) -> list[Tensor]:
    """Batches at random of texts of about one length, so that little is padding."""
    drawn = torch.randperm(len(lengths))
    near = [part[lengths[part].argsort()] for part in drawn.split(ALIKE * BATCH)]
    batches = torch.cat(near).split(BATCH)
    return [batches[i] for i in torch.randperm(len(batches))]


def main() -> None:
    rows = load().calls
    texts = [words_of(row["text"]) for row in rows]
    judged = np.array([row["split"] == "judge" for row in rows])
    vocabulary = Vocabulary([t for t, j in zip(texts, judged, strict=True) if not j])
    words = vocabulary.numbers(texts)
    logs = torch.tensor([row["seconds"] for row in rows], dtype=torch.float32).log()
    mean, spread = logs[~judged].mean(), logs[~judged].std()
    model = fit(words[~judged], (logs[~judged] - mean) / spread, len(vocabulary.number) + 2)
    with torch.no_grad():
        held = words[judged]
        found = torch.cat([model(part) for part in held.split(256)]) * spread + mean
    _report(found.exp().numpy(), [row for row, j in zip(rows, judged, strict=True) if j])


def _report(predicted: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    measured = np.array([row["seconds"] for row in rows])
    kernels = np.array(["rw.fused" in row["text"] for row in rows])
    for name, chosen in (("kernels", kernels), ("others", ~kernels), ("all", kernels | True)):
        show(f"text, {name}", Judged.of(predicted[chosen], measured[chosen]).summary())


if __name__ == "__main__":
    main()
