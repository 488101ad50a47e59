// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/fanotify_source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

constexpr std::uint64_t kNames = FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_MOVED_FROM | FAN_MOVED_TO;
constexpr std::uint64_t kBytes = FAN_MODIFY | FAN_CLOSE_WRITE;
constexpr unsigned kBasic = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE |
                            FAN_UNLIMITED_MARKS | FAN_REPORT_DFID_NAME | FAN_REPORT_FID;

// A handle as this file keys it: file system, type, bytes.
std::string handle_key(const void* fsid, const struct file_handle& handle) {
  std::string key(sizeof(fsid_t) + sizeof handle.handle_type + handle.handle_bytes, '\0');
  std::memcpy(key.data(), fsid, sizeof(fsid_t));
  std::memcpy(key.data() + sizeof(fsid_t), &handle.handle_type, sizeof handle.handle_type);
  std::memcpy(key.data() + sizeof(fsid_t) + sizeof handle.handle_type, handle.f_handle, handle.handle_bytes);
  return key;
}

struct HandleBuffer {
  alignas(struct file_handle) std::array<char, sizeof(struct file_handle) + MAX_HANDLE_SZ> bytes{};
  struct file_handle& get() {
    return *reinterpret_cast<struct file_handle*>(bytes.data());
  }
};

}  // namespace

base::Result<std::unique_ptr<WatchSource>> make_fanotify_source(std::size_t max_dirs) {
  if (base::fault::active("agent.no_fanotify")) return base::errno_error(EPERM, "fanotify");
  const bool rename = !base::fault::active("agent.no_fan_rename");
  // FAN_RENAME and the handles of targets came with one kernel (5.17).
  base::UniqueFd fd;
  if (rename) fd.reset(::fanotify_init(kBasic | FAN_REPORT_TARGET_FID, O_RDONLY | O_CLOEXEC));
  const bool targets = static_cast<bool>(fd);
  if (!fd) fd.reset(::fanotify_init(kBasic, O_RDONLY | O_CLOEXEC));
  if (!fd) return base::last_errno("fanotify");
  return std::unique_ptr<WatchSource>(std::make_unique<FanotifySource>(std::move(fd), targets, max_dirs));
}

FanotifySource::FanotifySource(base::UniqueFd group, bool targets, std::size_t max_dirs)
    : group_(std::move(group)), targets_(targets), self_(::getpid()), buffer_(kReadBuffer), dirs_(max_dirs) {}

std::uint64_t FanotifySource::mask() const {
  const std::uint64_t names = targets_ ? FAN_RENAME : FAN_MOVED_FROM | FAN_MOVED_TO;
  return FAN_CREATE | FAN_DELETE | names | kBytes | FAN_ATTRIB | FAN_ONDIR;
}

// `dir`: O_PATH, on the file system; `point`: where that is mounted, empty for the one of a root.
base::Result<void> FanotifySource::mark(int dir, const std::string& point) {
  struct statfs fs {};
  struct stat st {};
  if (::fstatfs(dir, &fs) != 0 || ::fstat(dir, &st) != 0) return base::last_errno("statfs");
  Fsid fsid{};
  std::memcpy(fsid.data(), &fs.f_fsid, sizeof fs.f_fsid);
  // An identity that names no file system or two of them would mix their handles up.
  if (fsid == Fsid{}) return base::errno_error(ENODEV, "fsid");
  Fs* known = nullptr;
  for (auto& one : file_systems_) {
    if (one->dev == st.st_dev) known = one.get();
    if (one->dev != st.st_dev && one->fsid == fsid) return base::errno_error(EXDEV, "fsid");
  }
  if (known == nullptr && file_systems_.size() >= kMaxFileSystems) {
    return base::errno_error(EMFILE, "file systems");
  }
  const base::UniqueFd opened(::openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened) return base::last_errno("open");
  // Also what is known: it may be another one by now, with the number of the first.
  if (::fanotify_mark(group_.get(), FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask(), opened.get(), nullptr) != 0) {
    return base::last_errno("fanotify_mark");
  }
  if (known == nullptr) {
    file_systems_.push_back(std::make_unique<Fs>());
    known = file_systems_.back().get();
  }
  known->dev = st.st_dev;
  known->fsid = fsid;
  if (!point.empty()) known->points.insert(point);
  return {};
}

