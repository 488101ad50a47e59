// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/forward.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <poll.h>
#include <sys/socket.h>

#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::size_t kCopyChunk = 256 * 1024;
// How long a client that asked for "100 Continue" waits for an upstream that says nothing.
constexpr std::chrono::seconds kContinueWait{1};

// Headers that belong to one connection, and those that would tell who asked.
bool dropped(std::string_view name, bool upgrade) {
  static constexpr std::array<std::string_view, 11> kHop{
      "Connection", "Keep-Alive", "Proxy-Connection",  "Proxy-Authorization",
      "TE",         "Trailer",    "Transfer-Encoding", "Content-Length",
      "Upgrade",    "Forwarded",  "X-Forwarded-For"};
  static constexpr std::array<std::string_view, 2> kForwarded{"X-Forwarded-Host", "X-Forwarded-Proto"};
  if (upgrade && (iequals(name, "Upgrade") || iequals(name, "Connection"))) return false;
  const auto same = [&](std::string_view other) { return iequals(name, other); };
  return std::any_of(kHop.begin(), kHop.end(), same) ||
         std::any_of(kForwarded.begin(), kForwarded.end(), same);
}

std::string request_text(const RequestHead& head, const std::string& masked_host) {
  std::string out = head.method + " " + head.target + " HTTP/1.1\r\n";
  if (!masked_host.empty()) {
    out += "Host: " + masked_host + "\r\n";
    if (const auto host = head.headers.get("Host")) out += "X-Forwarded-Host: " + std::string(*host) + "\r\n";
  }
  for (const auto& [name, value] : head.headers.all()) {
    if (!masked_host.empty() && iequals(name, "Host")) continue;
    if (!dropped(name, head.upgrade)) out += name + ": " + value + "\r\n";
  }
  if (head.chunked) out += "Transfer-Encoding: chunked\r\n";
  if (head.content_length && !head.chunked)
    out += "Content-Length: " + std::to_string(*head.content_length) + "\r\n";
  if (!head.upgrade) out += "Connection: close\r\n";
  return out + "\r\n";
}

bool readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

// One forwarded request.
class Forwarder {
 public:
  Forwarder(Exchange& exchange, base::UniqueFd upstream, std::function<bool()> begins)
      : exchange_(exchange),
        begins_(std::move(begins)),
        client_(exchange.stream()),
        upstream_(std::move(upstream), client_.stop_fd()),
        reader_(ResponseReader::make(upstream_, exchange.head().method == "HEAD")) {}

  base::Result<void> run(const std::string& masked_host) {
    if (auto sent = upstream_.write_all(request_text(exchange_.head(), masked_host)); !sent) return sent;
    if (exchange_.head().expect_continue && wait_upstream(kContinueWait)) {
      auto early = reader_->read_head();
      if (!early) return std::move(early).error();
      if (early->status != 100) return reply(std::move(*early));
    }
    if (!exchange_.head().upgrade) {
      if (auto sent = send_body(); !sent) return sent;
    }
    while (true) {
      if (!wait_reply()) return give_up();
      auto head = reader_->read_head();
      if (!head) return std::move(head).error();
      if (head->status == 101 && exchange_.head().upgrade) return tunnel(*head);
      if (head->status >= 200) return reply(std::move(*head));
    }
  }

 private:
  // The client is gone: nobody is there to be told.
  base::Result<void> give_up() {
    exchange_.mark_raw();
    return {};
  }

  bool wait_upstream(std::chrono::milliseconds time) {
    pollfd fds[2] = {{upstream_.fd(), POLLIN, 0}, {client_.fd(), POLLRDHUP, 0}};
    return ::poll(fds, 2, static_cast<int>(time.count())) > 0 && fds[0].revents != 0;
  }

  // Until the upstream has something to say. False: the client went away, or the server stops.
  bool wait_reply() {
    while (!reader_->body_buffered()) {
      pollfd fds[3] = {
          {upstream_.fd(), POLLIN, 0}, {client_.fd(), POLLRDHUP, 0}, {client_.stop_fd(), POLLIN, 0}};
      constexpr int kRoundMs = 60000;
      if (::poll(fds, 3, kRoundMs) < 0 && errno != EINTR) return false;
      if (fds[0].revents != 0) return true;
      if (fds[1].revents != 0 || fds[2].revents != 0) return false;
    }
    return true;
  }

  // Sends the body; ends early, without error, when the upstream answers before it has it all.
  base::Result<void> send_body() {
    std::string chunk(kIoChunk, '\0');
    const bool chunked = exchange_.head().chunked;
    while (!exchange_.body_done()) {
      if (readable(upstream_.fd())) return {};
      if (!exchange_.body_buffered() && !continue_wanted_ && !wait_client()) return {};
      continue_wanted_ = false;
      const auto got = exchange_.read_body(chunk.data(), chunk.size());
      if (!got) {
        // The upstream must see a broken body, not a complete one.
        exchange_.mark_raw();
        (void)::shutdown(upstream_.fd(), SHUT_RDWR);
        return {};
      }
      if (*got == 0) break;
      std::string text;
      if (chunked) {
        std::array<char, 20> size{};
        const auto end = std::to_chars(size.data(), size.data() + size.size(), *got, 16).ptr;
        text.append(size.data(), static_cast<std::size_t>(end - size.data())).append("\r\n");
      }
      text.append(chunk.data(), *got);
      if (chunked) text.append("\r\n");
      if (!push(text)) return {};
    }
    if (chunked) (void)push("0\r\n\r\n");
    return {};
  }

