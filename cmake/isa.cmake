# Flags of the files that are compiled for one instruction set: ops/*/cpu/<isa>.cc. An ISA implies the
# ones before it (base/cpu_features.h).
set(LAMINA_ISA_FLAGS_generic "")
set(LAMINA_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(LAMINA_ISA_FLAGS_avx512_vnni -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mf16c -mprefer-vector-width=512)
# GCC 12 reports its own AVX-512 intrinsics as reading what is not set: gcc.gnu.org PR 105593.
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND LAMINA_ISA_FLAGS_avx512_vnni -Wno-maybe-uninitialized)
endif()
set(LAMINA_ISA_FLAGS_avx512_bf16 ${LAMINA_ISA_FLAGS_avx512_vnni} -mavx512bf16)
set(LAMINA_ISA_FLAGS_amx_int8 ${LAMINA_ISA_FLAGS_avx512_bf16} -mamx-tile -mamx-int8)

# With SIMDe these files may use nothing beyond AVX2. SIMDe is not written for our warnings.
set(LAMINA_SIMDE_FLAGS -mavx2 -mfma -mf16c -O2 -Wno-conversion -Wno-psabi -Wno-error)

# Half of the time of the sanitized build would be the optimisation of files with unrolled kernels, and a third checks for
# undefined behaviour, which double their code. AddressSanitizer sees every access, and the generic kernels have all checks.
# Its options stand behind those of lamina_flags, because the last one counts.
add_library(lamina_unchecked INTERFACE)
target_compile_options(lamina_unchecked INTERFACE -fno-sanitize=undefined)

# lamina_isa_sources(TARGET ISAS): adds ops/*/cpu/*.cc and ops/*/cpu/*/*.cc of the current source directory with their flags. The files of the
# instruction sets in ISAS use SIMDe.
function(lamina_isa_sources target simde_isas)
  foreach(isa IN LISTS LAMINA_ISAS)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/ops/*/cpu/${isa}.cc ${CMAKE_CURRENT_SOURCE_DIR}/ops/*/cpu/*/${isa}.cc)
    if(NOT sources)
      continue()
    endif()
    add_library(${target}_${isa} OBJECT ${sources})
    target_link_libraries(${target}_${isa} PRIVATE lamina_flags)
    if(isa IN_LIST simde_isas)
      target_compile_definitions(${target}_${isa} PRIVATE LAMINA_USE_SIMDE)
      target_compile_options(${target}_${isa} PRIVATE ${LAMINA_SIMDE_FLAGS})
    else()
      target_compile_options(${target}_${isa} PRIVATE ${LAMINA_ISA_FLAGS_${isa}})
    endif()
    if(LAMINA_SANITIZE)
      target_compile_options(${target}_${isa} PRIVATE -O0)
      if(NOT isa STREQUAL generic)
        target_link_libraries(${target}_${isa} PRIVATE lamina_unchecked)
      endif()
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
  endforeach()
endfunction()

# lamina_missing_isas(OUT): the instruction sets that this machine, as far as Linux says, cannot run.
function(lamina_missing_isas out)
  set(flags "")
  if(EXISTS /proc/cpuinfo)
    file(STRINGS /proc/cpuinfo flags REGEX "^flags" LIMIT_COUNT 1)
  endif()
  set(needs_avx2 avx2 fma f16c)
  set(needs_avx512_vnni avx512f avx512bw avx512dq avx512vl avx512_vnni)
  set(needs_avx512_bf16 ${needs_avx512_vnni} avx512_bf16)
  set(needs_amx_int8 ${needs_avx512_bf16} amx_tile amx_int8 amx_bf16)
  set(missing "")
  foreach(isa avx2 avx512_vnni avx512_bf16 amx_int8)
    foreach(flag IN LISTS needs_${isa})
      if(NOT flags MATCHES " ${flag}( |$)")
        list(APPEND missing ${isa})
        break()
      endif()
    endforeach()
  endforeach()
  set(${out} "${missing}" PARENT_SCOPE)
endfunction()

# LAMINA_ISAS: the instruction sets whose kernels are built. With LAMINA_SANITIZE those that this machine runs, natively or in
# SIMDe. With LAMINA_NATIVE those that it chooses: every op has kernels for the first three, so only the last of them that the
# machine runs is chosen.
set(LAMINA_ISAS generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND LAMINA_ISAS avx2 avx512_vnni avx512_bf16 amx_int8)
endif()
set(left_out "")
if(LAMINA_NATIVE OR (LAMINA_SANITIZE AND NOT LAMINA_SIMDE))
  lamina_missing_isas(left_out)
endif()
if(LAMINA_NATIVE)
  if(NOT avx512_vnni IN_LIST left_out)
    list(APPEND left_out generic avx2)
  elseif(NOT avx2 IN_LIST left_out)
    list(APPEND left_out generic)
  endif()
endif()
foreach(isa IN LISTS left_out)
  list(REMOVE_ITEM LAMINA_ISAS ${isa})
  target_compile_definitions(lamina_flags INTERFACE LAMINA_WITHOUT_${isa})
endforeach()
