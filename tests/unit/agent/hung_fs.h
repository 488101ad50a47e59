// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <string>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent::test {

// A FUSE file system whose server reads no request: whoever looks below the mountpoint hangs until it
// is released. Only root may mount one by itself.
//
// Source:  linux Documentation/filesystems/fuse.rst, "Interrupting filesystem operations": the last
//          close of the device ends what waits with ENOTCONN or ECONNABORTED.
class HungFs {
 public:
  explicit HungFs(std::string point) : point_(std::move(point)) {
    (void)::mkdir(point_.c_str(), 0755);
    device_.reset(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    const auto options =
        "fd=" + std::to_string(device_.get()) + ",rootmode=40000,user_id=0,group_id=0,allow_other";
    mounted_ = device_ && ::mount("hung", point_.c_str(), "fuse.hung", 0, options.c_str()) == 0;
  }
  ~HungFs() { release(); }
  HungFs(const HungFs&) = delete;
  HungFs& operator=(const HungFs&) = delete;
  bool mounted() const { return mounted_; }
  void release() {
    device_.reset();
    if (mounted_) (void)::umount2(point_.c_str(), MNT_DETACH);
    mounted_ = false;
  }

 private:
  const std::string point_;
  base::UniqueFd device_;
  bool mounted_ = false;
};

}  // namespace nearbox::agent::test
