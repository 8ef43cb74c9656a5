#include "device/emu/executor.h"

#include <algorithm>
#include <bit>
#include <random>
#include <span>
#include <utility>

#include "device/emu/access_log.h"
#include "device/emu/block.h"
#include "device/emu/gmem_log.h"
#include "device/emu/wgmma.h"
#include "device/launch_shape.h"

namespace lamina::dev::emu {
namespace {

// Unwinds a fiber whose launch has failed.
struct Cancelled {};

thread_local Options current_options;
DeviceInfo current_device;  // of every thread: torch's threads call ops too
thread_local Report totals;
thread_local AccessLog access_log;
thread_local GmemLog previous_log;  // of earlier launches, back to the last without overlap

// One launch. Its host thread runs either the scheduler or one of the fibers.
class Machine {
 public:
  Machine(const char* kernel, const LaunchShape& shape, int threads, Body body,
          const void* arguments)
      : kernel_(kernel),
        shape_(shape),
        threads_(threads),
        body_(body),
        arguments_(arguments),
        random_(current_options.seed) {}

  static Machine*& current() {
    static thread_local Machine* machine = nullptr;
    return machine;
  }

  Status run() {
    const int64_t blocks = int64_t{1} * shape_.grid.x * shape_.grid.y * shape_.grid.z;
    // The first blocks of all clusters, in reverse order of their start. CUDA promises no order.
    std::vector<int64_t> waiting(static_cast<size_t>(blocks / shape_.cluster));
    for (size_t i = 0; i < waiting.size(); ++i)
      waiting[i] = blocks - static_cast<int64_t>(i + 1) * shape_.cluster;
    if (current_options.seed % 2) std::shuffle(waiting.begin(), waiting.end(), random_);
    Machine* const outer = std::exchange(current(), this);
    if (GmemLog before = std::exchange(previous_log, {}); shape_.overlaps_previous)
      gmem_log = GmemLog::after(std::move(before));
    while (error_.empty() && (!waiting.empty() || !resident_.empty())) {
      while (!waiting.empty() &&
             static_cast<int>(resident_.size()) < std::max(1, current_options.resident_blocks)) {
        start_cluster(waiting.back());
        waiting.pop_back();
      }
      if (Warp* warp = choose_warp()) {
        run_warp(*warp);
        std::erase_if(resident_,
                      [&](const std::unique_ptr<Block>& block) { return block->live == 0; });
      }
    }
    if (shape_.overlaps_previous && !has_waited_for_previous_)
      fail_launch("overlaps_previous, but no thread calls wait_for_previous");
    cancel();
    current() = outer;
    totals.launches += 1;
    totals.most_blocks = std::max(totals.most_blocks, blocks);
    totals.blocks += blocks - static_cast<int64_t>(waiting.size()) * shape_.cluster;
    access_log.end_launch();
    previous_log = std::exchange(gmem_log, {});
    return error_.empty() ? Status::ok() : Status::error(error_);
  }

  GmemLog gmem_log;

  Fiber& self() { return *self_; }
  Index3 grid() const { return shape_.grid; }
  void note_wait_for_previous() {
    has_waited_for_previous_ = true;
    self_->clock.acquire(GmemLog::everything_before());
  }

  [[noreturn]] void fail(const std::string& what, Where where) {
    if (error_.empty())
      error_ = std::string(kernel_) + ": block " + text(self_->block->index) + " thread " +
               std::to_string(self_->thread) + ": " + place(what, where);
    throw Cancelled{};
  }
  void fail_launch(const std::string& what) {
    if (error_.empty()) error_ = std::string(kernel_) + ": " + what;
  }

  // Switches to the scheduler until another fiber makes this one ready again.
  void wait(Fiber::State state, const char* name, Where where) {
    Fiber& fiber = *self_;
    fiber.state = state;
    fiber.waits_in = name;
    fiber.where = where;
    fiber.warp->ready &= ~fiber.bit();
    if (state == Fiber::State::kPolling) fiber.warp->polling |= fiber.bit();
    switch_to(fiber.context, scheduler_);
    if (!error_.empty()) throw Cancelled{};
  }

  void check_is_getting_on(const char* name, Where where) {
    if (++accesses_ > kManyAccesses)
      fail(std::string(name) + ": waits for memory without load_acquire", where);
  }
  void note_progress() { idle_polls_ = 0; }

  // On some seeds, sometimes lets another warp run before this thread goes on.
  void let_others_interfere() {
    if (current_options.seed % 4 < 2 || random_() % 16 != 0) return;
    is_interrupted_ = true;
    switch_to(self_->context, scheduler_);
    if (!error_.empty()) throw Cancelled{};
  }

  const char* space_of(const void* at, int bytes) const {
    for (const std::unique_ptr<Block>& block : resident_)
      if (block->offset_of(at, bytes) >= 0) return "shared memory";
    return self_->context.owns(at) ? "the thread's own memory" : nullptr;
  }

