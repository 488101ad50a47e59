// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/engine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/base/timers.h"
#include "client/channel/agent_link_impl.h"
#include "fs/core/block_cache.h"
#include "fs/core/op_log.h"
#include "fs/core/tree_hooks.h"
#include "fs/fuse/fuse_loop.h"
#include "fs/fuse/mount_point.h"
#include "fs/fuse/mount_session.h"
#include "sync/engine/event_stream.h"
#include "sync/engine/tree_store.h"
#include "tools/daemon/metrics.h"
#include "tools/daemon/sync_call.h"
#include "tools/daemon/up_watch.h"
#include "tools/daemon/waiter.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kDialTimeout = 120s;   // the agent's upload over a slow line is in it
constexpr auto kRedialTimeout = 15s;  // the agent is there already
constexpr auto kRescanEvery = 10s;    // where nothing is watched
constexpr auto kRescanDeadline = 60s;
constexpr auto kMountBarrier = 5s;  // a mount is usable without; it asks then
constexpr auto kTellDeadline = 5s;  // for the kernels; a request that is held keeps what is its own
constexpr std::size_t kMaxMounts = 256;

// The message of calls without arguments.
struct Empty {};
template <class Ar>
void fields(Ar&, const Empty&) {}

// Another agent counts versions of its own: bytes from before say nothing beside them.
struct ForgetBytes : sync::ChangeListener {
  explicit ForgetBytes(fs::BlockCache& of) : cache(of) {}
  void on_changes(const sync::Changes& changes) noexcept override {
    for (const auto& change : changes) {
      if (change.kind == sync::Change::Kind::kAll) return cache.forget();
    }
  }
  fs::BlockCache& cache;
};

struct Mount {
  std::shared_ptr<fs::MountSession> session;
  std::string dir;     // canonical, in the sandbox
  unsigned minor = 0;  // of its device
  std::shared_ptr<std::atomic<int>> loaded = std::make_shared<std::atomic<int>>(-1);  // errno once known
};

// NEARBOX_FUSE_WORKERS: how many threads answer the kernel, 1 to 64.
fs::FuseLoopOptions loop_options() {
  fs::FuseLoopOptions options;
  if (const char* text = std::getenv("NEARBOX_FUSE_WORKERS"); text != nullptr) {
    options.workers = std::clamp(std::atoi(text), 1, 64);
  }
  return options;
}

base::Error no_remote(const std::string& sandbox, const std::string& dir, const base::Error& error) {
  switch (error.as_errno()) {
    case ENOENT:
      return api::fill_error(api::ErrorCode::kRemoteNotFound, {{"PATH", dir}});
    case ENOTDIR:
      return api::fill_error(api::ErrorCode::kRemoteNotDirectory, {{"PATH", dir}});
    case EACCES:
    case EPERM:
      return api::fill_error(api::ErrorCode::kRemotePermission, {{"PATH", dir}});
    default:
      return api::in_sandbox(base::Error(error).during("open " + dir + " in the sandbox"), sandbox);
  }
}

// The names that users and scripts know for what keeps a mount from being made.
base::Error mount_error(base::Error error) {
  if (error.code.category() == api::nearbox_category()) return error;
  const auto text = error.context;
  switch (error.as_errno()) {
    case ENOENT:
      return api::make_error(api::ErrorCode::kLocalNotFound, "Local path not found: " + text);
    case ENOTDIR:
      return api::make_error(api::ErrorCode::kLocalNotDirectory, "Local path is not a directory: " + text);
    case ENOTEMPTY:
      return api::make_error(api::ErrorCode::kMountBusy, "Mountpoint is not empty: " + text);
    case EBUSY:
      return api::make_error(api::ErrorCode::kMountBusy, text);
    case ENODEV:
    case ENXIO:
    case EPERM:
    case EACCES:
      return api::make_error(api::ErrorCode::kMountUnavailable, "FUSE is not available: " + text);
    default:
      return error;
  }
}

}  // namespace

