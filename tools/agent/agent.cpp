// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/agent.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <utility>
#include <vector>

#include "tools/agent/service.h"

namespace nearbox::agent {
namespace {

constexpr std::chrono::milliseconds kTick{250};

// In a time that does not depend on where the tokens differ.
bool same_token(const wire::Token& a, const wire::Token& b) {
  unsigned diff = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    diff |= std::to_integer<unsigned>(a[i]) ^ std::to_integer<unsigned>(b[i]);
  }
  return diff == 0;
}

std::uint64_t new_instance() {
  std::uint64_t instance = 0;
  while (instance == 0) random_bytes(&instance, sizeof instance);
  return instance;
}

}  // namespace

void random_bytes(void* into, std::size_t size) {
  auto* at = static_cast<char*>(into);
  while (size > 0) {
    const ssize_t n = ::getrandom(at, size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) std::abort();  // no kernel we run on; a guessable token would be worse
    at += n;
    size -= static_cast<std::size_t>(n);
  }
}

Agent::Agent(Options options, base::Logger& log)
    : options_(std::move(options)),
      log_(log),
      instance_(new_instance()),
      changed_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      watcher_(log) {}

Agent::~Agent() {
  stop();
  enders_.stop();
  std::map<wire::SessionId, Entry> gone;
  base::MutexLock lock(mu_);
  gone.swap(sessions_);
}

SessionPtr Agent::find(const wire::Hello& hello, channel::Carrier& carrier, bool& resumed) {
  SessionPtr old;
  bool replaced = false;
  SessionPtr found;
  while (true) {
    if (old) old->stop_applying();
    base::MutexLock lock(mu_);
    if (stopping_) break;
    auto it = sessions_.find(hello.session);
    resumed = it != sessions_.end() && !it->second.session->poisoned() && !it->second.session->ended();
    if (!resumed) {
      if (it == sessions_.end() && sessions_.size() + ending_ >= kMaxSessions) break;
      if (it != sessions_.end() && it->second.session != old) {
        old = it->second.session;
        continue;
      }
      Entry fresh;
      fresh.session = std::make_shared<Session>(hello.session, instance_, options_.who, options_.procs,
                                                timers_, watcher_, log_);
      if (it == sessions_.end()) {
        it = sessions_.emplace(hello.session, std::move(fresh)).first;
      } else {
        ++ending_;
        replaced = !it->second.ending;  // else it is on its way already
        it->second = std::move(fresh);
      }
    }
    it->second.hung_up = false;
    if (it->second.session->attach(&carrier)) found = it->second.session;
    break;
  }
  if (replaced) end_later(std::move(old));
  return found;
}

void Agent::end_later(SessionPtr session) {
  // No reference stays here: whoever drops the last one waits for the session's threads.
  (void)enders_.submit([this, session = std::move(session)]() mutable { end(std::move(session)); });
}

void Agent::end(SessionPtr session) {
  session->drop_connections();
  // Still in the table: a client that comes with its id waits for this too.
  session->stop_applying();
  {
    base::MutexLock lock(mu_);
    const auto it = sessions_.find(session->id());
    if (it != sessions_.end() && it->second.session == session) {
      sessions_.erase(it);
      ++ending_;
    }
  }
  session->close();  // here, also when a connection's thread still has a reference
  session.reset();
  base::MutexLock lock(mu_);
  --ending_;
  ended_.notify_all();
}

