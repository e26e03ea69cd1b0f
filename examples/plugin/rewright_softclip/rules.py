"""Where the rules are."""

from pathlib import Path
from typing import Final

RULES: Final = Path(__file__).parent / "softclip.rules"