struct Engine::Impl {
  Impl(std::unique_ptr<Dialer> d, Layout l, fs::ReadPolicy reads, std::function<void()> idle, base::Logger& g)
      : dialer(std::move(d)),
        layout(std::move(l)),
        on_idle_change(std::move(idle)),
        log(g),
        link(make_link()),
        events(*link, log),
        tree(*link, timers, log),
        ops(*link, timers, log, [this] { return tree.root_path(); }),
        cache(*link, fs::tree_hooks(tree, *link, ops, timers)),
        prefetch(tree, cache, *link),
        readers(std::move(reads)),
        loop(loop_options(), log) {
    link->add_observer(&up);
    ops.attach(events);
    tree.attach(events);
    tree.add_listener(&forget);
    events.start();
  }
  ~Impl();

  std::unique_ptr<channel::Link> make_link();
  void handshake_failed(const base::Error& error);
  base::Result<void> open_root(Deadline deadline);
  base::Result<wire::RootReply> resolve(const std::string& dir, Deadline deadline);
  base::Result<nlohmann::json> mount(const nlohmann::json& request, Deadline deadline);
  base::Result<bool> unmount(const std::string& mountpoint, Deadline deadline);
  void record() REQUIRES(mu);
  void schedule_rescan();
  int barrier(Deadline deadline, std::uint64_t instance = 0, std::uint64_t seq = 0);
  int drain(Deadline deadline);
  nlohmann::json status();

  std::unique_ptr<Dialer> dialer;
  Layout layout;
  std::function<void()> on_idle_change;
  base::Logger& log;
  base::Mutex mu;  // rank: above the tree's lock; not held across waits
  std::map<std::string, Mount> mounts GUARDED_BY(mu);
  bool root_open GUARDED_BY(mu) = false;
  bool rescan_planned GUARDED_BY(mu) = false;
  bool stopping GUARDED_BY(mu) = false;

  base::Timers timers;
  UpWatch up;
  bool reached = false;              // the dialer thread's: a connection was made before
  std::atomic<bool> shaking{false};  // the control or bulk connection that was dialled last shakes hands
  std::unique_ptr<channel::Link> link;
  sync::EventStream events;
  sync::TreeStore tree;
  fs::OpLog ops;
  fs::BlockCache cache;
  ForgetBytes forget{cache};
  fs::Prefetcher prefetch;
  fs::Readers readers;
  fs::FuseLoop loop;
};

std::unique_ptr<channel::Link> Engine::Impl::make_link() {
  channel::LinkConfig config;
  config.connect_timeout = kDialTimeout;
  config.build = "nearbox " NEARBOX_VERSION;
  config.dial = [this](wire::Role role, channel::Deadline deadline) {
    const auto limit = reached ? std::min(deadline, Clock::now() + kRedialTimeout) : deadline;
    auto dialled = dialer->dial(role, limit);
    if (dialled) reached = true;
    shaking = dialled.ok();
    if (!dialled) {
      log.warn("event=dial_failed why=" + dialled.error().message());
      up.dial_failed(dialled.error(), dialer->is_final(dialled.error()));
    }
    return dialled;
  };
  config.abort_dial = [this] { dialer->abort(); };
  config.is_final = [this](const base::Error& error) {
    // A token the agent does not take is an old one: the next dial asks for the present one.
    if (error.as_errno() == EACCES) dialer->refused();
    if (shaking.exchange(false)) handshake_failed(error);
    return dialer->is_final(error);
  };
  return channel::make_agent_link(std::move(config), timers, log);
}

Engine::Impl::~Impl() {
  // The reverse of the start: mounts went before; then what calls the link, then the link.
  events.stop();
  tree.remove_listener(&forget);
  ops.close();
  cache.close();
  link->remove_observer(&up);
}

// What answered is no agent of ours (EPROTO): trying again is of no use while a user waits.
void Engine::Impl::handshake_failed(const base::Error& error) {
  up.handshake_failed(api::make_error(api::ErrorCode::kNetUnreachable,
                                      "Cannot reach " + dialer->describe() + ": " + error.message() +
                                          "; what answers there is not the agent, or it broke off"),
                      error.as_errno() == EPROTO);
}

