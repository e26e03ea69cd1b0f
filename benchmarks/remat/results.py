"""Where results go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "results"


def write(name: str, found: Any) -> None:
    """Keep what was found as `remat_NAME.json` beside the results of other benchmarks."""
    path = FOLDER / f"remat_{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
