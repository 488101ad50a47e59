// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "sync/push/options.h"
#include "sync/push/report.h"

namespace nearbox::daemon {

// The result object of a sync, as scripts and MCP clients get it.
struct SyncNames {
  std::string sandbox;
  std::string local_path;
  std::string sync_id;
};
nlohmann::json sync_result(const push::Report& report, const SyncNames& names, push::Conflicts policy);
nlohmann::json sync_progress(const push::Progress& progress);

// Bytes as JSON can carry them: what is no UTF-8 is shown as \xNN.
std::string shown(const std::string& bytes);

}  // namespace nearbox::daemon
