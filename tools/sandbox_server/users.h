// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "client/base/result.h"
#include "tools/sandbox_server/rootfs.h"

namespace nearbox::sandbox_server {

struct User {
  std::string name;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string home;
  std::vector<gid_t> groups;
  bool switch_ids = false;     // processes of it set their ids (the server is root)
  bool nested_userns = false;  // processes of it enter a user namespace that shows them as `uid`
};

// The accounts of a sandbox, read from its /etc/passwd and /etc/group (parsed, no NSS).
//
// Threads: any; every call reads the files again, as envd does.
class Users {
 public:
  // `plain_home`: the home directory of every account in plain mode.
  Users(IsolationMode mode, std::string plain_home) : mode_(mode), plain_home_(std::move(plain_home)) {}
  std::optional<User> find(std::string_view name) const;
  // Gives a file that envd made to `user`; quietly nothing where ids cannot be set.
  void own(int fd, const User& user) const;
  void own_path(const std::string& path, const User& user) const;
  IsolationMode mode() const { return mode_; }

 private:
  IsolationMode mode_;
  std::string plain_home_;
};

// Names of ids for the duration of one call.
class IdNames {
 public:
  explicit IdNames(IsolationMode mode);
  std::string user(uid_t uid) const { return name(users_, uid); }
  std::string group(gid_t gid) const { return name(groups_, gid); }

 private:
  static std::string name(const std::map<unsigned, std::string>& names, unsigned id);
  std::map<unsigned, std::string> users_;
  std::map<unsigned, std::string> groups_;
};

// Where a path of a request lies: "~" and relative paths in the user's home, absolute ones as they
// are. EINVAL: another user's home, or a NUL byte.
// Source: e2b-dev/infra 54693ff, packages/envd/internal/permissions/path.go.
base::Result<std::string> resolve_path(std::string_view path, const User& user);

}  // namespace nearbox::sandbox_server
