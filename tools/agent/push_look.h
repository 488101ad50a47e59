// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/channel/mux_server.h"
#include "client/wire/push.h"
#include "tools/agent/push_stage.h"
#include "tools/agent/roots.h"

namespace nearbox::agent {

// Which of the checks are not as they were, in the order of the list. Directories that follow one another are
// opened once.
std::vector<wire::PushDiffers> check_stamps(const Root& root, const wire::PushCheckList& list);
wire::PushCompareReply compare_items(const Root& root, const wire::PushCompareList& list);

// Writes a part's segments into the file that is staged.
base::Result<void> write_part(const Root& root, StageDir& stage, const wire::PushPart& part,
                              wire::ByteView body);
// Streams the chunks of a file.
void answer_chunks(const Root& root, StageDir& stage, const wire::PushChunks& call,
                   channel::Responder& responder);

// Streams the names in directories: files, directories and symlinks of the root's own mount.
void answer_list(const Root& root, const wire::PushList& call, channel::Responder& responder);

bool is_empty(const Root& root);
std::uint64_t free_bytes(const Root& root);

}  // namespace nearbox::agent
