// LD_PRELOAD library: hides instruction sets from every library of a process that asks with CPUID,
// so that peers which dispatch on CPUID alone (onnxruntime, oneDNN, MKL) run the code they would
// run on a smaller machine.
//
//   LAMINA_BENCH_ISA_MASK=avx2 | avx_vnni | avx512_vnni     the highest set left visible
//
// Requires   Linux, x86-64, CPUID faulting (cpuid_fault in /proc/cpuinfo)
// How        CPUID raises SIGSEGV; the handler executes it once with faulting off, clears the bits
//            above the level and steps over it. The faulting state is per thread and clone() copies
//            it; execve() drops it, and the environment brings this library back.
// Not hidden XGETBV, what glibc's loader asked before this library ran (GLIBC_TUNABLES covers that)
//            and the instructions themselves. A thread that blocks SIGSEGV dies at its first CPUID.
#define _GNU_SOURCE
#include <asm/unistd.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { kArchSetCpuid = 0x1012, kLevelAvx2 = 0, kLevelAvxVnni = 1, kLevelAvx512Vnni = 2 };
enum Reg { kEax, kEbx, kEcx, kEdx };

// Bits of one CPUID word that are cleared when the level is `hidden_to` or lower.
struct Mask {
  uint32_t leaf, subleaf;
  enum Reg reg;
  int hidden_to;
  uint32_t bits;
};

#define BIT(i) (UINT32_C(1) << (i))
// Intel SDM volume 2A, CPUID.
static const struct Mask kMasks[] = {
    // AVX512F DQ IFMA PF
    {7, 0, kEbx, kLevelAvxVnni, BIT(16) | BIT(17) | BIT(21) | BIT(26)},
    // AVX512ER CD BW VL
    {7, 0, kEbx, kLevelAvxVnni, BIT(27) | BIT(28) | BIT(30) | BIT(31)},
    // AVX512_VBMI VBMI2 VNNI BITALG VPOPCNTDQ
    {7, 0, kEcx, kLevelAvxVnni, BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)},
    // AVX512_4VNNIW 4FMAPS VP2INTERSECT FP16
    {7, 0, kEdx, kLevelAvxVnni, BIT(2) | BIT(3) | BIT(8) | BIT(23)},
    // AVX512_BF16
    {7, 1, kEax, kLevelAvxVnni, BIT(5)},
    // AVX-VNNI, AVX-IFMA
    {7, 1, kEax, kLevelAvx2, BIT(4) | BIT(23)},
    // AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, AVX10
    {7, 1, kEdx, kLevelAvx512Vnni, BIT(4) | BIT(5) | BIT(10) | BIT(19)},
    // AMX-BF16 TILE INT8
    {7, 0, kEdx, kLevelAvx512Vnni, BIT(22) | BIT(24) | BIT(25)},
    // AMX-FP16; AMX-COMPLEX
    {7, 1, kEax, kLevelAvx512Vnni, BIT(21)},
    {7, 1, kEdx, kLevelAvx512Vnni, BIT(8)},
    // XCR0: tile configuration and data; opmask and upper ZMM
    {0xD, 0, kEax, kLevelAvx512Vnni, BIT(17) | BIT(18)},
    {0xD, 0, kEax, kLevelAvxVnni, BIT(5) | BIT(6) | BIT(7)},
};

static int g_level = -1;
static struct sigaction g_next;  // the handler that the program asked for
static int (*g_sigaction)(int, const struct sigaction*, struct sigaction*);

static void set_faulting(int on) { syscall(__NR_arch_prctl, kArchSetCpuid, (unsigned long)!on); }

static void masked_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t reg[4]) {
  set_faulting(0);
  __cpuid_count(leaf, subleaf, reg[kEax], reg[kEbx], reg[kEcx], reg[kEdx]);
  set_faulting(1);
  for (size_t i = 0; i < sizeof kMasks / sizeof kMasks[0]; ++i) {
    const struct Mask* mask = &kMasks[i];
    const int is_word = mask->leaf == leaf && mask->subleaf == subleaf;
    if (is_word && g_level <= mask->hidden_to) reg[mask->reg] &= ~mask->bits;
  }
  const int is_amx = leaf == 0x1D || leaf == 0x1E, is_avx10 = leaf == 0x24;
  if (is_amx || is_avx10) memset(reg, 0, 4 * sizeof reg[0]);
}

