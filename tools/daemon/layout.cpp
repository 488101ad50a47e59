// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/layout.h"

#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <memory>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "client/api/state_dir.h"

namespace nearbox::daemon {
namespace {

std::string digest(const std::string& text) {
  sha256_ctx hash;
  sha256_init(&hash);
  sha256_update(&hash, text.size(), reinterpret_cast<const std::uint8_t*>(text.data()));
  std::uint8_t bytes[SHA256_DIGEST_SIZE];
  sha256_digest(&hash, sizeof bytes, bytes);
  std::string hex;
  for (int i = 0; i < 8; ++i) {
    hex += "0123456789abcdef"[bytes[i] >> 4];
    hex += "0123456789abcdef"[bytes[i] & 15];
  }
  return hex;
}

base::Result<void> make_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("mkdir " + path);
  return {};
}

base::Result<std::string> daemons_dir() {
  auto state = api::state_dir(api::process_environment());
  if (!state) return state;
  auto path = *state + "/daemons";
  if (auto made = make_dir(path); !made) return std::move(made).error();
  return path;
}

}  // namespace

base::Result<Layout> layout_for(const Target& target, const std::string& service) {
  auto base_dir = daemons_dir();
  if (!base_dir) return std::move(base_dir).error();
  Layout layout{*base_dir + "/" + digest(target.sandbox() + "\n" + service)};
  if (auto made = make_dir(layout.dir); !made) return std::move(made).error();
  return layout;
}

base::Result<std::vector<Layout>> all_layouts() {
  auto base_dir = daemons_dir();
  if (!base_dir) return std::move(base_dir).error();
  std::vector<Layout> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(base_dir->c_str()), ::closedir);
  if (!dir) return base::last_errno("opendir " + *base_dir);
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') out.push_back({*base_dir + "/" + entry->d_name});
  }
  return out;
}

base::Result<base::UniqueFd> lock_daemon(const Layout& layout) {
  base::UniqueFd fd(::open(layout.lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return base::last_errno("open " + layout.lock());
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return base::errno_error(EBUSY, "daemon lock");
    return base::last_errno("lock " + layout.lock());
  }
  return fd;
}

std::vector<RecordedMount> recorded_mounts(const Layout& layout) {
  std::vector<RecordedMount> out;
  std::ifstream in(layout.mounts());
  for (std::string line; std::getline(in, line);) {
    RecordedMount mount;
    const char* const end = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data(), end, mount.minor);
    if (error != std::errc{} || at == end || *at != ' ' || at + 1 == end) continue;
    mount.mountpoint.assign(at + 1, end);
    out.push_back(std::move(mount));
  }
  return out;
}

base::Result<void> record_mounts(const Layout& layout, const std::vector<RecordedMount>& mounts) {
  std::string text;
  for (const auto& mount : mounts) {
    if (mount.mountpoint.find('\n') != std::string::npos) continue;
    text += std::to_string(mount.minor) + " " + mount.mountpoint + "\n";
  }
  const auto temporary = layout.mounts() + ".new";
  base::UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("open " + temporary);
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return base::last_errno("write " + temporary);
  }
  if (const auto error = fd.close()) return base::Error{error, "close " + temporary};
  if (::rename(temporary.c_str(), layout.mounts().c_str()) != 0)
    return base::last_errno("rename " + temporary);
  return {};
}

}  // namespace nearbox::daemon
