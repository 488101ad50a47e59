// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unordered_set>
#include <vector>

#include "client/base/unique_fd.h"
#include "fs/core/block_cache.h"
#include "fs/core/inode_table.h"
#include "fs/core/op_log.h"
#include "fs/core/symlinks.h"
#include "fs/fuse/mount_session.h"
#include "fs/fuse/notifier.h"
#include "fs/fuse/request.h"
#include "sync/engine/tree_store.h"

namespace nearbox::fs {

// One FUSE session: a part of the tree shown to one mount. Handlers answer from the mirror, or park the
// request and leave; nothing here waits.
//
// Owns:    node ids and lookup counts, parked requests, the notifier, libfuse's session with its fd.
// Threads: handlers run on loop workers, completions on link and timer threads. Lock order: the tree's
//          lock, then InodeTable; ParkedTable, Orphans and the notifier's are leaves.
// Errors:  each request is answered once: an errno of the agent, ESTALE for a node that is gone,
//          ETIMEDOUT at the deadline, EINTR, ENOTCONN while the session closes.
class Session final : public sync::ChangeListener,
                      private KernelNotify,
                      public std::enable_shared_from_this<Session> {
 public:
  using Clock = std::chrono::steady_clock;

  Session(const MountOptions& options, const FsServices& services, base::Logger& log, sync::NodeIndex root);
  ~Session() override;

  base::Result<void> start(base::UniqueFd fuse_fd);  // fd non-blocking
  // Ends it: answers what is parked, stops the notifier. The fuse connection must be gone or aborted.
  void finish();
  void refuse_parked(int error) { parked_.close(error); }
  // Reads and handles one request; what happened.
  enum class Step { kDone, kHeavy, kNothing, kGone };
  Step receive(std::vector<char>& buffer, const std::function<void()>& before_heavy);

  int fd() const { return fd_; }
  const MountOptions& options() const { return options_; }
  MountStats stats() const;
  void met_kernel(unsigned minor);  // its FUSE protocol, 7.minor
  Notifier& notifier() { return *notifier_; }

  void on_changes(const sync::Changes& changes) noexcept override;

  // ---- looking (look.cpp)
  void lookup(Request request, Ino parent, std::string name);
  void forget(const std::vector<std::pair<Ino, std::uint64_t>>& forgets);
  void getattr(Request request, Ino ino, bool proved = false);
  void readlink(Request request, Ino ino, bool proved = false);
  void readdir(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool plus);
  void statfs(Request request);
  // ---- bytes (bytes.cpp)
  void read(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool proved = false);
  void write(Request request, Ino ino, wire::Bytes data, std::uint64_t offset, bool append);
  void fsync(Request request, Ino ino, bool data_only);
  void fallocate(Request request, Ino ino, int mode, std::uint64_t offset, std::uint64_t length);
  void copy_range(Request request, Ino from, std::uint64_t from_offset, Ino to, std::uint64_t to_offset,
                  std::uint64_t length);
  void setattr(Request request, Ino ino, const struct stat& st, int to_set);
  // ---- names (names.cpp)
  void create(Request request, Ino parent, std::string name, mode_t mode, const fuse_file_info* info);
  void mknod(Request request, Ino parent, std::string name, mode_t mode, dev_t rdev);
  void mkdir(Request request, Ino parent, std::string name, mode_t mode);
  void symlink(Request request, Ino parent, std::string name, std::string target);
  void link(Request request, Ino ino, Ino parent, std::string name);
  void remove(Request request, Ino parent, std::string name, bool directory, bool proved = false);
  void rename(Request request, Ino parent, std::string name, Ino parent2, std::string name2, unsigned flags,
              int proved = 0);

  Request wrap(fuse_req_t req, const char* op, Ino ino) { return Request(req, op, ino, log_, alive_); }

 private:
  friend struct LibfuseHandlers;

  // One or more operations for one request, and what their acknowledgement means.
  struct Task {
    std::vector<wire::Op> ops;
    struct Entry {
      sync::NodeIndex dir;
      wire::NodeId id;  // of dir
      std::string name;
    };
    std::vector<sync::NodeIndex> dirs;  // entries change
    std::vector<Entry> entries;         // these alone; none: all of dirs may
    std::vector<sync::NodeIndex>
        nodes;  // they change; both with begin_operation(), pinned until the fate is known
    std::vector<std::pair<Ino, std::string>> names;  // made, removed or moved, by their directories
    std::vector<sync::NodeIndex>
        leads;  // where the kernel believes each of them leads after success, if known
    Ino busy1 = 0, busy2 = 0;
    // Brings op i's result into the mirror (under its lock).
    std::function<void(std::size_t i, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes)>
        apply;
    std::function<void(const wire::OpDone& done)> after;  // without the lock, when apply ran
    std::function<void(Request request, const wire::OpDone& last)> answer;
    // Fills in the paths as they are now; false when there are none. Called again when an operation
    // failed because a directory above was renamed on its way.
    std::function<bool(wire::Op& op)> locate;
    bool renames_directory = false;
  };
  struct Running;
  void run(Request request, Task task);
  void begin_operations(const Task& task);
  void end_operations(const Task& task, bool failed);
  void submit(const std::shared_ptr<Running>& running, std::size_t i, int attempt);
  void applied(const std::shared_ptr<Running>& running, std::size_t i, int attempt, const wire::OpDone& done);
  void replied(const std::shared_ptr<Running>& running, std::size_t i, int attempt, const wire::OpDone& done);
  void answer(const Running& running, int error, const wire::OpDone& last);
  static bool stale(int error);
  std::vector<std::string> paths_of(const Task& task) const;
  void tell_own_kernel(const Task& task);
  bool as_believed(const Task& task) const;
  sync::Changes other_names(const Task& task, const sync::Changes& changes) const;
  bool send_again(const std::shared_ptr<Running>& running, std::size_t i, int attempt,
                  const wire::OpDone& done);

  ParkedTable::Id park(Request request, Ino busy1 = 0, Ino busy2 = 0,
                       ParkedTable::Kind kind = ParkedTable::Kind::kLook) {
    return park_until(std::move(request), deadline(), busy1, busy2, kind);
  }
  ParkedTable::Id park_until(Request request, Clock::time_point until, Ino busy1 = 0, Ino busy2 = 0,
                             ParkedTable::Kind kind = ParkedTable::Kind::kLook);
  void arm_tick();
  Clock::time_point deadline() const { return Clock::now() + options_.deadline; }

  // Attributes as this mount shows them.
  struct stat show(const sync::Mirror& mirror, sync::NodeIndex node) const;
  LinkView link_view(const sync::Mirror& mirror, sync::NodeIndex node) const;
  fuse_entry_param entry_of(const sync::Mirror& mirror, sync::NodeIndex node, Ino ino) const;
  // Adds a kernel reference, pinning the node at the first.
  Ino add_ref(sync::Mirror& mirror, sync::NodeIndex node);
  void drop_ref(Ino ino) { forget({{ino, 1}}); }
  enum class Look { kEntry, kNegative, kWant, kError };
  Look look(Ino parent, const std::string& name, bool proved, fuse_entry_param& entry, int& error,
            sync::NodeIndex& dir);
  bool answer_lookup(Request& request, Ino parent, const std::string& name, bool proved);
  void wait_lookup(Request request, Ino parent, const std::string& name, Clock::time_point until);
  void wait_listing(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool plus,
                    Clock::time_point until);
  // True: what is known of the node may be out of date; the request is parked until it is proven, then
  // handed to `then`.
  bool prove_first(Request& request, sync::NodeIndex node, std::function<void(Request)> then);
  bool prove_name_first(Request& request, Ino parent, const std::string& name,
                        std::function<void(Request)> then);
  bool wait_proof(Request& request, sync::NodeIndex dir, std::function<void(Request)> then);
  void answer_entry(Request request, Ino parent, const std::string& name, const wire::Attr& attr,
                    const fuse_file_info* info);
  void named(Ino ino, Ino parent, std::string_view name);
  std::vector<Notifier::Name> kernel_names() const;
  bool fill_dir(Request& request, Ino ino, std::size_t size, std::uint64_t offset, bool plus, bool proved,
                sync::NodeIndex& dir);
  void refresh_statfs();
  std::uint32_t owner_uid(fuse_req_t req) const;
  std::uint32_t owner_gid(fuse_req_t req) const;
  std::optional<wire::PathCall> find(Ino ino, sync::NodeIndex& node, wire::Attr& attr) const;
  std::function<bool(wire::Op& op)> by_node(sync::NodeIndex node, const wire::NodeId& id);
  std::function<bool(wire::Op& op)> by_name(sync::NodeIndex dir, const std::string& name);
  bool on_node(Request& request, Ino ino, sync::NodeIndex& node, Task& task);
  bool fill_op(wire::Op& op, Ino ino, sync::NodeIndex& node, wire::Attr& attr) const;
  struct Place {  // a name in a directory
    sync::NodeIndex dir = sync::kNoNode;
    wire::NodeId id;
    std::string path;
    sync::NodeIndex child = sync::kNoNode;
    wire::Attr attr;  // of child
  };
  int place(Ino parent, const std::string& name, Place& place) const;
  static void renamed(sync::Mirror& mirror, const Place& from, const std::string& name, const Place& to,
                      const std::string& name2, bool exchange, sync::Changes& changes);
  void make(Request request, wire::Op op, Ino parent, const std::string& name,
            std::optional<fuse_file_info> info);
  static void set_parent(sync::Mirror& mirror, sync::NodeIndex dir, const wire::Attr& attr,
                         sync::Changes& changes);
  void tell_kernel(const sync::Change& change);
  void renamed_directory();
  struct Seen {  // an own change of content
    wire::Attr before, after;
    bool foreign = false;  // somebody else changed the file too
  };
  static constexpr std::uint64_t kWholeFile = UINT64_MAX / 2;
  static bool changed(const wire::Attr& before, const wire::Attr& after);
  static bool take_content(sync::NodeIndex node, const wire::NodeId& id, const wire::OpDone& done, Seen& seen,
                           sync::Mirror& mirror, sync::Changes& changes);
  void wrote(Ino ino, const Seen& seen, std::uint64_t offset, std::uint64_t length);
  void note_foreign(sync::NodeIndex node, const wire::Attr& before, const wire::Attr& after);

  // KernelNotify
  bool inode(Ino ino, bool data) override;
  void entry(Ino parent, const std::string& name) override;
  void deleted(Ino parent, Ino child, const std::string& name) override;
  bool epoch() override;

  const MountOptions options_;
  const FsServices services_;
  base::Logger& log_;
  const sync::NodeIndex root_;
  std::uint64_t root_dev_ = 0;
  const std::string tree_path_;  // of the tree's root in the sandbox
  SessionHandle handle_;
  InodeTable inodes_;
  ParkedTable parked_;
  AliveCount alive_;
  std::atomic<bool> ticking_{false};
  std::atomic<bool> finished_{false};
  std::atomic<std::uint64_t> bytes_read_{0}, bytes_written_{0}, requests_{0};

  base::Mutex statfs_mu_;  // leaf
  struct statvfs statfs_ GUARDED_BY(statfs_mu_) {};
  Clock::time_point statfs_at_ GUARDED_BY(statfs_mu_){};
  bool statfs_known_ GUARDED_BY(statfs_mu_) = false;
  bool statfs_asked_ GUARDED_BY(statfs_mu_) = false;
  std::vector<ParkedTable::Id> statfs_waiting_ GUARDED_BY(statfs_mu_);

  base::Mutex links_mu_;                                     // leaf
  std::unordered_set<Ino> rewritten_ GUARDED_BY(links_mu_);  // symlinks whose text depends on their place

  fuse_session* se_ = nullptr;
  int fd_ = -1;  // se_ owns it
  std::atomic<bool> initialised_{false};
  std::unique_ptr<Notifier> notifier_;

  static ssize_t io_writev(int fd, iovec* iov, int count, void* user);
  static ssize_t io_read(int fd, void* buf, size_t size, void* user);
};

inline constexpr double kForever = 1e9;  // seconds: entry and attribute timeouts

}  // namespace nearbox::fs
