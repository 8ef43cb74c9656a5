// copy and compact: rows that move within a cache, as bytes.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "ops/paged_kv/moved.h"
#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {
namespace {

void copy_page(const Moved& moved, const Runs& runs, int64_t from, int64_t to) {
  const std::byte* const source = moved.row(from, 0, 0);
  std::byte* const target = moved.row(to, 0, 0);
  for (int64_t i = 0; i < runs.outer.count; ++i)
    for (int64_t j = 0; j < runs.inner.count; ++j) {
      const int64_t offset = i * runs.outer.stride + j * runs.inner.stride;
      std::memcpy(target + offset, source + offset, static_cast<size_t>(runs.bytes));
    }
}

// Sources and destinations lie in the cache, and a destination is not another pair's source or destination.
Status check(const Copy& p) {
  std::vector<std::pair<int64_t, int64_t>> targets;  // page, pair
  for (int64_t i = 0; i < p.pairs; ++i)
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t page = p.block_mapping[i * p.pair_stride + side];
      if (page < 0 || page >= p.k_cache.pages)
        return Status::error("copy_kv_blocks: block_mapping[", i, ", ", side, "] = ", page,
                             " must be at least 0 and below pages = ", p.k_cache.pages);
      if (side == 1) targets.emplace_back(page, i);
    }
  std::sort(targets.begin(), targets.end());
  for (size_t t = 1; t < targets.size(); ++t)
    if (targets[t].first == targets[t - 1].first)
      return Status::error("copy_kv_blocks: block_mapping[", targets[t].second,
                           ", 1] = ", targets[t].first, " is the destination of pair ",
                           targets[t - 1].second, " too; destinations must differ");
  for (int64_t i = 0; i < p.pairs; ++i) {
    const int64_t source = p.block_mapping[i * p.pair_stride];
    const auto target =
        std::lower_bound(targets.begin(), targets.end(), std::pair(source, int64_t{0}));
    if (target != targets.end() && target->first == source)
      return Status::error("copy_kv_blocks: block_mapping[", i, ", 0] = ", source,
                           " is the destination of pair ", target->second,
                           "; a source must not be a destination");
  }
  return Status::ok();
}

// The number of accepted nodes of a request.
int64_t accepted_count(const Compact& p, int64_t request) {
  const int32_t* const nodes = p.accepted + request * p.accepted_stride;
  return std::find(nodes, nodes + p.max_accepted, -1) - nodes;
}

Status check(const Compact& p, int64_t r) {
  const auto fail = [](const auto&... parts) { return Status::error("compact_kv: ", parts...); };
  const int64_t length = p.seq_lens[r], nodes = p.tree_len[r], count = accepted_count(p, r);
  if (length < 0) return fail("seq_lens[", r, "] = ", length, " must not be negative");
  if (nodes < 0 || nodes > length)
    return fail("tree_len[", r, "] = ", nodes, " must be at least 0 and at most seq_lens[", r,
                "] = ", length);
  if (count > nodes)
    return fail("accepted has ", count, " nodes for request ", r, "; tree_len[", r, "] = ", nodes,
                " is the most");
  for (int64_t i = 0; i < count; ++i)
    if (const int32_t node = p.accepted[r * p.accepted_stride + i]; node < 0 || node >= nodes)
      return fail("accepted[", r, ", ", i, "] = ", node,
                  " must be -1, or at least 0 and below tree_len[", r, "] = ", nodes);
  return kv::check_slots("compact_kv", p.block_table, r, length - nodes, length, p.k_cache,
                         "seq_lens");
}

struct Place {
  int64_t page, slot;
};

// Moves rows of one request through a buffer. from[i] is the old place of the row that moves to to[i].
void move_rows(const Moved& moved, int64_t heads, const std::vector<Place>& from,
               const std::vector<Place>& to, std::vector<std::byte>& buffer) {
  const size_t bytes = static_cast<size_t>(moved.row_bytes);
  buffer.resize(from.size() * bytes);
  for (int64_t h = 0; h < heads; ++h) {
    for (size_t i = 0; i < from.size(); ++i)
      std::memcpy(&buffer[i * bytes], moved.row(from[i].page, from[i].slot, h), bytes);
    for (size_t i = 0; i < to.size(); ++i)
      std::memcpy(moved.row(to[i].page, to[i].slot, h), &buffer[i * bytes], bytes);
  }
}

void compact_request(const Compact& p, const MovedTensors& tensors, int64_t r,
                     std::vector<std::byte>& buffer) {
  std::vector<Place> from, to;
  const int64_t prefix = p.seq_lens[r] - p.tree_len[r], page = p.k_cache.page;
  const auto place = [&](int64_t slot) {
    return Place{p.block_table.row(r)[slot / page], slot % page};
  };
  for (int64_t i = 0; i < accepted_count(p, r); ++i)
    if (const int64_t node = p.accepted[r * p.accepted_stride + i]; node != i) {
      from.push_back(place(prefix + node));
      to.push_back(place(prefix + i));
    }
  for (const Moved& moved : tensors) move_rows(moved, tensors.heads, from, to, buffer);
}

}  // namespace

Status copy(const Copy& params, const Parallel& parallel) {
  if (Status status = check(params); !status.is_ok()) return status;
  const MovedTensors tensors = moved_tensors(params);
  parallel.for_range(params.pairs, 1, [&](int64_t begin, int64_t end) {
    for (const Moved& moved : tensors) {
      const Runs runs = runs_of(moved, tensors.page, tensors.heads);
      for (int64_t i = begin; i < end; ++i)
        copy_page(moved, runs, params.block_mapping[i * params.pair_stride],
                  params.block_mapping[i * params.pair_stride + 1]);
    }
  });
  return Status::ok();
}

Status compact(const Compact& params, const Parallel& parallel) {
  const int64_t requests = params.block_table.requests;
  for (int64_t r = 0; r < requests; ++r)
    if (Status status = check(params, r); !status.is_ok()) return status;
  const MovedTensors tensors = moved_tensors(params);
  parallel.for_range(requests, 1, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> buffer;
    for (int64_t r = begin; r < end; ++r) compact_request(params, tensors, r, buffer);
  });
  return Status::ok();
}

}  // namespace lamina::paged_kv