static void pass_on(int signal, siginfo_t* info, void* context) {
  if (g_next.sa_flags & SA_SIGINFO) {
    g_next.sa_sigaction(signal, info, context);
  } else if (g_next.sa_handler != SIG_DFL && g_next.sa_handler != SIG_IGN) {
    g_next.sa_handler(signal);
  } else {  // returning repeats the fault under the default action
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    g_sigaction(SIGSEGV, &fatal, NULL);
  }
}

static void on_segv(int signal, siginfo_t* info, void* context) {
  greg_t* regs = ((ucontext_t*)context)->uc_mcontext.gregs;
  // A faulting CPUID is a general protection fault: SI_KERNEL, and the program counter is readable
  // code.
  if (info->si_code != SI_KERNEL || memcmp((const void*)regs[REG_RIP], "\x0f\xa2", 2) != 0) {
    pass_on(signal, info, context);
    return;
  }
  uint32_t reg[4];
  masked_cpuid((uint32_t)regs[REG_RAX], (uint32_t)regs[REG_RCX], reg);
  regs[REG_RAX] = reg[kEax];
  regs[REG_RBX] = reg[kEbx];
  regs[REG_RCX] = reg[kEcx];
  regs[REG_RDX] = reg[kEdx];
  regs[REG_RIP] += 2;
}

// A later handler for SIGSEGV (faulthandler, a crash reporter) becomes the one we pass other faults
// to.
int sigaction(int signal, const struct sigaction* act, struct sigaction* old) {
  if (!g_sigaction) *(void**)&g_sigaction = dlsym(RTLD_NEXT, "sigaction");
  if (signal != SIGSEGV || g_level < 0) return g_sigaction(signal, act, old);
  if (old) *old = g_next;
  if (act) g_next = *act;
  return 0;
}

__sighandler_t signal(int number, __sighandler_t handler) {
  struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(number, &act, &old) == 0 ? old.sa_handler : SIG_ERR;
}

static void die(const char* why) {
  (void)!write(STDERR_FILENO, why, strlen(why));
  _exit(3);
}

// The level in force, for a program that wants to say so; a program without the library has no such
// symbol.
int lamina_isa_mask_level(void) { return g_level; }

// Linked with -z initfirst, hence before libc has set environ: the loader hands the environment
// over.
__attribute__((constructor)) static void install(int argc, char** argv, char** environment) {
  (void)argc, (void)argv;
  static const char kVariable[] = "LAMINA_BENCH_ISA_MASK=";
  const char* name = NULL;
  for (; *environment; ++environment) {
    if (strncmp(*environment, kVariable, sizeof kVariable - 1) == 0)
      name = *environment + sizeof kVariable - 1;
  }
  if (!name)
    die("isa mask: LAMINA_BENCH_ISA_MASK is not set; allowed: avx2, avx_vnni, avx512_vnni\n");
  const int level = strcmp(name, "avx2") == 0          ? kLevelAvx2
                    : strcmp(name, "avx_vnni") == 0    ? kLevelAvxVnni
                    : strcmp(name, "avx512_vnni") == 0 ? kLevelAvx512Vnni
                                                       : -1;
  if (level < 0) die("isa mask: LAMINA_BENCH_ISA_MASK must be avx2, avx_vnni or avx512_vnni\n");
  struct sigaction ours = {.sa_sigaction = on_segv,
                           .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  if (sigaction(SIGSEGV, &ours, &g_next) != 0) die("isa mask: sigaction failed\n");
  g_level = level;
  if (syscall(__NR_arch_prctl, kArchSetCpuid, 0UL) != 0)
    die("isa mask: this machine has no CPUID faulting\n");
}