  // Waits for body bytes of the client. False: the upstream has answered, or the server stops.
  bool wait_client() {
    while (true) {
      pollfd fds[3] = {
          {upstream_.fd(), POLLIN, 0}, {client_.fd(), POLLIN, 0}, {client_.stop_fd(), POLLIN, 0}};
      constexpr int kRoundMs = 60000;
      if (::poll(fds, 3, kRoundMs) < 0 && errno != EINTR) return false;
      if (fds[0].revents != 0 || fds[2].revents != 0) return false;
      if (fds[1].revents != 0) return true;
    }
  }

  // Writes to the upstream. False: it answered or broke off instead of taking it.
  bool push(std::string_view data) {
    while (!data.empty()) {
      const auto sent = ::send(upstream_.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) {
        data.remove_prefix(static_cast<std::size_t>(sent));
        continue;
      }
      if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
      pollfd fds[3] = {
          {upstream_.fd(), POLLIN | POLLOUT, 0}, {client_.fd(), POLLHUP, 0}, {client_.stop_fd(), POLLIN, 0}};
      constexpr int kRoundMs = 60000;
      if (::poll(fds, 3, kRoundMs) < 0 && errno != EINTR) return false;
      if ((fds[0].revents & POLLIN) != 0 || fds[2].revents != 0 || (fds[1].revents & POLLHUP) != 0)
        return false;
    }
    return true;
  }

  base::Result<void> reply(ResponseHead head) {
    // A body that was not read to its end would be taken for the next request.
    if (!exchange_.body_done()) exchange_.close_after();
    Headers headers;
    for (const auto& [name, value] : head.headers.all()) {
      if (!dropped(name, false)) headers.add(name, value);
    }
    if (!begins_()) return base::errno_error(ECONNRESET, "the sandbox ended");
    if (!exchange_.start(head.status, std::move(headers), head.content_length, head.reason)) return give_up();
    std::string chunk(kCopyChunk, '\0');
    while (!reader_->body_done()) {
      if (!wait_reply()) return give_up();
      const auto got = reader_->read_body(chunk.data(), chunk.size());
      if (!got) return give_up();  // broken off: the client must see that too
      if (*got > 0 && !exchange_.write({chunk.data(), *got})) return give_up();
    }
    (void)exchange_.finish().ok();
    return {};
  }

  struct Half {
    int from;
    int to;
    std::string data;
    std::size_t begin = 0;
    bool ended = false;   // nothing more comes
    bool closed = false;  // and the other side has been told
  };

  // Moves what can be moved without waiting. False: broken.
  static bool move(Half& half, std::string& scratch) {
    if (half.begin == half.data.size() && !half.ended) {
      const auto got = ::recv(half.from, scratch.data(), scratch.size(), MSG_DONTWAIT);
      if (got < 0 && errno != EAGAIN && errno != EINTR) return false;
      if (got == 0) half.ended = true;
      if (got > 0) {
        half.data.assign(scratch.data(), static_cast<std::size_t>(got));
        half.begin = 0;
      }
    }
    if (half.begin < half.data.size()) {
      const auto sent = ::send(half.to, half.data.data() + half.begin, half.data.size() - half.begin,
                               MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
      if (sent > 0) half.begin += static_cast<std::size_t>(sent);
    }
    if (half.ended && !half.closed && half.begin == half.data.size()) {
      half.closed = true;
      (void)::shutdown(half.to, SHUT_WR);
    }
    return true;
  }

  base::Result<void> tunnel(const ResponseHead& head) {
    if (!begins_()) return base::errno_error(ECONNRESET, "the sandbox ended");
    exchange_.mark_raw();
    std::string text =
        "HTTP/1.1 101 " + (head.reason.empty() ? std::string(reason_of(101)) : head.reason) + "\r\n";
    for (const auto& [name, value] : head.headers.all()) text += name + ": " + value + "\r\n";
    if (!client_.write_all(text + "\r\n")) return {};
    Half down{upstream_.fd(), client_.fd(), reader_->take_buffered()};
    Half up{client_.fd(), upstream_.fd(), exchange_.take_buffered()};
    std::string scratch(kCopyChunk, '\0');
    while (!down.closed || !up.closed) {
      if (!move(down, scratch) || !move(up, scratch)) return {};
      const auto events_of = [](const Half& reads, const Half& writes) {
        const bool in = !reads.ended && reads.begin == reads.data.size();
        const bool out = writes.begin < writes.data.size();
        return static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0));
      };
      pollfd fds[3] = {{client_.fd(), events_of(up, down), 0},
                       {upstream_.fd(), events_of(down, up), 0},
                       {client_.stop_fd(), POLLIN, 0}};
      // A side that waits for nothing would report its hang-up again and again.
      if (fds[0].events == 0) fds[0].fd = -1;
      if (fds[1].events == 0) fds[1].fd = -1;
      if (fds[0].fd < 0 && fds[1].fd < 0) return {};
      constexpr int kRoundMs = 60000;
      if (::poll(fds, 3, kRoundMs) < 0 && errno != EINTR) return {};
      if (fds[2].revents != 0) return {};
    }
    return {};
  }

  Exchange& exchange_;
  const std::function<bool()> begins_;
  SocketStream& client_;
  SocketStream upstream_;
  std::unique_ptr<ResponseReader> reader_;
  bool continue_wanted_ = exchange_.head().expect_continue;  // the client sends nothing before it is told to
};

}  // namespace

base::Result<void> forward(Exchange& exchange, base::UniqueFd upstream, const std::string& masked_host,
                           std::function<bool()> begins) {
  return Forwarder(exchange, std::move(upstream), std::move(begins)).run(masked_host);
}

}  // namespace nearbox::sandbox_server