base::Result<void> Engine::Impl::open_root(Deadline deadline) {
  {
    base::MutexLock lock(mu);
    if (root_open) return {};
  }
  const Waiter opened;
  tree.open_root("/", deadline, opened.completion());
  if (const int error = opened.wait(deadline); error != 0) {
    return api::in_sandbox(base::errno_error(error, "open the sandbox's root"), dialer->describe());
  }
  base::MutexLock lock(mu);
  root_open = true;
  return {};
}

// Where a directory given by a user is, its symlinks followed.
base::Result<wire::RootReply> Engine::Impl::resolve(const std::string& dir, Deadline deadline) {
  wire::RootOpen open;
  open.path = dir;
  if (open.path.empty()) {
    auto info = sync_call<wire::InfoReply>(*link, wire::Method::kInfo, Empty{}, deadline, Resend::kYes);
    if (!info) return api::in_sandbox(std::move(info).error().during("ask the agent"), dialer->describe());
    open.path = info->work_dir.empty() ? info->home : info->work_dir;
  }
  auto reply = sync_call<wire::RootReply>(*link, wire::Method::kRootOpen, open, deadline, Resend::kYes);
  if (!reply) return no_remote(dialer->describe(), open.path, reply.error());
  if (reply->path.empty() || reply->path.front() != '/')
    return base::errno_error(EPROTO, "the agent's answer");
  return reply;
}

base::Result<nlohmann::json> Engine::Impl::mount(const nlohmann::json& request, Deadline deadline) {
  const auto mountpoint = request.value("mountpoint", std::string());
  {
    base::MutexLock lock(mu);
    if (mounts.contains(mountpoint)) {
      return api::make_error(api::ErrorCode::kMountBusy, mountpoint +
                                                             " is already mounted by nearbox; use it, or "
                                                             "nearbox unmount " +
                                                             mountpoint);
    }
    if (mounts.size() >= kMaxMounts) {
      return api::make_error(api::ErrorCode::kMountBusy, "This sandbox has " + std::to_string(kMaxMounts) +
                                                             " mounts already; unmount one first");
    }
  }
  auto root = resolve(request.value("dir", std::string()), deadline);
  if (!root) return std::move(root).error();
  if (auto opened = open_root(deadline); !opened) return std::move(opened).error();

  Mount mount;
  mount.dir = root->path;
  const auto path = root->path.substr(1);
  const Waiter known;
  // The walk goes on while the mount is used: the deadline of the whole load is another.
  tree.load(path, Clock::now() + 1h, known.completion(),
            [loaded = mount.loaded](int error) { loaded->store(error); });
  if (const int error = known.wait(deadline); error != 0)
    return no_remote(dialer->describe(), mount.dir, base::errno_error(error));

  fs::MountOptions options;
  options.mountpoint = mountpoint;
  options.path = path;
  const auto symlinks = request.value("symlinks", std::string("contain"));
  options.symlinks = symlinks == "raw"      ? fs::SymlinkRule::kRaw
                     : symlinks == "rebase" ? fs::SymlinkRule::kRebase
                                            : fs::SymlinkRule::kContain;
  if (request.value("owner", std::string("map")) == "numeric") options.ownership = fs::Ownership::kNumeric;
  options.uid = ::getuid();
  options.gid = ::getgid();
  options.noexec = request.value("noexec", false);
  options.allow_other = request.value("allow_other", false);
  options.read_only = request.value("read_only", false);
  options.nonempty = request.value("nonempty", false);
  auto session = loop.mount(options, {tree, ops, cache, *link, timers, &prefetch, &readers});
  if (!session) return mount_error(std::move(session).error());
  mount.session = *std::move(session);
  const auto made = mount.session;
  if (const auto entry = fs::find_mount(mountpoint)) mount.minor = entry->minor;
  nlohmann::json answer = {{"status", "mounted"},
                           {"mountpoint", mountpoint},
                           {"dir", mount.dir},
                           {"source", dialer->describe() + ":" + mount.dir}};
  bool late = false;
  {
    base::MutexLock lock(mu);
    late = stopping;
    if (!late) {
      mounts[mountpoint] = std::move(mount);
      record();
    }
  }
  if (late) {
    (void)made->unmount(deadline);
    return base::errno_error(ESHUTDOWN, "the daemon is ending; run the command again");
  }
  made->on_gone([this] { on_idle_change(); });
  schedule_rescan();
  // What happened before the command is seen after it, also where the tree was here already.
  if (const int error = barrier(std::min(deadline, Clock::now() + kMountBarrier)); error != 0) {
    log.warn("event=mount_barrier errno=" + std::to_string(error));
  }
  return answer;
}

