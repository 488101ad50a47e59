// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/sync_session.h"

#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <set>
#include <stop_token>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/api/state_dir.h"
#include "client/base/fault.h"
#include "client/base/mutex.h"
#include "client/base/unique_fd.h"
#include "client/wire/digest.h"
#include "sync/ignore/rules.h"
#include "sync/index/index.h"
#include "sync/push/push.h"
#include "tools/daemon/control_errors.h"
#include "tools/daemon/sync_result.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kClientWrite = 30s;
constexpr auto kBusyWait = 3s;  // for a sync of the same pairing that may be ending
constexpr std::size_t kMaxPatterns = 10'000;

// What a client asked for.
struct Request {
  std::string local;
  std::string remote;
  push::Options options;
  ignore::RuleOptions rules;
};

std::vector<std::string> strings(const nlohmann::json& request, const char* key) {
  std::vector<std::string> out;
  const auto found = request.find(key);
  if (found == request.end() || !found->is_array()) return out;
  for (const auto& item : *found) {
    if (item.is_string() && out.size() < kMaxPatterns) out.push_back(item.get<std::string>());
  }
  return out;
}

base::Error invalid(const char* name, const std::string& why) {
  return api::fill_error(api::ErrorCode::kArgInvalid, {{"NAME", name}, {"WHY", why}});
}

base::Result<Request> parse(const nlohmann::json& request) {
  Request out;
  out.local = request.value("local", std::string());
  out.remote = request.value("remote", std::string());
  if (out.local.empty() || out.local.front() != '/') return invalid("local", "it is no absolute path");
  out.options.dry_run = request.value("dry_run", false);
  const auto deletes = request.value("delete", std::string("tracked"));
  out.options.deletes = deletes == "none"     ? push::Deletes::kNone
                        : deletes == "mirror" ? push::Deletes::kMirror
                                              : push::Deletes::kTracked;
  const auto conflicts = request.value("conflicts", std::string("keep-both"));
  out.options.conflicts = conflicts == "prefer-local"    ? push::Conflicts::kPreferLocal
                          : conflicts == "prefer-remote" ? push::Conflicts::kPreferRemote
                          : conflicts == "fail"          ? push::Conflicts::kFail
                                                         : push::Conflicts::kKeepBoth;
  if (request.value("symlinks", std::string("preserve")) == "skip") {
    out.options.scan.symlinks = scan::Symlinks::kSkip;
  }
  if (request.value("content", false)) out.options.scan.compare = scan::Compare::kContent;
  out.options.scan.max_file_bytes = request.value("max_file_bytes", std::uint64_t{0});
  // Tests run with clocks of files that step as coarsely as no kernel's.
  if (base::fault::active("sync.coarse_times")) out.options.scan.granularity_ns = 60'000'000'000;
  out.rules.include = strings(request, "include");
  out.rules.exclude = strings(request, "exclude");
  out.rules.gitignore = request.value("gitignore", true);
  out.rules.secrets = request.value("include_secrets", false);
  return out;
}

// The syncs that run in this process, by pairing: one that follows upon another waits for its end.
class Running {
 public:
  // False: the other one did not end in time.
  bool enter(const std::string& id) EXCLUDES(mu_) {
    const auto limit = Clock::now() + kBusyWait;
    base::MutexLock lock(mu_);
    while (ids_.contains(id)) {
      if (!left_.wait_until(mu_, limit) && ids_.contains(id)) return false;
    }
    ids_.insert(id);
    return true;
  }
  void leave(const std::string& id) EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    ids_.erase(id);
    left_.notify_all();
  }
  static Running& process() {
    static Running running;
    return running;
  }

 private:
  base::Mutex mu_;  // rank: leaf
  base::CondVar left_;
  std::set<std::string> ids_ GUARDED_BY(mu_);
};

// The index of a pairing, held as long as the sync runs.
struct Pairing {
  Pairing() = default;
  Pairing(Pairing&& from) noexcept
      : id(std::move(from.id)),
        entered(std::exchange(from.entered, false)),
        lock(std::move(from.lock)),
        index(std::move(from.index)) {}
  ~Pairing() {
    index.reset();
    lock.reset();
    if (entered) Running::process().leave(id);
  }
  Pairing& operator=(Pairing&&) = delete;

  std::string id;
  bool entered = false;
  base::UniqueFd lock;
  std::unique_ptr<index::Index> index;
};

base::Result<void> make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("make " + path);
  return {};
}

std::string pairing_id(const std::string& local, const std::string& remote) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out;
  for (const auto byte : wire::digest_of(wire::as_view(local + '\0' + remote))) {
    const auto value = std::to_integer<std::size_t>(byte);
    out += kHex[value >> 4];
    out += kHex[value & 15];
  }
  return out;
}

