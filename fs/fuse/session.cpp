// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/session.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utility>

#include "client/base/fault.h"
#include "fs/core/tree_hooks.h"
#include "fs/fuse/libfuse_ops.h"

namespace nearbox::fs {
namespace {

constexpr std::chrono::milliseconds kTick{250};     // how exact deadlines of parked requests are
constexpr std::chrono::seconds kFinishDeadline{5};  // for those who hold a request right now
constexpr std::int32_t kNotifyIncEpoch = 8;         // FUSE_NOTIFY_INC_EPOCH, linux 6.16
constexpr unsigned kEpochMinor = 44;                // the protocol that has it: 7.44
constexpr std::int32_t kNotifyPrune = 9;            // FUSE_NOTIFY_PRUNE, linux 6.18
constexpr unsigned kPruneMinor = 45;                // the protocol that has it: 7.45

bool heavy(std::uint32_t opcode) {
  return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_READDIR || opcode == FUSE_READDIRPLUS;
}

}  // namespace

Session::Session(const MountOptions& options, const FsServices& services, base::Logger& log,
                 sync::NodeIndex root)
    : options_(options),
      services_(services),
      log_(log),
      root_(root),
      tree_path_(services.tree.root_path()),
      inodes_(root) {
  handle_.parked = &parked_;
  handle_.session = this;
  root_dev_ = services_.tree.read([&](const sync::Mirror& mirror) { return mirror.attr(root).dev; });
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) { mirror.pin(root_); });
}

Session::~Session() { finish(); }

base::Result<void> Session::start(base::UniqueFd fuse_fd) {
  char name[] = "nearbox";
  char* argv[] = {name, nullptr};
  fuse_args args{};
  args.argc = 1;
  args.argv = argv;
  se_ = fuse_session_new(&args, &libfuse_ops(), sizeof(fuse_lowlevel_ops), &handle_);
  fuse_opt_free_args(&args);  // libfuse made a copy of its own
  if (se_ == nullptr) return base::errno_error(ENOMEM, "fuse_session_new");
  fuse_custom_io io{};
  io.read = &Session::io_read;
  io.writev = &Session::io_writev;
  if (const int error = fuse_session_custom_io(se_, &io, fuse_fd.get()); error != 0) {
    return base::errno_error(-error, "fuse_session_custom_io");
  }
  fd_ = fuse_fd.release();
  Notifier::Source source;
  source.busy = [this](Ino ino) { return parked_.busy(ino); };
  source.referenced = [this](Ino ino) { return inodes_.node(ino) != sync::kNoNode; };
  source.known = [this] { return inodes_.all(); };
  source.names = [this] { return kernel_names(); };
  notifier_ = std::make_unique<Notifier>(static_cast<KernelNotify&>(*this), std::move(source));
  parked_.on_idle([this](Ino ino) { notifier_->idle(ino); });
  services_.tree.add_listener(this);
  refresh_statfs();
  return {};
}

void Session::finish() {
  if (finished_.exchange(true)) return;
  if (notifier_) {
    services_.tree.remove_listener(this);
    parked_.close(ENOTCONN);
    notifier_->stop();
  }
  const bool free = alive_.wait_none(Clock::now() + kFinishDeadline);
  if (!free) log_.error("fuse step=finish requests are still held; the session's memory is left");
  if (se_ != nullptr && free) fuse_session_destroy(std::exchange(se_, nullptr));
  fd_ = -1;
  std::vector<std::uint64_t> orphans;
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    for (const auto node : inodes_.clear()) {
      mirror.unpin(node);
      if (const auto orphan = services_.log.orphans().release(node)) orphans.push_back(orphan);
    }
    mirror.unpin(root_);
  });
  for (const auto orphan : orphans) services_.log.forget_orphan(orphan);
}

