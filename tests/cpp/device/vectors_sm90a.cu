// The vectors as a program for a GPU of compute capability 9.0:
//   nvcc -std=c++20 -arch=sm_90a --expt-relaxed-constexpr -Icsrc -Itests/cpp
//     tests/cpp/device/vectors_sm90a.cu tests/cpp/main.cc
#include "vectors_sm90a.cc"
