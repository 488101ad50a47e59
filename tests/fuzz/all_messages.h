// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <tuple>

#include "client/wire/changes.h"
#include "client/wire/messages.h"
#include "client/wire/push.h"

namespace nearbox::test {

// Every message there is; a fuzz input's first byte is an index into it, so new ones go to the end.
using AllMessages = std::tuple<
    wire::Hello, wire::Welcome, wire::Refused, wire::CallHead, wire::Attr, wire::NodeId, wire::InfoReply,
    wire::RootOpen, wire::RootReply, wire::Tree, wire::TreeReply, wire::TreeHurry, wire::PathCall,
    wire::StatMany, wire::StatResult, wire::StatManyReply, wire::Read, wire::ReadReply, wire::ReadManyItem,
    wire::ReadMany, wire::ReadManyRecord, wire::StatFsReply, wire::XattrCall, wire::BytesReply,
    wire::OrderKey, wire::Op, wire::Apply, wire::Event, wire::OpDone, wire::ProcExit, wire::Subscribe,
    wire::Confirm, wire::OrphanForget, wire::ProcStart, wire::ProcReply, wire::ProcAttach, wire::ProcOutput,
    wire::ProcInput, wire::ProcInputReply, wire::ProcSignal, wire::ProcResize, wire::ProcConsumed,
    wire::ProcForget, wire::ProcInfo, wire::ProcListReply, wire::Watch, wire::WatchReply, wire::Barrier,
    wire::BarrierReply, wire::NameState, wire::Changed, wire::Lost, wire::PushPacked, wire::PushCheckList,
    wire::PushBegin, wire::PushBeginReply, wire::PushCompareList, wire::PushCompareReply, wire::PushBatch,
    wire::PushReply, wire::PushPart, wire::PushChunks, wire::PushChunk, wire::PushChunksReply, wire::PushList,
    wire::PushListed, wire::Mounts, wire::MountBelow, wire::MountsReply>;

// Calls fn.template operator()<M>(index) for each of them.
template <class F, std::size_t... I>
void for_each_message(F&& fn, std::index_sequence<I...>) {
  (fn.template operator()<std::tuple_element_t<I, AllMessages>>(I), ...);
}
template <class F>
void for_each_message(F&& fn) {
  for_each_message(fn, std::make_index_sequence<std::tuple_size_v<AllMessages>>());
}

}  // namespace nearbox::test
