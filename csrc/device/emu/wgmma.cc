#include "device/emu/wgmma.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "device/emu/block.h"
#include "device/emu/wgmma_operand.h"
#include "device/emu/wgmma_registers.h"
#include "layout/fragment.h"

namespace lamina::dev::emu {
namespace {

// One wgmma of a warpgroup. It is over when all four warps have issued it and one warp has waited for it. From then
// on its operands in shared memory may be overwritten, even if the other warps have not waited yet.
struct Product {
  Product(const Wgmma& that, const char* its_name, Where its_where)
      : what(that), name(its_name), where(its_where) {}

  Wgmma what;
  const char* name;
  Where where;
  SmemTile smem_b;
  std::array<SmemTile, kWarpgroupWarps> smem_a;  // rows of each warp; empty for a register operand
  Dense b;
  uint32_t number = 0;           // counts the warpgroup's wgmmas from 1; the time of its reads
  int issued = 0;                // warps that have issued it
  std::vector<Access> writes_b;  // the writes of the words of b
  bool is_over = false;

  std::string text() const { return place(name, where); }
};

// The sums of one accumulator while any wgmma on it is in flight.
struct Accumulator {
  std::array<std::byte*, kWarpLanes> d;  // n / 2 registers of each lane
  int n;
  bool is_float;
  std::vector<uint32_t> sums;  // [16][n]
  int in_flight = 0;

  size_t bytes() const { return static_cast<size_t>(n / 2) * 4; }
  FencedRegisters::Lanes registers() const {
    FencedRegisters::Lanes at;
    std::copy(d.begin(), d.end(), at.begin());
    return at;
  }
};

// The work of one warp at the end of a wgmma.
struct Pending {
  std::shared_ptr<Product> product;
  std::shared_ptr<Accumulator> accumulator;
  FencedRegisters::Lanes frag_a;  // nullptr if A is in shared memory
  FragmentA values_a;
  FencedRegisters::Lanes metadata;  // nullptr if A is dense
  std::array<uint32_t, kWarpLanes> values_metadata;
};

struct Warpgroup {
  int actor;                                            // the actor that reads operands
  std::map<int64_t, std::shared_ptr<Product>> partial;  // by number, not yet issued by all warps
};

}  // namespace

struct WgmmaState {
  Warp* warp = nullptr;
  std::shared_ptr<Warpgroup> warpgroup;
  int warp_in_group = 0;
  int64_t issued = 0;
  bool is_fenced = false;  // fenced since the start or the last wait
  FencedRegisters registers;
  std::vector<std::shared_ptr<Accumulator>> accumulators;
  std::vector<Pending> open;
  std::deque<std::vector<Pending>> groups;

  void issue(const Wgmma& what, const Lanes& d, const Lanes& frag_a, const Lanes& metadata,
             const char* name, Where where);
  bool may_finish(int pending) const;
  void finish(int pending, Where where);

 private:
  std::shared_ptr<Product> join(const Wgmma& what, const char* name, Where where);
  void note_reads(const SmemTile& tile, const Product& product, std::vector<Access>& writes,
                  const char* what, Where where);
  FragmentA read_frag_a(const Pending& next, Where where);
  std::shared_ptr<Accumulator> accumulator_at(const Lanes& d, const Wgmma& what, Where where);
  void finish(const Pending& pending, Where where);
};

namespace {

WgmmaState& state_of(Warp& warp) {
  if (!warp.wgmma) {
    warp.wgmma = std::make_shared<WgmmaState>();
    const int number = warp.first_thread / kWarpLanes;
    warp.wgmma->warp = &warp;
    warp.wgmma->warp_in_group = number % kWarpgroupWarps;
    Warp& first = warp.block->warps[static_cast<size_t>(number - number % kWarpgroupWarps)];
    warp.wgmma->warpgroup =
        &first == &warp ? std::make_shared<Warpgroup>(Warpgroup{warp.block->cluster->actors++, {}})
                        : state_of(first).warpgroup;
  }
  return *warp.wgmma;
}

void require_warpgroup(const Warp& warp, const char* name, Where where) {
  constexpr int kThreads = kWarpgroupWarps * kWarpLanes;
  const int end = (warp.first_thread / kThreads + 1) * kThreads;
  const int all = static_cast<int>(warp.block->fibers.size());
  if (end > all)
    fail(std::string(name) + ": the block has " + std::to_string(all) +
             " threads, this warpgroup would end at " + std::to_string(end),
         where);
}

// Calls f(word of a lane's d, its place in sums) for all lanes.
template <class F>
void each_sum(const Accumulator& accumulator, const F& f) {
  for (int lane = 0; lane < kWarpLanes; ++lane)
    for (int i = 0; i < accumulator.n / 2; ++i) {
      const fragment::At at = fragment::wgmma_d(lane, i);
      f(accumulator.d[static_cast<size_t>(lane)] + 4 * i, at.row * accumulator.n + at.column);
    }
}

// One clock for each set of lanes with the same knowledge. With it, note_reads finds a lane that wrote an operand
// without telling the others.
std::vector<Clock> viewers_of(Warp& warp) {
  std::vector<Clock> viewers;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const Clock& clock = warp.lane(lane).clock;
    const auto same = std::find_if(viewers.begin(), viewers.end(), [&](const Clock& other) {
      return other.view.here == clock.view.here;
    });
    if (same == viewers.end())
      viewers.push_back(clock);
    else
      same->actor = -1;
  }
  return viewers;
}

}  // namespace

