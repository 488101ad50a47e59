// SPDX-License-Identifier: Apache-2.0
#include "client/api/config.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/api/error_code.h"

namespace nearbox::api {
namespace {

namespace stdfs = std::filesystem;

// A home, a project and nothing else.
class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (stdfs::temp_directory_path() / "nearbox-config.XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    stdfs::create_directories(dir_ + "/home/.e2b");
    stdfs::create_directories(dir_ + "/home/.config/nearbox");
    stdfs::create_directories(dir_ + "/project/.git");
    stdfs::create_directories(dir_ + "/project/sub");
    sources_.environment["HOME"] = dir_ + "/home";
    sources_.project_dir = dir_ + "/project/sub";
  }
  void TearDown() override { stdfs::remove_all(dir_); }

  void write(const std::string& path, const std::string& text) { std::ofstream(dir_ + path) << text; }
  void user(const std::string& text) { write("/home/.config/nearbox/config.toml", text); }
  void project(const std::string& text) { write("/project/nearbox.toml", text); }
  void login(const std::string& text) { write("/home/.e2b/config.json", text); }
  void env(const std::string& name, const std::string& value) { sources_.environment[name] = value; }

  Config load() {
    auto config = load_config(sources_);
    EXPECT_TRUE(config) << (config ? "" : error_text(config.error()));
    return config ? *config : Config{};
  }
  std::string failure(std::string_view code) {
    auto config = load_config(sources_);
    EXPECT_FALSE(config);
    if (config) return "";
    EXPECT_EQ(code_string(config.error()), code);
    return error_text(config.error());
  }

