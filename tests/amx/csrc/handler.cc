// Steps over AMX instructions that the processor does not have: a handler of SIGILL that executes them in software.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "decoder.h"
#include "executor.h"
#include "tiles.h"

namespace amx {
namespace {

struct sigaction previous;  // who had SIGILL before
std::atomic<uint64_t> executed[kMnemonics];
std::atomic<uint64_t> traps;

// A pointer only, and in the space that every thread has from its start: a handler must not allocate.
[[gnu::tls_model("initial-exec")]] thread_local Tiles* this_threads_tiles = nullptr;

// Never freed: a thread cannot say from a handler that it wants to hear of its own end.
Tiles& ThisThreadsTiles() {
  if (!this_threads_tiles) {
    void* zeros = mmap(nullptr, sizeof(Tiles), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (zeros == MAP_FAILED) abort();
    this_threads_tiles = static_cast<Tiles*>(zeros);
  }
  return *this_threads_tiles;
}

uint64_t Register(const ucontext_t& context, int encoding) {
  constexpr int kSaved[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context.uc_mcontext.gregs[kSaved[encoding]]);
}

// The index is a stride for the rows of a tile, and part of the address for a configuration.
Address Resolve(const Instruction& instruction, const ucontext_t& context) {
  const Memory& memory = instruction.memory;
  uint64_t base = 0;
  if (memory.base == Memory::kRip) {
    base = static_cast<uint64_t>(context.uc_mcontext.gregs[REG_RIP]) + instruction.length;
  } else if (memory.base != Memory::kNone) {
    base = Register(context, memory.base);
  }
  uint64_t index = memory.index == Memory::kNone ? 0 : Register(context, memory.index) << memory.scale;
  bool configures = instruction.mnemonic == Mnemonic::kLdtilecfg || instruction.mnemonic == Mnemonic::kSttilecfg;
  uint64_t start = base + static_cast<uint64_t>(int64_t{memory.displacement}) + (configures ? index : 0);
  return {.start = reinterpret_cast<uint8_t*>(start), .stride = static_cast<int64_t>(index)};
}

void Print(const char* text) { [[maybe_unused]] ssize_t written = write(STDERR_FILENO, text, strlen(text)); }

void Report(const char* name, const char* reason) {
  for (const char* part : {"AMX emulator: ", name, ": ", reason, "\n"}) Print(part);
}

// To whoever had SIGILL before. Where nobody had, the process dies of it as soon as this handler returns.
void PassOn(int number, siginfo_t* info, ucontext_t* context) {
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    signal(number, SIG_DFL);
    raise(number);
  } else {
    previous.sa_handler(number);
  }
}

// What Linux does at a #GP. Held back until this handler returns, so that SIGSEGV finds the instruction's own context.
void RaiseProtectionFault(ucontext_t& context) {
  sigset_t segv;
  sigemptyset(&segv);
  sigaddset(&segv, SIGSEGV);
  sigprocmask(SIG_BLOCK, &segv, nullptr);
  sigdelset(&context.uc_sigmask, SIGSEGV);
  siginfo_t info = {};
  info.si_signo = SIGSEGV;
  info.si_code = SI_KERNEL;
  syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGSEGV, &info);
}

struct Step {
  bool is_amx = false;
  const char* name = "";
  Outcome outcome = {};

  bool done() const { return is_amx && outcome.fault == Fault::kNone; }
};

// Executes the instruction at the saved RIP and steps over it, or says why not. A fault of the memory that the
// instruction names is a SIGSEGV in here, with the address that faulted.
Step StepOver(ucontext_t& context) {
  greg_t& rip = context.uc_mcontext.gregs[REG_RIP];
  Decoded decoded = Decode(reinterpret_cast<const uint8_t*>(rip));
  if (decoded.verdict == Verdict::kOther) return {};
  if (decoded.verdict == Verdict::kUndefined) return {true, "no instruction", {Fault::kUndefined, decoded.reason}};

  const Instruction& instruction = decoded.instruction;
  Step step = {.is_amx = true, .name = Name(instruction.mnemonic)};
  step.outcome = Execute(instruction, Resolve(instruction, context), ThisThreadsTiles());
  if (step.done()) {
    executed[static_cast<int>(instruction.mnemonic)].fetch_add(1, std::memory_order_relaxed);
    rip += instruction.length;
  }
  return step;
}

void OnIllegalInstruction(int number, siginfo_t* info, void* raw_context) {
  auto* context = static_cast<ucontext_t*>(raw_context);
  bool raised_by_processor = info->si_code > 0;
  Step step = raised_by_processor ? StepOver(*context) : Step{};
  if (step.done()) {
    traps.fetch_add(1, std::memory_order_relaxed);
    // Those that follow, too: a trap costs more than most of them. One that faults will do so in a trap of its own.
    while (StepOver(*context).done()) {
    }
    return;
  }
  if (step.is_amx) Report(step.name, step.outcome.reason);
  if (step.outcome.fault == Fault::kProtection) return RaiseProtectionFault(*context);
  PassOn(number, info, context);
}

}  // namespace
}  // namespace amx

// Takes SIGILL for the whole process, once. Returns 0, or -1 with errno.
//
// The handler runs on the stack of the code that it serves: Linux leaves that code's red zone alone, and a thread's
// alternate stack may be too small for two frames with AVX-512 state in them.
extern "C" [[gnu::visibility("default")]] int amx_emulator_install() {
  struct sigaction current;
  if (sigaction(SIGILL, nullptr, &current) != 0) return -1;
  if (current.sa_sigaction == amx::OnIllegalInstruction) return 0;
  struct sigaction action = {};
  action.sa_sigaction = amx::OnIllegalInstruction;
  action.sa_flags = SA_SIGINFO;
  amx::previous = current;
  return sigaction(SIGILL, &action, nullptr);
}

// The name of the `i`-th instruction that this emulator knows, or null beyond the last.
extern "C" [[gnu::visibility("default")]] const char* amx_emulator_mnemonic(int i) {
  return i < amx::kMnemonics ? amx::Name(static_cast<amx::Mnemonic>(i)) : nullptr;
}

// How often that instruction was emulated since the process began, by all threads.
extern "C" [[gnu::visibility("default")]] uint64_t amx_emulator_executed(int i) { return amx::executed[i].load(); }

// How many traps that took: instructions in a row share one.
extern "C" [[gnu::visibility("default")]] uint64_t amx_emulator_traps() { return amx::traps.load(); }
