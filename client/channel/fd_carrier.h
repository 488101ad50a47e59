// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

// A carrier over descriptors: one socket, or a pipe each way.
//
// Owns:    the descriptors (made non-blocking) and an eventfd that shutdown() raises.
// Threads: as Carrier.
// Errors:  as Carrier; EPIPE when the reader of our pipe is gone. On pipes (not sockets) that also
//          raises SIGPIPE: programs that use them ignore it.
class FdCarrier final : public Carrier {
 public:
  // A connected stream socket. On TCP: no delay, and at most kNotSentBytes unsent in the kernel, so
  // that a small frame never waits behind a full socket buffer.
  static base::Result<std::unique_ptr<FdCarrier>> from_socket(base::UniqueFd socket);
  static base::Result<std::unique_ptr<FdCarrier>> from_pipes(base::UniqueFd in, base::UniqueFd out);

  base::Result<std::size_t> read(std::span<std::byte> into, Deadline deadline) override;
  base::Result<void> write(wire::ByteView bytes, Deadline deadline) override;
  void shutdown() noexcept override;

  static constexpr int kNotSentBytes = 128 * 1024;

 private:
  FdCarrier(base::UniqueFd in, base::UniqueFd out, base::UniqueFd wake, bool socket)
      : in_(std::move(in)), out_(std::move(out)), wake_(std::move(wake)), socket_(socket) {}
  base::Result<void> wait(int fd, short events, Deadline deadline);
  int out_fd() const { return out_ ? out_.get() : in_.get(); }

  base::UniqueFd in_;
  base::UniqueFd out_;  // none: in_ is a socket
  base::UniqueFd wake_;
  const bool socket_;
  std::atomic<bool> stopped_{false};
};

}  // namespace nearbox::channel