  std::string dir_;
  ConfigSources sources_;
};

TEST_F(ConfigTest, DefaultsAreThoseOfTheReference) {
  const Config config = load();
  EXPECT_EQ(config.domain, "e2b.app");
  EXPECT_EQ(config.template_name, "base");
  EXPECT_EQ(config.sandbox_timeout.count(), 300000);
  EXPECT_EQ(config.exec_timeout.count(), 300000);
  EXPECT_EQ(config.code_timeout.count(), 60000);
  EXPECT_EQ(config.max_concurrent_executions, 16u);
  EXPECT_EQ(config.max_output_bytes, 65536u);
  EXPECT_TRUE(config.enabled);
  EXPECT_TRUE(config.validate_api_key);
  EXPECT_TRUE(config.origins.empty());
  EXPECT_EQ(control_plane_url(config), "https://api.e2b.app");
  EXPECT_EQ(code_string(require_api_key(config).error()), "auth.missing");
}

// Each source added wins over those before it.
TEST_F(ConfigTest, Precedence) {
  struct Step {
    const char* what;
    std::function<void()> add;
    const char* value;
    OriginKind kind;
  };
  const Step steps[] = {
      {"user file", [&] { user("template = \"user\"\n"); }, "user", OriginKind::kUserFile},
      {"project file", [&] { project("template = \"project\"\n"); }, "project", OriginKind::kProjectFile},
      {"--config",
       [&] {
         write("/given.json", R"({"template": "given"})");
         sources_.config_file = dir_ + "/given.json";
       },
       "given", OriginKind::kConfigFile},
      {"environment", [&] { env("E2B_TEMPLATE", "env"); }, "env", OriginKind::kEnvironment},
      {"flag", [&] { sources_.flags.emplace_back("template", "flag"); }, "flag", OriginKind::kFlag},
  };
  EXPECT_EQ(load().template_name, "base");
  for (const auto& step : steps) {
    SCOPED_TRACE(step.what);
    step.add();
    const Config config = load();
    EXPECT_EQ(config.template_name, step.value);
    EXPECT_EQ(config.origins.at("template").kind, step.kind);
  }
}

TEST_F(ConfigTest, LoginFileIsTheLastResortForTheKey) {
  login(R"({"teamApiKey": "e2b_aa", "email": "x@example.org"})");
  EXPECT_EQ(load().api_key.reveal(), "e2b_aa");
  login(R"({"teamApiKey": "e2b_aa", "projectApiKey": "e2b_bb"})");
  EXPECT_EQ(load().api_key.reveal(), "e2b_bb");
  EXPECT_EQ(load().origins.at("apiKey").kind, OriginKind::kLogin);
  user("apiKey = \"e2b_cc\"\n");
  EXPECT_EQ(load().api_key.reveal(), "e2b_cc");
  env("E2B_API_KEY", "e2b_dd");
  EXPECT_EQ(load().api_key.reveal(), "e2b_dd");
  login("not json");
  EXPECT_EQ(load().api_key.reveal(), "e2b_dd");
}

TEST_F(ConfigTest, EveryVariableIsRead) {
  env("E2B_API_KEY", "e2b_0123");
  env("E2B_VALIDATE_API_KEY", "false");
  env("E2B_DOMAIN", "example.org:9443");
  env("E2B_API_URL", "http://127.0.0.1:3000/");
  env("E2B_SANDBOX_URL", "http://[::1]:3001/gateway");
  env("E2B_DEBUG", "true");
  env("E2B_ENABLED", "0");
  env("E2B_TEMPLATE", "t");
  env("E2B_TIMEOUT_MS", "1000");
  env("E2B_SANDBOX_TIMEOUT", "2000");
  env("E2B_MAX_EXECUTION_TIME", "3000");
  env("E2B_LANGUAGES", "python, r");
  env("E2B_MAX_CODE_SIZE", "4000");
  env("E2B_MAX_ACTIVE_SANDBOXES", "5");
  env("E2B_MAX_CONCURRENT_EXECUTIONS", "6");
  env("E2B_SANDBOX_METADATA", R"({"a": "b"})");
  env("E2B_MAX_OUTPUT_LENGTH", "7000");
  env("E2B_MODE", "production");
  env("DEBUG", "x,e2b:*");
  env("E2B_SANDBOX_POOL_SIZE", "3");
  env("E2B_ENABLE_ANYTHING", "1");
  const Config config = load();
  EXPECT_EQ(config.api_key.reveal(), "e2b_0123");
  EXPECT_FALSE(config.validate_api_key);
  EXPECT_EQ(config.domain, "example.org:9443");
  EXPECT_EQ(control_plane_url(config), "http://127.0.0.1:3000");
  EXPECT_EQ(config.sandbox_url, "http://[::1]:3001/gateway");
  EXPECT_TRUE(config.debug);
  EXPECT_EQ(code_string(require_enabled(config).error()), "disabled");
  EXPECT_EQ(config.template_name, "t");
  EXPECT_EQ(config.exec_timeout.count(), 1000);
  EXPECT_EQ(config.code_timeout.count(), 1000);
  EXPECT_EQ(config.sandbox_timeout.count(), 2000);
  EXPECT_EQ(config.max_execution_time->count(), 3000);
  EXPECT_EQ(config.languages, (std::vector<std::string>{"python", "r"}));
  EXPECT_EQ(config.max_code_bytes, 4000u);
  EXPECT_EQ(config.max_active_sandboxes, 5u);
  EXPECT_EQ(config.max_concurrent_executions, 6u);
  EXPECT_EQ(config.metadata.at("a"), "b");
  EXPECT_EQ(config.max_output_bytes, 7000u);
  EXPECT_TRUE(config.log_debug);
  EXPECT_EQ(config.notices.size(), 2u);
}

TEST_F(ConfigTest, PastedBlockOfOtherTools) {
  write("/openclaw.json", R"({"apiKey": "e2b_ff", "enabled": true, "template": "base", "timeoutMs": 600000,
    "autoTriggerThreshold": "100MB", "workDir": "/home/user/w", "envs": {"A": "1"}, "metadata": {"k": "v"},
    "allowInternetAccess": false, "execTimeoutMs": 5000, "sandboxId": "iabc", "domain": "e2b.dev"})");
  sources_.config_file = dir_ + "/openclaw.json";
  const Config config = load();
  EXPECT_EQ(config.sandbox_timeout.count(), 600000);
  EXPECT_EQ(config.auto_trigger_bytes, 100'000'000u);
  EXPECT_EQ(config.work_dir, "/home/user/w");
  EXPECT_EQ(config.envs.at("A"), "1");
  EXPECT_FALSE(config.allow_internet_access);
  EXPECT_EQ(config.exec_timeout.count(), 5000);
  EXPECT_EQ(control_plane_url(config), "https://api.e2b.dev");
}

