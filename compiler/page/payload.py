"""A record as the data of the page: plain JSON, packed."""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from rewright.ir import DTYPE_NAMES, OptionError, is_call
from rewright.ir.target import Target
from rewright.page.stages import Rows, stages_of
from rewright.report_json import to_json
from rewright.reporting import buffer_rows

if TYPE_CHECKING:
    from rewright.record import Record


def payload_of(record: Record) -> dict[str, Any]:
    """All that the page shows. `report` is the report's own JSON; `before` are the buffers of the
    graph as it came, over its calls (`beforeCalls`); `roofs` are None where nobody knows the
    target's figures."""
    rows = Rows()
    stages = stages_of(record.stages, rows)
    return {
        "report": record.report.as_json(),
        "rows": rows.rows,
        "stages": stages,
        "before": [to_json(row) for row in buffer_rows(record.source)],
        "beforeCalls": [node.name for node in record.source.nodes if is_call(node)],
        "kernels": record.kernel_source,
        "calls": record.calls,
        "roofs": roofs_of(record),
    }


def roofs_of(record: Record) -> dict[str, Any] | None:
    """What the target can do at the most: FLOP/s by element type, bytes/s by memory.

    What was compiled for the host is seen against the figures of the machine that asks.
    """
    from rewright.cost_models import target_called

    try:
        target = target_called(record.report.options.get("target", "host"))
    except OptionError:
        return None
    return _roofs(target) if target.name == record.report.target else None


def _roofs(target: Target) -> dict[str, Any]:
    return {
        "source": target.source,
        "flops": [[DTYPE_NAMES[dtype], rate] for dtype, rate in target.flops],
        "bytes": [
            *([cache.name, cache.bandwidth] for cache in target.caches),
            ["main memory", target.bandwidth],
        ],
    }


def packed(payload: dict[str, Any]) -> str:
    """JSON, deflated, in base64: a tenth of the text, and nothing that HTML could mistake."""
    text = json.dumps(payload, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