// The first warp that issues a product defines it and reads B for all warps.
std::shared_ptr<Product> WgmmaState::join(const Wgmma& what, const char* name, Where where) {
  std::shared_ptr<Product>& product = warpgroup->partial[issued];
  if (!product) {
    product = std::make_shared<Product>(what, name, where);
    product->number = static_cast<uint32_t>(issued + 1);
    const int run_bytes = what.is_sparse ? 2 * kRunBytes : kRunBytes;
    product->smem_b = SmemTile(what.b, what.b_is_n_major, run_bytes, 0, what.n, "wgmma: b", where);
    product->b =
        dense_b(product->smem_b.bytes(), what.b_is_n_major, run_bytes, what.b_element, what.n);
  } else if (product->what != what || std::strcmp(product->name, name) != 0 ||
             product->where.line() != where.line()) {
    fail("the warpgroup diverged: wgmma " + std::to_string(issued) + " of another warp is " +
             product->text() + ", of this one " + place(name, where) +
             (product->where.line() == where.line() ? " with other operands" : ""),
         where);
  }
  note_reads(product->smem_b, *product, product->writes_b, "wgmma: b", where);
  std::shared_ptr<Product> joined = product;
  if (++joined->issued == kWarpgroupWarps) warpgroup->partial.erase(issued);
  ++issued;
  return joined;
}

// Notes the reads of an operand. They last until the product is over, and a thread that has waited for the product
// knows that. All lanes must know the writes to the operand; the first warp collects them in `writes`.
void WgmmaState::note_reads(const SmemTile& tile, const Product& product,
                            std::vector<Access>& writes, const char* what, Where where) {
  Block& block = *warp->block;
  const Access by =
      Access::by(warp->lane(0).clock, warpgroup->actor, product.number, product.where);
  const std::vector<Clock> viewers = viewers_of(*warp);
  if (writes.empty())
    tile.each_chunk([&](const std::byte* at, int bytes) {
      const int offset = block.offset_of(at, bytes);
      read_block(block, viewers[0], by, offset, bytes, what, where);
      block.log.for_writes(offset, bytes, [&](const Access& write) {
        if (writes.empty() || write.actor != writes.back().actor ||
            write.time != writes.back().time)
          writes.push_back(write);
      });
    });
  for (const Clock& viewer : viewers)
    for (const Access& write : writes) know_write(block, viewer, write, what, where);
}

FragmentA WgmmaState::read_frag_a(const Pending& next, Where where) {
  FragmentA values;
  for (size_t lane = 0; lane < kWarpLanes; ++lane)
    std::memcpy(&values[lane], next.frag_a[lane], sizeof values[lane]);
  if (registers.have_changed(next.frag_a, sizeof values[0]))
    fail("wgmma: the registers of a changed, and no wgmma_fence since", where);
  registers.note(next.frag_a, sizeof values[0]);
  return values;
}

