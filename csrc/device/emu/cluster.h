// Emulates ptx/cluster.cuh. The blocks of a cluster start together and may end at different times. Before the first
// cluster barrier no block may touch the shared memory of another block, which on a GPU may not have started.
#pragma once

#include "device/emu/memory.h"

namespace lamina::dev {
namespace emu {

int cluster_rank();
int cluster_size();
void arrive_cluster(const char* name, Where where);
void wait_cluster(const char* name, Where where);
void* cluster_pointer(const void* smem, int bytes, int rank, const char* name, Where where);

template <class V>
V* cluster_word(const V* smem, int rank, const char* name, Where where) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  check_access(smem, sizeof(V), name, where);
  return static_cast<V*>(cluster_pointer(smem, sizeof(V), rank, name, where));
}

}  // namespace emu

inline int cluster_rank() { return emu::cluster_rank(); }
inline int cluster_size() { return emu::cluster_size(); }

inline void cluster_arrive(emu::Where where = emu::Where::current()) {
  emu::arrive_cluster("cluster_arrive", where);
}
inline void cluster_wait(emu::Where where = emu::Where::current()) {
  emu::wait_cluster("cluster_wait", where);
}
inline void cluster_sync(emu::Where where = emu::Where::current()) {
  emu::arrive_cluster("cluster_sync", where);
  emu::wait_cluster("cluster_sync", where);
}

template <class V>
V load_cluster(const V* from, int rank, emu::Where where = emu::Where::current()) {
  const V* const at = emu::cluster_word(from, rank, "load_cluster", where);
  emu::read_cluster(at, sizeof(V), "load_cluster", where);
  return *at;
}
template <class V>
void store_cluster(V* to, V value, int rank, emu::Where where = emu::Where::current()) {
  V* const at = emu::cluster_word(to, rank, "store_cluster", where);
  emu::write_cluster(at, sizeof(V), "store_cluster", where);
  *at = value;
}

}  // namespace lamina::dev
