#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "call_frame.h"
#include "check.h"
#include "handler.h"
#include "objects.h"
#include "pool.h"

namespace jax_nano::test {
namespace {

Call Instantiation(uint64_t key, int64_t rounds = 1) {
  std::vector<int64_t> type = {XLA_FFI_DataType_S64}, elements = {kTasks}, tasks = {kTasks, kTasks};
  return {.stage = XLA_FFI_ExecutionStage_INSTANTIATE,
          .attributes = {{"format", int64_t{1}},
                         {"threads", int64_t{0}},
                         {"key", static_cast<int64_t>(key)},
                         {"object", KernelsObject()},
                         {"features", std::string()},
                         {"symbols", std::string("scale,increment")},
                         {"tasks", tasks},
                         {"rounds", rounds},
                         {"shared_bytes", kScratch},
                         {"local_bytes", kScratch},
                         {"operand_types", type},
                         {"operand_elements", elements},
                         {"result_types", type},
                         {"result_elements", elements}},
          .operands = {},
          .results = {}};
}

Status Instantiate(const Call& call) { return Invoke(InstantiateHandler(), call); }

uint64_t Instantiated(int64_t rounds = 1) {
  uint64_t key = NewKey();
  EXPECT(Instantiate(Instantiation(key, rounds)).ok());
  return key;
}

// The arrays of one execution of TwoPhases.
class Program {
 public:
  explicit Program(uint64_t key, Pool* pool = nullptr) {
    std::iota(in_.begin(), in_.end(), 1);
    call.attributes = {{"key", static_cast<int64_t>(key)}};
    call.operands = {{XLA_FFI_DataType_S64, {kTasks}, in_.data()}};
    call.results = {{XLA_FFI_DataType_S64, {2, kTasks / 2}, out_.data()}};
    call.pool = pool;
  }

  Status Execute() const { return Invoke(ExecuteHandler(), call); }

  bool Computed() const {  // by one round
    for (int64_t task = 0; task < kTasks; ++task)
      if (out_[task] != (task + 1) * 3 + 1) return false;
    return true;
  }
  bool Untouched() const { return out_ == std::vector<int64_t>(kTasks); }

  Call call{.stage = XLA_FFI_ExecutionStage_EXECUTE, .attributes = {}, .operands = {}, .results = {}};

