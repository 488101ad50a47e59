// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <limits>
#include <poll.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>

#include "tools/sandbox_server/http.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

// Beast reads no more at once than its buffer has room for, which is 512 bytes unless reserved.
constexpr std::size_t kReadAhead = 128 * 1024;
constexpr std::size_t kMaxBuffer = 256 * 1024;
// Beast 1.74 takes "no limit" for the smallest one.
constexpr std::uint64_t kNoBodyLimit = std::numeric_limits<std::uint64_t>::max();

// SocketStream in the shape Beast's synchronous readers want.
class BeastStream {
 public:
  explicit BeastStream(SocketStream& stream) : stream_(stream) {}

  template <class Buffers>
  std::size_t read_some(const Buffers& buffers, beast::error_code& ec) {
    const boost::asio::mutable_buffer first = *boost::asio::buffer_sequence_begin(buffers);
    const auto got = stream_.read_some(static_cast<char*>(first.data()), first.size());
    if (!got) {
      ec = beast::error_code(got.error().as_errno(), boost::system::generic_category());
      return 0;
    }
    ec = *got == 0 ? beast::error_code(boost::asio::error::eof) : beast::error_code();
    return *got;
  }
  template <class Buffers>
  std::size_t read_some(const Buffers& buffers) {
    beast::error_code ec;
    const auto got = read_some(buffers, ec);
    if (ec) throw beast::system_error(ec);
    return got;
  }

 private:
  SocketStream& stream_;
};

base::Error to_error(const beast::error_code& ec, std::string context) {
  if (ec.category() == boost::system::generic_category()) {
    return base::errno_error(ec.value(), std::move(context));
  }
  return base::errno_error(EBADMSG, std::move(context) + ": " + ec.message());
}

// The next decoded body bytes of `parser`; 0 at the end of the body.
template <class Parser>
base::Result<std::size_t> parse_body(BeastStream& stream, beast::flat_buffer& buffer, Parser& parser,
                                     char* data, std::size_t size) {
  auto& body = parser.get().body();
  while (!parser.is_done()) {
    body.data = data;
    body.size = size;
    body.more = true;
    beast::error_code ec;
    http::read_some(stream, buffer, parser, ec);
    if (ec == http::error::need_buffer) ec = {};
    if (ec == http::error::end_of_stream || ec == boost::asio::error::eof) ec = http::error::partial_message;
    if (ec) return to_error(ec, "read body");
    if (const auto got = size - body.size; got > 0) return got;
  }
  return std::size_t{0};
}

template <class Fields>
Headers copy_headers(const Fields& fields) {
  Headers out;
  for (const auto& field : fields) {
    out.add(std::string(field.name_string()), std::string(field.value()));
  }
  return out;
}

template <class Parser>
std::optional<std::uint64_t> length_of(const Parser& parser) {
  if (const auto length = parser.content_length()) return *length;
  return std::nullopt;
}

RequestHead head_of(const http::request_parser<http::buffer_body>& parser) {
  const auto& message = parser.get();
  RequestHead head;
  head.method = std::string(message.method_string());
  head.target = std::string(message.target());
  const auto mark = head.target.find('?');
  head.path = percent_decode(std::string_view(head.target).substr(0, mark), false);
  if (mark != std::string::npos) head.query = head.target.substr(mark + 1);
  head.headers = copy_headers(message);
  head.content_length = length_of(parser);
  head.chunked = message.chunked();
  head.upgrade = parser.upgrade() || (message.has_content_length() == false &&
                                      http::token_list(message[http::field::connection]).exists("upgrade"));
  head.expect_continue = iequals(head.headers.value_or("Expect", ""), "100-continue");
  head.keep_alive = message.keep_alive();
  head.minor_version = message.version() >= 11 ? 1 : 0;
  return head;
}

class BeastExchange final : public Exchange {
 public:
  BeastExchange(SocketStream& stream, beast::flat_buffer& buffer,
                http::request_parser<http::buffer_body>& parser)
      : stream_(stream), adapter_(stream), buffer_(buffer), parser_(parser), head_(head_of(parser)) {}

