// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

namespace nearbox::agent {

// While it lives, what this thread makes belongs to (uid, gid) from its first moment, and the thread
// may still do in every directory what root may. A file that is made as root's and given away
// afterwards stays root's when the process dies in between.
//
// Threads: acts on the calling thread alone, and must be destroyed on it.
// Errors:  what the kernel refuses (no CAP_SETUID, an id that is not mapped) changes nothing: whoever
//          makes a file looks at its owner afterwards. Does nothing when not root.
// Source:  setfsuid(2), setfsgid(2); capabilities(7), "Effect of user ID changes on capabilities":
//          leaving fsuid 0 takes the file system capabilities out of the effective set, and they may
//          be raised again from the permitted one.
class BornAs {
 public:
  BornAs(uid_t uid, gid_t gid);
  ~BornAs();
  BornAs(const BornAs&) = delete;
  BornAs& operator=(const BornAs&) = delete;
  // What is made now has this owner (or the group that its directory passes on).
  bool holds() const { return holds_; }

 private:
  bool changed_ = false;
  bool holds_ = false;
  int gid_before_ = 0;
};

}  // namespace nearbox::agent