  // "thread 5 of block (1, 0, 0)". thread: the index among all threads of the cluster.
  std::string thread_text(int64_t cluster, int thread) const {
    if (cluster == GmemLog::kBefore) return "a launch before";
    return "thread " + std::to_string(thread % threads_) + " of block " +
           text(index_of(cluster + thread / threads_));
  }

  static void wake(Fiber& fiber) {
    fiber.state = Fiber::State::kReady;
    fiber.warp->ready |= fiber.bit();
    fiber.warp->polling &= ~fiber.bit();
  }

 private:
  Index3 index_of(int64_t block) const {
    return {static_cast<int>(block % shape_.grid.x),
            static_cast<int>(block / shape_.grid.x % shape_.grid.y),
            static_cast<int>(block / shape_.grid.x / shape_.grid.y)};
  }

  void start_cluster(int64_t number) {
    const auto cluster = std::make_shared<Cluster>();
    cluster->number = number;
    cluster->threads = threads_;
    cluster->actors = shape_.cluster * threads_;
    for (int rank = 0; rank < shape_.cluster; ++rank) start_block(cluster, rank);
  }

  void start_block(const std::shared_ptr<Cluster>& cluster, int rank) {
    auto block = std::make_unique<Block>();
    block->index = index_of(cluster->number + rank);
    block->cluster = cluster;
    block->rank = rank;
    cluster->blocks.push_back(block.get());
    block->smem = allocate_smem(shape_.smem_bytes, poison());
    block->smem_bytes = shape_.smem_bytes;
    block->log = SmemLog(shape_.smem_bytes);
    block->fibers = std::vector<Fiber>(static_cast<size_t>(threads_));
    block->warps = std::vector<Warp>(static_cast<size_t>((threads_ + kWarpLanes - 1) / kWarpLanes));
    block->live = threads_;
    for (int thread = 0; thread < threads_; ++thread) {
      Fiber& fiber = block->fibers[static_cast<size_t>(thread)];
      fiber.thread = thread;
      fiber.block = block.get();
      fiber.clock.actor = rank * threads_ + thread;
      fiber.clock.cluster = cluster->number;
      fiber.warp = &block->warps[static_cast<size_t>(thread / kWarpLanes)];
      fiber.warp->block = block.get();
      fiber.warp->first_thread = thread / kWarpLanes * kWarpLanes;
      fiber.warp->all |= fiber.bit();
      fiber.warp->live |= fiber.bit();
      fiber.warp->ready |= fiber.bit();
      fiber.context.start(&Machine::enter);
    }
    resident_.push_back(std::move(block));
  }

  static void enter() {
    Machine& machine = *current();
    try {
      machine.body_(machine.arguments_);
      end_thread();
      if (std::has_single_bit(machine.self_->warp->live))
        check_no_wgmma_in_flight(*machine.self_->warp);
    } catch (const Cancelled&) {
    }
    Fiber& fiber = *machine.self_;
    fiber.state = Fiber::State::kDone;
    fiber.warp->ready &= ~fiber.bit();
    fiber.warp->live &= ~fiber.bit();
    if (fiber.warp->live == 0) access_log.end_warp(fiber.warp);
    if (--fiber.block->live == 0)
      fiber.block->cluster->blocks[static_cast<size_t>(fiber.block->rank)] = nullptr;
    leave_for(fiber.context, machine.scheduler_);
  }

  // Picks at random a warp that can go on, else a warp that polls, else reports a deadlock. Returns nullptr after a
  // deadlock, and also when a copy was delivered instead.
  Warp* choose_warp() {
    std::vector<Warp*> able, polling;
    for (const std::unique_ptr<Block>& block : resident_)
      for (Warp& warp : block->warps) {
        if (warp.ready) able.push_back(&warp);
        if (warp.polling) polling.push_back(&warp);
      }
    // Bulk copies arrive one by one: some early, some only when no warp can go on.
    if (const std::vector<DueLoad> due = due_loads(resident_);
        !due.empty() && (able.empty() || random_() % 8 == 0)) {
      deliver(due[random_() % due.size()]);
      idle_polls_ = 0;
      return nullptr;
    }
    // Polling warps run rarely, so that the value they wait for has a chance to change late.
    const bool poll = !polling.empty() && (able.empty() || random_() % 8 == 0);
    const bool is_stuck = able.empty() && idle_polls_ > kPatience;
    if ((able.empty() && polling.empty()) || is_stuck) {
      fail_launch("deadlock, seed " + std::to_string(current_options.seed) + ", " +
                  std::to_string(current_options.resident_blocks) +
                  " resident blocks:" + describe_waiting(resident_));
      return nullptr;
    }
    std::vector<Warp*>& from = poll ? polling : able;
    Warp* const warp = from[random_() % from.size()];
    if (poll) {
      idle_polls_ = able.empty() ? idle_polls_ + 1 : 0;
      for (Fiber& fiber : warp_fibers(*warp))
        if (fiber.state == Fiber::State::kPolling) wake(fiber);
    } else {
      idle_polls_ = 0;
    }
    return warp;
  }

