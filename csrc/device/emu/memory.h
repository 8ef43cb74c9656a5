// Accesses of memory by threads: where they may go, and what orders them.
#pragma once

#include "device/emu/executor.h"

namespace lamina::dev::emu {

// In the block's own shared memory, naturally aligned.
void read_shared(const void* at, int bytes, const char* name, Where where);
void write_shared(const void* at, int bytes, const char* name, Where where);
// In that of a block of the cluster: cluster_pointer().
void read_cluster(const void* at, int bytes, const char* name, Where where);
void write_cluster(const void* at, int bytes, const char* name, Where where);

// Neither in shared memory nor on the thread's own stack.
void read_global(const void* at, int bytes, const char* name, Where where);
void write_global(const void* at, int bytes, const char* name, Where where);
// By something that this thread starts and that is over for an actor at a time of its own.
void read_global_async(const void* at, int bytes, const char* name, Where where);
void write_global_async(const void* at, int bytes, int actor, uint32_t time, const char* name,
                        Where where);

// Words that threads wait for. What a release makes known to who acquires it, a relaxed access makes
// known between two fences.
void acquire_global(const void* at, const char* name, Where where);
void release_global(const void* at, const char* name, Where where);
void update_global(const void* at, bool releases, const char* name, Where where);  // read and write
void fence_global();

}  // namespace lamina::dev::emu
