// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "client/channel/mux_server.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

// Standard input of one process on its way into the pipe, by offset: what comes again is skipped,
// what has a gap before it is not taken.
//
// Bounds:  kMaxQueued bytes, or one message when nothing else is queued; kMaxWaiting calls.
// Threads: none of its own; the caller's lock guards it. Answers are handed out, to be given
//          without that lock.
// Errors:  EPIPE: the process no longer reads; EAGAIN: too many calls wait.
class StdinQueue {
 public:
  static constexpr std::size_t kMaxQueued = 64 * 1024;
  static constexpr std::size_t kMaxWaiting = 64;

  struct Answer {
    channel::ResponderPtr responder;
    int error = 0;
    std::uint64_t accepted = 0;
  };
  using Answers = std::vector<Answer>;

  // Takes what is new of the message when it fits; else the call waits without its bytes and is
  // answered with an `accepted` below its end: the client sends the rest again from there.
  void push(const wire::ProcInput& input, channel::ResponderPtr responder, Answers& answers);
  wire::ByteView front() const { return wire::ByteView(queue_).subspan(head_); }
  // `count` bytes of front() are in the pipe.
  void wrote(std::size_t count, Answers& answers);
  // The end of input was asked for and all before it is written: close the pipe, then ended().
  bool wants_end() const { return eof_ && !ended_ && front().empty(); }
  void ended(Answers& answers);
  // No more bytes can be written; what is queued is dropped and all calls get `error`.
  void fail(int error, Answers& answers);
  bool pending() const { return error_ == 0 && !ended_ && (!front().empty() || eof_); }
  char last_byte() const { return last_; }  // written last; '\n' when none was

 private:
  struct Waiting {
    channel::ResponderPtr responder;
    std::uint64_t until = 0;  // answered when so much was written
    bool until_end = false;   // and the pipe closed
    bool refused = false;     // nothing of it was taken: answered when the queue is empty
  };
  void answer_ready(Answers& answers);
  void drop_cancelled(Answers& answers);

  wire::Bytes queue_;
  std::size_t head_ = 0;  // bytes of queue_ already written
  std::deque<Waiting> waiting_;
  std::uint64_t taken_ = 0;
  std::uint64_t written_ = 0;
  bool eof_ = false;
  bool ended_ = false;
  int error_ = 0;
  char last_ = '\n';
};

}  // namespace nearbox::agent
