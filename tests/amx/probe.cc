// Code that uses tiles under handlers of its own. Each function gets a configuration of 5 rows of 64 bytes for all
// tiles, and returns what test_handler.py expects.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kRowBytes = 64;
constexpr int kRowsBeforeFault = 3;

volatile int handled = 0;
sigjmp_buf abandon;

void Handle(int number, void (*action)(int, siginfo_t*, void*)) {
  struct sigaction handler = {};
  handler.sa_sigaction = action;
  handler.sa_flags = SA_SIGINFO;
  sigaction(number, &handler, nullptr);
}

uint8_t*& Rip(void* context) {
  return reinterpret_cast<uint8_t*&>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
}

// UD2 has 2 bytes, TILEZERO 5.
void StepOver(int, siginfo_t*, void* context) {
  ++handled;
  Rip(context) += Rip(context)[0] == 0x0F ? 2 : 5;
}

// A page after `kRowsBeforeFault` rows at the end of another one, which Repair opens.
uint8_t* closed_page = nullptr;

uint8_t* RowsBeforeClosedPage() {
  auto size = sysconf(_SC_PAGESIZE);
  auto* pages =
      static_cast<uint8_t*>(mmap(nullptr, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(pages, 1, 2 * size);
  closed_page = pages + size;
  mprotect(closed_page, size, PROT_NONE);
  return closed_page - kRowsBeforeFault * kRowBytes;
}

void Repair(int, siginfo_t* info, void*) {
  handled += info->si_addr == closed_page;
  mprotect(closed_page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE);
}

void Abandon(int, siginfo_t*, void*) { siglongjmp(abandon, 1); }

void LoadConfig(const void* config) { asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory"); }
void LoadTile(const void* rows) { asm volatile("tileloadd (%0,%1), %%tmm0" ::"r"(rows), "r"(uint64_t{64}) : "memory"); }
void StoreTile(void* rows) { asm volatile("tilestored %%tmm0, (%0,%1)" ::"r"(rows), "r"(uint64_t{64}) : "memory"); }
void* Nowhere() { return reinterpret_cast<void*>(8); }

}  // namespace

extern "C" {

void handle_with_context() { Handle(SIGILL, StepOver); }

// Such a handler cannot step over what raised the signal, but leave it.
void handle_with_number() {
  signal(SIGILL, [](int) {
    ++handled;
    siglongjmp(abandon, 1);
  });
}

int undefined_between_tiles(const void* config) {
  LoadConfig(config);
  if (sigsetjmp(abandon, 1) == 0) asm volatile("tilezero %%tmm0; ud2; tilezero %%tmm1" ::: "memory");
  asm volatile("tilezero %%tmm2; tilerelease" ::: "memory");
  return handled;
}

int tiles_unconfigured(const void*) {
  asm volatile("tilerelease; tilezero %%tmm0" ::: "memory");
  return handled;
}

int raise_sigill(const void* config) {
  LoadConfig(config);
  if (sigsetjmp(abandon, 1) == 0) raise(SIGILL);
  return handled;
}

int raise_sigill_before_tilezero(const void* config) {
  LoadConfig(config);
  long call = SYS_tgkill;
  if (sigsetjmp(abandon, 1) == 0) {
    asm volatile("syscall; tilezero %%tmm0"
                 : "+a"(call)
                 : "D"(getpid()), "S"(gettid()), "d"(SIGILL)
                 : "rcx", "r11", "memory");
  }
  return handled;
}

int protection_fault(const void* config) {
  static uint8_t malformed[64];
  static uint8_t* expected;
  memcpy(malformed, config, 64);
  malformed[63] = 1;
  Handle(SIGSEGV, [](int, siginfo_t* info, void* context) {
    handled += info->si_code == SI_KERNEL && Rip(context) == expected;
    Rip(context) += 5;
  });
  asm volatile(
      "lea 0f(%%rip), %%rax; mov %%rax, %0; lea %1, %%rax\n"
      "0: ldtilecfg (%%rax)"
      : "=m"(expected)
      : "m"(malformed)
      : "rax", "memory");
  LoadConfig(config);
  return handled;
}

int protection_fault_while_blocked(const void*) {
  sigset_t segv;
  sigemptyset(&segv);
  sigaddset(&segv, SIGSEGV);
  sigprocmask(SIG_BLOCK, &segv, nullptr);
  uint8_t malformed[64] = {2};
  LoadConfig(malformed);
  return 0;
}

int repaired_load(const void* config) {
  uint8_t* rows = RowsBeforeClosedPage();
  Handle(SIGSEGV, Repair);
  LoadConfig(config);
  LoadTile(rows);
  uint8_t stored[5 * kRowBytes];
  StoreTile(stored);
  return handled == 1 && memcmp(stored, rows, sizeof(stored)) == 0;
}

int repaired_store(const void* config) {
  uint8_t* rows = RowsBeforeClosedPage();
  Handle(SIGSEGV, Repair);
  LoadConfig(config);
  StoreTile(rows);
  uint8_t zeros[5 * kRowBytes] = {};
  return handled == 1 && memcmp(zeros, rows, sizeof(zeros)) == 0;
}

int abandoned_load(const void* config) {
  uint8_t* rows = RowsBeforeClosedPage();
  Handle(SIGSEGV, Abandon);
  LoadConfig(config);
  if (sigsetjmp(abandon, 1) == 0) LoadTile(rows);
  uint8_t stored[64];
  asm volatile("sttilecfg (%0)" ::"r"(stored) : "memory");
  return stored[1];
}

int load_from_nowhere(const void* config) {
  LoadConfig(config);
  LoadTile(Nowhere());
  return 0;
}

int store_to_nowhere(const void* config) {
  LoadConfig(config);
  StoreTile(Nowhere());
  return 0;
}

int configure_from_nowhere(const void*) {
  LoadConfig(Nowhere());
  return 0;
}

}  // extern "C"