Session::Step Session::receive(std::vector<char>& buffer, const std::function<void()>& before_heavy) {
  const ssize_t n = ::read(fd_, buffer.data(), buffer.size());
  if (n < 0) {
    if (errno == EAGAIN) return Step::kNothing;
    if (errno == EINTR || errno == ENOENT) return Step::kDone;  // ENOENT: interrupted while being read
    return Step::kGone;
  }
  fuse_in_header header{};
  if (static_cast<std::size_t>(n) < sizeof(header)) return Step::kDone;
  std::memcpy(&header, buffer.data(), sizeof(header));
  const bool is_heavy = heavy(header.opcode);
  if (is_heavy) before_heavy();
  fuse_buf buf{};
  buf.mem = buffer.data();
  buf.size = static_cast<std::size_t>(n);
  requests_.fetch_add(1, std::memory_order_relaxed);
  fuse_session_process_buf(se_, &buf);
  return is_heavy ? Step::kHeavy : Step::kDone;
}

ssize_t Session::io_read(int fd, void* buf, std::size_t size, void*) { return ::read(fd, buf, size); }

// libfuse 3.14 offers FUSE_PARALLEL_DIROPS but forgets it in the INIT reply: without it one lookup at a
// time runs in a directory. Observed: 3.14.0; fixed in 3.17.
ssize_t Session::io_writev(int fd, iovec* iov, int count, void* user) {
  Session& self = *static_cast<SessionHandle*>(user)->session;
  if (!self.initialised_.exchange(true) && count >= 2 && iov[1].iov_len >= 24) {
    std::uint32_t flags = 0;
    char* const at = static_cast<char*>(iov[1].iov_base) + offsetof(fuse_init_out, flags);
    std::memcpy(&flags, at, sizeof(flags));
    flags |= FUSE_PARALLEL_DIROPS;
    std::memcpy(at, &flags, sizeof(flags));
  }
  return ::writev(fd, iov, count);
}

MountStats Session::stats() const {
  return {parked_.size(),     inodes_.size(),        requests_.load(),
          bytes_read_.load(), bytes_written_.load(), notifier_ ? notifier_->sent() : 0};
}

// ---- parking

ParkedTable::Id Session::park_until(Request request, Clock::time_point until, Ino busy1, Ino busy2,
                                    ParkedTable::Kind kind) {
  const auto id = parked_.park(std::move(request), kind, until, busy1, busy2);
  if (id != 0) arm_tick();
  return id;
}

void Session::arm_tick() {
  if (ticking_.exchange(true)) return;
  services_.timers.after(kTick, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->ticking_ = false;
    self->parked_.expire(Clock::now());
    if (self->parked_.size() != 0) self->arm_tick();
  });
}

// ---- references

Ino Session::add_ref(sync::Mirror& mirror, sync::NodeIndex node) {
  const auto ref = inodes_.add(node);
  if (ref.fresh) {
    mirror.pin(node);
    services_.log.orphans().hold(node);
  }
  return ref.ino;
}

void Session::forget(const std::vector<std::pair<Ino, std::uint64_t>>& forgets) {
  std::vector<std::uint64_t> orphans;
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    for (const auto& [ino, count] : forgets) {
      const auto node = inodes_.forget(ino, count);
      if (!node) continue;
      if (const auto orphan = services_.log.orphans().release(*node)) orphans.push_back(orphan);
      mirror.unpin(*node);
    }
  });
  for (const auto orphan : orphans) services_.log.forget_orphan(orphan);
}

// ---- changes of others

void Session::on_changes(const sync::Changes& changes) noexcept {
  using Kind = sync::Change::Kind;
  // Texts of symlinks that are right for their old place only go before the names that lead to them.
  const auto names = [](const sync::Change& change) { return change.kind == Kind::kEntry; };
  if (std::any_of(changes.begin(), changes.end(), names)) renamed_directory();
  for (const auto& change : changes) tell_kernel(change);
}

