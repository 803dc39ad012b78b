#include <thread>
#include <vector>

#include "check.h"
#include "times.h"

namespace jax_nano::test {
namespace {

TEST(runs_are_counted_by_key_while_that_is_wanted) {
  {
    CountedRun before(1);
  }
  CountTimes(true);
  {
    CountedRun run(1);
  }
  {
    CountedRun run(2);
  }
  {
    CountedRun run(1);
  }
  CountTimes(false);
  {
    CountedRun after(1);
  }
  auto times = CountedTimes();
  EXPECT(times.size() == 2);
  EXPECT(times[1].runs == 2 && times[2].runs == 1);
  EXPECT(times[1].nanoseconds >= 0);
}

TEST(counting_begins_from_zero) {
  CountTimes(true);
  {
    CountedRun run(1);
  }
  CountTimes(true);
  EXPECT(CountedTimes().empty());
  CountTimes(false);
}

TEST(runs_of_several_threads_are_all_counted) {
  CountTimes(true);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([] {
      for (int run = 0; run < 1000; ++run) CountedRun counted(7);
    });
  for (std::thread& thread : threads) thread.join();
  CountTimes(false);
  EXPECT(CountedTimes()[7].runs == 4000);
}

}  // namespace
}  // namespace jax_nano::test
