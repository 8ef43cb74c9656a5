// The vectors as a program for a GPU of compute capability 9.0. Not -arch=sm_90a, which adds PTX for sm_90:
//   nvcc -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -Icsrc -Itests/cpp
//     tests/cpp/device/vectors_sm90a.cu tests/cpp/main.cc
#include "vectors_sm90a.cc"
