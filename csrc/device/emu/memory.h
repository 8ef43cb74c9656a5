// Checks the accesses of threads to memory: their addresses, and the order between them.
#pragma once

#include "device/emu/executor.h"

namespace lamina::dev::emu {

// Accesses to the block's own shared memory, naturally aligned.
void read_shared(const void* at, int bytes, const char* name, Where where);
void write_shared(const void* at, int bytes, const char* name, Where where);
// Accesses to the shared memory of a block of the cluster, from cluster_pointer().
void read_cluster(const void* at, int bytes, const char* name, Where where);
void write_cluster(const void* at, int bytes, const char* name, Where where);

// Accesses to global memory: fail if the address is in shared memory or on the thread's own stack.
void read_global(const void* at, int bytes, const char* name, Where where);
void write_global(const void* at, int bytes, const char* name, Where where);
// Accesses by an operation that this thread starts, and that ends for an actor at that actor's own time.
void read_global_async(const void* at, int bytes, const char* name, Where where);
void write_global_async(const void* at, int bytes, int actor, uint32_t time, const char* name,
                        Where where);

// Accesses to words that threads wait for. A release and an acquire pass knowledge on; a relaxed write and a relaxed
// read do the same between two fences.
void acquire_global(const void* at, const char* name, Where where);
void release_global(const void* at, const char* name, Where where);
void update_global(const void* at, bool releases, const char* name, Where where);  // read and write
void fence_global();

}  // namespace lamina::dev::emu