base::Result<void> FanotifySource::add_root(const RootPtr& root, std::size_t index, HintSink& /*sink*/) {
  if (auto marked = mark(root->dir.get(), {}); !marked) return marked;
  if (roots_.size() <= index) roots_.resize(index + 1);
  auto& mine = roots_[index];
  mine.node = root->node;
  mine.dev = root->node.dev;
  mine.dir.reset(::openat(root->dir.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  root_nodes_[root->node].set(index);
  // Proves that this process may open by handle as well.
  const Dir* const dir = dir_of_fd(root->dir.get());
  if (dir != nullptr && open_handle(*dir->key, O_PATH | O_DIRECTORY)) return {};
  remove_root(index);
  return base::errno_error(EPERM, "open by handle");
}

base::Result<void> FanotifySource::add_mount(const RootPtr& /*root*/, const std::string& path) {
  ++generation_;  // the directories beneath have others above them now
  mounted_.erase(path);
  const base::UniqueFd fd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0) return {};  // gone, hidden below another mount, or a file
  if (auto marked = mark(fd.get(), path); !marked) return std::move(marked).error().during(path);
  const base::UniqueFd up(::openat(fd.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat above {};
  if (!up || ::fstat(up.get(), &above) != 0 || node_of(above) == node_of(st)) return {};
  (void)dir_of_fd(fd.get());
  (void)dir_of_fd(up.get());
  mounted_[path] = {node_of(st), node_of(above)};
  return {};
}

void FanotifySource::set_mounts(const MountTable& mounts) {
  std::erase_if(mounted_, [&](const auto& one) { return mounts.device_at(one.first) == 0; });
  for (auto& fs : file_systems_) {
    std::erase_if(fs->points, [&](const std::string& at) { return mounts.device_at(at) != fs->dev; });
  }
  // The kernel took the mark of one that is gone with it.
  std::erase_if(file_systems_, [&](const auto& fs) { return fs->points.empty() && !rooted(fs->dev); });
}

bool FanotifySource::rooted(dev_t dev) const {
  return std::any_of(roots_.begin(), roots_.end(),
                     [&](const WatchedRoot& root) { return root.dir && root.dev == dev; });
}

void FanotifySource::remove_root(std::size_t index) {
  if (index >= roots_.size() || roots_[index].node == wire::NodeId{}) return;
  const auto gone = std::move(roots_[index]);
  roots_[index] = WatchedRoot{};
  if (const auto it = root_nodes_.find(gone.node); it != root_nodes_.end()) {
    it->second.reset(index);
    if (it->second.none()) root_nodes_.erase(it);
  }
  std::erase_if(file_systems_, [&](const auto& fs) {
    const bool unused = fs->dev == gone.dev && fs->points.empty() && !rooted(fs->dev);
    const unsigned remove = FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM;
    if (unused) (void)::fanotify_mark(group_.get(), remove, mask(), gone.dir.get(), nullptr);
    return unused;
  });
}

std::size_t FanotifySource::queued() {
  int bytes = 0;  // a metadata's size for each event: linux v6.1 fanotify_user.c, fanotify_ioctl()
  if (::ioctl(group_.get(), FIONREAD, &bytes) != 0 || bytes < 0) return 0;
  return static_cast<std::size_t>(bytes);
}

// A descriptor on the file system, for handles.
base::UniqueFd FanotifySource::open_on(const Fs& fs) const {
  for (const auto& point : fs.points) {
    base::UniqueFd fd(::open(point.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    struct stat st {};
    if (fd && ::fstat(fd.get(), &st) == 0 && st.st_dev == fs.dev) return fd;
  }
  return base::UniqueFd();
}

base::UniqueFd FanotifySource::open_handle(const std::string& key, int flags) const {
  HandleBuffer buffer;
  struct file_handle& handle = buffer.get();
  const std::size_t head = sizeof(fsid_t) + sizeof handle.handle_type;
  if (key.size() < head || key.size() - head > MAX_HANDLE_SZ) return base::UniqueFd();
  for (const auto& fs : file_systems_) {
    if (std::memcmp(fs->fsid.data(), key.data(), sizeof(fsid_t)) != 0) continue;
    handle.handle_bytes = static_cast<unsigned>(key.size() - head);
    std::memcpy(&handle.handle_type, key.data() + sizeof(fsid_t), sizeof handle.handle_type);
    std::memcpy(handle.f_handle, key.data() + head, handle.handle_bytes);
    const auto root = std::find_if(roots_.begin(), roots_.end(),
                                   [&](const WatchedRoot& one) { return one.dir && one.dev == fs->dev; });
    const auto opened = root == roots_.end() ? open_on(*fs) : base::UniqueFd();
    const int mount = root == roots_.end() ? opened.get() : root->dir.get();
    return base::UniqueFd(::open_by_handle_at(mount, &handle, flags | O_CLOEXEC));
  }
  return base::UniqueFd();
}

// The directory of an open descriptor; nothing when its file system is none of ours.
FanotifySource::Dir* FanotifySource::dir_of_fd(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return nullptr;
  HandleBuffer buffer;
  buffer.get().handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (::name_to_handle_at(fd, "", &buffer.get(), &mount_id, AT_EMPTY_PATH) != 0) return nullptr;
  for (const auto& fs : file_systems_) {
    if (fs->dev != st.st_dev) continue;
    const auto key = handle_key(fs->fsid.data(), buffer.get());
    Dir* const known = dirs_.find(node_of(st));
    return known != nullptr && *known->key == key ? known : dirs_.put(node_of(st), key);
  }
  return nullptr;
}

// Nothing when it is gone.
FanotifySource::Dir* FanotifySource::dir_of_key(const std::string& key) {
  if (Dir* const known = dirs_.find(key)) return known;
  const auto fd = open_handle(key, O_PATH | O_DIRECTORY);
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0) return nullptr;
  return dirs_.put(node_of(st), key);
}

// The node of the directory above, looked up where it is not known (any more); itself at the top.
wire::NodeId FanotifySource::parent_of(const Dir& dir) {
  if (dir.parent_known && dir.generation == generation_) return dir.parent;
  const auto node = dir.node;
  const auto fd = open_handle(*dir.key, O_PATH | O_DIRECTORY);
  if (!fd) return node;
  const base::UniqueFd up(::openat(fd.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat st {};
  if (!up || ::fstat(up.get(), &st) != 0) return node;
  const auto parent = node_of(st);
  if (parent != node) (void)dir_of_fd(up.get());  // may push `dir` out of the table
  if (Dir* const again = dirs_.find(node)) {
    again->parent = parent;
    again->parent_known = true;
    again->generation = generation_;
  }
  return parent;
}

RootSet FanotifySource::roots_of(wire::NodeId dir) {
  RootSet found;
  std::vector<wire::NodeId> ways{dir};
  std::vector<const Above*> taken;
  for (std::size_t level = 0; level < kMaxLevels && !ways.empty(); ++level) {
    const auto at = ways.back();
    ways.pop_back();
    if (const auto root = root_nodes_.find(at); root != root_nodes_.end()) found |= root->second;
    for (const auto& [place, above] : mounted_) {
      if (above.node != at || std::find(taken.begin(), taken.end(), &above) != taken.end()) continue;
      taken.push_back(&above);
      ways.push_back(above.parent);
    }
    const Dir* const known = dirs_.find(at);
    if (known == nullptr) continue;
    const auto parent = parent_of(*known);
    if (parent != at) ways.push_back(parent);
  }
  return found;
}

void FanotifySource::recall(wire::NodeId dir, const HandleRef& place) {
  if (place && dirs_.find(dir) == nullptr) (void)dir_of_key(*place);
}

HandleRef FanotifySource::place_of(wire::NodeId dir) {
  const Dir* const known = dirs_.find(dir);
  return known == nullptr ? HandleRef{} : known->key;
}

base::UniqueFd FanotifySource::open_dir(wire::NodeId dir) {
  const Dir* const known = dirs_.find(dir);
  return known == nullptr ? base::UniqueFd() : open_handle(*known->key, O_PATH | O_DIRECTORY);
}

std::optional<Stat> FanotifySource::target(std::string_view handle) {
  const auto fd = open_handle(std::string(handle), O_PATH);
  if (!fd) return std::nullopt;
  const auto st = stat_fd(fd.get());
  return st ? std::optional(*st) : std::nullopt;
}

// The kernel's common handle of file systems with small inode numbers: the number, and a generation.
// Source: linux v6.1 fs/libfs.c (generic_encode_fh) and include/linux/exportfs.h, FILEID_INO32_GEN.
bool FanotifySource::names(std::string_view handle, wire::NodeId node) const {
  constexpr int kInoAndGeneration = 1;
  constexpr std::size_t kHead = sizeof(fsid_t) + sizeof(int);
  if (handle.size() != kHead + 2 * sizeof(std::uint32_t) || node == wire::NodeId{}) return false;
  int type = 0;
  std::uint32_t number = 0;
  std::memcpy(&type, handle.data() + sizeof(fsid_t), sizeof type);
  std::memcpy(&number, handle.data() + kHead, sizeof number);
  return type == kInoAndGeneration && number == node.ino &&
         std::any_of(file_systems_.begin(), file_systems_.end(), [&](const auto& fs) {
           return fs->dev == node.dev && std::memcmp(fs->fsid.data(), handle.data(), sizeof(fsid_t)) == 0;
         });
}

void FanotifySource::entered(int fd, wire::NodeId /*dir*/, wire::NodeId /*parent*/,
                             std::string_view /*name*/) {
  (void)dir_of_fd(fd);
}

namespace {

// A pointer to a record of `size` at `at`, if it lies in the event.
template <class T>
bool load(const char* at, const char* end, T& out) {
  if (static_cast<std::size_t>(end - at) < sizeof out) return false;
  std::memcpy(&out, at, sizeof out);
  return true;
}

}  // namespace

FanotifySource::Records FanotifySource::parse(const char* at, const char* end) {
  Records records;
  struct fanotify_event_info_header head {};
  while (load(at, end, head) && head.len >= sizeof head && head.len <= end - at) {
    const char* const stop = at + head.len;
    const char* const fsid = at + sizeof head;
    HandleBuffer buffer;
    struct file_handle& handle = buffer.get();
    const char* const raw = fsid + sizeof(fsid_t);
    at = stop;
    const auto fixed = static_cast<std::ptrdiff_t>(sizeof handle.handle_bytes + sizeof handle.handle_type);
    if (stop - raw < fixed) continue;
    std::memcpy(&handle.handle_bytes, raw, sizeof handle.handle_bytes);
    std::memcpy(&handle.handle_type, raw + sizeof handle.handle_bytes, sizeof handle.handle_type);
    const char* const bytes = raw + fixed;
    if (handle.handle_bytes > MAX_HANDLE_SZ ||
        stop - bytes < static_cast<std::ptrdiff_t>(handle.handle_bytes)) {
      continue;
    }
    std::memcpy(handle.f_handle, bytes, handle.handle_bytes);
    const char* const name = bytes + handle.handle_bytes;
    Place place{handle_key(fsid, handle),
                std::string_view(name, ::strnlen(name, static_cast<std::size_t>(stop - name)))};
    switch (head.info_type) {
      case FAN_EVENT_INFO_TYPE_FID:
        records.target = std::move(place.dir);
        break;
      case FAN_EVENT_INFO_TYPE_DFID:
        place.name = ".";
        [[fallthrough]];
      case FAN_EVENT_INFO_TYPE_DFID_NAME:
      case FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
        records.from = std::move(place);
        break;
      case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
        records.to = std::move(place);
        break;
      default:
        break;
    }
  }
  return records;
}

std::size_t FanotifySource::read(HintSink& sink) {
  const ssize_t got = ::read(group_.get(), buffer_.data(), buffer_.size());
  if (got <= 0) return 0;
  const char* at = buffer_.data();
  const char* const end = at + got;
  std::size_t count = 0;
  struct fanotify_event_metadata event {};
  while (load(at, end, event) && event.event_len >= sizeof event && event.event_len <= end - at) {
    if (event.fd >= 0) (void)::close(event.fd);  // none is asked for
    ++count;
    if ((event.mask & FAN_Q_OVERFLOW) != 0) {
      sink.overflow("the kernel's queue");
    } else {
      take(event, parse(at + event.metadata_len, at + event.event_len), sink);
    }
    at += event.event_len;
  }
  return count * FAN_EVENT_METADATA_LEN;
}

void FanotifySource::take(const struct fanotify_event_metadata& event, const Records& records,
                          HintSink& sink) {
  const bool own = event.pid == self_;
  const bool directory = (event.mask & FAN_ONDIR) != 0;
  if (directory && (event.mask & (FAN_RENAME | FAN_MOVED_TO | FAN_MOVED_FROM)) != 0) moved(records);
  if (own) return;  // told by whoever did it
  if ((event.mask & FAN_RENAME) != 0) return renamed(records, directory, sink);
  if (records.from.dir.empty()) {
    // No name: the link count of a node with other names changed.
    if (!records.target.empty()) sink.hint({{}, {}, kHintLook | kHintLinks, records.target, {}});
    return;
  }
  const Dir* const dir = dir_of_key(records.from.dir);
  if (dir == nullptr) return;
  const auto node = dir->node;
  const auto place = dir->key;
  if (directory && (event.mask & (FAN_DELETE | FAN_MOVED_FROM)) != 0) sink.check_roots();
  std::uint32_t flags = kHintLook;
  if ((event.mask & kBytes) != 0) flags |= kHintContent;
  if ((event.mask & kNames) != 0) flags |= kHintListing;
  if ((event.mask & FAN_CREATE) != 0) flags |= kHintBorn | kHintFresh;
  const auto roots = roots_of(node);
  if ((event.mask & FAN_MOVED_TO) != 0) flags |= moved_to(roots, directory, event.pid);
  if ((event.mask & FAN_MOVED_FROM) != 0 && directory) {
    flags |= kHintAtOnce;
    moved_from_pid_ = event.pid;
    moved_from_roots_ = roots;
    moved_from_until_ = std::chrono::steady_clock::now() + kPairWithin;
  }
  if (roots.none()) {
    // A file with another name below a root may have been written through this one.
    if ((flags & kHintContent) == 0 || records.target.empty()) return;
    if (directory) return;
    // The kernel makes one event of a link that is made, written through and removed.
    if ((event.mask & (FAN_DELETE | FAN_MOVED_FROM)) != 0) flags |= kHintLinks;
    sink.hint({{}, {}, flags & ~(kHintBorn | kHintFresh), records.target, {}});
    return;
  }
  const auto name = records.from.name == "." ? std::string_view{} : records.from.name;
  sink.hint({node, name, flags, records.target, place});
  // Its number may be used again. By its own handle; what waits in it has that still.
  if (directory && (event.mask & FAN_DELETE) != 0 && !records.target.empty()) dirs_.erase(records.target);
}

// A directory is elsewhere now: what is known of the place of those below it follows from its own.
void FanotifySource::moved(const Records& records) {
  if (records.target.empty()) {
    ++generation_;
  } else if (Dir* const known = dirs_.find(records.target)) {
    known->parent_known = false;
  }
}

void FanotifySource::renamed(const Records& records, bool directory, HintSink& sink) {
  const Dir* dir = dir_of_key(records.from.dir);
  const auto from = dir == nullptr ? wire::NodeId{} : dir->node;
  const auto from_place = dir == nullptr ? HandleRef{} : dir->key;
  dir = dir_of_key(records.to.dir);
  const auto to = dir == nullptr ? wire::NodeId{} : dir->node;
  const auto to_place = dir == nullptr ? HandleRef{} : dir->key;
  const auto roots_from = from == wire::NodeId{} ? RootSet{} : roots_of(from);
  const auto roots_to = to == wire::NodeId{} ? RootSet{} : roots_of(to);
  if (directory) sink.check_roots();
  const std::uint32_t flags = kHintLook | kHintListing | (directory ? kHintAtOnce : 0U);
  // Some root has it new: for its clients all of it is told, for the others once more.
  const bool arrived =
      (roots_to & ~roots_from).any() || (directory && sink.untold(from, records.from.name, records.target));
  if (roots_to.any()) {
    const auto fresh = arrived ? kHintFresh | kHintArrived | kHintBorn : 0U;
    sink.hint({to, records.to.name, flags | fresh, records.target, to_place});
  }
  if (roots_from.any()) sink.hint({from, records.from.name, flags, {}, from_place});
}

// Without FAN_RENAME: what was written under the old name may not have been seen there, so the bytes
// count as changed. A directory is taken for one that left another place just before.
std::uint32_t FanotifySource::moved_to(const RootSet& roots, bool directory, std::int32_t pid) {
  if (!directory) return kHintBorn;
  const bool paired = moved_from_pid_ == pid && std::chrono::steady_clock::now() < moved_from_until_ &&
                      (roots & ~moved_from_roots_).none();
  moved_from_pid_ = -1;
  return kHintAtOnce | (paired ? 0U : kHintFresh | kHintArrived | kHintBorn);
}

}  // namespace nearbox::agent
