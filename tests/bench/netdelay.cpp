// SPDX-License-Identifier: Apache-2.0
//
// nearbox-netdelay: a wide-area link between two network namespaces of its own, for measurements on
// kernels without netem. Each end is a TUN device; IP packets are carried from one to the other with a
// one-way delay, a rate and a bounded queue, as a long line behind a router would.
//
// The namespaces have no name: they are reached as /proc/PID/fd/N (printed when ready) and vanish with
// this process and the last process inside, whatever kills it. It ends on SIGTERM, SIGINT, or the end of
// its stdin; "stats" on stdin prints one line of counters.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <memory>
#include <optional>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stop_token>
#include <string>
#include <string_view>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <thread>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::bench {
namespace {

using base::Result;
using base::UniqueFd;
using Nanos = std::int64_t;

constexpr Nanos kSecond = 1'000'000'000;
constexpr Nanos kMillisecond = 1'000'000;
constexpr std::int64_t kMaxRttMs = 4'000;
constexpr std::int64_t kMaxRateMbit = 10'000;
constexpr std::int64_t kMaxQueueBytes = 256LL << 20;
constexpr std::int64_t kUnlimitedFlyingBytes = 64LL << 20;  // on the way at no rate; more is dropped
constexpr Nanos kMinQueueTime = 20 * kMillisecond;          // of the default queue, where the RTT is shorter
constexpr std::size_t kMaxPacketsHeld = 1'000'000;
constexpr std::int64_t kBurstSlackBytes = 8LL << 20;  // ring space beyond delay × rate and the queue
constexpr int kBatch = 64;  // packets read or written before the other gets its turn
constexpr int kRealtimePriority = 40;

// What stands before each packet of a TUN device with IFF_VNET_HDR (the kernel's own header for it is no
// C++). Source: virtio 1.1, section 5.1.6: csum_start is where the TCP header begins; gso_type 0: no offload.
struct OffloadHeader {
  std::uint8_t flags, gso_type;
  std::uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
static_assert(sizeof(OffloadHeader) == 10);

constexpr std::size_t kMaxPacketBytes = 65'535 + sizeof(OffloadHeader);

// What the line is like. Rate 0: as fast as the machine. Bytes are those of IP packets, segment headers
// of offloaded packets included.
struct Link {
  Nanos one_way = 0;
  std::int64_t bits_per_second = 0;
  std::int64_t queue_bytes = 0;

  std::int64_t bytes_in(Nanos time) const { return time / 1000 * bits_per_second / 8'000'000; }
};

Nanos monotonic_now() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * kSecond + t.tv_nsec;
}

// Counts of one direction. `late` is delivery after the planned time, in a histogram of powers of two µs.
struct Counters {
  std::atomic<std::uint64_t> packets{0}, bytes{0}, dropped_queue{0}, dropped_cut{0}, failed{0},
      late_max_us{0};
  std::array<std::atomic<std::uint64_t>, 24> late_us{};

  void delivered(std::size_t size, Nanos late) {
    packets.fetch_add(1, std::memory_order_relaxed);
    bytes.fetch_add(size, std::memory_order_relaxed);
    const auto us = static_cast<std::uint64_t>(std::max<Nanos>(late, 0) / 1000);
    const auto bucket =
        std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(us)), late_us.size() - 1);
    late_us[bucket].fetch_add(1, std::memory_order_relaxed);
    if (us > late_max_us.load(std::memory_order_relaxed)) late_max_us.store(us, std::memory_order_relaxed);
  }
};

// Packets on their way, in the order of their delivery times, in one ring of bytes.
//
// Threads: one. Errors: room() is nullptr when it is full.
class PacketRing {
 public:
  static Result<std::unique_ptr<PacketRing>> make(std::size_t bytes) {
    void* at =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) return base::last_errno("map the packet ring");
    return std::unique_ptr<PacketRing>(new PacketRing(static_cast<std::byte*>(at), bytes));
  }
  ~PacketRing() { ::munmap(data_, size_); }
  PacketRing(const PacketRing&) = delete;
  PacketRing& operator=(const PacketRing&) = delete;

  // Space for one packet of any size; nullptr: full.
  std::byte* room() {
    if (held_.size() >= kMaxPacketsHeld) return nullptr;
    if (held_.empty()) head_ = 0;
    const std::size_t tail = held_.empty() ? 0 : held_.front().offset;
    const bool wrapped = !held_.empty() && head_ <= tail;
    if (!wrapped && size_ - head_ < kMaxPacketBytes) {
      if (tail <= kMaxPacketBytes) return nullptr;
      head_ = 0;
      return data_;
    }
    if (wrapped && tail - head_ <= kMaxPacketBytes) return nullptr;
    return data_ + head_;
  }
  // Keeps what was put at room().
  void push(std::size_t length, Nanos due) {
    held_.push_back({head_, length, due});
    head_ += length;
  }
  void pop() { held_.pop_front(); }
  void clear() { held_.clear(); }
  bool empty() const { return held_.empty(); }
  Nanos due() const { return held_.front().due; }
  const std::byte* data() const { return data_ + held_.front().offset; }
  std::size_t length() const { return held_.front().length; }

 private:
  struct Packet {
    std::size_t offset, length;
    Nanos due;
  };
  PacketRing(std::byte* data, std::size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  std::size_t size_;
  std::size_t head_ = 0;
  std::deque<Packet> held_;
};

