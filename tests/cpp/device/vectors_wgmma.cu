// The vectors as a program for a GPU; -arch=sm_90a would add PTX of compute_90, which has no wgmma:
//   nvcc -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -Icsrc -Itests/cpp
//     tests/cpp/device/vectors_wgmma.cu
#include "main.cc"
#include "vectors_wgmma.cc"
