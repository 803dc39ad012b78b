#include "handler.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include "loader.h"
#include "pages.h"
#include "run.h"
#include "times.h"
#include "xla/ffi/api/ffi.h"

namespace jax_nano {
namespace {

namespace ffi = xla::ffi;
using Words = ffi::Span<const int64_t>;

// The attributes of the custom call. runtime/kernel.py writes them.
constexpr const char* kKey = "key";
constexpr const char* kThreads = "threads";  // that may compute the kernel; 0: as many as XLA has

// Of the attributes: programs that were exported, or are kept, may be of another jax_nano. runtime/kernel.py has it
// too.
constexpr int64_t kFormat = 1;

// A last operand that no kernel reads. custom_call.py says what it is for, and makes it.
constexpr Buffer kDispatchHint{.type = XLA_FFI_DataType_S32, .elements = 1024};

ffi::Error Malformed(const std::string& what) {
  return ffi::Error::InvalidArgument("jax_nano: malformed custom call: " + what);
}

ffi::Error OtherFormat(int64_t format) {
  return ffi::Error(ffi::ErrorCode::kFailedPrecondition,
                    "jax_nano: this program's kernels are of format " + std::to_string(format) +
                        ", and this jax_nano reads format " + std::to_string(kFormat) +
                        "; export or compile the program anew, or run it with the jax_nano that made it");
}

// Reads attribute `name` into `value`; what goes wrong is added to `problem`.
template <typename T>
void Read(const ffi::Dictionary& attributes, const char* name, T& value, std::string& problem) {
  if (!attributes.contains(name)) {
    problem += std::string("no attribute ") + name + "; ";
    return;
  }
  auto read = attributes.get<T>(name);
  if (read.has_value()) {
    value = *read;
  } else {
    problem += std::string("attribute ") + name + ": " + read.error().message() + "; ";
  }
}

std::vector<Buffer> Buffers(Words types, Words elements) {
  std::vector<Buffer> buffers;
  for (size_t i = 0; i < types.size(); ++i) buffers.push_back({types[i], elements[i]});
  return buffers;
}

// What an instantiation is told.
struct Attributes {
  int64_t format = 0, key = 0, threads = 0, rounds = 0, shared_bytes = 0, local_bytes = 0;
  std::string_view object, features, symbols;
  Words tasks, operand_types, operand_elements, result_types, result_elements;
};

Attributes ReadAll(const ffi::Dictionary& dictionary, std::string& problem) {
  Attributes read;
  Read(dictionary, "format", read.format, problem);
  if (problem.empty() && read.format != kFormat) return read;  // what else there is, is of another jax_nano
  Read(dictionary, kKey, read.key, problem);
  Read(dictionary, kThreads, read.threads, problem);
  Read(dictionary, "object", read.object, problem);
  Read(dictionary, "features", read.features, problem);
  Read(dictionary, "symbols", read.symbols, problem);
  Read(dictionary, "tasks", read.tasks, problem);
  Read(dictionary, "rounds", read.rounds, problem);
  Read(dictionary, "shared_bytes", read.shared_bytes, problem);
  Read(dictionary, "local_bytes", read.local_bytes, problem);
  Read(dictionary, "operand_types", read.operand_types, problem);
  Read(dictionary, "operand_elements", read.operand_elements, problem);
  Read(dictionary, "result_types", read.result_types, problem);
  Read(dictionary, "result_elements", read.result_elements, problem);
  return read;
}

// Whether all tasks of an execution can be numbered, and each thread take a number after the last.
bool Countable(Words tasks, int64_t rounds) {
  constexpr int64_t kMost = int64_t{1} << 62;
  int64_t total = 0;
  for (int64_t count : tasks)
    if (__builtin_add_overflow(total, count, &total)) return false;
  return !__builtin_mul_overflow(total, rounds, &total) && total <= kMost;
}

// Why these attributes describe no kernel; empty where they do.
std::string Problem(const Attributes& attributes, llvm::ArrayRef<llvm::StringRef> names) {
  const Words& tasks = attributes.tasks;
  if (names.size() != tasks.size() || names.empty()) return "symbols and tasks differ in number";
  if (attributes.operand_types.size() != attributes.operand_elements.size() ||
      attributes.result_types.size() != attributes.result_elements.size())
    return "types and elements differ in number";
  if (attributes.rounds < 0 || attributes.shared_bytes < 0 || attributes.local_bytes < 0) return "a size is negative";
  if (std::any_of(tasks.begin(), tasks.end(), [](int64_t count) { return count < 1; })) return "a phase has no task";
  if (!Countable(tasks, attributes.rounds)) return "more tasks than can be counted";
  return "";
}

ffi::Error Instantiate(ffi::Dictionary dictionary) {
  std::string problem;
  Attributes attributes = ReadAll(dictionary, problem);
  if (!problem.empty()) return Malformed(problem);
  if (attributes.format != kFormat) return OtherFormat(attributes.format);
  llvm::SmallVector<llvm::StringRef> names;
  llvm::StringRef(attributes.symbols).split(names, ',', /*MaxSplit=*/-1, /*KeepEmpty=*/false);
  problem = Problem(attributes, names);
  if (!problem.empty()) return Malformed(problem);

  Description description{.phases = {},
                          .rounds = attributes.rounds,
                          .shared_bytes = attributes.shared_bytes,
                          .local_bytes = attributes.local_bytes,
                          .operands = Buffers(attributes.operand_types, attributes.operand_elements),
                          .results = Buffers(attributes.result_types, attributes.result_elements),
                          .features = std::string(attributes.features)};
  for (size_t i = 0; i < names.size(); ++i) description.phases.push_back({names[i].str(), attributes.tasks[i]});
  if (auto error = Load(static_cast<uint64_t>(attributes.key), attributes.object, std::move(description)))
    return ffi::Error(ffi::ErrorCode::kFailedPrecondition, "jax_nano: " + llvm::toString(std::move(error)));
  return ffi::Error::Success();
}

// Shapes were fixed when the kernel was emitted: a buffer of another type or size must not reach it.
bool Fits(const ffi::AnyBuffer& buffer, const Buffer& expected) {
  return static_cast<int64_t>(buffer.element_type()) == expected.type &&
         static_cast<int64_t>(buffer.element_count()) == expected.elements;
}

// Whether the kernel's operands are followed by the dispatch hint.
bool HasDispatchHint(const ffi::RemainingArgs& operands, size_t count) {
  if (operands.size() != count + 1) return false;
  auto last = operands.get<ffi::AnyBuffer>(count);
  return last.has_value() && Fits(*last, kDispatchHint);
}

// How many threads may compute a kernel, the caller's among them.
int64_t Threads(const Kernel& kernel, const ffi::Dictionary& attributes, const ffi::ThreadPool& pool) {
  if (!kernel.parallel()) return 1;
  int64_t threads = pool.num_threads();
  if (!attributes.contains(kThreads)) return threads;
  auto most = attributes.get<int64_t>(kThreads);
  return most.has_value() && *most > 0 ? std::min(*most, threads) : threads;
}

ffi::Error Misfit(const char* which, size_t i) {
  return ffi::Error::InvalidArgument(std::string("jax_nano: ") + which + " " + std::to_string(i) +
                                     " differs in type or size from what the kernel was compiled for");
}

// XLA has the other arrays of a long program around the results or around the dispatch hint, which it made itself.
// Another thread asks for huge pages there: it has to wait while memory is given back, as that of the last program may
// be. One thread at a time: the others are to compute.
void AdviseAround(std::span<void* const> addresses, const Schedule& schedule) {
  static std::atomic_flag asking;
  if (asking.test_and_set()) return;
  try {
    schedule([near = std::vector<void*>(addresses.begin(), addresses.end())] {
      PreferHugePagesAround(near);
      asking.clear();
    });
  } catch (const std::bad_alloc&) {  // advice is not worth an error
    asking.clear();
  }
}

ffi::Error Execute(ffi::Dictionary attributes, ffi::ThreadPool pool, ffi::RemainingArgs operands,
                   ffi::RemainingRets results) {
  auto key = attributes.get<int64_t>(kKey);
  if (!key.has_value()) return Malformed("no attribute key");
  const Kernel* kernel = Find(static_cast<uint64_t>(*key));
  if (!kernel) return ffi::Error::Internal("jax_nano: the kernel was not instantiated");
  const Description& description = kernel->description;
  size_t count = description.operands.size();
  if (operands.size() != count + HasDispatchHint(operands, count) || results.size() != description.results.size())
    return ffi::Error::InvalidArgument("jax_nano: the kernel was compiled for " +
                                       std::to_string(description.operands.size()) + " operands and " +
                                       std::to_string(description.results.size()) + " results");
  llvm::SmallVector<void*, 8> buffers;
  for (size_t i = 0; i < count; ++i) {
    auto buffer = operands.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value() || !Fits(*buffer, description.operands[i])) return Misfit("operand", i);
    buffers.push_back(buffer->untyped_data());
  }
  llvm::SmallVector<std::span<char>, 4> fresh;
  for (size_t i = 0; i < results.size(); ++i) {
    auto buffer = results.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value() || !Fits(**buffer, description.results[i])) return Misfit("result", i);
    buffers.push_back((*buffer)->untyped_data());
    fresh.emplace_back(static_cast<char*>((*buffer)->untyped_data()), (*buffer)->size_bytes());
  }
  PreferHugePages(fresh);
  int64_t threads = Threads(*kernel, attributes, pool);
  auto schedule = [&pool](std::function<void()> work) { pool.Schedule(std::move(work)); };
  if (operands.size() > count) {
    buffers.push_back(operands.get<ffi::AnyBuffer>(count)->untyped_data());
    AdviseAround({buffers.begin() + count, buffers.end()}, schedule);
  }
  CountedRun counted(static_cast<uint64_t>(*key));
  if (Run(*kernel, buffers.data(), threads, schedule)) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jax_nano: no memory for the scratch of a kernel");
}

// XLA calls handlers as C, which passes no exception on. All that may be thrown is that memory has run out.
XLA_FFI_Error* Guarded(XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
  try {
    return handler(frame);
  } catch (const std::bad_alloc&) {
    XLA_FFI_Error_Create_Args error{.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE,
                                    .extension_start = nullptr,
                                    .message = "jax_nano: no memory for the call of a kernel",
                                    .errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    return frame->api->XLA_FFI_Error_Create(&error);
  }
}

}  // namespace

XLA_FFI_Handler* InstantiateHandler() {
  return [](XLA_FFI_CallFrame* frame) {
    XLA_FFI_DEFINE_HANDLER(handler, Instantiate, ffi::Ffi::BindInstantiate().Attrs());
    return Guarded(handler, frame);
  };
}

XLA_FFI_Handler* ExecuteHandler() {
  return [](XLA_FFI_CallFrame* frame) {
    XLA_FFI_DEFINE_HANDLER(handler, Execute,
                           ffi::Ffi::Bind().Attrs().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
    return Guarded(handler, frame);
  };
}

}  // namespace jax_nano
