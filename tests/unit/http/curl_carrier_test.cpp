// SPDX-License-Identifier: Apache-2.0
#include "client/http/curl_carrier.h"

#include <csignal>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "client/api/error_code.h"
#include "client/http/http_client.h"
#include "tests/unit/http/fault_server.h"
#include "tests/unit/http/tls_server.h"

namespace nearbox::http {
namespace {

using api::code_string;
using api::error_text;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::FaultConnection;
using test::FaultRequest;
using test::FaultServer;
using test::TlsEchoServer;

channel::Deadline soon(milliseconds time = milliseconds(20'000)) { return steady_clock::now() + time; }

wire::ByteView view(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

const std::string kHead = "GET / HTTP/1.1\r\n\r\n";

// Sends all that comes back.
bool echo(FaultConnection& c, FaultRequest&) {
  std::string bytes;
  while (c.read_some(bytes) && c.send(bytes)) {
  }
  return false;
}

std::unique_ptr<CurlCarrier> connected(const std::string& url, const CaPaths& ca = {}) {
  std::signal(SIGPIPE, SIG_IGN);  // as every program of ours does
  auto carrier = CurlCarrier::connect(url, soon(), {}, ca);
  EXPECT_TRUE(carrier) << (carrier ? "" : error_text(carrier.error()));
  return carrier ? std::move(*carrier) : nullptr;
}

std::string read_all(CurlCarrier& carrier, std::size_t count) {
  std::string got;
  std::vector<std::byte> buffer(64 * 1024);
  while (got.size() < count) {
    auto n = carrier.read(buffer, soon());
    if (!n || *n == 0) break;
    for (std::size_t i = 0; i < *n; ++i) got += static_cast<char>(buffer[i]);
  }
  return got;
}

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 + i / 251);
  return text;
}

// One thread reads while the other writes more than all buffers hold.
void exchange(CurlCarrier& carrier, std::size_t size) {
  const std::string text = pattern(size);
  std::string got;
  {
    std::jthread reader([&] { got = read_all(carrier, size); });
    auto written = carrier.write(view(text), soon());
    EXPECT_TRUE(written) << (written ? "" : written.error().message());
  }
  EXPECT_EQ(got.size(), text.size());
  EXPECT_TRUE(got == text);
}

TEST(CurlCarrier, BothWaysAtOnce) {
  FaultServer server(&echo);
  const auto carrier = connected(server.url());
  ASSERT_TRUE(carrier);
  ASSERT_TRUE(carrier->write(view(kHead), soon()));
  exchange(*carrier, 8 * 1024 * 1024);
}

TEST(CurlCarrier, BothWaysAtOnceOverTls) {
  TlsEchoServer server;
  const auto carrier = connected(server.url(), {server.ca_file(), ""});
  ASSERT_TRUE(carrier);
  exchange(*carrier, 8 * 1024 * 1024);
  EXPECT_TRUE(server.saw_http11());
}

TEST(CurlCarrier, AForeignCertificateIsRefused) {
  TlsEchoServer server;
  TlsEchoServer other_name("elsewhere.example");
  auto foreign = CurlCarrier::connect(server.url(), soon(), {}, {});
  ASSERT_FALSE(foreign);
  EXPECT_EQ(code_string(foreign.error()), "net.tls") << error_text(foreign.error());
  auto misnamed = CurlCarrier::connect(other_name.url(), soon(), {}, {other_name.ca_file(), ""});
  ASSERT_FALSE(misnamed);
  EXPECT_EQ(code_string(misnamed.error()), "net.tls") << error_text(misnamed.error());
  HttpClient client(ClientOptions{CaPaths{}});
  Request request;
  request.url = server.url();
  EXPECT_EQ(code_string(client.perform(request, soon()).error()), "net.tls");
}

TEST(CurlCarrier, AReadThatTimedOutMayBeRepeated) {
  FaultServer server(&echo);
  const auto carrier = connected(server.url());
  std::byte buffer[8];
  EXPECT_EQ(carrier->read(buffer, soon(milliseconds(30))).error().as_errno(), ETIMEDOUT);
  ASSERT_TRUE(carrier->write(view(kHead + "x"), soon()));
  EXPECT_EQ(*carrier->read(buffer, soon()), 1u);
}

TEST(CurlCarrier, ShutdownWakesReaderAndWriter) {
  FaultServer server([](FaultConnection& c, FaultRequest&) {
    std::string more;
    return c.read_raw(more, std::size_t{1} << 40) || true;  // reads and keeps; ends with the client
  });
  const auto carrier = connected(server.url());
  ASSERT_TRUE(carrier->write(view(kHead), soon()));
  std::atomic<int> read_error{0};
  std::jthread reader([&] {
    std::byte buffer[8];
    auto n = carrier->read(buffer, soon());
    read_error = n ? -1 : n.error().as_errno();
  });
  carrier->shutdown();
  reader.join();
  EXPECT_EQ(read_error.load(), ECONNABORTED);
  EXPECT_EQ(carrier->write(view("x"), soon()).error().as_errno(), ECONNABORTED);
}

TEST(CurlCarrier, AWriterBehindADeafPeerTimesOut) {
  std::atomic<bool> done{false};
  base::Mutex mu;
  base::CondVar changed;
  FaultServer server([&](FaultConnection&, FaultRequest&) {
    base::MutexLock lock(mu);
    while (!done) (void)changed.wait_until(mu, soon());  // reads nothing meanwhile
    return false;
  });
  const auto carrier = connected(server.url());
  const std::string much(64 * 1024 * 1024, 'x');
  EXPECT_EQ(carrier->write(view(kHead + much), soon(milliseconds(300))).error().as_errno(), ETIMEDOUT);
  base::MutexLock lock(mu);
  done = true;
  changed.notify_all();
}

TEST(CurlCarrier, TheOtherEndClosesOrBreaks) {
  for (const bool reset : {false, true}) {
    FaultServer server([&](FaultConnection& c, FaultRequest&) {
      if (reset) c.reset();
      return false;
    });
    const auto carrier = connected(server.url());
    ASSERT_TRUE(carrier->write(view(kHead), soon()));
    std::byte buffer[8];
    auto n = carrier->read(buffer, soon());
    if (reset) {
      ASSERT_FALSE(n);
      EXPECT_EQ(n.error().as_errno(), ECONNRESET);
    } else {
      ASSERT_TRUE(n);
      EXPECT_EQ(*n, 0u);
    }
  }
}

TEST(CurlCarrier, ConnectEndsInTime) {
  int port = 0;
  {
    FaultServer gone(&echo);
    port = gone.port();
  }
  auto refused = CurlCarrier::connect("http://127.0.0.1:" + std::to_string(port), soon());
  EXPECT_EQ(code_string(refused.error()), "net.unreachable");
  FaultServer silent(&echo);  // never answers a TLS hello
  const std::string url = "https://127.0.0.1:" + std::to_string(silent.port());
  auto late = CurlCarrier::connect(url, soon(milliseconds(200)));
  EXPECT_EQ(code_string(late.error()), "timeout.request");
  std::stop_source stop;
  std::jthread stopper([&] {
    while (silent.connections() < 2) std::this_thread::yield();
    stop.request_stop();
  });
  auto stopped = CurlCarrier::connect(url, soon(), stop.get_token());
  EXPECT_EQ(code_string(stopped.error()), "cancelled");
}

}  // namespace
}  // namespace nearbox::http
