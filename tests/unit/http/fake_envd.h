// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/base/mutex.h"
#include "tests/unit/http/fault_server.h"

namespace nearbox::test {

// As much of envd as deploying needs, in memory, and stricter: a request without the headers that
// belong to it, with a deadline for the process or with a keepalive of 0 is refused with 418.
class FakeEnvd {
 public:
  struct File {
    std::string bytes;
    std::uint32_t mode = 0644;
    std::string modified_at = "2026-06-01T12:00:00.5Z";
  };
  struct RunReply {
    std::string out, err;
    int exit_code = 0;
  };
  using Run = std::function<RunReply(const std::string& cmd, const std::vector<std::string>& args)>;

  FakeEnvd();
  std::string url() const { return server_.url(); }
  const FaultServer& server() const { return server_; }
  void set_run(Run run);
  // Called first; true: it has answered.
  void set_before(std::function<bool(FaultConnection&, FaultRequest&)> before);
  void put(const std::string& path, File file);
  std::map<std::string, File> files();
  std::vector<std::string> commands();
  std::vector<FaultRequest> requests();
  std::size_t uploads();

 private:
  bool handle(FaultConnection& c, FaultRequest& r);
  void handle_upload(FaultConnection& c, const FaultRequest& r);
  void handle_rpc(FaultConnection& c, const FaultRequest& r);
  void handle_start(FaultConnection& c, const FaultRequest& r);

  base::Mutex mu_;
  std::map<std::string, File> files_ GUARDED_BY(mu_);
  std::vector<std::string> commands_ GUARDED_BY(mu_);
  std::vector<FaultRequest> requests_ GUARDED_BY(mu_);
  std::size_t uploads_ GUARDED_BY(mu_) = 0;
  Run run_ GUARDED_BY(mu_);
  std::function<bool(FaultConnection&, FaultRequest&)> before_ GUARDED_BY(mu_);
  FaultServer server_;  // last: its threads use the others
};

}  // namespace nearbox::test