void Engine::Impl::record() {
  std::vector<RecordedMount> list;
  for (const auto& [point, mount] : mounts) list.push_back({mount.minor, point});
  if (auto done = record_mounts(layout, list); !done) {
    log.warn("event=record_mounts_failed why=" + done.error().message());
  }
}

base::Result<bool> Engine::Impl::unmount(const std::string& mountpoint, Deadline deadline) {
  Mount mount;
  {
    base::MutexLock lock(mu);
    const auto found = mounts.find(mountpoint);
    if (found == mounts.end()) return false;
    mount = std::move(found->second);
    mounts.erase(found);
  }
  auto done = mount.session->unmount(deadline);
  {
    base::MutexLock lock(mu);
    if (!done && !mount.session->gone()) {
      mounts[mountpoint] = std::move(mount);
    }
    record();
  }
  on_idle_change();
  if (!done) return std::move(done).error();
  return true;
}

// Own operations are acknowledged. The errno of the wait.
int Engine::Impl::drain(Deadline deadline) {
  const Waiter drained;
  ops.when_drained([done = drained.completion()] { done(0); });
  return drained.wait(deadline);
}

// What happened in the sandbox is in the mirror, and the kernel believes nothing else any more.
int Engine::Impl::barrier(Deadline deadline, std::uint64_t instance, std::uint64_t seq) {
  const Waiter passed;
  tree.barrier(instance, seq, deadline, passed.completion());
  if (const int error = passed.wait(deadline); error != 0) return error;
  std::vector<std::shared_ptr<fs::MountSession>> sessions;
  {
    base::MutexLock lock(mu);
    for (const auto& [point, mount] : mounts) sessions.push_back(mount.session);
  }
  const auto told = std::min(deadline, Clock::now() + kTellDeadline);
  for (const auto& session : sessions) {
    if (!session->wait_invalidated(told) && !session->gone()) return ETIMEDOUT;
  }
  return 0;
}

// Looks again from time to time where the agent cannot watch.
void Engine::Impl::schedule_rescan() {
  base::MutexLock lock(mu);
  if (rescan_planned || stopping || mounts.empty()) return;
  rescan_planned = true;
  timers.after(kRescanEvery, [this] {
    const auto watch = tree.watch_status();
    bool again = false;
    {
      base::MutexLock inner(mu);
      again = !stopping && !mounts.empty();
      if (!again) rescan_planned = false;
    }
    if (!again) return;
    const auto next = [this](int) {
      {
        base::MutexLock inner(mu);
        rescan_planned = false;
      }
      schedule_rescan();
    };
    watch.watched < watch.subtrees ? tree.rescan(Clock::now() + kRescanDeadline, next) : next(0);
  });
}

