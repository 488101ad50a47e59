// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <map>
#include <set>
#include <sys/wait.h>

#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/watch/watcher.h"

namespace nearbox::agent::test {

// Does it in another process: what this one does is not told by the kernel's events. True: it did.
inline bool other(const std::function<void()>& action) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    action();
    ::_exit(0);
  }
  int status = -1;
  return ::waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// What a client knows of a tree: begun with a walk, kept by events alone. It fetches bytes only where
// the version says so, from the disk itself.
class Model {
 public:
  struct Node {
    wire::Attr attr;
    std::string target;
    std::map<std::string, wire::NodeId> names;
    std::uint64_t bytes_version = 0;
    bool has_bytes = false;
    std::string bytes;
  };
  explicit Model(std::string top) : top_(std::move(top)) { walk(""); }

  void apply(const wire::Event& event) {
    if (event.kind == wire::EventKind::kLost) {
      const auto lost = wire::decode<wire::Lost>(event.body);
      ASSERT_TRUE(lost);
      ++losts;
      if (lost->content) forget_bytes();
      return walk(lost->path, lost->recursive);
    }
    const auto changed = wire::decode<wire::Changed>(event.body);
    ASSERT_TRUE(changed);
    for (const auto& state : changed->states) apply(state);
  }

  void apply(const wire::NameState& state) {
    if (state.name.empty()) {
      const auto it = nodes.find(state.dir);
      if (it == nodes.end()) return;  // of others that use the same file system meanwhile
      ++states;
      if (state.attr.ino == 0) gone_nodes.insert(state.dir);
      if (state.attr.ino != 0) it->second.attr = state.attr;
      return;
    }
    ++states;
    const auto dir = nodes.find(state.dir);
    if (dir == nodes.end()) return;
    if (state.attr.ino == 0) {
      dir->second.names.erase(state.name);
      return;
    }
    const wire::NodeId node{state.attr.dev, state.attr.ino};
    dir->second.names[state.name] = node;
    const bool known = nodes.count(node) != 0 && S_ISDIR(nodes[node].attr.mode);
    auto& at = nodes[node];
    at.attr = state.attr;
    at.target = state.target;
    if (!S_ISDIR(state.attr.mode)) return;
    if ((state.flags & wire::kNameFresh) != 0) {
      ++fresh;
      at.names.clear();
    } else if (!known) {
      ++unknown;
      walk_node(node);
    }
  }

  // Reads again what is on the disk, as a client does with kTree.
  void walk(const std::string& path, bool deep = true) {
    read_dir(path.empty() ? top_ : top_ + "/" + path, deep);
  }

  // Compares with the disk; a line for each difference.
  std::string differences() {
    std::string out;
    compare(top_, root(), "", out);
    return out;
  }
  Node* at(const std::string& path) {
    wire::NodeId node = root();
    std::string rest = path;
    while (!rest.empty()) {
      const auto slash = rest.find('/');
      const auto& names = nodes[node].names;
      const auto it = names.find(rest.substr(0, slash));
      if (it == names.end()) return nullptr;
      node = it->second;
      rest = slash == std::string::npos ? "" : rest.substr(slash + 1);
    }
    return &nodes[node];
  }

  std::map<wire::NodeId, Node> nodes;
  std::set<wire::NodeId> gone_nodes;
  bool lenient = false;  // nobody tells of link counts (inotify)
  std::size_t states = 0, fresh = 0, unknown = 0, losts = 0;