// One change of the tree as notifications. Tests switch each sort of them off by its name.
void Session::tell_kernel(const sync::Change& change) {
  using Kind = sync::Change::Kind;
  const auto off = [](const char* sort) { return base::fault::active("fs.no_inval", sort); };
  const Ino dir = change.dir == sync::kNoNode ? 0 : inodes_.ino(change.dir);
  const Ino node = change.node == sync::kNoNode ? 0 : inodes_.ino(change.node);
  switch (change.kind) {
    case Kind::kAttr:
      if (node != 0 && !off("attr")) notifier_->attr(node);
      break;
    case Kind::kData:
      if (node != 0 && !off("data")) notifier_->data(node);
      break;
    case Kind::kListing:
      if (dir != 0 && !off("listing")) notifier_->data(dir);
      break;
    case Kind::kEntry:
      if (dir == 0) break;
      if (!off(change.absent ? "negative" : "entry")) notifier_->entry(dir, change.name);
      if (!off("listing")) notifier_->data(dir);
      break;
    case Kind::kGone: {
      if (dir == 0) break;
      // The kernel marks what it is told is deleted, and a directory stays so although it may only have
      // moved.
      const bool is_dir = node != 0 && services_.tree.read([&](const sync::Mirror& mirror) {
        return S_ISDIR(mirror.attr(change.node).mode);
      });
      if (!off("entry")) {
        is_dir ? notifier_->entry(dir, change.name) : notifier_->deleted(dir, node, change.name);
      }
      if (!off("listing")) notifier_->data(dir);
      break;
    }
    case Kind::kNegatives:
      if (change.dir == root_) notifier_->everything();
      break;
    case Kind::kUnneeded: {
      if (node == 0 || dir == 0) break;
      const bool directory = !prunes_ && services_.tree.read([&](const sync::Mirror& mirror) {
        return S_ISDIR(mirror.attr(change.node).mode);
      });
      notifier_->let_go({node, dir, change.name, directory});
      break;
    }
    case Kind::kAll:
      notifier_->everything();
      break;
  }
}

// Cached texts of symlinks that were rewritten for their place are asked for again.
void Session::renamed_directory() {
  std::unordered_set<Ino> links;
  {
    base::MutexLock lock(links_mu_);
    links.swap(rewritten_);
  }
  for (const Ino ino : links) notifier_->data(ino);
}

bool Session::inode(Ino ino, bool data) {
  return fuse_lowlevel_notify_inval_inode(se_, ino, data ? 0 : -1, 0) != -ENOENT;
}
void Session::entry(Ino parent, const std::string& name) {
  fuse_lowlevel_notify_inval_entry(se_, parent, name.c_str(), name.size());
}
void Session::deleted(Ino parent, Ino child, const std::string& name) {
  fuse_lowlevel_notify_delete(se_, parent, child, name.c_str(), name.size());
}
bool Session::epoch() {
  if (base::fault::active("fs.no_epoch")) return false;
  fuse_out_header header{};
  header.len = sizeof(header);
  header.error = kNotifyIncEpoch;
  return ::write(fd_, &header, sizeof(header)) == static_cast<ssize_t>(sizeof(header));
}

// Kernels before 6.18 are told by the name, which a file in use loses until it is looked up again. Not so of
// directories: one that a process works in would be without a path.
void Session::let_go(const std::vector<Unneeded>& inodes) {
  if (prunes_) {
    struct {
      fuse_out_header header{};
      std::uint32_t count = 0, padding = 0;  // as struct fuse_notify_prune_out of linux 6.18
      std::uint64_t spare = 0;
    } head;
    std::vector<Ino> inos;
    for (const auto& one : inodes) inos.push_back(one.ino);
    const auto bytes = inos.size() * sizeof(Ino);
    head.header.len = static_cast<std::uint32_t>(sizeof(head) + bytes);
    head.header.error = kNotifyPrune;
    head.count = static_cast<std::uint32_t>(inos.size());
    const iovec parts[] = {{&head, sizeof(head)}, {inos.data(), bytes}};
    if (::writev(fd_, parts, 2) >= 0) return;
    if (errno != EINVAL) return;
    prunes_ = false;
    log_.warn("event=no_prune");
  }
  for (const auto& one : inodes) {
    if (!one.directory) fuse_lowlevel_notify_inval_entry(se_, one.parent, one.name.c_str(), one.name.size());
  }
}

void Session::met_kernel(unsigned minor) {
  prunes_ = minor >= kPruneMinor && !base::fault::active("fs.no_prune");
  if (minor < kEpochMinor || base::fault::active("fs.no_epoch")) inodes_.remember_names();
}

