// A test program: functions that register themselves, and expectations that say where they failed.
#pragma once

namespace jax_nano::test {

bool Register(const char* name, void (*function)());

// Notes a failure, from any thread; the test goes on.
void Fail(const char* file, int line, const char* what);

}  // namespace jax_nano::test

#define TEST(name)                                                                         \
  static void name();                                                                      \
  [[maybe_unused]] static const bool name##_added = jax_nano::test::Register(#name, name); \
  static void name()

#define EXPECT(condition) ((condition) ? void() : jax_nano::test::Fail(__FILE__, __LINE__, #condition))
