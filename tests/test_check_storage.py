"""The rules of storage at the kernel level, each with a schedule that breaks it."""

from __future__ import annotations

from textwrap import dedent

import pytest

from rewright.ir import CheckError
from rewright.ir.check import check
from rewright.ir.parse import parse

# Lines of a kernel-level graph over `%x: f32[4]` that must be refused; each returns `%r`.
STORAGE: dict[str, tuple[str, str]] = {
    "overlap": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %q = rw.alloc(offset=8) : f32[4]
        %b = aten.neg.default(%a, out=[%q]) : f32[4]
        %r = aten.neg.default(%b) : f32[4]
        """,
        "%q at [8, 24) shares bytes with %p at [0, 16), which is still live",
    ),
    "read after free": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        rw.free(%a)
        %r = aten.neg.default(%a) : f32[4]
        """,
        "%r (aten.neg.default) reads %a after its storage is freed",
    ),
    "read through a view": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %v = aten.view.default(%a, [2, 2]) : f32[2, 2]
        rw.free(%a)
        %r = aten.neg.default(%v) : f32[2, 2]
        """,
        "%r (aten.neg.default) reads %v after its storage is freed",
    ),
    "freed twice": (
        """
        %a = aten.neg.default(%x) : f32[4]
        %r = aten.neg.default(%a) : f32[4]
        rw.free(%a)
        rw.free(%a)
        """,
        "rw.free(%a) frees a storage that is freed already",
    ),
    "freed by another name": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %r = aten.neg.default(%a) : f32[4]
        rw.free(%a)
        rw.free(%p)
        """,
        "rw.free(%p) frees a storage that is freed already",
    ),
    "input freed": (
        """
        %r = aten.neg.default(%x) : f32[4]
        rw.free(%x)
        """,
        "rw.free(%x) frees an input",
    ),
    "constant freed": (
        """
        %c = rw.constant(data=[1.0, 2.0, 3.0, 4.0]) : f32[4]
        %r = aten.neg.default(%c) : f32[4]
        rw.free(%c)
        """,
        "rw.free(%c) frees a constant",
    ),
    "nothing freed": (
        """
        %r = aten.neg.default(%x) : f32[4]
        rw.free()
        """,
        "rw.free takes one value",
    ),
    "output in the arena": (
        """
        %p = rw.alloc(offset=64) : f32[4]
        %r = aten.neg.default(%x, out=[%p]) : f32[4]
        """,
        "the graph returns %r, which lies in the arena (%p at [64, 80))",
    ),
    "output freed": (
        """
        %r = aten.neg.default(%x) : f32[4]
        rw.free(%r)
        """,
        "the graph returns %r after its storage is freed",
    ),
    "buffer of another type": (
        """
        %p = rw.alloc(offset=0) : f32[8]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %r = aten.neg.default(%a) : f32[4]
        """,
        "%a is f32[4], but its buffer %p is f32[8]",
    ),
    "no buffer": (
        """
        %a = aten.neg.default(%x) : f32[4]
        %r = aten.neg.default(%x, out=[%a]) : f32[4]
        """,
        "out= of %r (aten.neg.default) names no buffer of rw.alloc",
    ),
    "written twice": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %b = aten.neg.default(%x, out=[%p]) : f32[4]
        %r = aten.neg.default(%b) : f32[4]
        """,
        "%p is written twice",
    ),
    "written after free": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        rw.free(%p)
        %a = aten.neg.default(%x, out=[%p]) : f32[4]
        %r = aten.neg.default(%a) : f32[4]
        """,
        "%a (aten.neg.default) writes %p after it is freed",
    ),
    "read before written": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %r = aten.neg.default(%p) : f32[4]
        """,
        "%r (aten.neg.default) reads %p, a buffer that nothing has written",
    ),
    "operator without a buffer form": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %a = aten._to_copy.default(%x, out=[%p]) : f32[4]
        %r = aten.neg.default(%a) : f32[4]
        """,
        "%a (aten._to_copy.default) has no form that takes out=",
    ),
    "a buffer too many": (
        """
        %p = rw.alloc(offset=0) : f32[4]
        %r = aten.neg.default(%x, out=[%p, none]) : f32[4]
        """,
        "%r (aten.neg.default) wants in out= a buffer or none for each of its 1 results",
    ),
    "negative offset": (
        """
        %p = rw.alloc(offset=-64) : f32[4]
        %r = aten.neg.default(%x, out=[%p]) : f32[4]
        """,
        "%p wants an offset of at least 0 in the arena",
    ),
}


@pytest.mark.parametrize("name", STORAGE)
def test_storage_is_live_while_it_is_used_and_never_shared(name: str) -> None:
    lines, message = STORAGE[name]
    graph = parse(f"graph f(%x: f32[4]) {{\n{dedent(lines)}return %r\n}}")
    with pytest.raises(CheckError) as refusal:
        check(graph, "kernel")
    assert refusal.value.message == message


def test_bytes_may_be_used_again_and_buffers_may_leave_without_an_offset() -> None:
    check(
        parse("""
            graph f(%x: f32[4], %y: f32[4] mutable) {
              %p = rw.alloc(offset=0) : f32[4]
              %a = aten.neg.default(%x, out=[%p]) : f32[4]
              %q = rw.alloc(offset=64) : f32[4]
              %b = aten.neg.default(%a, out=[%q]) : f32[4]
              rw.free(%a)
              %s = rw.alloc(offset=0) : f32[4]
              %c = aten.neg.default(%b, out=[%s]) : f32[4]
              %o = rw.alloc() : f32[4]
              %r = aten.neg.default(%c, out=[%o]) : f32[4]
              update %y <- %c
              return %r
            }"""),
        "kernel",
    )
