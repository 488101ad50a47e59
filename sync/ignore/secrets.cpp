// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/secrets.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <string>

namespace nearbox::ignore {
namespace {

constexpr char lower_byte(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), lower_byte);
  return out;
}

bool is_token_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.';
}

// Tokens that say what they are. Source: the formats their issuers document for secret scanners.
constexpr std::string_view kTokenPrefixes[] = {
    "ghp_",     "gho_",     "ghu_",     "ghs_",  "ghr_",  "github_pat_", "glpat-", "npm_",  "sk-",
    "sk_live_", "sk_test_", "rk_live_", "xoxb-", "xoxp-", "xoxa-",       "xoxr-",  "xoxs-", "AKIA",
    "ASIA",     "AIza",     "e2b_",     "hf_",   "pypi-", "dop_v1_",     "SG.",    "eyJ",
};
constexpr std::size_t kTokenTail = 16;  // characters behind the prefix; fewer are a word

constexpr std::size_t kAmountDigits = 7;

constexpr std::string_view kCredentialWords[] = {
    "token",      "secret",     "passw",     "api_key",    "apikey",         "api-key",     "private_key",
    "privatekey", "access_key", "accesskey", "credential", "encryption_key", "signing_key", "auth_key",
};

constexpr std::string_view kPlaceholders[] = {
    "changeme",  "change-me",  "change_me",  "placeholder", "example",  "todo",
    "none",      "null",       "true",       "false",       "yes",      "no",
    "undefined", "replace-me", "replace_me", "replaceme",   "redacted", "dummy",
};

bool has_token(std::string_view text) {
  for (const auto prefix : kTokenPrefixes) {
    for (auto at = text.find(prefix); at != std::string_view::npos; at = text.find(prefix, at + 1)) {
      if (at > 0 && is_token_char(text[at - 1])) continue;
      const auto tail = text.substr(at + prefix.size());
      const auto end = std::find_if_not(tail.begin(), tail.end(), is_token_char);
      if (static_cast<std::size_t>(end - tail.begin()) >= kTokenTail) return true;
    }
  }
  return false;
}

bool is_placeholder(std::string_view value) {
  if (value.empty() || value.front() == '$' || value.front() == '<' ||
      value.find("${") != std::string_view::npos) {
    return true;
  }
  const auto text = lower(value);
  if (std::find(std::begin(kPlaceholders), std::end(kPlaceholders), text) != std::end(kPlaceholders))
    return true;
  if (text.starts_with("your") && text.find_first_of("-_ ") != std::string::npos) return true;
  return text.find_first_not_of("x*.-") == std::string::npos;
}

// "scheme://user:password@host".
bool has_url_password(std::string_view line) {
  for (auto at = line.find("://"); at != std::string_view::npos; at = line.find("://", at + 3)) {
    const auto host = line.substr(at + 3);
    const auto authority = host.substr(0, host.find_first_of("/?# \t\"'"));
    const auto sign = authority.rfind('@');
    if (sign == std::string_view::npos) continue;
    const auto colon = authority.find(':');
    if (colon < sign && !is_placeholder(authority.substr(colon + 1, sign - colon - 1))) return true;
  }
  return false;
}

std::string_view trim(std::string_view text) {
  const auto from = text.find_first_not_of(" \t\r\"'");
  if (from == std::string_view::npos) return {};
  return text.substr(from, text.find_last_not_of(" \t\r\"',;") - from + 1);
}

bool is_secret_assignment(std::string_view line) {
  const auto sign = line.find('=');
  const auto colon = line.find(": ");
  const auto split = std::min(sign, colon);
  if (split == std::string_view::npos) return false;
  const auto key = lower(trim(line.substr(0, split)));
  const bool named = key.ends_with("_auth") || key.ends_with("authtoken") ||
                     std::any_of(std::begin(kCredentialWords), std::end(kCredentialWords),
                                 [&](auto word) { return key.find(word) != std::string::npos; });
  const auto value = trim(line.substr(split + 1));
  // A lifetime or a count, as in TOKEN_MAX_AGE.
  const bool amount = value.size() <= kAmountDigits &&
                      value.find_first_not_of("0123456789") == std::string_view::npos &&
                      key.find("passw") == std::string::npos;
  return named && !amount && !is_placeholder(value);
}