 private:
  std::vector<int64_t> in_ = std::vector<int64_t>(kTasks), out_ = std::vector<int64_t>(kTasks);
};

// The operand that makes XLA run a program on a thread of its own (handler.cc).
Array DispatchHint(std::vector<int32_t>& data) {
  data.resize(1024);
  return {XLA_FFI_DataType_S32, {1024}, data.data()};
}

TEST(a_call_computes) {
  Pool pool(4);
  Program program(Instantiated(), &pool);
  EXPECT(program.Execute().ok());
  EXPECT(program.Computed());
}

TEST(a_call_computes_where_xla_has_no_pool) {
  Program program(Instantiated());
  EXPECT(program.Execute().ok());
  EXPECT(program.Computed());
}

TEST(many_programs_instantiate_and_execute_at_once) {
  Pool pool(4);
  uint64_t shared = NewKey();
  AtOnce(6, [&](int thread) {
    for (int i = 0; i < 100; ++i) {
      uint64_t key = i % 3 ? shared : NewKey();
      EXPECT(Instantiate(Instantiation(key)).ok());
      Program program(key, &pool);
      std::vector<int32_t> hint;
      if ((i + thread) % 2) program.call.operands.push_back(DispatchHint(hint));
      EXPECT(program.Execute().ok());
      EXPECT(program.Computed());
    }
  });
}

TEST(the_dispatch_hint_is_not_read) {
  Program program(Instantiated());
  program.call.operands.push_back({XLA_FFI_DataType_S32, {1024}, nullptr});
  EXPECT(program.Execute().ok());
  EXPECT(program.Computed());
}

TEST(a_kernel_that_was_not_instantiated) {
  Program program(NewKey());
  EXPECT(program.Execute().Says("the kernel was not instantiated"));
}

TEST(a_call_without_a_key) {
  Program program(Instantiated());
  program.call.attributes.clear();
  EXPECT(program.Execute().Says("no attribute key"));
}

TEST(another_stage_is_refused) {
  Call call = Instantiation(NewKey());
  EXPECT(!Invoke(ExecuteHandler(), call).ok());
  call.stage = XLA_FFI_ExecutionStage_EXECUTE;
  EXPECT(!Invoke(InstantiateHandler(), call).ok());
}

template <typename Change>
void ExpectMisfit(const char* words, Change change) {
  Program program(Instantiated());
  change(program.call);
  EXPECT(program.Execute().Says(words));
  EXPECT(program.Untouched());
}

TEST(buffers_that_do_not_fit_never_reach_the_kernel) {
  const char* counts = "the kernel was compiled for 1 operands and 1 results";
  ExpectMisfit(counts, [](Call& call) { call.operands.clear(); });
  ExpectMisfit(counts, [](Call& call) { call.results.clear(); });
  ExpectMisfit(counts, [](Call& call) { call.operands.push_back(call.operands[0]); });
  ExpectMisfit(counts, [](Call& call) { call.results.push_back(call.results[0]); });
  ExpectMisfit("operand 0 differs", [](Call& call) { call.operands[0].dims = {kTasks - 1}; });
  ExpectMisfit("operand 0 differs", [](Call& call) { call.operands[0].dims = {}; });
  ExpectMisfit("operand 0 differs", [](Call& call) { call.operands[0].type = XLA_FFI_DataType_F64; });
  ExpectMisfit("result 0 differs", [](Call& call) { call.results[0].dims = {kTasks, 0}; });
  ExpectMisfit("result 0 differs", [](Call& call) { call.results[0].type = XLA_FFI_DataType_U64; });
}

TEST(every_attribute_is_needed_and_has_one_type) {
  for (auto& [name, value] : Instantiation(0).attributes) {
    Call call = Instantiation(NewKey());
    call.attributes.erase(name);
    EXPECT(Instantiate(call).Says("no attribute " + name));
    call.attributes[name] = 1.5f;
    EXPECT(Instantiate(call).Says("attribute " + name));
  }
}

Status InstantiateWith(const std::string& name, Attribute value) {
  Call call = Instantiation(NewKey());
  call.attributes[name] = std::move(value);
  return Instantiate(call);
}

TEST(attributes_that_make_no_sense) {
  using Words = std::vector<int64_t>;
  for (const char* name : {"rounds", "shared_bytes", "local_bytes"})
    EXPECT(InstantiateWith(name, int64_t{-1}).Says("a size is negative"));
  for (const Words& tasks : {Words{}, Words{1}, Words{1, 1, 1}})
    EXPECT(InstantiateWith("tasks", tasks).Says("symbols and tasks differ in number"));
  for (const Words& tasks : {Words{0, 1}, Words{1, -1}, Words{INT64_MIN, 1}})
    EXPECT(InstantiateWith("tasks", tasks).Says("a phase has no task"));
  for (const char* name : {"operand_types", "operand_elements", "result_types", "result_elements"})
    EXPECT(InstantiateWith(name, Words{1, 2}).Says("types and elements differ in number"));
  for (const char* symbols : {"", ",", ",,scale"})
    EXPECT(InstantiateWith("symbols", std::string(symbols)).Says("symbols and tasks differ in number"));
}

TEST(attributes_of_another_format_are_refused_whatever_they_say) {
  for (int64_t format : {0, 2}) {
    Call call = Instantiation(NewKey());
    call.attributes = {{"format", format}};
    EXPECT(Instantiate(call).Says("this program's kernels are of format " + std::to_string(format) +
                                  ", and this jax_nano reads format 1; export or compile the program anew"));
  }
}

TEST(a_call_says_how_many_threads_may_compute_it) {
  uint64_t key = Instantiated();
  for (int64_t threads : {0, 1, 2, 64}) {
    Pool pool(4);
    Program program(key, &pool);
    program.call.attributes["threads"] = threads;
    EXPECT(program.Execute().ok());
    EXPECT(program.Computed());
  }
}

TEST(more_tasks_than_can_be_counted) {
  using Words = std::vector<int64_t>;
  const char* words = "more tasks than can be counted";
  EXPECT(InstantiateWith("tasks", Words{INT64_MAX, INT64_MAX}).Says(words));
  EXPECT(InstantiateWith("tasks", Words{INT64_MAX - 1, 1}).Says(words));
  EXPECT(InstantiateWith("rounds", INT64_MAX).Says(words));
}

TEST(scratch_that_no_memory_is_left_for_fails_the_call) {
  Pool pool(4);
  for (const char* name : {"shared_bytes", "local_bytes"}) {
    uint64_t key = NewKey();
    Call call = Instantiation(key);
    call.attributes[name] = int64_t{1} << 62;
    EXPECT(Instantiate(call).ok());
    Program program(key, &pool);
    Status status = program.Execute();
    EXPECT(status.code == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
    EXPECT(status.Says("no memory for the scratch of a kernel"));
    EXPECT(program.Untouched());
  }
}

// Makes each allocation of a call fail in turn.
template <typename Check>
void ExpectNoThrow(XLA_FFI_Handler* handler, const Call& call, Check check) {
  bool failed = true;
  for (int64_t successes = 0; failed; ++successes) check(InvokeFailing(handler, call, successes, &failed));
}

bool OutOfMemory(const Status& status) { return status.code == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED; }

TEST(any_allocation_of_an_execution_may_fail) {
  Pool pool(4);
  uint64_t key = Instantiated();
  std::vector<int32_t> hint;
  Array last = DispatchHint(hint);
  Program program(key, &pool);
  program.call.operands.push_back(last);
  ExpectNoThrow(ExecuteHandler(), program.call, [](const Status& s) { EXPECT(s.ok() || OutOfMemory(s)); });
}

TEST(any_allocation_of_a_refusal_may_fail) {
  Program program(Instantiated());
  program.call.results.clear();
  ExpectNoThrow(ExecuteHandler(), program.call, [](const Status& s) { EXPECT(!s.ok()); });
  Call call = Instantiation(NewKey());
  call.attributes.erase("tasks");
  ExpectNoThrow(InstantiateHandler(), call, [](const Status& s) { EXPECT(!s.ok()); });
}

// Of one that is loaded: LLVM ends the process where it finds no memory.
TEST(any_allocation_of_an_instantiation_may_fail) {
  Call call = Instantiation(Instantiated());
  ExpectNoThrow(InstantiateHandler(), call, [](const Status& s) { EXPECT(s.ok() || OutOfMemory(s)); });
}

}  // namespace
}  // namespace jax_nano::test