TEST_F(ConfigTest, UnusableValuesNameTheirVariable) {
  const std::pair<const char*, const char*> rows[] = {{"E2B_DOMAIN", "https://e2b.app"},
                                                      {"E2B_DOMAIN", "a b"},
                                                      {"E2B_API_URL", "ftp://x"},
                                                      {"E2B_API_URL", "https://user@host"},
                                                      {"E2B_SANDBOX_URL", "http://h/?q"},
                                                      {"E2B_BASE_URL", "nonsense"},
                                                      {"E2B_DEBUG", "maybe"},
                                                      {"E2B_TIMEOUT_MS", "12s"},
                                                      {"E2B_SANDBOX_TIMEOUT", "0"},
                                                      {"E2B_MAX_EXECUTION_TIME", "-1"},
                                                      {"E2B_SANDBOX_METADATA", "[]"},
                                                      {"E2B_SANDBOX_METADATA", R"({"a": 1})"},
                                                      {"E2B_MODE", "mock"},
                                                      {"E2B_MODE", "local"},
                                                      {"E2B_MAX_CODE_SIZE", "99999999999999999999"},
                                                      {"E2B_API_KEY", "e2b_\n"},
                                                      {"NEARBOX_PROVIDER", "other"},
                                                      {"E2B_LANGUAGES", ","}};
  for (const auto& [name, value] : rows) {
    SCOPED_TRACE(std::string(name) + "=" + value);
    sources_.environment.clear();
    env("HOME", dir_ + "/home");
    env(name, value);
    EXPECT_TRUE(failure("arg.invalid").starts_with(std::string(name) + " is not valid: "));
  }
}

TEST_F(ConfigTest, TablesOfSettings) {
  project("[fetch]\ndeny = [\"updatedb\", \"tracker-*\"]\nmax_per_hour = \"2GB\"\n");
  const Config config = load();
  EXPECT_EQ(config.fetch_deny, (std::vector<std::string>{"updatedb", "tracker-*"}));
  EXPECT_EQ(config.fetch_max_bytes_per_hour, 2'000'000'000u);
  write("/more.json", R"({"fetch": {"deny": [], "max_per_hour": 1000}})");
  sources_.config_file = dir_ + "/more.json";
  EXPECT_TRUE(load().fetch_deny.empty());
  EXPECT_EQ(load().fetch_max_bytes_per_hour, 1000u);
  write("/wrong.json", R"({"fetch": {"allow": []}})");
  sources_.config_file = dir_ + "/wrong.json";
  const auto unknown = load_config(sources_);
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message().find("fetch.allow in "), std::string::npos)
      << unknown.error().message();
}

TEST_F(ConfigTest, TheLimitOfTheMirror) {
  EXPECT_EQ(load().mirror_max_entries, 4'000'000u);
  project("[mirror]\nmax_entries = 5000\n");
  EXPECT_EQ(load().mirror_max_entries, 5000u);
}

TEST_F(ConfigTest, UnknownKeysNameKeyAndFile) {
  project("tempalte = \"x\"\n");
  EXPECT_EQ(failure("arg.unknown"), "unknown argument tempalte in " + dir_ + "/project/nearbox.toml");
  project("");
  write("/c.json", R"({"timeout": 1})");
  sources_.config_file = dir_ + "/c.json";
  EXPECT_EQ(failure("arg.unknown"), "unknown argument timeout in " + dir_ + "/c.json");
}

TEST_F(ConfigTest, BrokenFilesAreErrors) {
  user("template = [1\n");
  EXPECT_NE(failure("arg.invalid").find("line "), std::string::npos);
  user("timeoutMs = \"300\"\n");  // a number's text is no number in a file
  EXPECT_TRUE(failure("arg.invalid").starts_with("timeoutMs in " + dir_));
  user("template = 1.5\n");
  EXPECT_TRUE(failure("arg.invalid").starts_with("template in " + dir_));
  user("");
  sources_.config_file = dir_ + "/missing.json";
  EXPECT_TRUE(failure("arg.invalid").starts_with("--config "));
  write("/broken.json", "{");
  sources_.config_file = dir_ + "/broken.json";
  EXPECT_NE(failure("arg.invalid").find("JSON"), std::string::npos);
  stdfs::create_directory(dir_ + "/dir.json");
  sources_.config_file = dir_ + "/dir.json";
  EXPECT_NE(failure("arg.invalid").find("directory"), std::string::npos);
}

TEST_F(ConfigTest, AProjectFileDoesNotRedirectMyKey) {
  env("E2B_API_KEY", "e2b_00");
  for (const char* line : {"apiUrl = \"https://evil.example\"", "domain = \"evil.example\"",
                           "sandboxUrl = \"https://evil.example\""}) {
    project(line);
    EXPECT_NE(failure("arg.invalid").find("where your key is sent"), std::string::npos) << line;
  }
  sources_.environment.erase("E2B_API_KEY");
  project("apiKey = \"e2b_11\"\ndomain = \"own.example\"\n");
  EXPECT_EQ(load().domain, "own.example");
  project("apiKeyFile = \"/etc/hostname\"\n");
  EXPECT_NE(failure("arg.invalid").find("key file"), std::string::npos);
  project("template = \"fine\"\n");
  EXPECT_EQ(load().template_name, "fine");
}