void Agent::serve(channel::Carrier& carrier, const std::function<void()>& admitted,
                  Clock::time_point hello_by) {
  const auto deadline = hello_by;
  auto hello = channel::read_hello(carrier, deadline);
  if (!hello) {
    log_.info("event=no_hello error=\"" + hello.error().message() + "\"");
    return;
  }
  const auto refuse = [&](int error, const char* text) {
    log_.warn(std::string("event=refused why=\"") + text + "\"");
    (void)channel::send_refused(carrier, {error, text}, deadline);
  };
  if (!same_token(hello->token, options_.token)) return refuse(EACCES, "wrong token");
  if (hello->magic != wire::kHelloMagic || hello->version != wire::kProtocolVersion) {
    return refuse(EPROTO, "this agent speaks another version of the protocol");
  }
  wire::Welcome welcome;
  const auto session = find(*hello, carrier, welcome.resumed);
  if (!session) return refuse(EBUSY, "too many clients or connections");
  ++connections_;
  if (admitted) admitted();
  welcome.instance = instance_;
  welcome.nonce = session->nonce();
  welcome.session_grace_s = static_cast<std::uint32_t>(options_.session_grace.count());
  welcome.features = options_.features;
  welcome.build = options_.build;
  log_.info("event=connected resumed=" + std::to_string(welcome.resumed ? 1 : 0) +
            " role=" + std::to_string(static_cast<unsigned>(hello->role)));
  if (auto sent = channel::send_welcome(carrier, welcome, deadline); sent) {
    Service service(session, options_.who, log_);
    const auto ended = channel::serve_connection(carrier, service, options_.serve, log_);
    log_.info("event=disconnected why=\"" + (ended ? std::string("closed") : ended.error().message()) + "\"");
  }
  session->detach(&carrier);
  {
    base::MutexLock lock(mu_);
    needed_ = Clock::now();  // until now, whenever the last tick was
  }
  --connections_;
  (void)::eventfd_write(changed_.get(), 1);
}

bool Agent::keeps(Entry& entry, Clock::time_point now) {
  Session& session = *entry.session;
  if (session.poisoned() || session.ended()) return false;
  const auto alone = session.alone_since();
  if (!alone || now - *alone < options_.session_grace) return true;
  if (!session.has_background_process()) return false;
  if (!std::exchange(entry.hung_up, true)) session.hang_up_foreground();
  return true;  // for the background commands' output
}

bool Agent::tick(Clock::time_point now) {
  std::vector<SessionPtr> gone;
  bool needed = connections_.load() > 0;
  {
    base::MutexLock lock(mu_);
    for (auto& [id, entry] : sessions_) {
      if (entry.ending) continue;
      if (keeps(entry, now)) {
        needed = needed || entry.session->busy();
      } else {
        entry.session->set_ended();
        entry.ending = true;
        gone.push_back(entry.session);
      }
    }
    if (needed) needed_ = now;
  }
  for (auto& session : gone) end_later(std::move(session));
  base::MutexLock lock(mu_);
  return !needed && now - needed_ >= options_.linger;
}

std::chrono::milliseconds Agent::next_tick() {
  eventfd_t ignored = 0;
  (void)::eventfd_read(changed_.get(), &ignored);
  if (!changed_ || connections_.load() == 0) return kTick;
  base::MutexLock lock(mu_);
  const bool soon = std::any_of(sessions_.begin(), sessions_.end(), [](const auto& one) {
    const auto& session = *one.second.session;
    return session.ended() || session.poisoned() || one.second.session->alone_since();
  });
  return soon ? kTick : std::chrono::milliseconds(base::kIdleWait);
}

void Agent::stop() {
  std::vector<SessionPtr> all;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    for (auto& [id, entry] : sessions_) all.push_back(entry.session);
  }
  for (auto& session : all) session->drop_connections();
}

bool Agent::end_sessions(Clock::time_point deadline) {
  std::vector<SessionPtr> all;
  {
    base::MutexLock lock(mu_);
    for (auto& [id, entry] : sessions_) {
      if (std::exchange(entry.ending, true)) continue;
      entry.session->set_ended();
      all.push_back(entry.session);
    }
  }
  for (auto& session : all) end_later(std::move(session));
  base::MutexLock lock(mu_);
  while (!sessions_.empty() || ending_ > 0) {
    if (!ended_.wait_until(mu_, deadline) && Clock::now() >= deadline) return false;
  }
  return !watcher_.stuck();
}

std::size_t Agent::sessions() {
  base::MutexLock lock(mu_);
  return sessions_.size();
}

std::size_t Agent::ending() {
  base::MutexLock lock(mu_);
  return ending_;
}

}  // namespace nearbox::agent