nlohmann::json Engine::Impl::status() {
  auto list = nlohmann::json::array();
  {
    base::MutexLock lock(mu);
    for (const auto& [point, mount] : mounts) {
      auto one = metrics::of_mount(mount.session->stats());
      one.update({{"mountpoint", point},
                  {"dir", mount.dir},
                  {"loading", mount.loaded->load() < 0},
                  {"load_error", std::max(0, mount.loaded->load())}});
      list.push_back(std::move(one));
    }
  }
  return {{"target", dialer->describe()},
          {"pid", ::getpid()},
          {"version", NEARBOX_VERSION},
          {"link", metrics::of_link(link->status())},
          {"mounts", list},
          {"pending_operations", ops.unacknowledged()},
          {"watch", metrics::of_watch(tree.watch_status())},
          {"tree", metrics::of_tree(tree)},
          {"cache", metrics::of_cache(cache.stats())},
          {"prefetch", metrics::of_prefetch(prefetch.stats())},
          {"programs", metrics::of_programs(readers.programs())}};
}

// ---- the public face ------------------------------------------------------------------------

Engine::Engine(std::unique_ptr<Dialer> dialer, Layout layout, fs::ReadPolicy reads,
               std::function<void()> on_idle_change, base::Logger& log)
    : impl_(std::make_unique<Impl>(std::move(dialer), std::move(layout), std::move(reads),
                                   std::move(on_idle_change), log)) {}
Engine::~Engine() { stop(); }

base::Result<void> Engine::wait_up(Deadline deadline) {
  auto up = impl_->up.wait(deadline, [this] {
    impl_->dialer->wanted();
    impl_->link->redial();
  });
  if (up || up.error().code.category() == api::nearbox_category()) return up;
  return std::move(up).error().during(impl_->dialer->describe());  // else nothing says which sandbox
}
api::AgentLink& Engine::link() { return *impl_->link; }
std::string Engine::name() const { return impl_->dialer->describe(); }

base::Result<nlohmann::json> Engine::mount(const nlohmann::json& request, Deadline deadline) {
  if (auto up = wait_up(deadline); !up) return std::move(up).error();
  return impl_->mount(request, deadline);
}
base::Result<bool> Engine::unmount(const std::string& mountpoint, Deadline deadline) {
  return impl_->unmount(mountpoint, deadline);
}

base::Result<void> Engine::unmount_all(Deadline deadline) {
  std::vector<std::string> points;
  {
    base::MutexLock lock(impl_->mu);
    impl_->stopping = true;
    for (const auto& [point, mount] : impl_->mounts) points.push_back(point);
  }
  base::Result<void> result;
  for (const auto& point : points) {
    auto done = impl_->unmount(point, deadline);
    if (!done) {
      impl_->log.error("event=unmount_failed mountpoint=" + point + " why=" + done.error().message());
      result = std::move(done).error();
    }
  }
  return result;
}

std::size_t Engine::mounts() const {
  base::MutexLock lock(impl_->mu);
  return impl_->mounts.size();
}

void Engine::reap() {
  std::vector<std::string> gone;
  {
    base::MutexLock lock(impl_->mu);
    for (const auto& [point, mount] : impl_->mounts) {
      if (mount.session->gone()) gone.push_back(point);
    }
  }
  for (const auto& point : gone) {
    impl_->log.info("event=unmounted_from_outside mountpoint=" + point);
    (void)impl_->unmount(point, Clock::now() + 5s);
  }
}

base::Result<void> Engine::flush(Deadline deadline) {
  if (const int error = impl_->drain(deadline); error != 0) {
    return base::errno_error(
        error, std::to_string(impl_->ops.unacknowledged()) +
                   " operations are not acknowledged yet; run nearbox flush again when the sandbox answers");
  }
  if (mounts() == 0) return {};
  if (const int error = impl_->barrier(deadline); error != 0)
    return api::in_sandbox(base::errno_error(error, "wait for the sandbox's changes"), name());
  return {};
}

int Engine::settle(std::uint64_t instance, std::uint64_t seq, Deadline deadline) {
  return mounts() > 0 ? impl_->barrier(deadline, instance, seq) : 0;
}

int Engine::drain(Deadline deadline) { return impl_->drain(deadline); }

nlohmann::json Engine::status() const { return impl_->status(); }

void Engine::stop() {
  impl_->up.close();
  impl_->link->shutdown();
  impl_->events.stop();
  impl_->ops.close();
  impl_->cache.close();
}

}  // namespace nearbox::daemon
