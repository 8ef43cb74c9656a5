// The instruction sets whose kernels this build has: those of the architecture, less those that cmake/isa.cmake leaves out.
#pragma once

#if !defined(__x86_64__)
#define LAMINA_WITHOUT_avx2
#define LAMINA_WITHOUT_avx512_vnni
#define LAMINA_WITHOUT_avx512_bf16
#define LAMINA_WITHOUT_amx_int8
#endif

// LAMINA_IF_BUILT(isa, code): the code, if the kernels of the ISA are built.
#define LAMINA_IF_BUILT(isa, ...) LAMINA_IF_BUILT_##isa(__VA_ARGS__)

#if defined(LAMINA_WITHOUT_generic)
#define LAMINA_IF_BUILT_generic(...)
#else
#define LAMINA_IF_BUILT_generic(...) __VA_ARGS__
#endif

#if defined(LAMINA_WITHOUT_avx2)
#define LAMINA_IF_BUILT_avx2(...)
#else
#define LAMINA_IF_BUILT_avx2(...) __VA_ARGS__
#endif

#if defined(LAMINA_WITHOUT_avx512_vnni)
#define LAMINA_IF_BUILT_avx512_vnni(...)
#else
#define LAMINA_IF_BUILT_avx512_vnni(...) __VA_ARGS__
#endif

#if defined(LAMINA_WITHOUT_avx512_bf16)
#define LAMINA_IF_BUILT_avx512_bf16(...)
#else
#define LAMINA_IF_BUILT_avx512_bf16(...) __VA_ARGS__
#endif

#if defined(LAMINA_WITHOUT_amx_int8)
#define LAMINA_IF_BUILT_amx_int8(...)
#else
#define LAMINA_IF_BUILT_amx_int8(...) __VA_ARGS__
#endif
