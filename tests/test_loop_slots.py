"""The count of instructions in the main loop of a kernel, from its disassembly."""

from __future__ import annotations

import pytest

from tools.loop_slots import functions

# A kernel with a loop before the main one, and a main loop with a rare way and one that is left out.
DUMP = """
  code for sm_90
    Function : _Zother
        /*0000*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0010*/                   EXIT ;
    Function : _Zkernel
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0020*/               @P0 BRA 0x10 ;
        /*0030*/                   LDS R1, [R2] ;
        /*0040*/              @!P1 BRA 0x80 ;
        /*0050*/                   LDG.E R1, desc[UR4][R2.64] ;
        /*0060*/                   LDG.E R1, desc[UR4][R2.64] ;
        /*0070*/                   LDG.E R1, desc[UR4][R2.64] ;
        /*0080*/               @P2 BRA 0xb0 ;
        /*0090*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
        /*00a0*/                   BRA 0xc0 ;
        /*00b0*/                   NOP ;
        /*00c0*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*00d0*/               @P3 BRA 0x30 ;
        /*00e0*/                   EXIT ;
"""


def test_the_shortest_way_that_does_the_work_counts() -> None:
    (kernel,) = functions(DUMP, "kernel").values()
    assert kernel.loop == (0x30, 0xD0)
    work, length, codes = kernel.way()
    assert (work, length) == (2, 7)
    assert codes == {
        "LDS": 1, "BRA": 4, "LDGSTS.E.BYPASS.128": 1, "HMMA.16816.F32": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["kernel", "other", "none"])
def test_kernels_are_found_by_a_part_of_their_symbols(name: str) -> None:
    assert list(functions(DUMP, name)) == ([] if name == "none" else [f"_Z{name}"])