  const RequestHead& head() const override { return head_; }
  base::Result<std::size_t> read_body(char* data, std::size_t size) override {
    if (head_.expect_continue && !continued_ && !started_ && !parser_.is_done()) {
      continued_ = true;
      if (auto sent = stream_.write_all("HTTP/1.1 100 Continue\r\n\r\n"); !sent)
        return std::move(sent).error();
    }
    return parse_body(adapter_, buffer_, parser_, data, size);
  }
  bool body_done() const override { return parser_.is_done(); }
  bool body_buffered() const override { return buffer_.size() > 0 && !parser_.is_done(); }

  base::Result<void> start(int status, Headers headers, std::optional<std::uint64_t> length,
                           std::string_view reason) override {
    started_ = true;
    // A body nobody read is not worth reading when it is long: the connection ends instead.
    if (!parser_.is_done() && (head_.expect_continue && !continued_)) close_ = true;
    // Whoever may not come in does not get a thread to send a body to either.
    if (!parser_.is_done() && status == 401) close_ = true;
    const bool bodyless = status == 204 || status == 304 || status < 200;
    chunked_ = !length && !bodyless && head_.minor_version >= 1;
    if (!length && !bodyless && !chunked_) close_ = true;
    silent_ = bodyless || head_.method == "HEAD";
    std::string text = "HTTP/1.1 " + std::to_string(status) + " " +
                       std::string(reason.empty() ? reason_of(status) : reason) + "\r\n";
    for (const auto& [name, value] : headers.all()) text += name + ": " + value + "\r\n";
    if (length && !bodyless) text += "Content-Length: " + std::to_string(*length) + "\r\n";
    if (chunked_) text += "Transfer-Encoding: chunked\r\n";
    if (close_ || !head_.keep_alive) text += "Connection: close\r\n";
    if (head_.minor_version == 0 && head_.keep_alive && !close_) text += "Connection: keep-alive\r\n";
    text += "\r\n";
    pending_ = std::move(text);
    // A head with a body leaves together with its first bytes.
    return length && *length > 0 && !silent_ ? base::Result<void>() : flush();
  }
  base::Result<void> write(std::string_view data) override {
    if (data.empty() || silent_) return flush();
    if (!chunked_) {
      if (pending_.empty()) return stream_.write_all(data);
      pending_.append(data);
      return flush();
    }
    std::array<char, 20> size{};
    const auto end = std::to_chars(size.data(), size.data() + size.size(), data.size(), 16).ptr;
    pending_.append(size.data(), static_cast<std::size_t>(end - size.data()));
    pending_.append("\r\n").append(data).append("\r\n");
    return flush();
  }
  base::Result<void> finish() override {
    if (chunked_ && !silent_) pending_.append("0\r\n\r\n");
    return flush();
  }
  bool started() const override { return started_; }
  SocketStream& stream() override { return stream_; }
  std::string take_buffered() override {
    std::string out(static_cast<const char*>(buffer_.data().data()), buffer_.size());
    buffer_.consume(buffer_.size());
    return out;
  }
  void close_after() override { close_ = true; }
  void mark_raw() override {
    started_ = true;
    close_ = true;
  }
  bool closing() const { return close_; }

 private:
  base::Result<void> flush() {
    if (pending_.empty()) return {};
    auto sent = stream_.write_all(pending_);
    pending_.clear();
    return sent;
  }

  SocketStream& stream_;
  BeastStream adapter_;
  beast::flat_buffer& buffer_;
  http::request_parser<http::buffer_body>& parser_;
  RequestHead head_;
  std::string pending_;
  bool continued_ = false;
  bool started_ = false;
  bool chunked_ = false;
  bool silent_ = false;
  bool close_ = false;
};

