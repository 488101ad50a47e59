// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/channel/mux_server.h"
#include "client/wire/messages.h"
#include "tools/agent/orphans.h"
#include "tools/agent/passwd.h"
#include "tools/agent/roots.h"

namespace nearbox::agent {

inline constexpr std::size_t kReadChunk = 256 * 1024;

// What reading calls need: of one session, outlives every call.
struct ReadContext {
  const Identity& who;
  RootTable& roots;
  OrphanTable& orphans;
};

// Each answers its call wholly: chunks and the end. They block on the disk and on the client's
// credit, so they belong to a worker.
void answer_read(ReadContext& context, const wire::Read& call, channel::Responder& responder);
void answer_read_many(ReadContext& context, const wire::ReadMany& call, channel::Responder& responder);
void answer_stat_many(ReadContext& context, const wire::StatMany& call, channel::Responder& responder);
void answer_stat_fs(ReadContext& context, const wire::PathCall& call, channel::Responder& responder);
void answer_get_xattr(ReadContext& context, const wire::XattrCall& call, channel::Responder& responder);
void answer_list_xattr(ReadContext& context, const wire::XattrCall& call, channel::Responder& responder);
void answer_read_link(ReadContext& context, const wire::PathCall& call, channel::Responder& responder);
void answer_info(const Identity& who, channel::Responder& responder);

}  // namespace nearbox::agent