void Session::named(Ino ino, Ino parent, std::string_view name) {
  if (auto given_up = inodes_.named(ino, parent, name)) {
    notifier_->entry(given_up->first, std::move(given_up->second));
  }
}

// Every name that this kernel may have a wrong idea of: those it was given, and those it may believe absent.
std::vector<Notifier::Name> Session::kernel_names() const {
  auto names = inodes_.names();
  for (const Ino ino : inodes_.all()) {
    const auto dir = inodes_.node(ino);
    if (dir == sync::kNoNode) continue;
    services_.tree.read([&](const sync::Mirror& mirror) {
      mirror.list(dir, 0, [&](std::uint64_t, std::string_view name, sync::NodeIndex) {
        names.emplace_back(ino, name);
        return true;
      });
    });
  }
  return names;
}

// ---- what entries look like

struct stat Session::show(const sync::Mirror& mirror, sync::NodeIndex node) const {
  const wire::Attr attr = mirror.attr(node);
  struct stat st {};
  // One number space for the mount: entries of other file systems get theirs mixed with the device.
  st.st_ino = attr.dev == root_dev_ ? attr.ino : attr.ino ^ (attr.dev * 0x9e3779b97f4a7c15ULL);
  st.st_mode = attr.mode;
  st.st_nlink = attr.nlink;
  st.st_uid = options_.ownership == Ownership::kMap ? options_.uid : attr.uid;
  st.st_gid = options_.ownership == Ownership::kMap ? options_.gid : attr.gid;
  st.st_rdev = attr.rdev;
  st.st_size = static_cast<off_t>(attr.size);
  st.st_blocks = static_cast<blkcnt_t>(attr.blocks);
  st.st_blksize = 128 * 1024;
  constexpr std::int64_t kSecond = 1'000'000'000;
  const auto split = [](std::int64_t ns) {
    std::int64_t seconds = ns / kSecond;
    if (ns % kSecond < 0) --seconds;
    return timespec{static_cast<time_t>(seconds), static_cast<long>(ns - seconds * kSecond)};
  };
  st.st_mtim = st.st_atim = split(attr.mtime_ns);
  st.st_ctim = split(attr.ctime_ns);
  if (S_ISLNK(attr.mode)) {
    // Programs take st_size as the length of what readlink answers.
    const auto view = link_view(mirror, node);
    if (view.error == 0) st.st_size = static_cast<off_t>(view.text.size());
  }
  return st;
}

LinkView Session::link_view(const sync::Mirror& mirror, sync::NodeIndex node) const {
  const std::string target = mirror.target(node);
  if (options_.symlinks == SymlinkRule::kRaw) return {0, target, false};
  std::string root = tree_path_;
  if (const auto below = mirror.path(root_); below && !below->empty()) {
    root += (root.ends_with('/') ? "" : "/") + *below;
  }
  const auto top = mirror.path(root_).value_or("");
  std::optional<LinkView> view;
  // A link with several names is resolved by the kernel from each of them: all must agree.
  mirror.names(node, [&](sync::NodeIndex dir, std::string_view) {
    auto path = mirror.path(dir);
    if (!path) return;
    if (!top.empty()) {
      if (*path != top && !path->starts_with(top + "/")) return;  // a name outside of this mount
      path = path->size() == top.size() ? "" : path->substr(top.size() + 1);
    }
    auto one = show_link(options_.symlinks, target, *path, root, options_.mountpoint);
    if (view && (one.error != view->error || one.text != view->text)) one = {EPERM, {}, false};
    view = std::move(one);
  });
  return view.value_or(LinkView{ESTALE, {}, false});
}

fuse_entry_param Session::entry_of(const sync::Mirror& mirror, sync::NodeIndex node, Ino ino) const {
  fuse_entry_param entry{};
  entry.ino = ino;
  entry.attr = show(mirror, node);
  entry.attr_timeout = entry.entry_timeout = kForever;
  return entry;
}

}  // namespace nearbox::fs
