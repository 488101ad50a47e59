// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "client/wire/operations.h"
#include "fs/journal/journal.h"

namespace nearbox::test {

namespace fs = std::filesystem;

// A directory of its own for a test, removed with it.
class TempDir {
 public:
  TempDir() {
    // Memory where there is some: these tests make thousands of files.
    const fs::path memory = "/dev/shm";
    const bool usable = ::access(memory.c_str(), W_OK) == 0;
    std::string name = (usable ? memory : fs::temp_directory_path()) / "nearbox-journal-XXXXXX";
    path_ = ::mkdtemp(name.data()) == nullptr ? "" : name;
  }
  ~TempDir() { fs::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Fault points that are active while it lives.
class Faults {
 public:
  explicit Faults(const std::string& points) {
    std::ofstream(dir_ / "faults") << points << "\n";
    base::fault::set_file(dir_ / "faults");
  }
  ~Faults() { base::fault::set_file(""); }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

 private:
  TempDir dir_;
};

inline std::uint64_t seed() {
  const char* const given = std::getenv("NEARBOX_TEST_SEED");
  return given == nullptr ? 20261121 : std::strtoull(given, nullptr, 10);
}

inline std::chrono::steady_clock::time_point soon() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(20);
}

// A record whose content follows from `number`, with `size` bytes of data.
struct Sample {
  explicit Sample(std::uint64_t number, std::size_t size = 20) {
    wire::Op op;
    op.op_id = number;
    op.kind = wire::OpKind::kWrite;
    op.path = "file" + std::to_string(number % 7);
    op.data.resize(size);
    std::mt19937_64 rng(number);
    for (auto& byte : op.data) byte = static_cast<std::byte>(rng());
    stored.order = number;
    stored.label = "/mnt/" + std::to_string(number % 3);
    stored.root = "/home/user";
    stored.op = wire::encode(op);
    stored.parts = {{7, wire::Bytes(number % 50, std::byte{9})}};
    parts = {{7, stored.parts[0].bytes}};
  }
  Sample(const Sample&) = delete;
  Sample& operator=(const Sample&) = delete;
  journal::Record record() const { return {stored.order, stored.label, stored.root, stored.op, parts}; }

  journal::Stored stored;  // without its seq
  std::vector<journal::Part> parts;
};

// Whether `got` is what Sample(its order, size) was.
inline bool is_sample(const journal::Stored& got) {
  const auto op = wire::decode<wire::Op>(got.op);
  if (!op || op->op_id != got.order) return false;
  Sample sample(got.order, op->data.size());
  sample.stored.seq = got.seq;
  return sample.stored == got;
}

inline base::Result<journal::Seq> append_one(journal::Journal& journal, std::uint64_t number,
                                             std::size_t size = 20) {
  const Sample sample(number, size);
  const auto record = sample.record();
  return journal.append(std::span(&record, 1));
}

inline base::Result<void> ack(journal::Journal& journal, std::vector<journal::Seq> seqs) {
  return journal.acknowledge(seqs);
}

inline std::vector<std::uint64_t> orders(const std::vector<journal::Stored>& records) {
  std::vector<std::uint64_t> out;
  for (const auto& record : records) {
    EXPECT_TRUE(is_sample(record)) << "record " << record.seq;
    out.push_back(record.order);
  }
  return out;
}

inline std::uint64_t disk_bytes(const std::string& dir) {
  std::uint64_t out = 0;
  for (const auto& entry : fs::directory_iterator(dir)) out += entry.file_size();
  return out;
}
inline std::vector<std::string> files(const std::string& dir, const std::string& prefix) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().filename().string().starts_with(prefix)) out.push_back(entry.path().filename());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Does not wait for the disk, for tests of other things.
class QuickIo : public journal::Io {
 public:
  int fdatasync(int /*fd*/) override { return 0; }
  int fsync(int /*fd*/) override { return 0; }
};

// Opens, or fails the test.
inline journal::Journal::Opened must_open(const std::string& dir, const journal::Options& options = {}) {
  auto opened = journal::Journal::open(dir, options);
  EXPECT_TRUE(opened) << opened.error().message();
  return opened ? std::move(*opened) : journal::Journal::Opened{};
}

}  // namespace nearbox::test
