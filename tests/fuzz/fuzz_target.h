// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "client/wire/codec.h"

// A fuzz target: NEARBOX_FUZZ(bytes) { decode `bytes`, a wire::ByteView; abort on a broken promise }
//
// tests/fuzz/CMakeLists.txt lists it once as nearbox_fuzz(NAME LIBS …) for NAME_fuzz.cpp. That makes
// the gtest program fuzz_NAME_corpus (label fuzz), which runs the files of corpus/NAME and simple
// variations of them, and, with the preset `fuzz`, the libFuzzer program fuzz_NAME.
#define NEARBOX_FUZZ(bytes)                                                          \
  static void nearbox_fuzz_one(nearbox::wire::ByteView bytes);                       \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size); \
  int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {           \
    nearbox_fuzz_one({reinterpret_cast<const std::byte*>(data), size});              \
    return 0;                                                                        \
  }                                                                                  \
  static void nearbox_fuzz_one(nearbox::wire::ByteView bytes)

// A promise that holds for any input.
#define NEARBOX_FUZZ_CHECK(condition) \
  do {                                \
    if (!(condition)) std::abort();   \
  } while (false)
