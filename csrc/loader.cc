#include "loader.h"

#include <cstdlib>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "llvm/ExecutionEngine/JITEventListener.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h"
#include "llvm/ExecutionEngine/SectionMemoryManager.h"
#include "processor.h"

namespace jax_nano {
namespace {

struct Table {
  std::mutex loading;  // held while a kernel is linked; programs find theirs meanwhile
  std::shared_mutex mutex;
  std::unordered_map<uint64_t, std::unique_ptr<Kernel>> kernels;
};

// Never destroyed: XLA may still run kernels while the process ends.
Table& Kernels() {
  static auto* table = new Table;
  return *table;
}

// A switch of the environment that is off where it is not set, by the words of jax_nano/config.py.
bool IsOn(const char* name) {
  const char* value = std::getenv(name);
  const std::string text = llvm::StringRef(value ? value : "").lower();
  return text == "1" || text == "on" || text == "yes" || text == "true";
}

// gdb always learns of loaded kernels; perf does where JAX_NANO_PERF is on, as it writes a file (see
// docs/performance.md).
void AddListeners(llvm::orc::RTDyldObjectLinkingLayer& layer) {
  layer.registerJITEventListener(*llvm::JITEventListener::createGDBRegistrationListener());
  if (IsOn("JAX_NANO_PERF"))
    if (auto* perf = llvm::JITEventListener::createPerfJITEventListener()) layer.registerJITEventListener(*perf);
}

// Code and constants in one reservation, so that code reaches them with 32-bit offsets.
std::unique_ptr<llvm::RuntimeDyld::MemoryManager> NewSections() {
  return std::make_unique<llvm::SectionMemoryManager>(/*MM=*/nullptr, /*ReserveAlloc=*/true);
}

struct Linker {
  std::unique_ptr<llvm::orc::LLJIT> jit;
  std::string reported;  // what LLVM says beside the error that it returns, such as which symbol an object lacks
};

// Never destroyed, as the kernels that it linked. Callers hold Table::loading.
llvm::Expected<Linker*> GetLinker() {
  static Linker* linker = nullptr;
  if (linker) return linker;
  InitializeCodeGenerator();
  auto jit = llvm::orc::LLJITBuilder()
                 .setObjectLinkingLayerCreator([](llvm::orc::ExecutionSession& session) {
                   auto layer = std::make_unique<llvm::orc::RTDyldObjectLinkingLayer>(
                       session, [](const llvm::MemoryBuffer&) { return NewSections(); });
                   AddListeners(*layer);
                   return layer;
                 })
                 .create();
  if (!jit) return jit.takeError();
  linker = new Linker{std::move(*jit), ""};
  linker->jit->getExecutionSession().setErrorReporter(
      [linker = linker](llvm::Error error) { linker->reported.append("\n").append(llvm::toString(std::move(error))); });
  return linker;
}

llvm::Error AddEntries(Kernel& kernel, llvm::orc::LLJIT& jit, llvm::orc::JITDylib& library) {
  auto buffer = llvm::MemoryBuffer::getMemBuffer(kernel.object, "jax_nano", /*RequiresNullTerminator=*/false);
  if (auto error = jit.addObjectFile(library, std::move(buffer))) return error;
  for (const Phase& phase : kernel.description.phases) {
    auto address = jit.lookup(library, phase.symbol);
    if (!address) return address.takeError();
    kernel.entries.push_back(address->toPtr<Entry>());
  }
  return llvm::Error::success();
}

llvm::Error Link(Kernel& kernel, uint64_t key) {
  auto linker = GetLinker();
  if (!linker) return linker.takeError();
  auto& [jit, reported] = **linker;
  reported.clear();
  // Bare: a kernel calls nothing, and one that did would be refused here.
  auto& session = jit->getExecutionSession();
  auto& library = session.createBareJITDylib("kernel" + std::to_string(key));
  auto error = AddEntries(kernel, *jit, library);
  if (!error) return error;
  auto failure = llvm::createStringError(llvm::toString(std::move(error)) + reported);
  // What failed leaves nothing behind: the same key may be tried again, and the object is about to go.
  return llvm::joinErrors(std::move(failure), session.removeJITDylib(library));
}

}  // namespace

llvm::Error Load(uint64_t key, std::string_view object, Description description) {
  if (auto refusal = Refusal(description.features); !refusal.empty()) return llvm::createStringError(refusal);
  Table& table = Kernels();
  std::lock_guard loading(table.loading);
  if (const Kernel* found = Find(key)) {
    if (found->object == object && found->description == description) return llvm::Error::success();
    return llvm::createStringError("two kernels share the content key %llx", static_cast<unsigned long long>(key));
  }
  auto kernel = std::make_unique<Kernel>(Kernel{std::move(description), {}, std::string(object)});
  if (auto error = Link(*kernel, key)) return error;
  std::unique_lock lock(table.mutex);
  table.kernels.emplace(key, std::move(kernel));
  return llvm::Error::success();
}

const Kernel* Find(uint64_t key) {
  Table& table = Kernels();
  std::shared_lock lock(table.mutex);
  auto found = table.kernels.find(key);
  return found == table.kernels.end() ? nullptr : found->second.get();
}

}  // namespace jax_nano
