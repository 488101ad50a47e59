// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <random>

#include <gtest/gtest.h>

#include "client/channel/spawn_carrier.h"
#include "tests/unit/channel/test_agent.h"

namespace nearbox::test {
namespace {

using channel::FdCarrier;
using channel::spawn_carrier;

wire::Bytes read_all(channel::Carrier& carrier, std::size_t size) {
  wire::Bytes out(size);
  std::size_t at = 0;
  while (at < size) {
    auto got = carrier.read(std::span(out).subspan(at), soon());
    if (!got || *got == 0) break;
    at += *got;
  }
  out.resize(at);
  return out;
}

// Reads until the end; the error, if any.
base::Result<void> read_to_end(channel::Carrier& carrier) {
  std::byte buffer[512];
  while (true) {
    auto got = carrier.read(buffer, soon());
    if (!got) return std::move(got).error();
    if (*got == 0) return {};
  }
}

TEST(FdCarrier, CarriesMoreThanItsBuffersBothWaysAtOnce) {
  auto [a, b] = socket_pair();
  auto one = carrier_of(std::move(a));
  auto two = carrier_of(std::move(b));
  wire::Bytes data(3'000'000);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = pattern(i);
  std::jthread w1([&] { EXPECT_TRUE(one->write(data, soon())); });
  std::jthread w2([&] { EXPECT_TRUE(two->write(data, soon())); });
  std::jthread r1([&] { EXPECT_EQ(read_all(*one, data.size()), data); });
  EXPECT_EQ(read_all(*two, data.size()), data);
}

TEST(FdCarrier, WorksOnPipes) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  auto carrier = FdCarrier::from_pipes(base::UniqueFd(fds[0]), base::UniqueFd(fds[1]));
  ASSERT_TRUE(carrier);
  ASSERT_TRUE((*carrier)->write(wire::as_view("loop"), soon()));
  EXPECT_EQ(read_all(**carrier, 4), bytes_of("loop"));
}

TEST(FdCarrier, KeepsItsDeadlinesAndWakesOnShutdown) {
  auto [a, b] = socket_pair();
  auto one = carrier_of(std::move(a));
  std::byte buffer[10];
  auto late = one->read(buffer, Clock::now() + milliseconds(10));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().as_errno(), ETIMEDOUT);
  auto full = one->write(wire::Bytes(10'000'000), Clock::now() + milliseconds(10));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().as_errno(), ETIMEDOUT);
  std::atomic<int> error{0};
  std::jthread reader([&] {
    auto got = one->read(buffer, soon());
    error = got ? 0 : got.error().as_errno();
  });
  one->shutdown();
  reader.join();
  EXPECT_EQ(error, ECONNABORTED);
  EXPECT_EQ(one->read(buffer, soon()).error().as_errno(), ECONNABORTED);
  EXPECT_EQ(one->write(wire::as_view("x"), soon()).error().as_errno(), ECONNABORTED);
}

TEST(FdCarrier, TellsTheEnd) {
  auto [a, b] = socket_pair();
  auto one = carrier_of(std::move(a));
  b.reset();
  std::byte buffer[10];
  auto got = one->read(buffer, soon());
  ASSERT_TRUE(got);
  EXPECT_EQ(*got, 0u);
  EXPECT_EQ(one->write(wire::as_view("x"), soon()).error().as_errno(), EPIPE);
}

TEST(SpawnCarrier, TalksToAProgram) {
  auto carrier = spawn_carrier({"cat"});
  ASSERT_TRUE(carrier);
  wire::Bytes data(500'000, std::byte{7});
  std::jthread writer([&] { EXPECT_TRUE((*carrier)->write(data, soon())); });
  EXPECT_EQ(read_all(**carrier, data.size()), data);
}

TEST(SpawnCarrier, SaysWhyAProgramEnded) {
  auto missing = spawn_carrier({"nearbox-no-such-program"});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().as_errno(), ENOENT);

  auto failed = spawn_carrier({"sh", "-c", "printf 'no \\033 host\\n' >&2; exit 255"});
  ASSERT_TRUE(failed);
  const auto result = read_to_end(**failed);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().as_errno(), ECONNRESET);
  EXPECT_EQ(result.error().context, "sh ended with status 255: no ? host");

  auto killed = spawn_carrier({"sh", "-c", "kill -9 $$"});
  ASSERT_TRUE(killed);
  EXPECT_EQ(read_to_end(**killed).error().context, "sh was ended by signal 9");

  auto fine = spawn_carrier({"true"});
  ASSERT_TRUE(fine);
  EXPECT_TRUE(read_to_end(**fine));

  auto chatty = spawn_carrier({"sh", "-c", "yes error | head -c 1000000 >&2; exit 1"});
  ASSERT_TRUE(chatty);
  EXPECT_LT(read_to_end(**chatty).error().context.size(), channel::kMaxStderr + 100);
}

TEST(SpawnCarrier, EndsTheWholeGroupOfAStubbornProgram) {
  // It ignores the end of its stdin and TERM, and has a child; both tell their process numbers.
  const channel::SpawnOptions options{milliseconds(100)};
  auto carrier = spawn_carrier({"sh", "-c", "trap '' TERM; sleep 1000 & echo $! $$; wait"}, options);
  ASSERT_TRUE(carrier);
  std::string line;
  while (line.find('\n') == std::string::npos) {
    std::byte buffer[64];
    auto got = (*carrier)->read(buffer, soon());
    ASSERT_TRUE(got && *got > 0);
    line += wire::as_text(wire::ByteView(buffer).first(*got));
  }
  const pid_t child = std::stoi(line);
  const pid_t shell = std::stoi(line.substr(line.find(' ')));
  carrier->reset();
  EXPECT_EQ(::kill(shell, 0), -1);
  // Its child is reaped by init: only that it is dead or a zombie is ours to see.
  EXPECT_TRUE(eventually([&] {
    if (::kill(child, 0) != 0) return true;
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/stat", child);
    const base::UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
    char stat[256] = {};
    return !fd || ::read(fd.get(), stat, sizeof stat - 1) <= 0 ||
           std::string(stat).find(") Z") != std::string::npos;
  }));
}

}  // namespace
}  // namespace nearbox::test
