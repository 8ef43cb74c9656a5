# CUDA: found on the machine or in the registry's compiler packages; without it the build is CPU-only.
# There is no CUDA source yet, so nothing is compiled with it: LAMINA_CUDA_ARCHS stays empty.
set(LAMINA_CUDA_ARCHS "")
set(LAMINA_CUDA_COMPILER "")
message(STATUS "lamina: CPU kernels only; this version has no CUDA kernel")