struct NameRule {
  std::string_view prefix;
  std::string_view suffix;
  SecretRule rule;
};
// A name is met by beginning and end; where one is empty the other decides alone.
constexpr NameRule kNames[] = {
    {".env.", "", {".env.*", true}},
    {".env-", "", {".env-*", true}},
    {".env_", "", {".env_*", true}},
    {"", ".pem", {"*.pem"}},
    {"", ".key", {"*.key"}},
    {"", ".p12", {"*.p12"}},
    {"", ".pfx", {"*.pfx"}},
    {"id_rsa", "", {"id_rsa*"}},
    {"id_dsa", "", {"id_dsa*"}},
    {"id_ecdsa", "", {"id_ecdsa*"}},
    {"id_ed25519", "", {"id_ed25519*"}},
};
struct ExactRule {
  std::string_view name;
  SecretRule rule;
  bool directories;  // these alone
};
constexpr ExactRule kExact[] = {
    {".env", {".env", true}, false},     {".envrc", {".envrc", true}, false},
    {".npmrc", {".npmrc", true}, false}, {".netrc", {".netrc"}, false},
    {".pypirc", {".pypirc"}, false},     {".git-credentials", {".git-credentials"}, false},
    {".ssh", {".ssh/"}, true},           {".aws", {".aws/"}, true},
    {".gnupg", {".gnupg/"}, true},
};
constexpr SecretRule kDockerRule = {".docker/config.json"};
constexpr std::string_view kHarmlessEnds[] = {".example", ".sample", ".template"};

}  // namespace

const SecretRule* find_secret(std::string_view path, bool directory) {
  const auto slash = path.rfind('/');
  const auto last = slash == std::string_view::npos ? path : path.substr(slash + 1);
  // Most names end here: what the list names begins with a dot or `id_`, or ends in one of four ways.
  if (last.size() < 4) return nullptr;
  const char head = lower_byte(last.front());
  if (head != '.' && head != 'i' && last[last.size() - 4] != '.' && last != "config.json") return nullptr;
  const auto name = lower(last);
  for (const auto& exact : kExact) {
    if (name == exact.name && (directory || !exact.directories)) return &exact.rule;
  }
  if (!directory && name == "config.json" &&
      (path == ".docker/config.json" || path.ends_with("/.docker/config.json"))) {
    return &kDockerRule;
  }
  for (const auto& one : kNames) {
    if (!name.starts_with(one.prefix) || !name.ends_with(one.suffix)) continue;
    if (one.rule.unless_harmless && std::any_of(std::begin(kHarmlessEnds), std::end(kHarmlessEnds),
                                                [&](auto end) { return name.ends_with(end); })) {
      continue;
    }
    return &one.rule;
  }
  return nullptr;
}

bool carries_credential(std::string_view text) {
  if (text.size() > kMaxCredentialScan) return true;
  if (text.find("PRIVATE KEY-----") != std::string_view::npos || has_token(text)) return true;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    auto line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    line = trim(line);
    if (has_url_password(line)) return true;  // in comments, too: what was commented out is still valid
    if (line.starts_with('#') || line.starts_with(';')) continue;
    if (is_secret_assignment(line)) return true;
  }
  return false;
}

bool is_dot_git(std::string_view name) {
  // Code points that HFS+ leaves out when it compares names, in UTF-8.
  std::string plain;
  for (std::size_t i = 0; i < name.size();) {
    const auto byte = [&](std::size_t k) {
      return k < name.size() ? static_cast<unsigned char>(name[k]) : 0U;
    };
    const auto last = byte(i + 2);
    const bool general =
        byte(i) == 0xe2 &&
        ((byte(i + 1) == 0x80 && ((last >= 0x8c && last <= 0x8f) || (last >= 0xaa && last <= 0xae))) ||
         (byte(i + 1) == 0x81 && last >= 0xaa && last <= 0xaf));
    const bool mark = byte(i) == 0xef && byte(i + 1) == 0xbb && last == 0xbf;
    if (general || mark) {
      i += 3;
    } else {
      plain += lower_byte(name[i++]);
    }
  }
  // NTFS: an alternate stream behind a colon, spaces and dots at the end, and the short name.
  plain.resize(std::min(plain.find(':'), plain.size()));
  const auto end = plain.find_last_not_of(" .");
  plain.resize(end == std::string::npos ? 0 : end + 1);
  return plain == ".git" || plain == "git~1";
}

}  // namespace nearbox::ignore
