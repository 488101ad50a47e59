// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_stdin.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace nearbox::agent {

void StdinQueue::push(const wire::ProcInput& input, channel::ResponderPtr responder, Answers& answers) {
  const std::uint64_t stop = input.offset + input.data.size();
  if (stop < input.offset) {
    answers.push_back({std::move(responder), EINVAL, written_});
    return;
  }
  const bool all_written = stop <= written_ && (!input.eof || ended_);
  if (!all_written && (error_ != 0 || (stop > taken_ && eof_))) {
    answers.push_back({std::move(responder), EPIPE, written_});
    return;
  }
  if (all_written) {
    answers.push_back({std::move(responder), 0, written_});
    return;
  }
  drop_cancelled(answers);
  if (waiting_.size() >= kMaxWaiting) {
    answers.push_back({std::move(responder), EAGAIN, written_});
    return;
  }
  const std::uint64_t fresh = stop > taken_ ? stop - taken_ : 0;
  const bool fits = front().empty() || front().size() + fresh <= kMaxQueued;
  const bool taken = input.offset <= taken_ && fits;
  if (taken && fresh > 0) {
    queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(head_));
    head_ = 0;
    queue_.insert(queue_.end(), input.data.end() - static_cast<std::ptrdiff_t>(fresh), input.data.end());
    taken_ = stop;
  }
  if (taken && input.eof) eof_ = true;
  waiting_.push_back({std::move(responder), stop, input.eof, !taken});
  answer_ready(answers);
}

// Nobody waits for these any more: they must not use up the places of others.
void StdinQueue::drop_cancelled(Answers& answers) {
  for (auto& call : waiting_) {
    if (call.responder->cancelled()) {
      answers.push_back({std::exchange(call.responder, nullptr), ECANCELED, written_});
    }
  }
  std::erase_if(waiting_, [](const Waiting& call) { return call.responder == nullptr; });
}

void StdinQueue::wrote(std::size_t count, Answers& answers) {
  if (count == 0) return;
  last_ = static_cast<char>(front()[count - 1]);
  head_ += count;
  written_ += count;
  if (head_ == queue_.size()) {
    queue_.clear();
    head_ = 0;
    if (queue_.capacity() > kMaxQueued) queue_.shrink_to_fit();
  }
  answer_ready(answers);
}

void StdinQueue::ended(Answers& answers) {
  ended_ = true;
  answer_ready(answers);
}

void StdinQueue::fail(int error, Answers& answers) {
  if (ended_ || error_ != 0) return;
  error_ = error;
  queue_ = {};
  head_ = 0;
  for (auto& call : waiting_) {
    const bool fulfilled = !call.refused && !call.until_end && call.until <= written_;
    answers.push_back({std::move(call.responder), fulfilled ? 0 : error, written_});
  }
  waiting_.clear();
}

void StdinQueue::answer_ready(Answers& answers) {
  const auto ready = [this](const Waiting& call) {
    if (call.refused) return front().empty();
    return call.until <= written_ && (!call.until_end || ended_);
  };
  for (auto& call : waiting_) {
    if (ready(call)) answers.push_back({std::exchange(call.responder, nullptr), 0, written_});
  }
  std::erase_if(waiting_, [](const Waiting& call) { return call.responder == nullptr; });
}

}  // namespace nearbox::agent
