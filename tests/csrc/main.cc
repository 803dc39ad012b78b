// Runs the tests whose names contain one of the arguments, or all.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <string_view>
#include <vector>

#include "check.h"

namespace jax_nano::test {
namespace {

struct Test {
  const char* name;
  void (*function)();
};

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

std::atomic<int> failures{0};

bool Wanted(std::string_view name, int count, char** words) {
  for (int i = 1; i < count; ++i)
    if (name.find(words[i]) != name.npos) return true;
  return count == 1;
}

}  // namespace

bool Register(const char* name, void (*function)()) {
  Tests().push_back({name, function});
  return true;
}

void Fail(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
  ++failures;
}

int RunTests(int count, char** words) {
  int ran = 0;
  for (const Test& test : Tests()) {
    if (!Wanted(test.name, count, words)) continue;
    auto start = std::chrono::steady_clock::now();
    test.function();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%6.2f s  %s\n", seconds.count(), test.name);
    std::fflush(stdout);
    ++ran;
  }
  std::printf("%d tests, %d failures\n", ran, failures.load());
  return ran == 0 || failures != 0;
}

}  // namespace jax_nano::test

int main(int count, char** words) { return jax_nano::test::RunTests(count, words); }
