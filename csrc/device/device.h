// All functions through which a kernel may use the machine. Under nvcc each function is one PTX instruction (ptx/);
// on the host the emulator has the same names and signatures (emu/). docs/emulator.md says how to write a kernel for
// both.
//
// A kernel is a type:
//
//   struct Kernel {
//     struct Args { ... };                      plain data, passed by value
//     static constexpr const char* kName;
//     static constexpr int kThreads, kMinBlocks;  threads of a block; blocks that an SM should hold
//     LAMINA_DEVICE static void run(const Args& args);
//   };
//   Status status = dev::launch<Kernel>(shape, stream, args);
#pragma once

#include "device/tensor_map.h"
#include "device/types.h"

#if defined(__CUDACC__)
#include "device/ptx/atomic.cuh"
#include "device/ptx/cluster.cuh"
#include "device/ptx/convert.cuh"
#include "device/ptx/copy.cuh"
#include "device/ptx/index.cuh"
#include "device/ptx/launch.cuh"
#include "device/ptx/mbarrier.cuh"
#include "device/ptx/mma.cuh"
#include "device/ptx/shuffle.cuh"
#include "device/ptx/sync.cuh"
#include "device/ptx/tma.cuh"
#include "device/ptx/warpgroup.cuh"
#include "device/ptx/wgmma.cuh"
#else
#include "device/emu/atomic.h"
#include "device/emu/cluster.h"
#include "device/emu/convert.h"
#include "device/emu/copy.h"
#include "device/emu/index.h"
#include "device/emu/launch.h"
#include "device/emu/mbarrier.h"
#include "device/emu/mma.h"
#include "device/emu/shuffle.h"
#include "device/emu/sync.h"
#include "device/emu/tma.h"
#include "device/emu/warpgroup.h"
#include "device/emu/wgmma.h"
#endif