 private:
  wire::NodeId root() {
    struct stat st {};
    EXPECT_EQ(::lstat(top_.c_str(), &st), 0);
    return node_of(st);
  }
  void forget_bytes() {
    for (auto& [id, node] : nodes) node.has_bytes = false;
  }
  void walk_node(wire::NodeId wanted) { find_and_read(top_, wanted); }
  void find_and_read(const std::string& path, wire::NodeId wanted) {
    for (const auto& name : list(path)) {
      const auto below = path + "/" + name;
      struct stat st {};
      if (::lstat(below.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) continue;
      if (node_of(st) == wanted) return read_dir(below);
      find_and_read(below, wanted);
    }
  }
  static std::vector<std::string> list(const std::string& path) {
    std::vector<std::string> names;
    DIR* const dir = ::opendir(path.c_str());
    if (dir == nullptr) return names;
    while (const auto* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    ::closedir(dir);
    return names;
  }
  void read_dir(const std::string& path, bool deep = true) {
    const auto as_of = Versions::process().now();
    const auto st = stat_at(AT_FDCWD, path.c_str());
    if (!st) return;
    auto& dir = nodes[node_of(*st)];
    dir.attr = make_attr(*st, as_of);
    if (!S_ISDIR(st->st_mode)) return;
    dir.names.clear();
    for (const auto& name : list(path)) {
      const auto below = path + "/" + name;
      const auto now = Versions::process().now();
      const auto entry = stat_at(AT_FDCWD, below.c_str());
      if (!entry) continue;
      dir.names[name] = node_of(*entry);
      auto& node = nodes[node_of(*entry)];
      node.attr = make_attr(*entry, now);
      if (S_ISLNK(entry->st_mode)) node.target = std::filesystem::read_symlink(below);
      if (deep && S_ISDIR(entry->st_mode)) read_dir(below);
    }
  }
  void compare(const std::string& path, wire::NodeId id, const std::string& shown, std::string& out) {
    const auto found = stat_at(AT_FDCWD, path.c_str());
    const Stat st = found ? *found : Stat{};
    if (!found) {
      out += "gone on disk: " + shown + "\n";
      return;
    }
    if (node_of(st) != id) {
      out += "another node: " + shown + "\n";
      return;
    }
    auto& node = nodes[id];
    auto want = make_attr(st);
    want.version = node.attr.version;
    if (lenient && !S_ISDIR(st.st_mode)) {
      want.nlink = node.attr.nlink;
      want.ctime_ns = node.attr.ctime_ns;
    }
    if (!(want == node.attr)) {
      out += "attributes: " + shown + " size " + std::to_string(node.attr.size) + "/" +
             std::to_string(want.size) + " nlink " + std::to_string(node.attr.nlink) + "/" +
             std::to_string(want.nlink) + " mtime " + std::to_string(node.attr.mtime_ns) + "/" +
             std::to_string(want.mtime_ns) + " ctime " + std::to_string(node.attr.ctime_ns) + "/" +
             std::to_string(want.ctime_ns) + " blocks " + std::to_string(node.attr.blocks) + "/" +
             std::to_string(want.blocks) + "\n";
    }
    if (S_ISLNK(st.st_mode) && std::filesystem::read_symlink(path).string() != node.target) {
      out += "target: " + shown + "\n";
    }
    if (S_ISREG(st.st_mode)) {
      auto bytes = read_file(path);
      // Without a version sizes and times count (foreign file systems): no business of the watcher's.
      if (node.has_bytes && node.attr.version != 0 && node.bytes_version == node.attr.version) {
        if (node.bytes != bytes) out += "stale bytes: " + shown + "\n";
      }
      node.has_bytes = true;
      node.bytes_version = node.attr.version;
      node.bytes = std::move(bytes);
    }
    if (!S_ISDIR(st.st_mode)) return;
    std::set<std::string> there;
    for (const auto& name : list(path)) there.insert(name);
    for (const auto& [name, child] : node.names) {
      if (there.count(name) == 0) out += "not on disk: " + shown + "/" + name + "\n";
    }
    for (const auto& name : there) {
      const auto it = node.names.find(name);
      if (it == node.names.end()) {
        out += "not told: " + shown + "/" + name + "\n";
      } else {
        compare(path + "/" + name, it->second, shown + "/" + name, out);
      }
    }
  }

  const std::string top_;
};

// One client of a watcher.
class Client {
 public:
  Client(Watcher& watcher, const std::string& path, std::size_t log_bytes = kMaxEventLogBytes)
      : log(log_bytes), watcher_(watcher), path_(path), who_(self()), roots_(who_) {
    auto opened = roots_.open({path, false});
    EXPECT_TRUE(opened);
    root = *roots_.get(opened->root);
    auto answered = watcher_.watch(this, log, 1, root, soon());
    EXPECT_TRUE(answered);
    if (answered) reply = *answered;
    model = std::make_unique<Model>(path);
    model->lenient = reply.kind == wire::WatchKind::kInotify;
  }
  ~Client() { watcher_.forget(this); }
  static Watcher::Clock::time_point soon() { return Watcher::Clock::now() + std::chrono::seconds(30); }

  // Takes all events up to a barrier.
  void settle() {
    auto barrier = watcher_.barrier(this, 1, soon());
    ASSERT_TRUE(barrier) << barrier.error().message();
    take();
    EXPECT_GE(seen_, barrier->seq);
  }
  // Takes what is there. The number of events.
  std::size_t take() {
    std::size_t count = 0;
    wire::Bytes out;
    if (log.last_seq() <= seen_) return 0;
    EXPECT_TRUE(log.take(seen_, std::size_t{1} << 30, out, Watcher::Clock::now()));
    wire::Reader reader(out);
    while (!reader.done()) {
      const auto event = wire::decode<wire::Event>(reader.view(wire::kMaxEventBytes + 64));
      EXPECT_TRUE(event);
      if (!event) break;
      if (event->kind != wire::EventKind::kOpDone) model->apply(*event);
      events.push_back(*event);
      ++count;
    }
    log.confirm(seen_);
    return count;
  }
  // Waits for events, without a barrier, until the model is what is on the disk.
  bool catches_up() {
    return eventually([&] {
      take();
      return model->differences().empty();
    });
  }

  EventLog log;
  RootPtr root;
  wire::WatchReply reply;
  std::unique_ptr<Model> model;
  std::vector<wire::Event> events;

 private:
  Watcher& watcher_;
  const std::string path_;
  const Identity who_;
  RootTable roots_;
  std::uint64_t seen_ = 0;
};

}  // namespace nearbox::agent::test
