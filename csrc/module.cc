// The Python bindings, nothing else.
#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <stdexcept>

#include "codegen.h"
#include "handler.h"
#include "llvm-c/Core.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/TargetParser/Host.h"
#include "loader.h"
#include "lower.h"
#include "memory.h"
#include "mlir/Transforms/Passes.h"
#include "processor.h"
#include "run.h"
#include "scratch.h"
#include "times.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_nano {
namespace {

void Check(llvm::Error error) {
  if (error) throw std::runtime_error(llvm::toString(std::move(error)));
}

template <typename T>
T Check(llvm::Expected<T> value) {
  if (!value) throw std::runtime_error(llvm::toString(value.takeError()));
  return std::move(*value);
}

std::string Compile(std::string_view text, const Processor& processor, Output output) {
  llvm::LLVMContext context;
  auto machine = Check(TargetMachineOf(processor));
  auto module = Check(Lower(text, context));
  Check(Optimize(*module, processor, *machine));
  return Check(Emit(*module, *machine, output));
}

std::string LlvmIr(std::string_view text, const Processor& processor) {
  llvm::LLVMContext context;
  auto machine = Check(TargetMachineOf(processor));
  auto module = Check(Lower(text, context));
  Check(Optimize(*module, processor, *machine));
  std::string printed;
  llvm::raw_string_ostream(printed) << *module;
  return printed;
}

#ifndef JAX_NANO_STATIC_LLVM
// The file that a function was loaded from.
template <typename Function>
std::string FileOf(Function* function) {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(function), &info) ? info.dli_fname : "";
}
#endif

nb::capsule Capsule(XLA_FFI_Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "MLIR text to object code, and the custom call that runs it.";
  m.attr("llvm_version") = LLVM_VERSION_STRING;
#ifdef JAX_NANO_STATIC_LLVM
  m.attr("libraries") = nb::tuple();
#else
  m.attr("libraries") = nb::make_tuple(FileOf(&mlir::createCSEPass), FileOf(&LLVMGetVersion));
#endif
  m.def(
      "compile",
      [](std::string_view text, std::string cpu, std::string features, std::string tune) {
        std::string object;
        {
          nb::gil_scoped_release release;
          object = Compile(text, {cpu, features, tune}, Output::kObject);
        }
        return nb::bytes(object.data(), object.size());
      },
      "mlir"_a, "cpu"_a, "features"_a, "tune"_a,
      "Object code of an MLIR module. Raises RuntimeError with LLVM's words.");
  m.def(
      "assembly",
      [](std::string_view text, std::string cpu, std::string features, std::string tune) {
        nb::gil_scoped_release release;
        return Compile(text, {cpu, features, tune}, Output::kAssembly);
      },
      "mlir"_a, "cpu"_a, "features"_a, "tune"_a, "Assembly of an MLIR module.");
  m.def(
      "llvm_ir",
      [](std::string_view text, std::string cpu, std::string features, std::string tune) {
        nb::gil_scoped_release release;
        return LlvmIr(text, {cpu, features, tune});
      },
      "mlir"_a, "cpu"_a, "features"_a, "tune"_a, "Optimized LLVM IR of an MLIR module.");
  m.def("missing_features", &MissingFeatures, "features"_a,
        "The LLVM features among `features` (separated by commas) that this processor lacks, separated by commas.");
  m.def("tiles_denied", &TilesDenied,
        "Why this process may not use tile registers; empty where it may, and where the processor has none.");
  m.def("_assume_features", &AssumeFeatures, "features"_a,
        "Makes just these features count as present besides what the processor has: for tests, which emulate them.");
  m.def("host_cpu", [] { return llvm::sys::getHostCPUName().str(); }, "LLVM's name of this processor.");
  m.def("instantiate_handler", [] { return Capsule(InstantiateHandler()); }, "PyCapsule of the instantiate stage.");
  m.def("execute_handler", [] { return Capsule(ExecuteHandler()); }, "PyCapsule of the execute stage.");
  m.def("limit_threads", &LimitThreads, "threads"_a,
        "Has no more than `threads` threads of this process compute from now on, though XLA has more. Below 1: no "
        "limit.");
  m.def("executed_kernels", &ExecutedKernels, "How many times a kernel has run in this process.");
  m.def("count_times", &CountTimes, "wanted"_a,
        "Begins to count how often and how long kernels run, from zero, or ends it; what was counted stays.");
  m.def(
      "counted_times",
      [] {
        nb::dict counted;  // keys as the attributes of calls have them, signed
        for (const auto& [key, times] : CountedTimes())
          counted[nb::int_(static_cast<int64_t>(key))] = std::pair(times.runs, 1e-9 * times.nanoseconds);
        return counted;
      },
      "{key of a kernel: (runs, seconds of all of them)}.");
  m.def(
      "scratch",
      [] {
        ScratchUse use = GetScratchUse();
        return std::pair(use.held, use.limit);
      },
      "(bytes of scratch held now, bytes that are kept between calls at most).");
  m.def("foreign_allocator", &ForeignAllocator, "The file that malloc comes from; empty where that is glibc.");
  m.def("arenas", &Arenas, "How many arenas glibc's malloc has made.");
  m.def("retain_memory", &RetainMemory, "limit"_a, "Makes glibc keep up to `limit` bytes of freed memory; -1: all.");
  m.def("release_memory", &ReleaseMemory, nb::call_guard<nb::gil_scoped_release>(),
        "Makes glibc return freed memory again, and return what it has.");
}

}  // namespace jax_nano
