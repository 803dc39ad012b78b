#include <algorithm>
#include <atomic>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "loader.h"
#include "objects.h"
#include "pool.h"
#include "processor.h"

namespace jax_nano::test {
namespace {

// Why an object was refused; empty where it was loaded.
std::string Refused(uint64_t key, std::string_view object, const Description& description) {
  return llvm::toString(Load(key, object, description));
}

bool Loads(uint64_t key, const Description& description = TwoPhases()) {
  return Refused(key, KernelsObject(), description).empty();
}

bool Says(const std::string& message, std::string_view words) { return message.find(words) != message.npos; }

// Calls the entries of TwoPhases, one task after another.
bool Computes(const Kernel& kernel) {
  std::vector<int64_t> in(kTasks), out(kTasks), shared(kTasks), local(1);
  std::iota(in.begin(), in.end(), 1);
  void* buffers[] = {in.data(), out.data()};
  for (Entry entry : kernel.entries)
    for (int64_t task = 0; task < kTasks; ++task) entry(/*round=*/2, task, shared.data(), local.data(), buffers);
  for (int64_t task = 0; task < kTasks; ++task)
    if (out[task] != (task + 1) * 7 + 1) return false;
  return true;
}

TEST(an_object_is_loaded_and_found) {
  uint64_t key = NewKey();
  EXPECT(Find(key) == nullptr);
  EXPECT(Loads(key));
  EXPECT(Find(key) != nullptr && Computes(*Find(key)));
}

TEST(the_same_key_from_many_threads_is_one_kernel) {
  uint64_t key = NewKey();
  std::atomic<const Kernel*> found[8] = {};
  AtOnce(8, [&](int thread) {
    EXPECT(Loads(key));
    found[thread] = Find(key);
    EXPECT(Computes(*found[thread]));
  });
  EXPECT(std::all_of(found, found + 8, [&](const auto& kernel) { return kernel == found[0]; }));
}

TEST(different_keys_from_many_threads_are_different_kernels) {
  std::vector<uint64_t> keys(8 * 5);
  std::generate(keys.begin(), keys.end(), NewKey);
  AtOnce(8, [&](int thread) {
    for (size_t i = static_cast<size_t>(thread); i < keys.size(); i += 8) EXPECT(Loads(keys[i]));
  });
  for (uint64_t key : keys) EXPECT(Find(key) && Computes(*Find(key)));
  EXPECT(Find(keys[0])->entries[0] != Find(keys[1])->entries[0]);
}

TEST(kernels_are_found_while_others_load) {
  uint64_t first = NewKey();
  EXPECT(Loads(first));
  std::atomic<bool> done{false};
  AtOnce(4, [&](int thread) {
    if (thread == 0) {
      for (int i = 0; i < 40; ++i) EXPECT(Loads(NewKey()));
      done = true;
    }
    while (!done) EXPECT(Computes(*Find(first)));
  });
}

TEST(kernels_load_while_bad_ones_are_refused) {
  AtOnce(4, [](int thread) {
    for (int i = 0; i < 10; ++i) {
      uint64_t key = NewKey();
      if (thread % 2 == 0) EXPECT(!Refused(key, "not an object", TwoPhases()).empty());
      EXPECT(Loads(key));
    }
  });
}

TEST(a_key_belongs_to_one_object_and_one_description) {
  uint64_t key = NewKey();
  EXPECT(Loads(key));
  EXPECT(Says(Refused(key, KernelsObject(), TwoPhases(/*rounds=*/2)), "two kernels share the content key"));
  EXPECT(Says(Refused(key, CallsObject(), TwoPhases()), "two kernels share the content key"));
  EXPECT(Loads(key));
}

TEST(a_symbol_that_is_missing_is_named_and_the_key_is_free_again) {
  uint64_t key = NewKey();
  Description description = TwoPhases();
  description.phases[1].symbol = "no_such_symbol";
  for (int i = 0; i < 3; ++i) EXPECT(Says(Refused(key, KernelsObject(), description), "no_such_symbol"));
  EXPECT(Find(key) == nullptr);
  EXPECT(Loads(key) && Computes(*Find(key)));
}

TEST(a_call_out_of_the_object_is_refused) {
  uint64_t key = NewKey();
  Description description = TwoPhases();
  description.phases = {{"calls", 1}};
  EXPECT(Says(Refused(key, CallsObject(), description), "elsewhere"));
  EXPECT(Find(key) == nullptr);
}

TEST(a_processor_without_the_features_loads_nothing) {
  uint64_t key = NewKey();
  Description description = TwoPhases();
  description.features = "sse2,no-such-feature";
  EXPECT(Says(Refused(key, KernelsObject(), description), "a processor with no-such-feature, which this one lacks"));
  EXPECT(Find(key) == nullptr);
  AssumeFeatures("no-such-feature");
  EXPECT(Loads(key, description));
  AssumeFeatures("");
}

TEST(features_are_looked_up_and_assumed_at_once) {
  AtOnce(4, [](int thread) {
    for (int i = 0; i < 100; ++i) {
      if (thread == 0) AssumeFeatures(i % 2 ? "some-feature" : "");
      EXPECT(MissingFeatures("sse2").empty());
      EXPECT(Refusal("sse2").empty());
      TilesDenied();
    }
  });
  AssumeFeatures("");
}

TEST(an_object_cut_short_is_refused) {
  std::string object = KernelsObject();
  for (size_t size = 0; size < object.size(); size += 64)
    EXPECT(!Refused(NewKey(), std::string_view(object).substr(0, size), TwoPhases()).empty());
}

}  // namespace
}  // namespace jax_nano::test