// The accumulator of the wgmma in flight that this wgmma continues, or a new accumulator with the values of d.
std::shared_ptr<Accumulator> WgmmaState::accumulator_at(const Lanes& d, const Wgmma& what,
                                                        Where where) {
  auto mine = std::make_shared<Accumulator>();
  for (size_t lane = 0; lane < kWarpLanes; ++lane) mine->d[lane] = static_cast<std::byte*>(d[lane]);
  mine->n = what.n;
  mine->is_float = !is_integer(what.a_element);
  for (const std::shared_ptr<Accumulator>& other : accumulators) {
    if (mine->d[0] >= other->d[0] + other->bytes() || other->d[0] >= mine->d[0] + mine->bytes())
      continue;
    if (mine->d != other->d || mine->n != other->n || mine->is_float != other->is_float)
      fail("wgmma: a wgmma of another shape is in flight on these accumulators", where);
    return other;
  }
  if (registers.have_changed(mine->registers(), mine->bytes()))
    fail("wgmma: the accumulators changed, and no wgmma_fence since", where);
  mine->sums.resize(static_cast<size_t>(kWarpRows * what.n));
  each_sum(*mine, [&](const std::byte* word, int at) {
    std::memcpy(&mine->sums[static_cast<size_t>(at)], word, 4);
  });
  for (std::byte* words : mine->d) std::memset(words, poison(), mine->bytes());
  accumulators.push_back(mine);
  return mine;
}

void WgmmaState::issue(const Wgmma& what, const Lanes& d, const Lanes& frag_a,
                       const Lanes& metadata, const char* name, Where where) {
  if (!is_fenced)
    fail(std::string(name) + ": no wgmma_fence since the warp started or last waited", where);
  Pending next{join(what, name, where), nullptr, {}, {}, {}, {}};
  Dense a;
  if (what.a_in_registers) {
    for (size_t lane = 0; lane < kWarpLanes; ++lane)
      next.frag_a[lane] = static_cast<const std::byte*>(frag_a[lane]);
    next.values_a = read_frag_a(next, where);
    a = dense_a(rows_of(next.values_a, is_integer(what.a_element)).data(), false, what.a_element);
  } else {
    SmemTile& rows = next.product->smem_a[static_cast<size_t>(warp_in_group)];
    rows = SmemTile(what.a, what.a_is_m_major, kRunBytes, warp_in_group * kWarpRows, kWarpRows,
                    "wgmma: a", where);
    std::vector<Access> writes_a;
    note_reads(rows, *next.product, writes_a, "wgmma: a", where);
    a = dense_a(rows.bytes(), what.a_is_m_major, what.a_element);
  }
  next.accumulator = accumulator_at(d, what, where);
  std::vector<uint32_t>& sums = next.accumulator->sums;
  if (!what.accumulate) std::fill(sums.begin(), sums.end(), 0u);
  if (what.is_sparse) {
    for (size_t lane = 0; lane < kWarpLanes; ++lane) {
      next.metadata[lane] = static_cast<const std::byte*>(metadata[lane]);
      std::memcpy(&next.values_metadata[lane], metadata[lane], 4);
    }
    const KeptColumns columns = kept_columns(next.values_metadata, what.selector, name, where);
    multiply_add(a, &columns, next.product->b, what.n, sums.data());
  } else {
    multiply_add(a, nullptr, next.product->b, what.n, sums.data());
  }
  ++next.accumulator->in_flight;
  note_progress();
  open.push_back(std::move(next));
}

bool WgmmaState::may_finish(int pending) const {
  for (size_t i = 0; i + static_cast<size_t>(pending) < groups.size(); ++i)
    for (const Pending& each : groups[i])
      if (each.product->issued < kWarpgroupWarps) return false;
  return true;
}