TEST_F(ConfigTest, KeyFile) {
  write("/key", "e2b_1234\n");
  login(R"({"projectApiKey": "e2b_bb"})");
  env("NEARBOX_API_KEY_FILE", dir_ + "/key");
  EXPECT_EQ(load().api_key.reveal(), "e2b_1234");
  env("E2B_API_KEY", "e2b_5678");
  EXPECT_EQ(load().api_key.reveal(), "e2b_5678");
  sources_.environment.erase("E2B_API_KEY");
  env("NEARBOX_API_KEY_FILE", dir_ + "/nothing");
  EXPECT_TRUE(failure("arg.invalid").starts_with("NEARBOX_API_KEY_FILE"));
}

TEST_F(ConfigTest, KeyFormat) {
  Config config;
  for (const char* key : {"x", "e2b_", "e2b_xyz", "e2b_12 4"}) {
    config.api_key = base::Secret(key);
    EXPECT_EQ(code_string(require_api_key(config).error()), "auth.format") << key;
  }
  config.validate_api_key = false;
  config.api_key = base::Secret("any-form");
  EXPECT_TRUE(require_api_key(config));
  config.api_key = base::Secret("line\r\nX: y");
  EXPECT_FALSE(require_api_key(config));
}

TEST_F(ConfigTest, MapsAreMerged) {
  user("[metadata]\na = \"1\"\nb = \"1\"\n");
  env("E2B_SANDBOX_METADATA", R"({"b": "2"})");
  EXPECT_EQ(load().metadata, (std::map<std::string, std::string>{{"a", "1"}, {"b", "2"}}));
}

TEST_F(ConfigTest, ShownValuesHideSecretsAndNameOrigins) {
  env("E2B_API_KEY", "e2b_deadbeef");
  user("[envs]\nTOKEN = \"hush\"\n");
  bool seen = false;
  for (const auto& row : show_config(load())) {
    EXPECT_EQ(row.value.find("deadbeef"), std::string::npos);
    EXPECT_EQ(row.value.find("hush"), std::string::npos);
    if (row.key == "apiKey") {
      EXPECT_EQ(row.value, "********");
      EXPECT_EQ(row.origin, "environment E2B_API_KEY");
      seen = true;
    }
    if (row.key == "domain") {
      EXPECT_EQ(row.origin, "default");
    }
  }
  EXPECT_TRUE(seen);
}

TEST_F(ConfigTest, ProjectFileIsLookedForUpToTheRepository) {
  write("/nearbox.toml", "template = \"outside\"\n");
  EXPECT_EQ(load().template_name, "base");  // .git is in project/: what lies above is not ours
  project("template = \"root\"\n");
  EXPECT_EQ(load().template_name, "root");
  write("/project/sub/nearbox.toml", "template = \"near\"\n");
  EXPECT_EQ(load().template_name, "near");
}

TEST(ParseSize, Units) {
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size("100MB"), 100'000'000u);
  EXPECT_EQ(parse_size("64 MiB"), 64ull << 20);
  EXPECT_EQ(parse_size("2k"), 2000u);
  for (const char* bad : {"", "MB", "-1", "1.5GB", "1XB", "99999999999TB", "1 2"})
    EXPECT_FALSE(parse_size(bad));
}

TEST_F(ConfigTest, StateDirIsPrivate) {
  const Environment here = environment_of(sources_);
  auto path = state_dir(here);
  ASSERT_TRUE(path) << path.error().message();
  EXPECT_EQ(*path, dir_ + "/home/.local/state/nearbox");
  struct stat st {};
  ASSERT_EQ(::stat(path->c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);
  ASSERT_EQ(::chmod(path->c_str(), 0755), 0);
  ASSERT_TRUE(state_dir(here));
  ASSERT_EQ(::stat(path->c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);

  env("XDG_STATE_HOME", dir_ + "/state");
  EXPECT_EQ(*state_dir(environment_of(sources_)), dir_ + "/state/nearbox");
  env("XDG_STATE_HOME", "relative");
  EXPECT_EQ(*state_dir(environment_of(sources_)), *path);

  env("XDG_STATE_HOME", dir_ + "/link");
  stdfs::create_directories(dir_ + "/link");
  stdfs::create_directory_symlink(dir_ + "/home", dir_ + "/link/nearbox");
  EXPECT_FALSE(state_dir(environment_of(sources_)));
}

TEST_F(ConfigTest, HomeComesFromTheUserDatabase) {
  sources_.environment.erase("HOME");
  const auto home = home_dir(environment_of(sources_));
  ASSERT_TRUE(home);
  EXPECT_TRUE(home->starts_with("/"));
}

}  // namespace
}  // namespace nearbox::api
