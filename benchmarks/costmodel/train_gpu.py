"""Train the models of GPUs on NVIDIA's measurements, and judge them on shapes left out.

    python -m benchmarks.costmodel.train_gpu [--write]

prints, for each head, how far off it is for pairs of n and k, or combinations of heads, key heads
and width, that training never saw; `--write` also writes the shipped models.
"""

from __future__ import annotations

import argparse
from typing import Final

from benchmarks.costmodel.gpu_data import FILES, rows_for
from benchmarks.costmodel.judging import judge, show
from benchmarks.costmodel.train import MODELS
from rewright.costmodel.model_file import Model, write_model
from rewright.costmodel.training import Shape, train_head

SHAPE: Final = Shape(trees=1600, depth=6, rate=0.12)
# Of so many rows, few folds say enough about errors; of very many, fewer, and trees may be larger.
FOLDS: Final = 3
MANY: Final = 70_000
LARGE, LARGE_FOLDS = Shape(trees=2000, depth=7, rate=0.12), 2
SOURCE: Final = "aiconfigurator (NVIDIA, Apache-2.0)"


def main(*, write: bool) -> None:
    for gpu, families in FILES.items():
        heads, rows = {}, 0
        for family in families:
            training, judged = rows_for(gpu, family)
            shape, folds = (SHAPE, FOLDS) if len(training) < MANY else (LARGE, LARGE_FOLDS)
            heads[family] = train_head(training, shape, folds=folds).head
            rows += len(training)
            show(f"{gpu} {family.removeprefix('gpu_')}", judge(heads[family], judged).summary())
        if write:
            path = MODELS / f"{gpu}.npz"
            about = {"basis": f"{rows} calls timed by NVIDIA", "source": SOURCE}
            write_model(path, Model(heads, None, about))
            print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the shipped models")
    main(write=parser.parse_args().write)
