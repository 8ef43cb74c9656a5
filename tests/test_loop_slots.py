"""The count of instructions in the main loop of a kernel, from its disassembly."""

from __future__ import annotations

import re
from functools import partial

import pytest

from tools.loop_slots import count_of, functions, usual_work

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


# The factors of a new maximum lie in a block of their own, which is rare; the weights are packed in pairs.
SOFTMAX = """
    Function : _Zsoftmax
        /*0000*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0010*/              @!P1 BRA 0x60 ;
        /*0020*/                   MUFU.EX2 R1, R1 ;
        /*0030*/                   MUFU.EX2 R2, R2 ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
        /*0050*/                   MUFU.EX2 R4, R4 ;
        /*0060*/               @P2 BRA 0xc0 ;
        /*0070*/                   MUFU.EX2 R1, R1 ;
        /*0080*/                   MUFU.EX2 R2, R2 ;
        /*0090*/                   MUFU.EX2 R3, R3 ;
        /*00a0*/                   MUFU.EX2 R4, R4 ;
        /*00b0*/                   F2FP.BF16.F32.PACK_AB R1, R1, R2 ;
        /*00c0*/               @P3 BRA 0x0 ;
        /*00d0*/                   EXIT ;
"""


def test_the_way_has_the_weights_but_no_new_maximum() -> None:
    (kernel,) = functions(SOFTMAX, "softmax").values()
    work, length, codes = kernel.way()
    assert (work, length, codes["MUFU.EX2"]) == (5, 9, 4)


# A loop without products: a wait whose rare code lies behind the kernel, then copies or a box.
PRODUCER = """
    Function : _Zproducer
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA 0xb0 ;
        /*0020*/               @P1 BRA 0x70 ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R6], desc[UR4][R2.64] ;
        /*0050*/                   BRA.DIV UR5, 0xd0 ;
        /*0060*/                   BRA 0x90 ;
        /*0070*/                   SHF.R.U64 R2, R2, R0, R3 ;
        /*0080*/                   UTMALDG.4D [UR8], [UR18] ;
        /*0090*/               @P2 BRA 0x10 ;
        /*00a0*/                   EXIT ;
        /*00b0*/              @!P0 BRA 0xb0 ;
        /*00c0*/                   BRA 0x20 ;
        /*00d0*/                   NOP ;
        /*00e0*/                   BRA 0x60 ;
"""


@pytest.mark.parametrize(("opcodes", "length"), [("LDGSTS", 7), ("UTMALDG|SHF", 5)])
def test_the_loop_of_a_warp_that_only_loads(opcodes: str, length: int) -> None:
    wanted = re.compile(opcodes)
    (kernel,) = functions(PRODUCER, "producer", wanted, partial(count_of, wanted=wanted)).values()
    assert kernel.loop == (0x10, 0x90)
    assert kernel.way()[:2] == (2, length)


# A loop over pieces, whose first products come before the loop over columns.
NESTED = """
    Function : _Znested
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;
        /*0020*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;
        /*0030*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;
        /*0040*/                   FADD R1, R1, R2 ;
        /*0050*/               @P0 BRA 0x30 ;
        /*0060*/               @P1 BRA 0x10 ;
        /*0070*/                   EXIT ;
"""


@pytest.mark.parametrize(("least", "loop"), [(None, (0x10, 0x60)), (1, (0x30, 0x50)), (2, (0x10, 0x60))])
def test_a_loop_inside_one_with_more_products(least: int | None, loop: tuple[int, int]) -> None:
    (kernel,) = functions(NESTED, "nested", re.compile("HGMMA"), usual_work, least).values()
    assert kernel.loop == loop