base::Result<Pairing> open_pairing(const std::string& local, const std::string& remote) {
  auto state = api::state_dir(api::process_environment());
  if (!state) return std::move(state).error();
  Pairing pairing;
  pairing.id = pairing_id(local, remote);
  const auto busy = [&] {
    return api::fill_error(api::ErrorCode::kSyncBusy, {{"ID", pairing.id.substr(0, 12)}});
  };
  pairing.entered = Running::process().enter(pairing.id);
  if (!pairing.entered) return busy();
  const auto dir = *state + "/sync/" + pairing.id;
  for (const auto& path : {*state + "/sync", dir}) {
    if (auto made = make_directory(path); !made) return std::move(made).error();
  }
  pairing.lock.reset(::open((dir + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!pairing.lock) return base::last_errno("open " + dir + "/lock");
  if (::flock(pairing.lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::last_errno("lock " + dir);
    return busy();
  }
  const auto file = dir + "/index.db";
  auto index = index::Index::open(file, {local, remote});
  if (!index && (index.error().as_errno() == EUCLEAN || index.error().as_errno() == ESTALE)) {
    // What it said can be found out again, by comparing contents.
    for (const char* suffix : {"", "-wal", "-shm"}) (void)::unlink((file + suffix).c_str());
    index = index::Index::open(file, {local, remote});
  }
  if (!index) return std::move(index).error().during("open " + file);
  pairing.index = *std::move(index);
  return pairing;
}

// Stops the sync when its client goes.
class ClientWatch {
 public:
  ClientWatch(int fd, std::stop_source& stop) : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    thread_ = std::jthread([this, fd, &stop](const std::stop_token& ended) {
      ::pthread_setname_np(::pthread_self(), "sync-client");
      while (!ended.stop_requested()) {
        pollfd fds[2] = {{fd, POLLIN | POLLRDHUP, 0}, {wake_.get(), POLLIN, 0}};
        if (::poll(fds, 2, 60'000) <= 0) continue;
        if (fds[1].revents != 0) return;
        stop.request_stop();  // it says nothing while a sync runs: whatever comes is its end
        return;
      }
    });
  }
  ~ClientWatch() {
    const std::uint64_t one = 1;
    thread_.request_stop();
    if (::write(wake_.get(), &one, sizeof one) < 0) return;  // it is awake already
  }
  ClientWatch(const ClientWatch&) = delete;
  ClientWatch& operator=(const ClientWatch&) = delete;

 private:
  base::UniqueFd wake_;
  std::jthread thread_;
};

base::Error remote_error(const std::string& sandbox, const std::string& dir, const base::Error& error) {
  if (error.code.category() == api::nearbox_category()) return error;
  switch (error.as_errno()) {
    case ENOTDIR:
      return api::fill_error(api::ErrorCode::kRemoteNotDirectory, {{"PATH", dir}});
    case EACCES:
    case EPERM:
      return api::fill_error(api::ErrorCode::kRemotePermission, {{"PATH", dir}});
    case ECANCELED:
      return api::fill_error(api::ErrorCode::kCancelled);
    default:
      return api::in_sandbox(base::Error(error), sandbox);
  }
}

}  // namespace

base::Result<nlohmann::json> SyncSession::sync(const nlohmann::json& message, std::shared_ptr<void>& held) {
  auto request = parse(message);
  if (!request) return std::move(request).error();
  auto rules = ignore::Rules::load(request->local, request->rules);
  if (!rules) {
    const int error = rules.error().as_errno();
    if (error == ENOENT) return api::fill_error(api::ErrorCode::kLocalNotFound, {{"PATH", request->local}});
    if (error == ENOTDIR) {
      return api::fill_error(api::ErrorCode::kLocalNotDirectory, {{"PATH", request->local}});
    }
    return std::move(rules).error();
  }
  auto opened = open_pairing(request->local, name_ + ":" + request->remote);
  if (!opened) return std::move(opened).error();
  const auto pairing = std::make_shared<Pairing>(*std::move(opened));
  held = pairing;
  std::stop_source stop;
  const ClientWatch watch(client_.fd(), stop);
  request->options.progress = [&](const push::Progress& progress) {
    const auto told =
        client_.write_json({{"progress", sync_progress(progress)}}, Clock::now() + kClientWrite);
    if (!told) stop.request_stop();
  };
  auto report =
      push::push(link_, request->remote, *rules, *pairing->index, request->options, stop.get_token());
  if (!report) return remote_error(name_, request->remote, report.error());
  return sync_result(*report, {name_, request->local, pairing->id.substr(0, 12)}, request->options.conflicts);
}

// The client does not wait for the index to be closed; the next sync does.
void SyncSession::run(const nlohmann::json& message) {
  std::shared_ptr<void> held;
  const auto result = sync(message, held);
  if (!result) log_.info("event=sync_failed why=" + result.error().message());
  (void)client_.write_json(
      result ? nlohmann::json{{"ok", *result}} : nlohmann::json{{"error", error_object(result.error())}},
      Clock::now() + kClientWrite);
}

}  // namespace nearbox::daemon
