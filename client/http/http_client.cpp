// SPDX-License-Identifier: Apache-2.0
#include "client/http/http_client.h"

#include <algorithm>

#include "client/api/error_code.h"
#include "client/http/transfer.h"

namespace nearbox::http {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How long one wait for the socket may take: libcurl's own timers are looked at after each.
constexpr milliseconds kPollSlice{1000};

milliseconds left_until(Deadline deadline) {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
}

}  // namespace

// One transfer at a time, and the connections it kept.
struct HttpClient::Slot {
  Slot() : multi(curl_multi_init()), easy(curl_easy_init()) {
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, kMaxSlotConnections);
  }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  ~Slot() {
    curl_easy_cleanup(easy);
    curl_multi_cleanup(multi);
  }

  // Runs the prepared easy handle. CURLE_ABORTED_BY_CALLBACK when stop was asked for.
  CURLcode run(Deadline deadline, const std::stop_token& stop) {
    const std::stop_callback wake(stop, [this] { curl_multi_wakeup(multi); });
    if (curl_multi_add_handle(multi, easy) != CURLM_OK) return CURLE_FAILED_INIT;
    CURLcode result = CURLE_OK;
    while (!step(deadline, stop, result)) {
    }
    return result;
  }

  // The handle leaves the multi only when its Transfer still lives: closing calls back.
  void detach() { curl_multi_remove_handle(multi, easy); }

  CURLM* multi;
  CURL* easy;
  std::string origin;

 private:
  bool step(Deadline deadline, const std::stop_token& stop, CURLcode& result) {
    int running = 0;
    if (curl_multi_perform(multi, &running) != CURLM_OK) {
      result = CURLE_FAILED_INIT;
      return true;
    }
    int queued = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi, &queued)) {
      if (message->msg != CURLMSG_DONE) continue;
      result = message->data.result;
      return true;
    }
    if (stop.stop_requested()) {
      result = CURLE_ABORTED_BY_CALLBACK;
      return true;
    }
    const milliseconds left = left_until(deadline);
    if (left.count() == 0) {
      result = CURLE_OPERATION_TIMEDOUT;
      return true;
    }
    curl_multi_poll(multi, nullptr, 0, static_cast<int>(std::min(left, kPollSlice).count()), nullptr);
    return false;
  }
};

HttpClient::HttpClient(ClientOptions options) : options_(std::move(options)) { global_init(); }

HttpClient::~HttpClient() = default;

base::Result<std::unique_ptr<HttpClient::Slot>> HttpClient::take_slot(const Request& request,
                                                                      Deadline deadline,
                                                                      const std::stop_token& stop) {
  const std::stop_callback wake(stop, [this] {
    base::MutexLock lock(mu_);
    free_.notify_all();
  });
  base::MutexLock lock(mu_);
  while (busy_ >= kMaxTransfers) {
    if (stop.stop_requested()) return api::fill_error(api::ErrorCode::kCancelled);
    if (!free_.wait_until(mu_, deadline) && steady_clock::now() >= deadline) {
      return curl_error(CURLE_OPERATION_TIMEDOUT, request.url, "", milliseconds(0));
    }
  }
  ++busy_;
  if (idle_.empty()) return std::make_unique<Slot>();
  // The youngest slot that knows the server, else the oldest one.
  const std::string origin = origin_of(request.url);
  auto it =
      std::find_if(idle_.rbegin(), idle_.rend(), [&](const auto& slot) { return slot->origin == origin; });
  const auto chosen = it == idle_.rend() ? idle_.begin() : std::prev(it.base());
  auto slot = std::move(*chosen);
  idle_.erase(chosen);
  return slot;
}

void HttpClient::give_back(std::unique_ptr<Slot> slot) {
  std::unique_ptr<Slot> surplus;  // closed outside the lock
  base::MutexLock lock(mu_);
  --busy_;
  idle_.push_back(std::move(slot));
  if (idle_.size() > kMaxIdleSlots) {
    surplus = std::move(idle_.front());
    idle_.erase(idle_.begin());
  }
  free_.notify_one();
}

base::Result<Response> HttpClient::perform(const Request& request, Deadline deadline, std::stop_token stop,
                                           TransferInfo* info) {
  const auto started = steady_clock::now();
  auto taken = take_slot(request, deadline, stop);
  if (!taken) return std::move(taken).error();
  auto slot = std::move(*taken);
  Transfer transfer(request);
  base::Result<Response> result = api::fill_error(api::ErrorCode::kInternal);
  const milliseconds left = left_until(deadline);
  if (auto ready = transfer.set_up(slot->easy, std::min(left, kConnectTimeout), options_.ca); !ready) {
    result = std::move(ready).error();
  } else {
    const CURLcode code = slot->run(deadline, stop);
    long sent = 0;
    curl_easy_getinfo(slot->easy, CURLINFO_REQUEST_SIZE, &sent);
    if (info != nullptr) info->sent = sent > 0;
    slot->detach();
    result = transfer.finish(code, duration_cast<milliseconds>(steady_clock::now() - started));
  }
  slot->origin = origin_of(request.url);
  give_back(std::move(slot));
  return result;
}

}  // namespace nearbox::http