void WgmmaState::finish(const Pending& pending, Where where) {
  Product& product = *pending.product;
  const auto changed = [&](const char* what) {
    fail(std::string(what) + " changed while " + product.text() +
             " was in flight, found in wgmma_wait",
         where);
  };
  if (!product.is_over) {
    if (!product.smem_b.is_unchanged()) changed("b in shared memory");
    for (const SmemTile& rows : product.smem_a)
      if (!rows.is_unchanged()) changed("a in shared memory");
    product.is_over = true;
    product.b = {};
  }
  for (size_t lane = 0; lane < kWarpLanes && product.what.a_in_registers; ++lane)
    if (std::memcmp(&pending.values_a[lane], pending.frag_a[lane], 16) != 0)
      changed("a in registers");
  for (size_t lane = 0; lane < kWarpLanes && product.what.is_sparse; ++lane)
    if (std::memcmp(&pending.values_metadata[lane], pending.metadata[lane], 4) != 0)
      changed("metadata");
  Accumulator& accumulator = *pending.accumulator;
  const auto filled = static_cast<std::byte>(poison());
  for (const std::byte* words : accumulator.d)
    if (words[0] != filled || std::memcmp(words, words + 1, accumulator.bytes() - 1) != 0)
      changed("an accumulator");
  if (--accumulator.in_flight > 0) return;
  each_sum(accumulator, [&](std::byte* word, int at) {
    std::memcpy(word, &accumulator.sums[static_cast<size_t>(at)], 4);
  });
  registers.note(accumulator.registers(), accumulator.bytes());
  std::erase(accumulators, pending.accumulator);
}

void WgmmaState::finish(int pending, Where where) {
  uint32_t last = 0;
  for (; groups.size() > static_cast<size_t>(pending); groups.pop_front())
    for (const Pending& each : groups.front()) {
      finish(each, where);
      last = each.product->number;
    }
  View over;
  if (last > 0) over.learn(warpgroup->actor, last);
  for (int lane = 0; lane < kWarpLanes; ++lane) warp->lane(lane).clock.view.join(over);
  is_fenced = false;
}

void wgmma(const Wgmma& mine, void* d, const uint32_t* frag_a, const uint32_t* metadata,
           const char* name, Where where) {
  struct Arguments {
    const Wgmma& what;
    void* d;
    const uint32_t* frag_a;
    const uint32_t* metadata;
  } arguments{mine, d, frag_a, metadata};
  Warp& warp = *self().warp;
  require_warpgroup(warp, name, where);
  meet(kFullWarp, name, where, &arguments, [&](const Lanes& lanes) {
    Lanes all_d, all_a, all_metadata;
    for (size_t lane = 0; lane < kWarpLanes; ++lane) {
      const Arguments& from = *static_cast<const Arguments*>(lanes[lane]);
      if (from.what != mine)
        fail(std::string(name) + ": lanes differ in descriptors or in accumulate", where);
      all_d[lane] = from.d;
      all_a[lane] = const_cast<uint32_t*>(from.frag_a);
      all_metadata[lane] = const_cast<uint32_t*>(from.metadata);
    }
    state_of(warp).issue(mine, all_d, all_a, all_metadata, name, where);
  });
}

void wgmma_fence(Where where) {
  Warp& warp = *self().warp;
  meet(kFullWarp, "wgmma_fence", where, nullptr, [&](const Lanes&) {
    WgmmaState& state = state_of(warp);
    state.is_fenced = true;
    state.registers.fence();
  });
}

void wgmma_commit(Where where) {
  Warp& warp = *self().warp;
  meet(kFullWarp, "wgmma_commit", where, nullptr, [&](const Lanes&) {
    WgmmaState& state = state_of(warp);
    state.groups.push_back(std::exchange(state.open, {}));
  });
}

// Waits first until all warps of the warpgroup have issued the products.
void wgmma_wait(int pending, Where where) {
  Warp& warp = *self().warp;
  while (!state_of(warp).may_finish(pending)) poll("wgmma_wait", where);
  meet(kFullWarp, "wgmma_wait", where, nullptr,
       [&](const Lanes&) { state_of(warp).finish(pending, where); });
}

void check_no_wgmma_in_flight(const Warp& warp) {
  if (!warp.wgmma) return;
  const WgmmaState& state = *warp.wgmma;
  if (!state.open.empty())
    fail("the warp ends with a wgmma that it did not commit: " + state.open.front().product->text(),
         state.open.front().product->where);
  for (const std::vector<Pending>& group : state.groups)
    if (!group.empty())
      fail("the warp ends with a wgmma in flight: " + group.front().product->text(),
           group.front().product->where);
}

}  // namespace lamina::dev::emu
