// SPDX-License-Identifier: Apache-2.0
// What the journal costs a write: `nearbox-bench-journal DIR [COUNT]` prints the time of appends by size,
// alone and while another thread syncs, of acknowledgements, and of a synced write for comparison.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/operations.h"
#include "fs/journal/journal.h"

namespace {

using namespace nearbox;
using Clock = std::chrono::steady_clock;

void print(const char* what, std::vector<double>& us) {
  std::sort(us.begin(), us.end());
  const auto at = [&](double q) {
    return us[static_cast<std::size_t>(q * static_cast<double>(us.size() - 1))];
  };
  std::printf("%-34s n=%zu  p50 %7.1f us  p90 %7.1f  p99 %7.1f  max %8.1f\n", what, us.size(), at(0.5),
              at(0.9), at(0.99), at(1));
}

double since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Appends of `size` bytes of data each; acknowledged and synced away when half of the journal is used.
void appends(const std::string& dir, std::size_t size, std::size_t count, bool syncing) {
  auto opened = journal::Journal::open(dir);
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.error().message().c_str());
    std::exit(1);
  }
  auto& journal = *opened->journal;
  const auto deadline = [] { return Clock::now() + std::chrono::minutes(1); };
  std::jthread syncer;
  if (syncing) {
    syncer = std::jthread([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) (void)journal.sync(deadline());
    });
  }
  wire::Op op;
  op.kind = wire::OpKind::kWrite;
  op.path = "src/some/directory/with/a/file.cpp";
  op.keys = {{1, false}, {2, true}};
  op.data.resize(size);
  const wire::Bytes expect(48);
  std::vector<double> times;
  std::vector<double> acks;
  std::vector<journal::Seq> seqs;
  for (std::size_t i = 0; i < count; ++i) {
    op.op_id = i;
    const auto start = Clock::now();
    const auto encoded = wire::encode(op);
    const journal::Part part{1, expect};
    const journal::Record record{i, "/home/me/box", "/home/user", encoded, {&part, 1}};
    const auto seq = journal.append({&record, 1});
    times.push_back(since(start));
    if (!seq) {
      std::fprintf(stderr, "%s\n", seq.error().message().c_str());
      std::exit(1);
    }
    seqs.push_back(*seq);
    if (seqs.size() < 64) continue;
    const auto begun = Clock::now();
    (void)journal.acknowledge(seqs);
    acks.push_back(since(begun));
    seqs.clear();
    if (journal.stats().disk_bytes > journal::kMaxBytes / 2) (void)journal.sync(deadline());
  }
  (void)journal.acknowledge(seqs);
  const std::string what = "append " + std::to_string(size) + " B" + (syncing ? ", syncing beside" : "");
  print(what.c_str(), times);
  if (size == 4096) print("acknowledge 64 records", acks);
  syncer = {};
  (void)journal.sync(deadline());
}

void synced(const std::string& dir) {
  auto opened = journal::Journal::open(dir);
  if (!opened) return;
  const wire::Bytes data(4096);
  std::vector<double> times;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const journal::Record record{i, "/home/me/box", "/home/user", data, {}};
    const auto start = Clock::now();
    const auto seq = opened->journal->append({&record, 1});
    (void)opened->journal->sync(Clock::now() + std::chrono::minutes(1));
    times.push_back(since(start));
    if (seq) (void)opened->journal->acknowledge({&*seq, 1});
  }
  print("append 4096 B and sync", times);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::size_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20'000;
  const std::string dir = std::string(argv[1]) + "/journal";
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{4096}, std::size_t{65536}, std::size_t{1} << 20}) {
    appends(dir, size, std::max<std::size_t>(200, size > 4096 ? count / (size / 4096) : count), false);
  }
  appends(dir, 4096, count, true);
  synced(dir);
  return 0;
}
