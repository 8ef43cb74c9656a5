// cpu, cuda: which kernel computes a product, and how the product is cut; the kernel of paged_attention on a GPU.
#include "base/cpu_features.h"
#include "base/memo.h"
#include "gemm/cpu/plan.h"
#include "gemm/cuda/cost.h"
#include "gemm/cuda/plan.h"
#include "ops/gemm_int4/cuda/run.h"
#include "ops/gemm_int4_int8/cuda/run.h"
#include "ops/gemm_int8/cuda/run.h"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/paged_attention/cuda/run.h"
#include "probe.h"

namespace lamina::probe {
namespace {

using namespace gemm;

// An op as planners see it.
struct Op {
  const char* name;
  Status (*check)(const Problem&);
  const CpuOp& (*cpu)();
  const CudaOp& (*cuda)(const Problem&);
  KRule (*rule)(const Problem&);
};

const std::vector<Op>& ops() {
  static const std::vector<Op> all{
      {"gemm_int8", &gemm_int8::check, &gemm_int8::cpu_op,
       [](const Problem& p) -> const CudaOp& { return gemm_int8::cuda_op(p.is_grouped()); },
       &gemm_int8::k_rule},
      {"gemm_int4", &gemm_int4::check, &gemm_int4::cpu_op,
       [](const Problem&) -> const CudaOp& { return gemm_int4::cuda_op(); }, &gemm_int4::k_rule},
      {"gemm_int4_int8", &gemm_int4_int8::check, &gemm_int4_int8::cpu_op,
       [](const Problem&) -> const CudaOp& { return gemm_int4_int8::cuda_op(); },
       &gemm_int4_int8::k_rule},
      {"matmul_sparse24", &matmul_sparse24::check_float, &matmul_sparse24::float_op,
       [](const Problem&) -> const CudaOp& { return matmul_sparse24::half_cuda_op(); },
       &matmul_sparse24::float_k_rule},
      {"matmul_sparse24_int8", &matmul_sparse24::check_int8, &matmul_sparse24::int8_op,
       [](const Problem&) -> const CudaOp& { return matmul_sparse24::int8_cuda_op(); },
       &matmul_sparse24::int8_k_rule},
      {"matmul_sparse24_int4", &matmul_sparse24::check_int4, &matmul_sparse24::int4_op,
       [](const Problem&) -> const CudaOp& { return matmul_sparse24::int4_cuda_op(); },
       &matmul_sparse24::float_k_rule},
      {"matmul_sparse24_int4_int8", &matmul_sparse24::check_int4_int8,
       &matmul_sparse24::int4_int8_op,
       [](const Problem&) -> const CudaOp& { return matmul_sparse24::int4_int8_cuda_op(); },
       [](const Problem& p) { return matmul_sparse24::int4_int8_k_rule(p, false); }},
  };
  return all;
}

const Op& op_of(const std::string& name) {
  for (const Op& op : ops())
    if (op.name == name) return op;
  throw std::invalid_argument("no product is called " + name);
}

CpuInfo cpu_of(const std::string& isa, int64_t l2_bytes) {
  const std::optional<Isa> found = isa_from_name(isa);
  if (!found) throw std::invalid_argument("no instruction set is called " + isa);
  return {*found, l2_bytes};
}

void add_cpu(py::module_& module) {
  py::module_ cpu = module.def_submodule("cpu");
  py::class_<CpuKernel>(cpu, "Kernel")
      .def_readonly("name", &CpuKernel::name)
      .def_property_readonly("isa", [](const CpuKernel& k) { return isa_name(k.isa); })
      .def_readonly("min_m", &CpuKernel::min_m)
      .def_readonly("needs_bf16", &CpuKernel::needs_bf16)
      .def_readonly("group_step", &CpuKernel::group_step)
      .def_readonly("tile_m", &CpuKernel::tile_m)
      .def_readonly("tile_n", &CpuKernel::tile_n)
      .def_readonly("macs_per_cycle", &CpuKernel::macs_per_cycle)
      .def_readonly("expand_rows", &CpuKernel::expand_rows)
      .def_readonly("scratch_bytes", &CpuKernel::scratch_bytes)
      .def("panel_bytes", [](const CpuKernel& k, const Problem& p) { return k.panel_bytes(p); });
  py::class_<Plan>(cpu, "Plan")
      .def_readonly("kernel", &Plan::kernel)
      .def_readonly("workers", &Plan::workers)
      .def_readonly("grid_m", &Plan::grid_m)
      .def_readonly("grid_n", &Plan::grid_n)
      .def_readonly("block_m", &Plan::block_m)
      .def_readonly("block_n", &Plan::block_n)
      .def_readonly("scratch_bytes", &Plan::scratch_bytes)
      .def_property_readonly("tasks", &Plan::tasks)
      .def(
          "block",
          [](const Plan& plan, int64_t task, const Problem& p) {
            const Block block = plan.block(task, p.m, p.n);
            return std::tuple(block.m_begin, block.m_end, block.n_begin, block.n_end);
          },
          "(first row, end, first column, end) of a task");
  cpu.def("kernels", [](const std::string& op) { return op_of(op).cpu().kernels; });
  const auto def = [&](const char* name, auto planner) {
    cpu.def(
        name,
        [planner](const std::string& op, const Problem& problem, const std::string& isa,
                  int64_t l2_bytes, int threads) {
          return planner(op_of(op).cpu(), problem, cpu_of(isa, l2_bytes), threads);
        },
        py::arg("op"), py::arg("problem"), py::arg("isa"), py::arg("l2_bytes"), py::arg("threads"));
  };
  def("plan", &plan);
  def("known_plan", &known_plan);
}

DeviceInfo device_of(int compute_capability, int sm_count) {
  return typical_device(compute_capability, sm_count);
}

// The kernel that computes paged_attention for one request of `tokens`; "" if none can.
std::string attention_kernel(const DeviceInfo& device, int64_t tokens, int64_t group,
                             int64_t head_dim, bool is_int8, bool batch_invariant) {
  const paged_attention::Sizes sizes{.tokens = tokens,
                                     .heads = group,
                                     .kv_heads = 1,
                                     .head_dim = head_dim,
                                     .v_head_dim = head_dim,
                                     .requests = 1,
                                     .max_seqlen_q = tokens,
                                     .page = 16,
                                     .max_blocks = 8,
                                     .tree_words = 0,
                                     .cache = is_int8 ? kv::CacheDType::kI8 : kv::CacheDType::kBF16,
                                     .batch_invariant = batch_invariant,
                                     .has_tree = false,
                                     .has_depths = false,
                                     .has_biases = false};
  const paged_attention::CudaKernel kernel = paged_attention::plan_cuda(sizes, device, "").kernel;
  return kernel.launch == nullptr ? "" : kernel.name;
}

void add_cuda(py::module_& module) {
  py::module_ cuda = module.def_submodule("cuda");
  py::class_<CudaKernel>(cuda, "Kernel")
      .def_readonly("name", &CudaKernel::name)
      .def_readonly("arch", &CudaKernel::arch)
      .def_readonly("tile_m", &CudaKernel::tile_m)
      .def_readonly("tile_n", &CudaKernel::tile_n)
      .def_readonly("step_k", &CudaKernel::step_k)
      .def_readonly("blocks_per_sm", &CudaKernel::blocks_per_sm)
      .def_readonly("smem_bytes", &CudaKernel::smem_bytes)
      .def_readonly("cluster", &CudaKernel::cluster)
      .def_readonly("a_alignment", &CudaKernel::a_alignment)
      .def_readonly("is_persistent", &CudaKernel::is_persistent)
      .def("runs_on", &CudaKernel::runs_on)
      .def("resident_blocks", &resident_blocks);
  py::class_<KRule>(cuda, "KRule")
      .def_readonly("chunk_k", &KRule::chunk_k)
      .def_readonly("one_each", &KRule::one_each)
      .def_readonly("max_k", &KRule::max_k);
  py::class_<DeviceInfo>(cuda, "Device")
      .def(py::init(&device_of), py::arg("compute_capability"), py::arg("sm_count"))
      .def_readonly("compute_capability", &DeviceInfo::compute_capability)
      .def_readonly("sm_count", &DeviceInfo::sm_count)
      .def_readwrite("smem_per_block", &DeviceInfo::smem_per_block)
      .def_readwrite("l2_bytes", &DeviceInfo::l2_bytes);
  py::class_<CudaPlan>(cuda, "Plan")
      .def_property_readonly("kernel",
                             [](const CudaPlan& p) {
                               return p.kernel.launch ? std::optional(p.kernel) : std::nullopt;
                             })
      .def_property_readonly("splits", [](const CudaPlan& p) { return p.split.count; })
      .def_property_readonly("steps", [](const CudaPlan& p) { return p.split.steps; })
      .def_readonly("partials", &CudaPlan::partials)
      .def_readonly("sms", &CudaPlan::sms)
      .def_readonly("is_capped", &CudaPlan::is_capped)
      .def_readonly("cycles", &CudaPlan::cycles)
      .def_property_readonly("max_blocks", &CudaPlan::max_blocks)
      .def_property_readonly("kernel_blocks", &CudaPlan::kernel_blocks)
      .def("partial_bytes", &CudaPlan::partial_bytes)
      .def("grid", [](const CudaPlan& plan, const Problem& p) {
        const BlockGrid grid = grid_of(plan.kernel, p.m, p.n);
        return std::pair(grid.m, grid.n);
      });
  cuda.def("kernels",
           [](const std::string& op, const Problem& p) { return op_of(op).cuda(p).kernels; });
  cuda.def("max_splits",
           [](const std::string& op, const Problem& p) { return op_of(op).cuda(p).max_splits; });
  cuda.def("k_rule", [](const std::string& op, const Problem& p) { return op_of(op).rule(p); });
  cuda.def("check", [](const std::string& op, const Problem& p, const DeviceInfo& device) {
    raise_if_bad(check_cuda(op_of(op).name, p, device));
  });
  const auto def = [&](const char* name, auto planner) {
    cuda.def(
        name,
        [planner](const std::string& op, const Problem& p, const DeviceInfo& device, int max_sms,
                  int a_alignment, const std::string& only) {
          const Op& found = op_of(op);
          return planner(found.cuda(p), p, found.rule(p), device, {a_alignment, max_sms, only});
        },
        py::arg("op"), py::arg("problem"), py::arg("device"), py::arg("max_sms") = INT_MAX,
        py::arg("a_alignment") = 16, py::arg("only") = "");
  };
  def("plan", &plan_cuda);
  def("known_plan", &known_plan_cuda);
  cuda.def("attention_kernel", &attention_kernel, py::arg("device"), py::arg("tokens"),
           py::arg("group"), py::arg("head_dim") = 128, py::arg("is_int8") = false,
           py::arg("batch_invariant") = false);
}

}  // namespace

void add_plans(py::module_& module) {
  py::class_<Problem>(module, "Problem")
      .def(py::init([](int64_t m, int64_t n, int64_t k, int64_t group, bool is_bf16) {
             return Problem{m, n, k, group, is_bf16};
           }),
           py::arg("m"), py::arg("n"), py::arg("k"), py::arg("group") = 0,
           py::arg("is_bf16") = false)
      .def_readonly("m", &Problem::m)
      .def_readonly("n", &Problem::n)
      .def_readonly("k", &Problem::k)
      .def_readonly("group", &Problem::group);
  py::list names;
  for (const Op& op : ops()) names.append(op.name);
  module.attr("ops") = py::tuple(names);
  module.def(
      "check", [](const std::string& op, const Problem& p) { raise_if_bad(op_of(op).check(p)); },
      "ValueError where no kernel of the op computes the problem");
  module.def(
      "plans_made", [] { return host_work().plans.load(); },
      "plans that known_plan did not find again, of all threads");
  add_cpu(module);
  add_cuda(module);
}

}  // namespace lamina::probe