// What a request gets that is no HTTP, or too large a header.
void refuse(SocketStream& stream, const beast::error_code& ec) {
  const int status = ec == http::error::header_limit ? 431 : 400;
  const std::string body = "bad request: " + ec.message() + "\n";
  (void)stream.write_all(
      "HTTP/1.1 " + std::to_string(status) + " " + std::string(reason_of(status)) +
      "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
}

// Reads away what is left of the body. False: too much of it or too slow, the connection must end.
bool drain(BeastExchange& exchange) {
  std::array<char, 16 * 1024> scratch;
  std::size_t total = 0;
  exchange.stream().set_deadline(std::chrono::steady_clock::now() + kDrainTimeout);
  while (!exchange.body_done()) {
    if (total > kMaxDrainBytes) return false;
    const auto got = exchange.read_body(scratch.data(), scratch.size());
    if (!got) return false;
    if (*got == 0) break;
    total += *got;
  }
  exchange.stream().set_deadline(std::nullopt);
  return true;
}

// One request on a connection. False: the connection ends.
bool serve_one(SocketStream& stream, beast::flat_buffer& buffer, const Handler& handler,
               const std::function<void(bool)>& idle) {
  BeastStream adapter(stream);
  http::request_parser<http::buffer_body> parser;
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(kNoBodyLimit);
  beast::error_code ec;
  idle(true);
  stream.set_timeout(kIdleTimeout);
  const bool begun = buffer.size() > 0 || stream.wait(POLLIN).ok();
  idle(false);
  if (!begun) return false;
  stream.set_timeout(kHeaderTimeout);
  stream.set_deadline(std::chrono::steady_clock::now() + kHeaderTimeout);
  http::read_header(adapter, buffer, parser, ec);
  stream.set_deadline(std::nullopt);
  stream.set_timeout(kStallTimeout);
  if (ec.category() == boost::system::generic_category() && ec.value() == ETIMEDOUT) {
    (void)stream.write_all("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    return false;
  }
  if (ec) {
    const bool quiet = ec == http::error::end_of_stream || ec == boost::asio::error::eof ||
                       ec.category() == boost::system::generic_category();
    if (!quiet) refuse(stream, ec);
    return false;
  }
  BeastExchange exchange(stream, buffer, parser);
  handler(exchange);
  if (!exchange.started()) {
    if (!exchange.reply(500, {}, "")) return false;
  }
  if (exchange.closing() || !exchange.head().keep_alive) return false;
  return drain(exchange);
}

class BeastResponseReader final : public ResponseReader {
 public:
  BeastResponseReader(SocketStream& stream, bool head_request)
      : adapter_(stream), head_request_(head_request) {
    buffer_.reserve(kReadAhead);
    renew();
  }
  base::Result<ResponseHead> read_head() override {
    if (parser_->is_header_done()) renew();
    beast::error_code ec;
    http::read_header(adapter_, buffer_, *parser_, ec);
    if (ec) return to_error(ec, "read response");
    const auto& message = parser_->get();
    ResponseHead head;
    head.status = static_cast<int>(message.result_int());
    head.reason = std::string(message.reason());
    head.headers = copy_headers(message);
    head.content_length = length_of(*parser_);
    head.chunked = message.chunked();
    return head;
  }
  base::Result<std::size_t> read_body(char* data, std::size_t size) override {
    return parse_body(adapter_, buffer_, *parser_, data, size);
  }
  bool body_buffered() const override { return buffer_.size() > 0; }
  bool body_done() const override { return parser_->is_done(); }
  std::string take_buffered() override {
    std::string out(static_cast<const char*>(buffer_.data().data()), buffer_.size());
    buffer_.consume(buffer_.size());
    return out;
  }

 private:
  void renew() {
    parser_ = std::make_unique<http::response_parser<http::buffer_body>>();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(kNoBodyLimit);
    if (head_request_) parser_->skip(true);
  }
  BeastStream adapter_;
  bool head_request_;
  beast::flat_buffer buffer_{kMaxBuffer};
  std::unique_ptr<http::response_parser<http::buffer_body>> parser_;
};

}  // namespace

void serve_connection(base::UniqueFd fd, int stop_fd, const Handler& handler,
                      const std::function<void(bool)>& idle, base::Logger& log) {
  SocketStream stream(std::move(fd), stop_fd);
  beast::flat_buffer buffer{kMaxBuffer};
  buffer.reserve(kReadAhead);
  try {
    while (serve_one(stream, buffer, handler, idle)) {
    }
  } catch (const std::exception& e) {
    log.error(std::string("http connection ended by an exception error=") + e.what());
  }
  // The peer must be able to read a refusal although it has not sent everything yet.
  (void)::shutdown(stream.fd(), SHUT_WR);
  stream.set_deadline(std::chrono::steady_clock::now() + kDrainTimeout);
  std::array<char, 16 * 1024> scratch;
  std::size_t total = 0;
  while (total < 4 * kMaxDrainBytes) {
    const auto got = stream.read_some(scratch.data(), scratch.size());
    if (!got || *got == 0) break;
    total += *got;
  }
}

std::unique_ptr<ResponseReader> ResponseReader::make(SocketStream& stream, bool head_request) {
  return std::make_unique<BeastResponseReader>(stream, head_request);
}

}  // namespace nearbox::sandbox_server