// IP bytes that an offloaded packet has on the line: each of its segments carries the headers.
std::int64_t line_bytes(const std::byte* packet, std::size_t length) {
  OffloadHeader header{};
  std::memcpy(&header, packet, sizeof header);
  const auto size = static_cast<std::int64_t>(length - sizeof header);
  const std::size_t offset_byte = sizeof header + header.csum_start + 12U;  // TCP data offset
  if (header.gso_type == 0 || header.gso_size == 0 || offset_byte >= length) return size;
  const auto tcp = (std::to_integer<std::int64_t>(packet[offset_byte]) >> 4) * 4;
  const std::int64_t headers = header.csum_start + tcp;
  if (headers >= size) return size;
  const std::int64_t segments = (size - headers + header.gso_size - 1) / header.gso_size;
  return size + (segments - 1) * headers;
}

// Carries packets one way.
//
// Owns:    its thread and packets; the descriptors are the caller's and outlive it.
// Threads: cut() and stall() from any thread.
// Units:   times are those of the line's own clock, which stands still while the line is stalled, so that
//          a stall delays everything and changes no rate.
class Direction {
 public:
  Direction(int in, int out, Link link, std::unique_ptr<PacketRing> ring, UniqueFd wake)
      : in_(in), out_(out), link_(link), ring_(std::move(ring)), wake_(std::move(wake)) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  ~Direction() {
    thread_.request_stop();
    poke();
  }

  void cut(bool on) { set(want_cut_, on); }
  void stall(bool on) { set(want_stall_, on); }
  const Counters& counters() const { return counters_; }
  bool realtime() const { return realtime_.load(); }

 private:
  void set(std::atomic<bool>& which, bool on) {
    which.store(on);
    poke();
  }
  void poke() {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }

  Nanos line_now() const { return (stalled_since_ ? *stalled_since_ : monotonic_now()) - stalled_total_; }

  void take_switches() {
    const bool stall = want_stall_.load();
    if (stall && !stalled_since_) stalled_since_ = monotonic_now();
    if (!stall && stalled_since_) {
      stalled_total_ += monotonic_now() - *stalled_since_;
      stalled_since_.reset();
    }
    cut_ = want_cut_.load();
    if (cut_) ring_->clear();
  }

  // Reads one packet; false: none is waiting.
  bool receive() {
    std::byte* room = ring_->room();
    std::byte* into = room != nullptr ? room : spill_.data();
    const ssize_t got = ::read(in_, into, kMaxPacketBytes);
    if (got < static_cast<ssize_t>(sizeof(OffloadHeader))) return false;
    if (cut_) {
      counters_.dropped_cut.fetch_add(1, std::memory_order_relaxed);
      return true;
    }
    const auto length = static_cast<std::size_t>(got);
    const Nanos now = line_now();
    const std::int64_t bits = line_bytes(into, length) * 8;
    Nanos free_at = std::max(line_free_, now);
    if (link_.bits_per_second > 0) {
      const std::int64_t queued = link_.bytes_in(free_at - now);
      if (queued > link_.queue_bytes) room = nullptr;
      free_at += bits * kSecond / link_.bits_per_second;
    }
    if (room == nullptr) {
      counters_.dropped_queue.fetch_add(1, std::memory_order_relaxed);
      return true;
    }
    line_free_ = free_at;
    ring_->push(length, free_at + link_.one_way);
    return true;
  }

  // Hands over one packet whose time has come; false: there is none.
  bool deliver() {
    if (stalled_since_ || ring_->empty()) return false;
    const Nanos now = line_now();
    if (ring_->due() > now) return false;
    if (::write(out_, ring_->data(), ring_->length()) < 0) {
      counters_.failed.fetch_add(1, std::memory_order_relaxed);
    } else {
      counters_.delivered(ring_->length() - sizeof(OffloadHeader), now - ring_->due());
    }
    ring_->pop();
    return true;
  }