  static std::span<Fiber> warp_fibers(Warp& warp) {
    std::vector<Fiber>& all = warp.block->fibers;
    const size_t first = static_cast<size_t>(warp.first_thread);
    return std::span(all).subspan(first, std::min<size_t>(kWarpLanes, all.size() - first));
  }

  // Runs a warp as far as it gets without other warps.
  void run_warp(Warp& warp) {
    const std::span<Fiber> fibers = warp_fibers(warp);
    while (warp.ready && error_.empty()) {
      const int turn = static_cast<int>(random_() % kWarpLanes);
      const int lane = (std::countr_zero(std::rotr(warp.ready, turn)) + turn) % kWarpLanes;
      self_ = &fibers[static_cast<size_t>(lane)];
      ++totals.switches;
      accesses_ = 0;
      switch_to(scheduler_, self_->context);
      if (std::exchange(is_interrupted_, false)) return;
    }
  }

  // Lets the unfinished fibers unwind.
  void cancel() {
    for (const std::unique_ptr<Block>& block : resident_)
      for (Fiber& fiber : block->fibers)
        if (fiber.state != Fiber::State::kDone && fiber.context.has_started()) {
          self_ = &fiber;
          switch_to(scheduler_, fiber.context);
        }
    resident_.clear();
  }

  static constexpr int kPatience = 10000;
  static constexpr int kManyAccesses = 1 << 24;

  const char* kernel_;
  LaunchShape shape_;
  int threads_;
  Body body_;
  const void* arguments_;
  std::mt19937_64 random_;
  Context scheduler_;
  Fiber* self_ = nullptr;
  std::vector<std::unique_ptr<Block>> resident_;
  int idle_polls_ = 0;
  int accesses_ = 0;  // accesses since the last switch
  bool is_interrupted_ = false;
  bool has_waited_for_previous_ = false;
  std::string error_;
};

Machine& machine() { return *Machine::current(); }

}  // namespace

Options& options() { return current_options; }
DeviceInfo& device() { return current_device; }

Report report() {
  Report result = totals;
  result.sites = access_log.sites();
  return result;
}

void reset_report() {
  totals = {};
  access_log = {};
  previous_log = {};
}

Fiber& self() { return machine().self(); }
int thread_of(const Fiber& fiber) { return fiber.thread; }
Index3 block_index_of(const Fiber& fiber) { return fiber.block->index; }
Index3 grid_of(const Fiber&) { return machine().grid(); }
std::byte* smem_of(const Fiber& fiber) { return fiber.block->smem.get(); }
int smem_offset(const void* smem) {
  return static_cast<int>(reinterpret_cast<intptr_t>(smem) -
                          reinterpret_cast<intptr_t>(smem_of(self())));
}

void fail(const std::string& what, Where where) { machine().fail(what, where); }
void fail_launch(const std::string& what) { machine().fail_launch(what); }
void suspend(const char* name, Where where) { machine().wait(Fiber::State::kWaiting, name, where); }
void wake(Fiber& fiber) { Machine::wake(fiber); }
int poison() { return current_options.seed % 2 ? 0x7f : 0xff; }

void poll(const char* name, Where where) { machine().wait(Fiber::State::kPolling, name, where); }
void note_progress() { machine().note_progress(); }
void let_others_interfere() { machine().let_others_interfere(); }
bool reads_sources_early() { return current_options.seed % 3 == 1; }

GmemLog& gmem_log() { return machine().gmem_log; }
const char* space_of(const void* at, int bytes) { return machine().space_of(at, bytes); }
std::string thread_text(int64_t cluster, int thread) {
  return machine().thread_text(cluster, thread);
}

void check_access(const void* at, int bytes, const char* name, Where where) {
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes) != 0)
    fail(std::string(name) + ": address not a multiple of " + std::to_string(bytes), where);
  machine().check_is_getting_on(name, where);
}

void note_shared_access(const void* at, int bytes, const char* name, Where where) {
  if (!current_options.count_accesses) return;
  const Fiber& fiber = self();
  access_log.note(fiber.warp, fiber.thread % kWarpLanes, at, bytes, name, where);
}

void note_shared_rows(const void* const* rows, int count, int bytes, const char* name,
                      Where where) {
  if (current_options.count_accesses) access_log.note_rows(rows, count, bytes, name, where);
}

void note_wait_for_previous() { machine().note_wait_for_previous(); }

Status run_grid(const char* kernel, const LaunchShape& shape, int threads, Body body,
                const void* arguments) {
  if (Status status = check_shape(kernel, shape, threads); !status.is_ok()) return status;
  if (!current_options.runs_kernels) return Status::ok();
  return Machine(kernel, shape, threads, body, arguments).run();
}

}  // namespace lamina::dev::emu
