// The vectors as a program for a GPU:
//   nvcc -std=c++20 -arch=sm_90a --expt-relaxed-constexpr -Icsrc -Itests/cpp
//     tests/cpp/device/vectors_wgmma.cu
#include "main.cc"
#include "vectors_wgmma.cc"