  void wait() {
    std::array<pollfd, 2> fds{{{in_, POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
    timespec left{1, 0};  // nothing on its way: the descriptors wake it
    if (!stalled_since_ && !ring_->empty()) {
      const Nanos ns = std::clamp<Nanos>(ring_->due() - line_now(), 0, kSecond);
      left = {ns / kSecond, ns % kSecond};
    }
    if (::ppoll(fds.data(), fds.size(), &left, nullptr) > 0 && fds[1].revents != 0) {
      std::uint64_t count = 0;
      (void)!::read(wake_.get(), &count, sizeof count);
    }
  }

  void run(const std::stop_token& stop) noexcept {
    ::pthread_setname_np(::pthread_self(), "netdelay");
    // A busy machine must not change the delay: before all ordinary threads, and timers to the µs.
    sched_param param{};
    param.sched_priority = kRealtimePriority;
    realtime_.store(::pthread_setschedparam(::pthread_self(), SCHED_FIFO, &param) == 0);
    ::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    while (!stop.stop_requested()) {
      take_switches();
      bool worked = false;
      for (int i = 0; i < kBatch && deliver(); ++i) worked = true;
      for (int i = 0; i < kBatch && receive(); ++i) worked = true;
      if (!worked) wait();
    }
  }

  const int in_, out_;
  const Link link_;
  std::unique_ptr<PacketRing> ring_;
  UniqueFd wake_;
  std::array<std::byte, kMaxPacketBytes> spill_{};
  Nanos line_free_ = 0;
  std::optional<Nanos> stalled_since_;
  Nanos stalled_total_ = 0;
  bool cut_ = false;
  std::atomic<bool> want_cut_{false}, want_stall_{false}, realtime_{false};
  Counters counters_;
  std::jthread thread_;  // last: it uses the others
};

// One end of the line: a network namespace and the TUN device in it.
struct End {
  UniqueFd net;
  UniqueFd tun;
};

// Makes a namespace and its device. The calling thread stays in it.
Result<End> make_end(const char* device) {
  if (::unshare(CLONE_NEWNET) != 0) return base::last_errno("make a network namespace (needs root)");
  End end;
  end.net = UniqueFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!end.net) return base::last_errno("open the network namespace");
  end.tun = UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!end.tun) return base::last_errno("open /dev/net/tun");
  ifreq request{};
  // Offloads keep the packets of a fast flow large (up to 64 KiB) while their segments, and so the
  // window and the acknowledgements, are those of the MTU: one read and write per packet suffice.
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
  if (::ioctl(end.tun.get(), TUNSETIFF, &request) != 0) return base::last_errno("make the TUN device");
  if (::ioctl(end.tun.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) {
    return base::last_errno("switch on the TUN device's offloads");
  }
  return end;
}

Result<std::unique_ptr<Direction>> make_direction(int in, int out, const Link& link) {
  const std::int64_t flying = link.bits_per_second > 0
                                  ? link.bits_per_second / 8 * (link.one_way / 1000) / 1'000'000
                                  : kUnlimitedFlyingBytes;
  auto ring = PacketRing::make(static_cast<std::size_t>(flying + link.queue_bytes + kBurstSlackBytes));
  if (!ring) return std::move(ring).error();
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return base::last_errno("eventfd");
  return std::make_unique<Direction>(in, out, link, std::move(*ring), std::move(wake));
}

void print_counters(const char* name, const Counters& c) {
  std::printf(
      "\"%s\":{\"packets\":%llu,\"bytes\":%llu,\"dropped_queue\":%llu,\"dropped_cut\":%llu,\"failed\":%llu,"
      "\"late_max_us\":%llu,\"late_log2_us\":[",
      name, static_cast<unsigned long long>(c.packets), static_cast<unsigned long long>(c.bytes),
      static_cast<unsigned long long>(c.dropped_queue), static_cast<unsigned long long>(c.dropped_cut),
      static_cast<unsigned long long>(c.failed), static_cast<unsigned long long>(c.late_max_us));
  for (std::size_t i = 0; i < c.late_us.size(); ++i) {
    std::printf(i == 0 ? "%llu" : ",%llu", static_cast<unsigned long long>(c.late_us[i]));
  }
  std::printf("]}");
}

// The line and its switches, driven by signals and stdin.
class Wan {
 public:
  Wan(std::unique_ptr<Direction> ab, std::unique_ptr<Direction> ba)
      : ab_(std::move(ab)), ba_(std::move(ba)) {}

  void stats() const {
    std::printf("{");
    print_counters("a_to_b", ab_->counters());
    std::printf(",");
    print_counters("b_to_a", ba_->counters());
    std::printf(",\"realtime\":%s}\n", ab_->realtime() && ba_->realtime() ? "true" : "false");
    (void)std::fflush(stdout);
  }

  // False: it is time to end.
  bool on_signal(std::uint32_t number) {
    if (number == SIGUSR1) {
      cut_ = !cut_;
      for (auto* d : {ab_.get(), ba_.get()}) d->cut(cut_);
    } else if (number == SIGUSR2) {
      stalled_ = !stalled_;
      for (auto* d : {ab_.get(), ba_.get()}) d->stall(stalled_);
    }
    return number == SIGUSR1 || number == SIGUSR2;
  }

  // False: end of input.
  bool on_input() {
    std::array<char, 256> text{};
    const ssize_t got = ::read(STDIN_FILENO, text.data(), text.size());
    if (got <= 0) return false;
    if (std::string_view(text.data(), static_cast<std::size_t>(got)).starts_with("stats")) stats();
    return true;
  }

  void serve(int signals) {
    std::array<pollfd, 2> fds{{{signals, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}}};
    for (bool go_on = true; go_on;) {
      if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
      if (fds[0].revents != 0) {
        signalfd_siginfo info{};
        if (::read(signals, &info, sizeof info) == sizeof info) go_on = on_signal(info.ssi_signo);
      }
      if (go_on && fds[1].revents != 0) go_on = on_input();
    }
  }

 private:
  std::unique_ptr<Direction> ab_, ba_;
  bool cut_ = false, stalled_ = false;
};

std::optional<std::int64_t> number(const char* text, std::int64_t max) {
  const std::string_view view(text);
  std::int64_t value = 0;
  const auto [end, failed] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (failed != std::errc{} || end != view.data() + view.size() || value < 0 || value > max)
    return std::nullopt;
  return value;
}

constexpr const char* kUsage =
    "usage: nearbox-netdelay [--rtt-ms N] [--rate-mbit N] [--queue-bytes N]\n"
    "A line between two network namespaces. Rate 0: unlimited. Queue: default one bandwidth x RTT (at least "
    "20 ms);\n"
    "what finds it full is dropped. SIGUSR1 cuts the line and joins it again; SIGUSR2 stalls it and lets it "
    "go on.\n";

std::optional<Link> parse(int argc, char** argv) {
  const std::array<option, 4> options{{{"rtt-ms", required_argument, nullptr, 't'},
                                       {"rate-mbit", required_argument, nullptr, 'r'},
                                       {"queue-bytes", required_argument, nullptr, 'q'},
                                       {nullptr, 0, nullptr, 0}}};
  std::optional<std::int64_t> rtt = 50, rate = 1000, queue = -1;
  for (int c = 0; (c = ::getopt_long(argc, argv, "", options.data(), nullptr)) != -1;) {
    if (c == 't') rtt = number(optarg, kMaxRttMs);
    if (c == 'r') rate = number(optarg, kMaxRateMbit);
    if (c == 'q') queue = number(optarg, kMaxQueueBytes);
    if (c == '?') rtt.reset();
  }
  if (!rtt || !rate || !queue || optind != argc) return std::nullopt;
  Link link;
  link.one_way = *rtt * kMillisecond / 2;
  link.bits_per_second = *rate * 1'000'000;
  const Nanos queue_time = std::max(*rtt * kMillisecond, kMinQueueTime);
  link.queue_bytes = *queue >= 0 ? *queue : link.bytes_in(queue_time);
  link.queue_bytes = std::min(link.queue_bytes, kMaxQueueBytes);
  return link;
}

Result<void> run(const Link& link) {
  sigset_t set;
  sigemptyset(&set);
  for (int s : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT}) sigaddset(&set, s);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!signals) return base::last_errno("signalfd");
  auto a = make_end("wan0");
  if (!a) return std::move(a).error();
  auto b = make_end("wan0");
  if (!b) return std::move(b).error();
  auto ab = make_direction(a->tun.get(), b->tun.get(), link);
  if (!ab) return std::move(ab).error();
  auto ba = make_direction(b->tun.get(), a->tun.get(), link);
  if (!ba) return std::move(ba).error();
  Wan wan(std::move(*ab), std::move(*ba));
  std::printf(
      "{\"ready\":true,\"net_a\":\"/proc/%d/fd/%d\",\"net_b\":\"/proc/%d/fd/%d\",\"device\":\"wan0\","
      "\"queue_bytes\":%lld}\n",
      ::getpid(), a->net.get(), ::getpid(), b->net.get(), static_cast<long long>(link.queue_bytes));
  (void)std::fflush(stdout);
  wan.serve(signals.get());
  wan.stats();
  return {};
}

}  // namespace
}  // namespace nearbox::bench

int main(int argc, char** argv) {
  const auto link = nearbox::bench::parse(argc, argv);
  if (!link) {
    std::fputs(nearbox::bench::kUsage, stderr);
    return 2;
  }
  auto done = nearbox::bench::run(*link);
  if (done.ok()) return 0;
  std::fprintf(stderr, "nearbox-netdelay: %s\n", done.error().message().c_str());
  return 1;
}
