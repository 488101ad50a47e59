// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "client/base/log.h"
#include "client/base/result.h"

namespace nearbox::cli {

// What all commands share: the global flags and how results and errors are printed.
struct App {
  bool json = false;
  bool local = false;       // --local or NEARBOX_PROVIDER=local
  std::string config_file;  // --config
  bool verbose = false;
  base::Logger log{2, base::LogLevel::kWarn};
  std::vector<std::string> rest;  // the words after --, as they are
  std::function<int()> run;       // the chosen command
};

// Prints `nearbox: TEXT` on stderr, or the JSON object on stdout with --json; returns the exit code.
int fail(const App& app, const base::Error& error);
// Prints one JSON object as a line on stdout.
void print_json(const nlohmann::json& value);
// Text from the sandbox made fit for a terminal: control characters escaped.
std::string printable(std::string_view text);

// Each adds its subcommand(s) to the parser.
void add_serve(CLI::App& parser, App& app);
void add_sandbox(CLI::App& parser, App& app);
void add_mount(CLI::App& parser, App& app);  // mount, unmount
void add_exec(CLI::App& parser, App& app);
void add_status(CLI::App& parser, App& app);  // status, flush
void add_top(CLI::App& parser, App& app);
void add_doctor(CLI::App& parser, App& app);
void add_sync(CLI::App& parser, App& app);
void add_why(CLI::App& parser, App& app);

}  // namespace nearbox::cli
