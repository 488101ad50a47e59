// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::vector<std::string> corpus() {
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(NEARBOX_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

void run(const std::string& input) {
  // A copy of exactly that size, so that a sanitizer sees a read past it.
  const std::vector<std::uint8_t> bytes(input.begin(), input.end());
  EXPECT_EQ(LLVMFuzzerTestOneInput(bytes.data(), bytes.size()), 0);
}

TEST(Corpus, EveryFile) {
  const auto inputs = corpus();
  ASSERT_FALSE(inputs.empty()) << "no corpus in " NEARBOX_CORPUS;
  for (const auto& input : inputs) run(input);
}

TEST(Corpus, EveryFileCutShort) {
  for (const auto& input : corpus()) {
    const std::size_t step = 1 + input.size() / 200;
    for (std::size_t size = 0; size < input.size(); size += step) run(input.substr(0, size));
  }
}

TEST(Corpus, EveryFileWithRandomBytes) {
  std::mt19937_64 rng(1);
  for (const auto& input : corpus()) {
    for (int round = 0; round < 50 && !input.empty(); ++round) {
      auto changed = input;
      for (std::uint64_t i = 0; i <= rng() % 4; ++i)
        changed[rng() % changed.size()] = static_cast<char>(rng());
      if (rng() % 4 == 0) changed += input.substr(rng() % input.size());
      run(changed);
    }
  }
}

}  // namespace
